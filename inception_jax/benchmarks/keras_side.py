"""The Keras side of a comparison, as a worker process: `keras.applications` on JAX, in Keras's own stateless step.

`versus.keras_side` gives the command that starts it, in any interpreter that has Keras 3 and JAX.
"""

from __future__ import annotations

import os
import time
from typing import Any

from inception_jax.benchmarks import equivalents, synthetic_batches, worker
from inception_jax.benchmarks.worker import Unavailable


class KerasSide:
    """Runs blocks of steps of a network of `keras.applications`; a `worker.SideProtocol`."""

    def prepare(self, workload: dict[str, Any]) -> dict[str, Any]:
        """Builds the network and takes one step of each kind, so that all is compiled.

        Args:
          workload: from `versus.make_workload`.

        Returns:
          "versions", "device", "flags", "parameters" (their number), "pictures" (SHA-256 of the batches),
          "prepare_seconds" (imports included) and "losses" (of the training step, if there was one).

        Raises:
          Unavailable: a package is missing, or the workload is not in float32.
        """
        began = time.perf_counter()
        if workload["dtype"] != "float32":
            raise Unavailable("Keras is compared in float32 only")
        os.environ["KERAS_BACKEND"] = "jax"
        try:
            import jax
            import keras
        except ImportError as error:
            raise Unavailable(f"cannot import Keras on JAX ({error}); pip install 'keras>=3' jax") from error
        keras.utils.set_random_seed(workload["seed"])
        size, classes = workload["image_size"], workload["num_classes"]
        self._model = model = getattr(keras.applications, equivalents.KERAS[workload["model"]].name)(
            weights=None, classes=classes, classifier_activation=None, input_shape=(size, size, 3)
        )
        self._optimizer = keras.optimizers.SGD(workload["learning_rate"], workload["momentum"])
        self._optimizer.build(model.trainable_variables)
        self._state = [
            [variable.value for variable in variables]
            for variables in (
                model.trainable_variables,
                model.non_trainable_variables,
                self._optimizer.variables,
            )
        ]
        host = [
            synthetic_batches.make_batch(workload["seed"], number, workload["batch_size"], size, classes)
            for number in range(workload["batches"])
        ]
        self._batches = [jax.device_put((batch["image"], batch["label"])) for batch in host]
        self._train, self._infer = jax.jit(self._train_step, donate_argnums=0), jax.jit(self._inference_step)
        self._taken = 0
        losses = [loss for kind in workload["kinds"] for loss in self.block(kind, 1).get("losses", [])]
        return {
            "versions": {"keras": keras.__version__, "jax": jax.__version__},
            "device": jax.devices()[0].device_kind,
            "flags": {"threads": len(os.sched_getaffinity(0)), "backend": "jax"},
            "parameters": sum(value.size for value in self._state[0]),
            "pictures": synthetic_batches.fingerprint(host),
            "prepare_seconds": time.perf_counter() - began,
            "losses": losses,
        }

    def block(self, kind: str, steps: int) -> dict[str, Any]:
        """Takes `steps` steps and waits for the device once, at the end.

        Returns:
          "seconds" and "cpu_seconds" of the whole block; "losses" of its steps ("train"), or "finite", whether the last
          logits are finite ("inference").
        """
        import jax
        import numpy as np

        results: list[Any] = []
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            images, labels = self._batches[self._taken % len(self._batches)]
            self._taken += 1
            if kind == "train":
                self._state, loss = self._train(self._state, images, labels)
                results.append(loss)
            else:
                results = [self._infer(self._state[:2], images)]
        jax.block_until_ready((self._state, results))
        answer: dict[str, Any] = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
        if kind == "train":
            return answer | {"losses": [float(loss) for loss in results]}
        return answer | {"finite": bool(np.isfinite(results[-1]).all())}

    def _train_step(self, state: list[Any], images: Any, labels: Any) -> tuple[list[Any], Any]:
        """A step as Keras's guide to custom training loops on JAX writes it: `stateless_call`, `stateless_apply`."""
        import jax

        def loss(trainable: Any, fixed: Any) -> tuple[Any, Any]:
            logits, fixed = self._model.stateless_call(trainable, fixed, _normalize(images), training=True)
            chosen = jax.numpy.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)
            return -chosen.mean(), fixed

        trainable, fixed, slots = state
        (value, fixed), gradients = jax.value_and_grad(loss, has_aux=True)(trainable, fixed)
        trainable, slots = self._optimizer.stateless_apply(slots, gradients, trainable)
        return [trainable, fixed, slots], value

    def _inference_step(self, state: list[Any], images: Any) -> Any:
        return self._model.stateless_call(*state, _normalize(images), training=False)[0]


def _normalize(images: Any) -> Any:
    """uint8 to [-1, 1], as `training.preprocess` does it."""
    return (images.astype("float32") - 127.5) * (1 / 127.5)


if __name__ == "__main__":
    worker.serve(KerasSide())
