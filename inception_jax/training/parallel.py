"""Compiles the steps over a mesh of devices, in mode "jit" or "pmap", with donation of the state (data parallelism).

The state is replicated over the mesh, as global arrays in either mode; a batch is split over it by rows. Both modes
compile the same function of a per-device batch, so they give the same numbers. With several processes, each has one
contiguous block of the mesh, in the order of the processes, and so one contiguous block of the rows of a batch.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from inception_jax.errors import UserError, counted
from inception_jax.models.platforms import TRACED_FOR, traced_for_device
from inception_jax.models.prepared_weights import PreparedFunction
from inception_jax.training.compilation import enable_compilation_cache as enable_compilation_cache
from inception_jax.training.compilation import no_compilation as no_compilation
from inception_jax.training.compilation import refuse_disabled_jit, return_freed_memory
from inception_jax.training.step import AXIS

Program = Callable[[jax.stages.Lowered], jax.stages.Compiled]

_REPLICATED, _SPLIT = PartitionSpec(), PartitionSpec(AXIS)
_ALIASED = 64  # bytes; XLA's alignment of arrays on CPUs


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step. It takes arrays of the shapes that it was compiled for and rejects others: it never retraces.

    Attributes:
      call: the executable.
      seconds: wall time of tracing, lowering and compiling.
      lowering_seconds: of these, tracing and lowering, which the compilation cache does not save.
    """

    call: Callable[..., Any]
    seconds: float
    lowering_seconds: float = 0.0

    def __call__(self, *arguments: Any) -> Any:
        """Calls the executable."""
        return self.call(*arguments)


@dataclasses.dataclass(frozen=True)
class PreparedStep(Compiled):
    """A compiled step `(variables, batch)` that prepares its variables when they are others than in the last call.

    `call` takes (selected, prepared, batch). The step keeps the last variables and what it prepared of them.

    Attributes:
      read: the places of the arrays of the variables that `call` takes, `selected`.
      prepare: the executable that prepares variables, of one device.
      take: gives it the variables of that device.
      share: puts what it returns on all devices.
    """

    read: Sequence[int] = dataclasses.field(kw_only=True)
    prepare: Callable[..., Any] = dataclasses.field(kw_only=True)
    take: Callable[[Any], Any] = dataclasses.field(kw_only=True)
    share: Callable[[Any], Any] = dataclasses.field(kw_only=True)
    _latest: list[tuple[list[Any], Any]] = dataclasses.field(
        default_factory=list, init=False, repr=False, compare=False
    )

    def __call__(self, variables: Any, batch: Any) -> Any:
        """Calls the executable, after `prepare` where an array of the variables is another than in the last call."""
        leaves = jax.tree.leaves(variables)
        then, prepared = self._latest[0] if self._latest else ([], [])
        if len(leaves) != len(then) or any(one is not other for one, other in zip(leaves, then, strict=True)):
            prepared = self.share(self.prepare(self.take(variables)))
            self._latest[:] = [(leaves, prepared)]  # another thread may replace it before this one's call
        return self.call([leaves[place] for place in self.read], prepared, batch)


class Devices:
    """The devices of a run, as a mesh with one data axis.

    Attributes:
      mode: "jit" (`jax.jit` of `jax.shard_map`) or "pmap".
      mesh: the devices, over all processes.
      count: number of devices, over all processes.
      process_count: number of processes; each has as many devices.
      local_count: number of this process's devices.
      described: whether the devices are described and not present: steps can be compiled for them, not run. They count
        as one process's.
    """

    def __init__(self, mode: str = "jit", count: int | None = None, *, described: Sequence[Any] | None = None):
        """Makes the mesh.

        Args:
          mode: "jit" or "pmap".
          count: number of devices to use, over all processes, the first ones of each; None: all.
          described: devices of a described topology (`jax.experimental.topologies`), for which programs are compiled
            and cannot run; `count` is not read. None: those of JAX's backend.

        Raises:
          UserError: there are fewer devices, or the processes would not have equally many.
        """
        self.mode = mode
        devices = choose_devices(jax.devices(), count) if described is None else list(described)
        self.described = described is not None
        self.mesh = Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))
        self.count = self.mesh.size
        self.local_count = self.count if self.described else len(self.mesh.local_devices)
        self.process_count = self.count // self.local_count
        self._flags: dict[bool, jax.Array] = {}

    @property
    def first_device(self) -> jax.Device:
        """The first device; the others are of its kind."""
        return self.mesh.devices.flat[0]

    def describe(self) -> str:
        """Formats number and kind of the devices, the number of processes and the mode, for a log."""
        device = self.first_device
        plural = "s" if self.count > 1 else ""
        processes = f" of {self.process_count} processes" if self.process_count > 1 else ""
        return f"{self.count} {device.platform} device{plural}{processes} ({device.device_kind}), mode {self.mode}"

    def check_batch(self, field: str, size: int, micro_batches: int = 1) -> int:
        """Checks that a batch divides over the devices.

        Args:
          field: the config field with the size, for the message.
          size: examples in the global batch.
          micro_batches: per device and step (gradient accumulation).

        Raises:
          UserError: the batch does not divide; names the nearest sizes that do.
        """
        unit = self.count * micro_batches
        if size % unit:
            below, above = size // unit * unit, -(-size // unit) * unit
            sizes = f"{below} or {above}" if below else str(above)
            raise UserError(
                f"config.{field} = {size} does not divide over {counted(self.count, 'device')} with {micro_batches} "
                f"micro-batch{'es' * (micro_batches > 1)} each: {sizes} would"
            )
        return size // self.count

    def round_up(self, size: int) -> int:
        """Rounds a batch size up to a multiple of the devices."""
        return -(-max(1, size) // self.count) * self.count

    def choose_rows(self, examples: int, batch_size: int) -> int:
        """Chooses the rows of a batch for so many examples: few sizes, each of which is one program, serve all numbers.

        Args:
          examples: of a request.
          batch_size: the most rows; rounded up to a multiple of the devices.

        Returns:
          The smallest power of two, times the devices, that holds the examples; `batch_size` where that is less.
        """
        each = -(-max(1, examples) // self.count)
        return min(self.count << (each - 1).bit_length(), self.round_up(batch_size))

    def replicate(self, tree: Any) -> Any:
        """Copies a tree of host or device arrays to every device, as global arrays; never aliases them."""
        local = NamedSharding(self.mesh.local_mesh, _REPLICATED)
        tree = jax.tree.map(np.asarray, tree)
        if self.first_device.platform == "cpu":
            # One by one: a copy lives no longer than its transfer.
            tree = jax.tree.map(lambda x: _copy_to(local, x), tree)
        else:
            tree = jax.device_put(tree, local)
        if self.process_count == 1:
            return tree
        # `device_put` over several processes would compare every leaf between them, a collective and a compilation
        # for each shape.
        return jax.tree.map(
            lambda x: jax.make_array_from_single_device_arrays(
                x.shape, self.replicated, [shard.data for shard in x.addressable_shards]
            ),
            tree,
        )

    def share(self, tree: Any) -> Any:
        """Puts a tree of host or device arrays on every device, as global arrays for steps that donate nothing.

        The devices of a CPU have one copy of each in a process, which is not the caller's; others are as `replicate`
        puts them.
        """
        if self.first_device.platform != "cpu":
            return self.replicate(tree)
        first = self.mesh.local_devices[0]
        return jax.tree.map(lambda x: self._share_one(_copy_to(first, np.asarray(x))), tree)

    def _share_one(self, x: jax.Array) -> jax.Array:
        """The first part of an array, which is the same on all CPU devices, as the part of each."""
        first = x.addressable_shards[0].data
        parts = [jax.device_put(np.asarray(first), device, may_alias=True) for device in self.mesh.local_devices[1:]]
        return jax.make_array_from_single_device_arrays(first.shape, self.replicated, [first, *parts])

    def place_numbers(self, numbers: Any) -> Any:
        """Puts the numbers that a step takes as arguments on every device, as global arrays.

        A Python number keeps its weak type, by which it is an operand like a constant; `replicate` would lose it.

        Args:
          numbers: a tree of Python numbers and small NumPy arrays, the same on all processes.
        """
        return jax.jit(lambda tree: tree, out_shardings=self.replicated)(numbers)

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of the state: replicated on every device."""
        return NamedSharding(self.mesh, _REPLICATED)

    @property
    def split(self) -> NamedSharding:
        """The sharding of a batch: rows over the data axis."""
        return NamedSharding(self.mesh, _SPLIT)

    def put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Transfers this process's rows of a batch, to global arrays split by rows ([D, b/D, …] with pmap)."""
        if self.mode == "pmap":
            batch = {name: rows.reshape(self.local_count, -1, *rows.shape[1:]) for name, rows in batch.items()}
        return {name: jax.make_array_from_process_local_data(self.split, rows) for name, rows in batch.items()}

    def flag(self, value: bool) -> jax.Array:
        """Makes the leaf "stop" of a training batch: whether this process requests to stop.

        The step sums it over all devices, so that every process reads whether any process requested it. The array of
        each value is made once and reused.

        Returns:
          bool [D], one per device ([D, 1] with pmap).
        """
        if value not in self._flags:
            self._flags[value] = self.put({"stop": np.full(self.local_count, value)})["stop"]
        return self._flags[value]

    def abstract_batch(
        self,
        batch_size: int,
        image_size: int,
        flag: bool = False,
        crops: int = 1,
        channels: int = 3,
        label_columns: int | None = None,
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes, dtypes and shardings of a batch on the devices, to compile for.

        Args:
          batch_size: examples in the global batch.
          image_size: height and width in pixels.
          flag: whether the batch has the leaf "stop".
          crops: of each example; an axis of the images where there are several.
          channels: of an image.
          label_columns: classes of labels of 0 and 1, where examples have several; None: one class number each.
        """
        several = (crops,) if crops > 1 else ()
        leaves: dict[str, tuple[tuple[int, ...], Any]] = {
            "image": ((batch_size, *several, image_size, image_size, channels), np.uint8),
            "label": ((batch_size,), np.int32) if label_columns is None else ((batch_size, label_columns), np.uint8),
            "mask": ((batch_size,), np.bool_),
        } | ({"stop": ((self.count,), np.bool_)} if flag else {})
        if self.mode == "pmap":
            leaves = {
                name: ((self.count, rows // self.count, *shape), dtype)
                for name, ((rows, *shape), dtype) in leaves.items()
            }
        return {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=self.split) for name, (shape, dtype) in leaves.items()
        }

    def get(self, tree: Any) -> Any:
        """Copies row-split arrays of a step to the host: this process's rows, in order (the inverse of `put`)."""

        def fetch(x: jax.Array) -> np.ndarray:
            shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start or 0)
            rows = np.concatenate([np.asarray(shard.data) for shard in shards])
            return rows.reshape(-1, *rows.shape[2:]) if self.mode == "pmap" else rows

        return jax.tree.map(fetch, tree)

    def first_rows(self, batch: dict[str, jax.Array], count: int) -> dict[str, np.ndarray]:
        """Copies the first rows of a batch to the host, at most those of this process's first device."""

        def fetch(x: jax.Array) -> np.ndarray:
            shard = min(x.addressable_shards, key=lambda shard: shard.index[0].start or 0)
            rows = np.asarray(shard.data)
            return (rows[0] if self.mode == "pmap" else rows)[:count]

        return {name: fetch(x) for name, x in batch.items()}

    def compile_train(
        self,
        step: Callable,
        state: Any,
        batch: Any,
        *numbers: Any,
        compile_program: Program = jax.stages.Lowered.compile,
    ) -> Compiled:
        """Compiles `(state, batch, *numbers) -> (state, metrics)`; the state is donated.

        Args:
          step: for one device, from `step.make_train_step`, `step_numbers.make_step` or `step_loop.make_loop`.
          state: as the step will be called with; arrays, or shapes with shardings.
          batch: as `state`; of a loop a tuple of batches.
          *numbers: trees of numbers and small arrays, the same on all devices; from `place_numbers` if the step runs.
          compile_program: from the lowered program to the executable.
        """
        if self.mode == "pmap":
            wrapped = jax.pmap(
                step,
                AXIS,
                in_axes=(None, 0, *(None for _ in numbers)),
                out_axes=(None, None),
                donate_argnums=0,
                devices=list(self.mesh.devices.flat),
            )
            batch = self._concrete(batch)
        else:
            wrapped = self._jit_train(step, len(numbers))
        return self._compile(compile_program, wrapped, state, batch, *numbers)

    def trace_train(self, step: Callable, state: Any, batch: dict[str, Any], *numbers: Any) -> jax.stages.Traced:
        """Traces the training step of mode "jit", to lower it for platforms that need not be present.

        Args:
          step: as in `compile_train`.
          state: as in `compile_train`.
          batch: as in `compile_train`.
          *numbers: as in `compile_train`.
        """
        return self._jit_train(step, len(numbers)).trace(state, batch, *numbers)

    def _jit_train(self, step: Callable, numbers: int = 0) -> Any:
        arguments = (_REPLICATED, _SPLIT, *(_REPLICATED for _ in range(numbers)))
        return jax.jit(self._shard(step, (_REPLICATED, _REPLICATED), arguments), donate_argnums=0)

    def compile_eval(
        self,
        step: Callable,
        variables: Any,
        batch: dict[str, Any],
        *,
        prepares: bool = False,
        compile_program: Program = jax.stages.Lowered.compile,
    ) -> Compiled:
        """Compiles `(variables, batch) -> (sums, predictions by row)`, without donation.

        Args:
          step: for one device, from `step.make_eval_step`.
          variables: as the step will be called with; arrays, or shapes with shardings.
          batch: as `variables`.
          prepares: whether, on CPUs, what depends on the variables alone is computed once for the calls that have the
            same ones (`prepared_weights.py`); they must not change in their place, as a NumPy array can.
          compile_program: as in `compile_train`.
        """
        if self.mode == "pmap":
            batch = self._concrete(batch)
        if not prepares or self.first_device.platform != "cpu":
            return self._compile(compile_program, self._map_eval(step, 1), variables, batch)
        parts = PreparedFunction(step, jax.tree.map(self._on_one_device, batch))
        with traced_for_device(self.first_device):  # both parts, as of all devices
            shapes = jax.eval_shape(self._shard(parts.prepare, _REPLICATED, (_REPLICATED,)), variables)
        prepared = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.replicated) for x in shapes]
        # One device of a process prepares for all.
        first = self._compile(compile_program, jax.jit(parts.prepare), self._take_first(variables))
        if self.mode == "pmap":
            prepared = self._concrete(prepared)
        selected = parts.select(variables)
        second = self._compile(compile_program, self._map_eval(parts.compute, 2), selected, prepared, batch)
        seconds, lowering_seconds = first.seconds + second.seconds, first.lowering_seconds + second.lowering_seconds
        share = functools.partial(jax.tree.map, self._share_one)
        return PreparedStep(
            *(second.call, seconds, lowering_seconds),
            read=parts.read,
            prepare=first.call,
            take=self._take_first,
            share=share,
        )

    def _take_first(self, variables: Any) -> Any:
        """Global arrays that are the same on all devices, as those of the first one of this process; or shapes."""
        first = self.mesh.local_devices[0]
        alone = SingleDeviceSharding(first)  # a part of an array on a mesh of one device is still on the mesh

        def take(x: Any) -> Any:
            if isinstance(x, jax.ShapeDtypeStruct):
                return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=alone)
            parts = x.addressable_shards if isinstance(x, jax.Array) else []
            return next((jax.device_put(part.data, alone) for part in parts if part.device == first), x)

        return jax.tree.map(take, variables)

    def _map_eval(self, step: Callable, replicated: int) -> Any:
        """An evaluation step of one device, with so many replicated arguments before the batch, as one of all."""
        arguments = (*(_REPLICATED for _ in range(replicated)), _SPLIT)
        if self.mode == "pmap":
            axes = (*(None for _ in range(replicated)), 0)
            return jax.pmap(step, AXIS, in_axes=axes, out_axes=(None, 0), devices=list(self.mesh.devices.flat))
        return jax.jit(self._shard(step, (_REPLICATED, _SPLIT), arguments))

    def _on_one_device(self, rows: Any) -> jax.ShapeDtypeStruct:
        """Shape and dtype of one device's part of a leaf of a batch."""
        shape = rows.shape[1:] if self.mode == "pmap" else (rows.shape[0] // self.count, *rows.shape[1:])
        return jax.ShapeDtypeStruct(shape, rows.dtype)

    def compile_plain(
        self, function: Callable, *arguments: Any, compile_program: Program = jax.stages.Lowered.compile
    ) -> Compiled:
        """Compiles a function of replicated arguments, without collectives or donation.

        Args:
          function: of arrays.
          *arguments: as it will be called with; arrays, or shapes with shardings.
          compile_program: as in `compile_train`.
        """
        return self._compile(compile_program, jax.jit(function), *arguments)

    def count_flops(self, step: Callable, state: Any, batch: dict[str, Any], platform: str = "cuda") -> float | None:
        """FLOPs of one call of a step on all devices, by XLA's cost analysis of its program.

        Counted before optimization, and on a CPU in the program for an accelerator: XLA counts the body of a loop once,
        and the convolution algorithms of this package for CPUs are loops.

        Args:
          step: for one device; without gradient accumulation, which is a loop.
          state: shapes or arrays, as the step will be called with.
          batch: shapes of the global batch, as `abstract_batch` gives them in mode "jit".
          platform: of the accelerator for whose program it is counted; none needs to be present.

        Returns:
          The FLOPs; None: the devices' compiler does not count, as JAX's plugin for GPUs.
        """
        wrapped = jax.jit(self._shard(step, out=(_REPLICATED, _REPLICATED)))
        with TRACED_FOR(platform):
            lowered = wrapped.trace(state, batch).lower(lowering_platforms=(platform,))
        try:
            analysis = lowered.cost_analysis()
        except jax.errors.JaxRuntimeError:  # of devices that are described, jax 0.11
            analysis = None
        return self.count * analysis["flops"] if analysis else None  # the program is one device's

    def _concrete(self, batch: Any) -> Any:
        """Replaces shapes by zeros if there are several processes: `pmap` would take them for those of one process."""
        if self.process_count == 1:
            return batch
        return jax.tree.map(
            lambda x: (
                x
                if isinstance(x, jax.Array)
                else jax.make_array_from_callback(x.shape, x.sharding, functools.partial(_zeros, x))
            ),
            batch,
        )

    def _compile(self, compile_program: Program, function: Any, *arguments: Any) -> Compiled:
        refuse_disabled_jit()
        start = time.perf_counter()
        with traced_for_device(self.first_device):
            lowered = function.lower(*arguments)
        lowering = time.perf_counter() - start
        executable = compile_program(lowered)
        return_freed_memory()
        return Compiled(executable, time.perf_counter() - start, lowering)

    def _shard(self, step: Callable, out: Any, arguments: tuple = (_REPLICATED, _SPLIT)) -> Callable:
        # check_vma=False: the step reduces its gradients itself; with the check on, JAX would add a second reduction
        # when it transposes the replicated parameters, and the gradient would be N times too large.
        return jax.shard_map(step, mesh=self.mesh, in_specs=arguments, out_specs=out, check_vma=False)


def _copy_to(place: Any, array: np.ndarray) -> jax.Array:
    """A copy on a CPU's device, or one for each of a sharding; made when this returns: JAX copies behind the call."""
    return jax.block_until_ready(jax.device_put(_copy_aligned(array), place, may_alias=False))


def _copy_aligned(array: np.ndarray) -> np.ndarray:
    """An array at a multiple of 64 bytes is copied to a place that is none; others are returned.

    On a CPU `jax.device_put` takes such an array as it is, `may_alias=False` or not (jax 0.10.2). It would change with
    that of the caller, and a program that it is donated to would copy it.
    """
    if array.ctypes.data % _ALIASED:
        return array
    buffer = np.empty(array.nbytes + 2 * _ALIASED, np.uint8)
    first = -buffer.ctypes.data % _ALIASED + _ALIASED // 4
    copy = buffer[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def choose_devices(devices: list[Any], count: int | None) -> list[Any]:
    """Chooses the first `count` devices (None: all), equally many of each process, in the order of the processes.

    Raises:
      UserError: there are fewer, or the processes would not have equally many; names the counts that are possible.
    """
    processes: dict[int, list[Any]] = collections.defaultdict(list)
    for device in sorted(devices, key=lambda device: (device.process_index, device.id)):
        processes[device.process_index].append(device)
    if count is None:
        count = len(devices)
    elif count > len(devices):
        raise UserError(f"config.parallel.devices = {count}: there are {len(devices)} ({devices[0].platform})")
    per_process, rest = divmod(count, len(processes))
    fewest = min(map(len, processes.values()))
    if rest or per_process > fewest:
        held = ", ".join(str(len(block)) for block in processes.values())
        sizes = ", ".join(str(each * len(processes)) for each in range(1, fewest + 1))
        raise UserError(
            f"config.parallel.devices = {count} does not divide over {len(processes)} processes "
            f"(they have {held} devices): {sizes} would"
        )
    return [device for block in processes.values() for device in block[:per_process]]


def _zeros(like: jax.ShapeDtypeStruct, rows: Any) -> np.ndarray:
    return np.zeros(like.shape, like.dtype)[rows]
