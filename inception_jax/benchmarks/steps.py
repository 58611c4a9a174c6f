"""Compiles and runs the timed steps: the training step of `train` and a forward pass, with all data on the devices."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from inception_jax.benchmarks import roofline, synthetic_batches
from inception_jax.errors import UserError
from inception_jax.models import packed_kernels
from inception_jax.models.cost import NetworkCost, count_cost
from inception_jax.models.initialization import init_variables, variable_shapes
from inception_jax.training import preprocess, step_numbers
from inception_jax.training import state as states
from inception_jax.training.batch_norm import BatchNormGroups
from inception_jax.training.compilation import forget_lowered_programs
from inception_jax.training.parallel import Compiled, Devices
from inception_jax.training.setup import Setup
from inception_jax.training.step import make_train_step
from inception_jax.training.step_loop import TrainCall

_HIT = "/jax/compilation_cache/cache_hits"  # jax/_src/compiler.py


@dataclasses.dataclass(frozen=True)
class CompileTimes:
    """Seconds until a step can run.

    Attributes:
      lowering: tracing and lowering, for the first time in the process.
      cold: the compiler, with an empty persistent compilation cache.
      cached: lowering and the compiler, with the step in the cache: the wait of a run that is started again.
    """

    lowering: float
    cold: float
    cached: float


class StepPrograms:
    """The compiled steps of one setup, of shapes alone: no array is made, so the devices need not be present.

    Attributes:
      setup: the setup that is measured.
      cost: parameters and layers of the network.
      compiled: {kind: compiled step}.
    """

    _state: Any  # a TrainState of arrays, or of shapes with shardings

    def __init__(self, setup: Setup):
        """Traces the shapes of the state.

        Args:
          setup: from `workload.build_setup`.
        """
        self.setup = setup
        self.cost: NetworkCost = count_cost(setup.model, setup.input.image_size)
        self.compiled: dict[str, Compiled] = {}
        create = functools.partial(states.create, optimizer=setup.optimizer, keep_ema=setup.objective.ema_decay > 0)
        shapes = jax.eval_shape(create, variable_shapes(setup.model, setup.input.image_size))
        replicated = setup.devices.replicated
        self._state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), shapes)

    def layers(self, kind: str) -> list[Any]:
        """The convolutions and fully connected layers that a step of this kind runs."""
        return roofline.layers_of(self.cost, kind, bool(self.setup.objective.aux_weights))

    def compile(self, kind: str) -> Compiled:
        """Compiles a step and stores it in `compiled`, in place of an earlier one."""
        setup, devices = self.setup, self.setup.devices
        batch = _abstract_batch(setup, devices, setup.config.batch_size)
        if kind == "train":
            self.compiled[kind] = self._compile_train(batch)
        else:
            step = make_inference_step(setup.model, setup.input.normalization, setup.input.dtype)
            prepares = packed_kernels.gains(setup.model.convolution)
            self.compiled[kind] = devices.compile_eval(step, self._state.variables(), batch, prepares=prepares)
        return self.compiled[kind]

    def _compile_train(self, batch: dict[str, Any]) -> Compiled:
        """Compiles a single step, also where a run takes several in one execution."""
        step, numbers = step_numbers.make_step(self.setup), step_numbers.read_numbers(self.setup)
        return self.setup.devices.compile_train(step, self._state, batch, numbers)

    def trace_train(self) -> jax.stages.Traced:
        """Traces the training step, to lower it for platforms that need not be present."""
        setup, devices = self.setup, self.setup.devices
        batch = _abstract_batch(setup, devices, setup.config.batch_size)
        return devices.trace_train(step_numbers.make_step(setup), self._state, batch, step_numbers.read_numbers(setup))

    def count_flops(self, kind: str) -> tuple[float, float] | None:
        """The compiler's count of a step's FLOPs over all devices: (FLOPs per image, FLOPs per step beside the images).

        The second are those on parameters: gradient norm, optimizer, EMA. The step is counted for the batch and for one
        of twice its size; the difference is due to the images (`Devices.count_flops` says how one step is counted).
        JAX's plugin for GPUs does not count: the compiler for CPUs, which is in every JAX, counts one device's program.

        Returns:
          Both numbers; None: no compiler of this process counts (JAX_PLATFORMS=cuda leaves none), or batch-norm groups
          span devices.
        """
        setup, size = self.setup, self.setup.config.batch_size
        platform = setup.devices.first_device.platform
        share = 1 if platform == "cpu" else setup.devices.count  # number of devices that one counts for
        if share > 1 and setup.batch_norm not in (None, BatchNormGroups("local")):
            return None  # its groups name devices that the counting program has not
        devices = Devices("jit", setup.devices.count) if platform == "cpu" else _counting_devices(setup.devices)
        step: Callable[..., Any]
        if kind == "train":
            # The same FLOPs, without a loop over micro-batches.
            objective = dataclasses.replace(setup.objective, accumulation=1)
            step = make_train_step(setup.model, setup.optimizer, objective, devices=devices.count)
            state = _shapes(self._state)
        else:
            step = make_inference_step(setup.model, setup.input.normalization, setup.input.dtype)
            state = _shapes(self._state.variables())
        target = "tpu" if platform == "tpu" else "cuda"
        batches = (_abstract_batch(setup, devices, number * size // share) for number in (1, 2))
        one, two = (devices.count_flops(step, state, batch, target) for batch in batches)
        if one is None or two is None:
            return None
        return share * (two - one) / size, share * (2 * one - two)

    @property
    def block_names(self) -> set[str]:
        """Names of the network's blocks, as they are in the names of its operations."""
        return {layer.block for layer in self.cost.layers} | {block.name for block in self.cost.blocks}

    @property
    def state_bytes(self) -> int:
        """Bytes of the training state on one device: parameters, statistics, optimizer, EMA."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self._state))

    @property
    def num_parameters(self) -> int:
        """Number of trained parameters, auxiliary heads included."""
        return sum(leaf.size for leaf in jax.tree.leaves(self._state.params))


class Bench(StepPrograms):
    """State, batches and compiled steps of one setup. A kind of step must be compiled before it runs.

    Attributes:
      fingerprint: SHA-256 of the batches.
    """

    def __init__(self, setup: Setup, *, batches: int = 3, seed: int = 0, trains: bool = True):
        """Makes the initial state and the batches, and puts both on the devices.

        Args:
          setup: from `workload.build_setup`.
          batches: number of batches, used in turn so that no step finds the images of the last one in a cache.
          seed: seed of the images.
          trains: whether training steps will run; False: the state has neither that of the optimizer nor an EMA.

        Raises:
          UserError: there are several processes.
        """
        config, devices = setup.config, setup.devices
        if devices.process_count > 1:
            raise UserError(f"the benchmark runs in one process, not in {devices.process_count}; start it alone")
        host = [
            synthetic_batches.make_batch(
                seed,
                number,
                config.batch_size,
                setup.input.image_size,
                len(setup.data.class_names),
                setup.input.channels,
            )
            for number in range(batches)
        ]
        if columns := setup.data.train.dataset.label_columns:  # several labels: each image has that of its pattern
            host = [batch | {"label": np.eye(columns, dtype=np.uint8)[batch["label"]]} for batch in host]
        super().__init__(setup)
        self.fingerprint = synthetic_batches.fingerprint(host)
        variables = init_variables(setup.model, jax.random.key(config.seed), setup.input.image_size)
        state = states.create(variables, setup.optimizer, keep_ema=setup.objective.ema_decay > 0)
        forget_lowered_programs()
        if trains:
            self._state = devices.replicate(state)
        else:
            self._state = devices.share(dataclasses.replace(state, opt_state=(), ema=None))
        self._call = TrainCall(setup, setup.steps_per_execution)
        self._batches = [devices.put(batch) for batch in host]
        self._losses: list[tuple[dict[str, jax.Array], int]] = []

    def time_compilation(self, kind: str) -> CompileTimes:
        """Compiles a step twice: with an empty persistent cache, and then from that cache, as a new process would.

        Raises:
          UserError: the second compilation did not use the cache.
        """
        with _empty_compilation_cache():
            jax.clear_caches()
            cold = self.compile(kind)
            jax.clear_caches()
            with _record_events(_HIT) as hits:
                cached = self.compile(kind)
        if not hits:
            raise UserError(
                "the second compilation did not use the persistent compilation cache, so its time is not known; "
                "measure without it: --no_compile_times"
            )
        return CompileTimes(cold.lowering_seconds, cold.seconds - cold.lowering_seconds, cached.seconds)

    def run(self, kind: str, steps: int) -> Any:
        """Takes steps, using the batches in turn; waits for the devices and returns the output of the last call.

        A call takes `steps_per_call` steps of training, as in a run, and the last one what is left.
        """
        limit = self.steps_per_call if kind == "train" else 1
        for first in range(0, steps, limit):
            numbers = range(first, min(first + limit, steps))
            output = self.step(kind, [self._batches[number % len(self._batches)] for number in numbers])
            if kind == "train":
                self._losses.append((output, len(numbers)))
        jax.block_until_ready((self._state, output))
        return output

    @property
    def steps_per_call(self) -> int:
        """Training steps that one call takes at most: `parallel.steps_per_execution`."""
        return self._call.limit

    def step(self, kind: str, batches: Sequence[dict[str, jax.Array]]) -> Any:
        """Dispatches the steps of batches that are on the devices: one, or of training up to `steps_per_call`.

        Returns:
          Their metrics ("train", see `TrainCall`) or the output ("inference"), which the devices may not have computed
          yet.
        """
        if kind == "inference":
            (batch,) = batches
            return self.compiled[kind](self._state.variables(), batch)
        self._state, metrics = self._call(self.compiled[kind], self._state, batches)
        return metrics

    def _compile_train(self, batch: dict[str, Any]) -> Compiled:
        return self.setup.devices.compile_train(self._call.function(), *self._call.arguments(self._state, batch))

    def pop_losses(self) -> list[float]:
        """The mean loss of every training step since the last call, in order; waits for the devices."""
        losses, self._losses = self._losses, []
        return [
            float(loss) / float(count)
            for row, steps in jax.device_get(losses)
            for loss, count in list(zip(np.ravel(row["loss"]), np.ravel(row["count"]), strict=True))[:steps]
        ]


def make_inference_step(
    model: nn.Module, normalization: preprocess.Normalization, dtype: Any
) -> Callable[[Any, dict[str, jax.Array]], tuple[dict, dict[str, jax.Array]]]:
    """Builds the forward pass of a per-device batch: (variables, batch) -> ({}, {"logits": float [b, classes]}).

    Args:
      model: a network of this package.
      normalization: how uint8 pixels become the input of the network.
      dtype: compute dtype of the network.
    """

    def step(variables: Any, batch: dict[str, jax.Array]) -> tuple[dict, dict[str, jax.Array]]:
        images = preprocess.preprocess(batch["image"], normalization=normalization, dtype=dtype)
        output: Any = model.apply(variables, images, train=False)
        return {}, {"logits": output.logits}

    return step


def _counting_devices(devices: Devices) -> Devices:
    """One device of the process's CPU, whose compiler counts FLOPs; the first of the run's own where there is none."""
    try:
        return Devices("jit", described=jax.devices("cpu")[:1])
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        return Devices("jit", described=list(devices.mesh.devices.flat[:1]))


def quarter_means(losses: Sequence[float]) -> tuple[float, float]:
    """Means of the first and of the last quarter of the losses (of one loss at least)."""
    count = max(1, len(losses) // 4)
    return float(np.mean(losses[:count])), float(np.mean(losses[-count:]))


def _shapes(tree: Any) -> Any:
    """The tree with a ShapeDtypeStruct for each array."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@contextlib.contextmanager
def _empty_compilation_cache() -> Iterator[None]:
    """Within the context, JAX's persistent compilation cache is an empty directory that stores every program."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
        "jax_enable_compilation_cache",
    )
    before = {name: getattr(jax.config, name) for name in names}
    with tempfile.TemporaryDirectory(prefix="compilation_cache_") as directory:
        try:
            for name, value in zip(names, (directory, 0.0, 0, True), strict=True):
                jax.config.update(name, value)
            compilation_cache.reset_cache()  # JAX reads the directory's name only once otherwise
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()


@contextlib.contextmanager
def _record_events(name: str) -> Iterator[list[str]]:
    """Within the context, every occurrence of a `jax.monitoring` event is added to the list."""
    events: list[str] = []

    def record(event: str, **details: str | int) -> None:
        if event == name:
            events.append(event)

    jax.monitoring.register_event_listener(record)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_listener(record)


def _abstract_batch(setup: Setup, devices: Devices, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    columns = setup.data.train.dataset.label_columns
    return devices.abstract_batch(
        batch_size, setup.input.image_size, channels=setup.input.channels, label_columns=columns
    )
