"""`TrainedNetwork`: a network with its weights, loaded from a workdir or a checkpoint for evaluation and prediction."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from inception_jax import config as configs
from inception_jax import extensions
from inception_jax.checkpoints.reading import load_record, load_variables
from inception_jax.config import Config
from inception_jax.data import images
from inception_jax.data.pipeline import EvalPipeline
from inception_jax.errors import UserError
from inception_jax.metrics import Accumulator
from inception_jax.runs import manifest
from inception_jax.training import network_setup, run_length
from inception_jax.training.eval_loop import evaluate
from inception_jax.training.parallel import Compiled, Devices
from inception_jax.training.restore import CLASSES
from inception_jax.training.step import make_eval_step

Step = int | str | None  # a str is "best"; checkpoints.reading refuses any other
Weights = Literal["raw", "ema"]


def load_config(workdir: str | Path) -> ConfigDict:
    """Reads the config that a workdir's run was started with.

    Raises:
      UserError: there is no run there.
    """
    values = manifest.read_config(workdir)
    if values is None:
        raise UserError(f"--workdir={workdir}: there is no run there (no {manifest.CONFIG})")
    return configs.from_dict(values, copies=Path(workdir) / extensions.DIRECTORY)


def load_class_names(workdir: str | Path) -> list[str]:
    """Reads the class names of a workdir's run; the data set itself need not be on this machine.

    Raises:
      UserError: the run ended before it wrote them.
    """
    record = manifest.read_json_object(Path(workdir) / CLASSES)
    if record is None:
        raise UserError(f"--workdir={workdir}: the run has not begun (no {CLASSES})")
    return record["names"]


def default_weights(config_dict: ConfigDict) -> Literal["raw", "ema"]:
    """Returns "ema" where the run keeps an EMA of the weights, with which the papers evaluate; else "raw"."""
    return "ema" if config_dict.ema.decay else "raw"


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """A network with its weights on the devices.

    Attributes:
      config: of its run.
      devices: that have its weights.
      model: its definition.
      variables: "params" and "batch_stats", replicated over the devices.
      step: the training step of the weights.
      weights: "raw" or "ema".
      class_names: one per class.
      input: how images become its input, with the run's evaluation crop.
    """

    config: Config
    devices: Devices
    model: nn.Module
    variables: Any
    step: int
    weights: str
    class_names: list[str]
    input: network_setup.NetworkInput

    @property
    def image_size(self) -> int:
        """Height and width of the input, in pixels."""
        return self.input.image_size

    @property
    def crop(self) -> images.EvalCrop:
        """The run's evaluation crop."""
        return self.input.eval_crop

    def compile(self, batch_size: int, top_k: int = 5) -> Compiled:
        """Compiles the evaluation step.

        Args:
          batch_size: over all devices.
          top_k: classes per image in the step's result.

        Raises:
          UserError: the network has no classifier.
        """
        if not self.class_names:
            raise _no_classifier("the network")
        step = make_eval_step(
            self.model, self.input.normalization, self.input.dtype, devices=self.devices.count, top_k=top_k
        )
        return self.devices.compile_eval(step, self.variables, self.devices.abstract_batch(batch_size, self.image_size))

    def evaluate(self, data: EvalPipeline) -> Accumulator:
        """Evaluates a split, every example once.

        Returns:
          Sums over the whole split and the predictions of all its examples.
        """
        return evaluate(
            self.compile(data.batch_size),
            self.devices,
            data,
            self.variables,
            len(self.class_names),
            run_length.read_fault_limits(self.config),
        )

    def predict(self, inputs: Sequence[np.ndarray], top_k: int = 5, batch_size: int = 32) -> dict[str, np.ndarray]:
        """Predicts the most probable classes of images of any size.

        Args:
          inputs: uint8 [height, width, 3] each, RGB.
          top_k: classes per image.
          batch_size: images per step; rounded up to a multiple of the devices.

        Returns:
          "classes" int32 [n, k] and "probabilities" [n, k], the most probable first.
        """
        batch_size = -(-min(batch_size, len(inputs)) // self.devices.count) * self.devices.count
        step = self.compile(batch_size, top_k)
        found: list[dict[str, np.ndarray]] = []
        for start in range(0, len(inputs), batch_size):
            part = inputs[start : start + batch_size]
            batch: dict[str, np.ndarray] = {
                "image": np.zeros((batch_size, self.image_size, self.image_size, 3), np.uint8),
                "label": np.zeros(batch_size, np.int32),
                "mask": np.arange(batch_size) < len(part),
            }
            for row, image in enumerate(part):
                images.center_crop(image, self.image_size, self.crop, out=batch["image"][row])
            _, rows = step(self.variables, self.devices.put(batch))
            found.append({name: values[: len(part)] for name, values in self.devices.get(rows).items()})
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def load(
    config_dict: ConfigDict,
    checkpoint: str | Path,
    class_names: list[str],
    *,
    weights: str | None = None,
    step: Step = None,
) -> TrainedNetwork:
    """Loads a network from a checkpoint of a run.

    Args:
      config_dict: the run's config.
      checkpoint: its workdir, or one checkpoint's directory.
      class_names: one per class.
      weights: "raw" or "ema"; None: "ema" where the run keeps it.
      step: None for the newest checkpoint, "best", or a step.

    Raises:
      UserError: no such checkpoint or weights, or weights that do not fit the config's network.
    """
    weights = weights or default_weights(config_dict)
    chosen = cast(int | Literal["best"] | None, step)
    variables = load_variables(checkpoint, cast(Weights, weights), chosen)
    return build(
        config_dict,
        variables,
        class_names,
        weights=weights,
        step=load_record(checkpoint, chosen)["step"],
        where=checkpoint,
    )


def build(
    config_dict: ConfigDict, variables: Any, class_names: list[str], *, weights: str, step: int, where: str | Path
) -> TrainedNetwork:
    """Builds a network from a config and variables in memory.

    Args:
      config_dict: the config of a run with such variables.
      variables: {"params": …, "batch_stats": …}.
      class_names: one per class.
      weights: what they are: "raw" or "ema".
      step: their training step.
      where: their origin, for messages.

    Raises:
      UserError: they do not fit the config's network.
    """
    config = Config(config_dict)
    if config.model.num_classes == 0 and class_names:
        raise _no_classifier(where)
    devices = Devices(config.parallel.mode, min(config.parallel.devices or jax.device_count(), jax.device_count()))
    model = network_setup.build_model(config, len(class_names))
    network_input = network_setup.read_input(config)
    _check_shapes(model, variables, network_input.image_size, where)
    return TrainedNetwork(
        config=config,
        devices=devices,
        model=model,
        variables=devices.replicate(variables),
        step=step,
        weights=weights,
        class_names=class_names,
        input=network_input,
    )


def _no_classifier(what: str | Path) -> UserError:
    return UserError(
        f"{what} has no classifier (num_classes = 0): `extract` gives its features, and `train "
        "--config.initialize.checkpoint=…` trains a classifier on them"
    )


def _check_shapes(model: nn.Module, variables: Any, image_size: int, checkpoint: str | Path) -> None:
    """Raises UserError where the weights are not this network's: names the first leaf that differs."""
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.float32)
    wanted = jax.eval_shape(model.init, jax.random.key(0), image)
    want, have = (dict(_shapes(tree)) for tree in (wanted, variables))
    for path in sorted({*want, *have}):
        if want.get(path) != have.get(path):
            raise UserError(
                f"{checkpoint}: {path} is {have.get(path, 'missing')}, the config's network has "
                f"{want.get(path, 'none')}"
            )


def _shapes(tree: Any) -> list[tuple[str, tuple[int, ...]]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [("/".join(str(part.key) for part in path), leaf.shape) for path, leaf in leaves]
