"""Summarizes a compiled program: kernels, bytes, FLOPs, collectives, bounds, and the properties that tests assert."""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import jax

from inception_jax.benchmarks import hlo_text, program_cost, program_properties
from inception_jax.benchmarks.hardware import Limits
from inception_jax.benchmarks.program_cost import Kernel
from inception_jax.training.parallel import Compiled

_WRAPPERS = ("main", "shmap_body")  # functions that JAX adds
SMALL_BYTES = 2e6  # below it a kernel takes about as long whatever it moves
SMALL_SECONDS = 1.7e-6  # on an H200: 615 kernels of less than 4 us took 1.06 ms of GoogLeNet's step of 22.1 ms


def summarize(compiled: Compiled, limits: Limits, blocks: Iterable[str] = ()) -> dict[str, Any]:
    """Summarizes a compiled program: what it runs, moves and sends, the bounds of its kernels, and its properties.

    Args:
      compiled: for one device or many; numbers are those of one.
      limits: of one device; without them there are no bounds.
      blocks: names of the network's blocks, by which kernels are grouped.

    Returns:
      "kernels", "small_kernels", "flops", "bytes", "seconds" (the sum of the kernels' bounds), "small_kernel_seconds"
      (None on a TPU, where none was measured and many are copies beside other kernels), "side", "collectives", "kinds"
      and "blocks" (rows with the same numbers), "compiler" (its own count), "properties".
    """
    executable: Any = compiled.call  # a jax.stages.Compiled
    text = executable.as_text()
    program = hlo_text.parse(text)
    kernels = program_cost.find_kernels(program)
    names = set(blocks)
    reductions = collections.Counter(program_properties.find_collectives(program))
    small = sum(kernel.runs for kernel in kernels if kernel.nbytes < SMALL_BYTES)
    return {
        **_row(kernels, limits),
        "small_kernels": small,
        "small_kernel_seconds": None if _platform(executable) == "tpu" else small * SMALL_SECONDS,
        "collectives": [
            {"opcode": one.opcode, "bytes": one.nbytes, "runs": one.runs * count} for one, count in reductions.items()
        ],
        "kinds": _rows(kernels, limits, "kind", lambda kernel: kernel.kind),
        "blocks": _rows(kernels, limits, "block", lambda kernel: find_block(kernel.op_name, names)),
        "compiler": _compilers_count(executable),
        "properties": find_properties(program, text, executable),
    }


def _platform(executable: Any) -> str:
    shardings = jax.tree.leaves((executable.input_shardings, executable.output_shardings))
    return next(iter(shardings[0].device_set)).platform


def _row(kernels: Sequence[Kernel], limits: Limits) -> dict[str, Any]:
    """Sums over kernels. The side is that of the larger part of the bound."""
    row: dict[str, Any] = {
        "kernels": sum(kernel.runs for kernel in kernels),
        "flops": sum(kernel.runs * kernel.flops for kernel in kernels),
        "bytes": sum(kernel.runs * kernel.nbytes for kernel in kernels),
        "seconds": None,
        "side": None,
    }
    if limits.flops and limits.bandwidth:
        peak, bandwidth = limits.flops, limits.bandwidth
        bounds = [
            (kernel.seconds(peak, bandwidth), kernel.flops / peak >= kernel.nbytes / bandwidth) for kernel in kernels
        ]
        row["seconds"] = sum(seconds for seconds, _ in bounds)
        row["compute_bound_seconds"] = sum(seconds for seconds, compute in bounds if compute)
        row["side"] = "compute" if 2 * row["compute_bound_seconds"] >= row["seconds"] else "memory"
    return row


def _rows(kernels: Sequence[Kernel], limits: Limits, column: str, key: Callable[[Kernel], str]) -> list[dict[str, Any]]:
    """A row per value of `key`, in the order in which they first run."""
    groups: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        groups.setdefault(key(kernel), []).append(kernel)
    return [{column: name} | _row(group, limits) for name, group in groups.items()]


def find_block(op_name: str, blocks: Collection[str]) -> str:
    """The block of a network that an operation belongs to, by JAX's path of it.

    Outside the blocks it is the function, such as `max_pool` between two of them; "the rest" if there is none:
    optimizer, losses and metrics, and copies that the compiler adds.

    Args:
      op_name: such as `jit(train_step)/transpose(jvp(InceptionV1))/inception_3a/conv_1x1/conv_general_dilated`.
      blocks: names of the blocks.
    """
    for part in re.findall(r"[\w.\-]+", op_name):
        if part in blocks:
            return part
    functions = [name for name in re.findall(r"jit\((\w+)\)", op_name)[1:] if name not in _WRAPPERS]
    return functions[0] if functions else "the rest"


def find_properties(program: hlo_text.Program, text: str, executable: Any) -> dict[str, Any]:
    """What a good program of these networks has, or has not; tests assert it.

    Returns:
      "scatters": number of scatters and select-and-scatters; "convolution_dtypes": of their operands;
      "half_precision_sums": names of reductions that add in 16 bits; "aliased": number of results written over an
      argument, "arguments": number of arguments, "donated": of those that may be written over.
    """
    arguments = jax.tree.leaves(executable.args_info, is_leaf=lambda node: hasattr(node, "donated"))
    scatters = sum(
        step.opcode in ("scatter", "select-and-scatter")
        for steps in program.computations.values()
        for step in steps.values()
    )
    return {
        "scatters": scatters,
        "convolution_dtypes": sorted(program_properties.convolution_dtypes(program)),
        "half_precision_sums": program_properties.half_precision_sums(program),
        "aliased": program_properties.count_aliased(text),
        "arguments": len(arguments),
        "donated": sum(argument.donated for argument in arguments),
    }


def _compilers_count(executable: Any) -> dict[str, float] | None:
    """The compiler's own FLOPs and bytes; None where it does not count, as that for GPUs."""
    try:
        analysis = executable.cost_analysis()
    except jax.errors.JaxRuntimeError:
        return None
    if not analysis:
        return None
    return {"flops": analysis.get("flops", 0.0), "bytes": analysis.get("bytes accessed", 0.0)}
