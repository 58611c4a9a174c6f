"""The one place that compiles: the mesh of devices, the two modes, donation, and the guard against compiling twice.

State is replicated over the mesh and lives in global arrays in either mode; a batch is split over it by rows. Both
modes compile the same function of one device's share, so they give the same numbers. With several processes, each
holds one contiguous block of the mesh, in the order of the processes, and so one contiguous block of a batch's rows.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from inception_jax.errors import UserError
from inception_jax.training.compilation import enable_compilation_cache as enable_compilation_cache
from inception_jax.training.compilation import no_compilation as no_compilation
from inception_jax.training.step import AXIS

_REPLICATED, _SPLIT = PartitionSpec(), PartitionSpec(AXIS)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step. It takes arrays of the shapes that it was compiled for and refuses any other: it never retraces.

    Attributes:
      call: the executable.
      seconds: what tracing, lowering and compiling took, wall time.
      lowering_seconds: the part of it before the compiler: tracing and lowering, which no cache saves.
    """

    call: Callable[..., Any]
    seconds: float
    lowering_seconds: float = 0.0

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)


class Devices:
    """The devices of a run, as one data axis.

    Attributes:
      mode: "jit" (`jax.jit` of `jax.shard_map`) or "pmap".
      count: how many devices there are, over all processes.
      process_count: how many processes share them, equally.
      local_count: how many of them are this process's.
    """

    def __init__(self, mode: str = "jit", count: int | None = None):
        """Args:
          mode: "jit" or "pmap".
          count: how many of the devices to use, over all processes, the first ones of each; None for all.

        Raises:
          UserError: more devices than there are, or not as many for one process as for another.
        """
        self.mode = mode
        self.mesh = Mesh(np.asarray(choose_devices(jax.devices(), count)), (AXIS,), axis_types=(AxisType.Auto,))
        self.count = self.mesh.size
        self.local_count = len(self.mesh.local_devices)
        self.process_count = self.count // self.local_count
        self._flags: dict[bool, jax.Array] = {}

    def describe(self) -> str:
        """For the first line of a log: how many devices, of what kind, of how many processes, in which mode."""
        device = self.mesh.devices.flat[0]
        plural = "s" if self.count > 1 else ""
        processes = f" of {self.process_count} processes" if self.process_count > 1 else ""
        return f"{self.count} {device.platform} device{plural}{processes} ({device.device_kind}), mode {self.mode}"

    def check_batch(self, field: str, size: int, micro_batches: int = 1) -> int:
        """The per-device batch size.

        Args:
          field: the config field that gave the size, for the message.
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
                f"config.{field} = {size} does not divide over {self.count} device(s) with {micro_batches} "
                f"micro-batch(es) each: {sizes} would"
            )
        return size // self.count

    def replicate(self, tree: Any) -> Any:
        """Copies a tree of host or device arrays to every device, as global arrays; aliases none of them."""
        local = NamedSharding(self.mesh.local_mesh, _REPLICATED)
        tree = jax.device_put(jax.tree.map(np.asarray, tree), local, may_alias=False)
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

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of state: the whole of it on every device."""
        return NamedSharding(self.mesh, _REPLICATED)

    @property
    def split(self) -> NamedSharding:
        """The sharding of a batch: rows over the data axis."""
        return NamedSharding(self.mesh, _SPLIT)

    def put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's rows of a batch, onto the devices: a global array split by rows ([D, b/D, …] under pmap)."""
        if self.mode == "pmap":
            batch = {name: rows.reshape(self.local_count, -1, *rows.shape[1:]) for name, rows in batch.items()}
        return {name: jax.make_array_from_process_local_data(self.split, rows) for name, rows in batch.items()}

    def flag(self, value: bool) -> jax.Array:
        """This process's word on a question that all must agree on, as the leaf "stop" of a training batch.

        The step adds up the words of all devices: whoever reads the sum knows whether any process said yes. Made once
        for each value, so that it costs a step nothing.

        Returns:
          bool [D], one per device ([D, 1] under pmap).
        """
        if value not in self._flags:
            self._flags[value] = self.put({"stop": np.full(self.local_count, value)})["stop"]
        return self._flags[value]

    def abstract_batch(self, batch_size: int, image_size: int, flag: bool = False) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a batch on the devices, to compile for before there is one.

        Args:
          batch_size: of the global batch.
          image_size: height and width in pixels.
          flag: whether the batch has the leaf "stop" of `flag`.
        """
        leaves = {
            "image": ((batch_size, image_size, image_size, 3), np.uint8),
            "label": ((batch_size,), np.int32),
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
        """Row-split arrays of a step back on the host, this process's rows in order (undoes `put`)."""

        def fetch(x: jax.Array) -> np.ndarray:
            shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start or 0)
            rows = np.concatenate([np.asarray(shard.data) for shard in shards])
            return rows.reshape(-1, *rows.shape[2:]) if self.mode == "pmap" else rows

        return jax.tree.map(fetch, tree)

    def compile_train(self, step: Callable, state: Any, batch: dict[str, Any]) -> Compiled:
        """Compiles `(state, batch) -> (state, metrics)`; the state is donated.

        Args:
          step: one device's step, from `step.make_train_step`.
          state: arrays (or their shapes, with shardings) as the step will be called with.
          batch: likewise.
        """
        if self.mode == "pmap":
            wrapped = jax.pmap(
                step,
                AXIS,
                in_axes=(None, 0),
                out_axes=(None, None),
                donate_argnums=0,
                devices=list(self.mesh.devices.flat),
            )
            batch = self._concrete(batch)
        else:
            wrapped = jax.jit(self._shard(step, out=(_REPLICATED, _REPLICATED)), donate_argnums=0)
        return _compile(wrapped, state, batch)

    def compile_eval(self, step: Callable, variables: Any, batch: dict[str, Any]) -> Compiled:
        """Compiles `(variables, batch) -> (sums, predictions by row)`; nothing is donated.

        Args:
          step: one device's step, from `step.make_eval_step`.
          variables: arrays as the step will be called with.
          batch: likewise.
        """
        if self.mode == "pmap":
            wrapped = jax.pmap(step, AXIS, in_axes=(None, 0), out_axes=(None, 0), devices=list(self.mesh.devices.flat))
            batch = self._concrete(batch)
        else:
            wrapped = jax.jit(self._shard(step, out=(_REPLICATED, _SPLIT)))
        return _compile(wrapped, variables, batch)

    def count_flops(self, step: Callable, state: Any, batch: dict[str, Any]) -> float:
        """Floating-point operations of one call of a step on all devices, as XLA counts them in its program.

        Counted before optimisation, and on a CPU in the program that an accelerator would get: XLA takes the body of a
        loop for one pass of it, and our forms of convolution for CPUs are loops.

        Args:
          step: one device's training or evaluation step; without gradient accumulation, which is a loop.
          state: shapes (or arrays) as the step will be called with.
          batch: of the whole batch, rows first, as `abstract_batch` gives it in mode "jit".
        """
        wrapped = jax.jit(self._shard(step, out=(_REPLICATED, _REPLICATED)))
        platform = "tpu" if self.mesh.devices.flat[0].platform == "tpu" else "cuda"  # of which none need be here
        lowered = wrapped.trace(state, batch).lower(lowering_platforms=(platform,))
        return self.count * lowered.cost_analysis()["flops"]  # the program is one device's

    def _concrete(self, batch: dict[str, Any]) -> dict[str, Any]:
        """With several processes, zeros in the place of shapes: `pmap` then takes shapes for one process's share."""
        if self.process_count == 1:
            return batch
        return {
            name: x
            if isinstance(x, jax.Array)
            else jax.make_array_from_callback(x.shape, x.sharding, lambda rows, x=x: np.zeros(x.shape, x.dtype)[rows])
            for name, x in batch.items()
        }

    def _shard(self, step: Callable, out: tuple) -> Callable:
        # check_vma=False: the step reduces its gradients itself; with the check on, JAX would add a second reduction
        # when it transposes the replicated parameters, and the gradient would be N times too large.
        return jax.shard_map(step, mesh=self.mesh, in_specs=(_REPLICATED, _SPLIT), out_specs=out, check_vma=False)


def choose_devices(devices: list[Any], count: int | None) -> list[Any]:
    """The first `count` of the devices (None: all), as many of each process, one process after another.

    Raises:
      UserError: more than there are, or not as many for one process as for another; names the numbers that would do.
    """
    processes: dict[int, list[Any]] = collections.defaultdict(list)
    for device in sorted(devices, key=lambda device: (device.process_index, device.id)):
        processes[device.process_index].append(device)
    if count is None:
        count = len(devices)
    elif count > len(devices):
        raise UserError(f"config.parallel.devices = {count}: there are {len(devices)} ({devices[0].platform})")
    share, rest = divmod(count, len(processes))
    fewest = min(map(len, processes.values()))
    if rest or share > fewest:
        held = ", ".join(str(len(block)) for block in processes.values())
        sizes = ", ".join(str(each * len(processes)) for each in range(1, fewest + 1))
        raise UserError(
            f"config.parallel.devices = {count} does not give each of {len(processes)} processes as many "
            f"(they have {held}): {sizes} would"
        )
    return [device for block in processes.values() for device in block[:share]]


def _compile(function: Any, *arguments: Any) -> Compiled:
    start = time.perf_counter()
    lowered = function.lower(*arguments)
    lowering = time.perf_counter() - start
    executable = lowered.compile()
    return Compiled(executable, time.perf_counter() - start, lowering)
