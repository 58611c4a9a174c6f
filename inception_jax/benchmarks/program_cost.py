"""Counts kernels, FLOPs and bytes of a compiled program from its text, and its roofline bound.

A kernel is an instruction of the entry computation (or of a computation that it calls, as often as it is called) that
the device runs: all but parameters, constants, tuples, bitcasts and the ends of asynchronous ones. Its bound is the
larger of FLOPs / peak FLOP/s and bytes / bandwidth. Counted are

* FLOPs of convolutions and matrix products, two per multiply-add, without those on padding; other arithmetic is not;
* bytes in main memory: every operand is read once, of one that a fusion only slices the slices, and every result is
  written once, of one that a fusion updates in place the update. Layouts' padding (TPU) counts.

Caches (an operand that is still in L2, or one that is read twice) and the launch of a kernel are not in the bound.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence

from inception_jax.benchmarks.hlo_text import Array, Instruction, Program

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "partition-id",
    "replica-id", "async-update", "add-dependency",
}  # fmt: skip
_END = "-done"  # of the end of an asynchronous instruction, such as copy-done
# Calls of a TPU's program that compute nothing: slices that lie side by side become one array; memory is set aside.
_FREE_CALLS = ("ConcatBitcast", "AllocateBuffer")
_SLICES = {"slice", "dynamic-slice", "gather"}
CALLS = {"call", "while", "conditional", "async-start"}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel, with the number of its runs per step.

    Attributes:
      name: of the instruction.
      kind: "convolution", "matrix product", "collective", or the opcode: "fusion", "copy", "reduce-window", ….
      op_name: JAX's path of the operation that it computes, or of its root.
      flops: per run.
      nbytes: bytes in main memory per run.
      runs: per step.
    """

    name: str
    kind: str
    op_name: str
    flops: float
    nbytes: float
    runs: int = 1

    def seconds(self, peak: float, bandwidth: float) -> float:
        """The roofline bound of all its runs: FLOP/s and bytes/s of the device are given."""
        return self.runs * max(self.flops / peak, self.nbytes / bandwidth)


def find_kernels(program: Program) -> list[Kernel]:
    """All kernels of a program, in the order in which they run."""
    return list(_kernels(program, program.entry, 1))


def _kernels(program: Program, computation: str, runs: int) -> Iterator[Kernel]:
    for instruction in program.computations[computation].values():
        if instruction.opcode in CALLS:
            count = runs * (trip_count(program, instruction) if instruction.opcode == "while" else 1)
            for name in instruction.called():
                if name in program.computations:
                    yield from _kernels(program, name, count)
        elif not _is_free(instruction):
            yield _kernel(program, computation, instruction, runs)


def _is_free(instruction: Instruction) -> bool:
    if instruction.opcode in _FREE or instruction.opcode.endswith(_END):
        return True
    return instruction.attribute("custom_call_target") in _FREE_CALLS


def trip_count(program: Program, loop: Instruction) -> int:
    """How often a loop's body runs: as the compiler says, or as the condition of JAX's `scan` does (from 0 by 1).

    A program for a TPU says it in the condition alone. 1 where neither says it.
    """
    match = re.search(r'"?known_trip_count"?:\{\\?"?n\\?"?:\\?"?(\d+)', loop.rest)
    if match:
        return int(match[1])
    condition = program.computations.get(loop.attribute("condition") or "", {})
    root = next((step for step in condition.values() if step.root), None)
    if root is None or root.opcode != "compare" or root.attribute("direction") != "LT":
        return 1
    limit = condition.get(root.operands[1])
    return int(limit.inside) if limit is not None and limit.opcode == "constant" else 1


def _kernel(program: Program, computation: str, instruction: Instruction, runs: int) -> Kernel:
    return Kernel(
        name=instruction.name,
        kind=_kind(program, instruction),
        op_name=instruction.op_name,
        flops=_flops(program, computation, instruction),
        nbytes=_bytes(program, computation, instruction),
        runs=runs,
    )


def _kind(program: Program, instruction: Instruction) -> str:
    opcodes = {instruction.opcode} | _inner_opcodes(program, instruction)
    target = instruction.attribute("custom_call_target") or ""
    if "convolution" in opcodes or "conv" in target.lower():
        return "convolution"
    if "dot" in opcodes or "gemm" in target or "matmul" in target:
        return "matrix product"
    opcode = instruction.opcode.removesuffix("-start")
    return "collective" if opcode in COLLECTIVES else opcode


def _inner(program: Program, instruction: Instruction) -> dict[str, Instruction]:
    """The instructions inside a fusion."""
    if instruction.opcode != "fusion":
        return {}
    return program.computations.get(next(iter(instruction.called()), ""), {})


def _inner_opcodes(program: Program, instruction: Instruction) -> set[str]:
    found: set[str] = set()
    for inner in _inner(program, instruction).values():
        found |= {inner.opcode} | _inner_opcodes(program, inner)
    return found


# --- FLOPs -----------------------------------------------------------------------------------------------------------


def _flops(program: Program, computation: str, instruction: Instruction) -> float:
    inner = _inner(program, instruction)
    if inner:
        name = next(iter(instruction.called()))
        return sum(_flops(program, name, step) for step in inner.values())
    around = program.computations[computation]
    operands = [around[name].arrays[0] for name in instruction.operands if name in around and around[name].arrays]
    if instruction.opcode == "convolution":
        image, kernel = operands[:2]
        return _convolution_flops(instruction, image, kernel, instruction.arrays[0])
    target = instruction.attribute("custom_call_target") or ""
    if "conv" in target.lower() and len(operands) >= 2:
        return _cudnn_flops(instruction, target, operands)
    if instruction.opcode == "dot" or "gemm" in target or "matmul" in target:
        return _dot_flops(instruction, operands)
    return 0.0


def _dot_flops(instruction: Instruction, operands: Sequence[Array]) -> float:
    text = instruction.rest.replace('\\"', '"')
    match = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][{\[]([\d",]*)[}\]]', text)
    axes = [int(axis) for axis in re.findall(r"\d+", match[1])] if match and operands else []
    return 2.0 * instruction.arrays[0].size * math.prod(operands[0].dims[axis] for axis in axes) if axes else 0.0


@dataclasses.dataclass(frozen=True)
class _Dimensions:
    """The roles of a convolution's axes, from `dim_labels=b01f_01io->b01f`."""

    input: str
    kernel: str
    output: str

    @classmethod
    def parse(cls, text: str) -> _Dimensions:
        match = re.match(r"(\w+)_(\w+)->(\w+)", text)
        if match is None:
            raise ValueError(f"dim_labels={text}: not the labels of a convolution")
        return cls(*match.groups())

    def spatial(self) -> list[str]:
        return [label for label in self.output if label.isdigit()]


def _window(instruction: Instruction, name: str, axes: int, default: int) -> list[tuple[int, ...]]:
    """A part of `window={size=3x3 stride=2x2 pad=1_1x1_1}` along each axis."""
    window = re.search(r"window=\{([^}]*)\}", instruction.rest)
    match = re.search(rf"\b{name}=(\S+)", window[1]) if window else None
    if match is None:
        return [(default, default) if name == "pad" else (default,)] * axes
    return [tuple(int(number) for number in part.split("_")) for part in match[1].split("x")]


def _convolution_flops(instruction: Instruction, image: Array, kernel: Array, output: Array) -> float:
    """Two per multiply-add of an output with a pixel that is neither padding nor a hole of a dilated image."""
    labels = _Dimensions.parse(instruction.attribute("dim_labels") or "")
    axes = labels.spatial()
    stride, pad, holes, dilation = (
        _window(instruction, name, len(axes), default)
        for name, default in (
            ("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1),
        )
    )  # fmt: skip
    products = 1.0
    for place, axis in enumerate(axes):
        products *= _pairs(
            image.dims[labels.input.index(axis)],
            kernel.dims[labels.kernel.index(axis)],
            output.dims[labels.output.index(axis)],
            stride[place][0],
            pad[place][0],
            holes[place][0],
            dilation[place][0],
        )
    others = output.dims[labels.output.index("b")] * output.dims[labels.output.index("f")]
    groups = int(instruction.attribute("batch_group_count") or 1)
    return 2.0 * products * others * kernel.dims[labels.kernel.index("i")] / groups


@functools.lru_cache(10_000)
def _pairs(image: int, kernel: int, output: int, stride: int, low: int, holes: int, dilation: int) -> int:
    """Number of pairs of an output and an element of the kernel that meet a pixel, along one axis."""
    last, count = (image - 1) * holes, 0
    for element in range(kernel):
        start = element * dilation - low
        for place in range(output):
            position = place * stride + start
            count += 0 <= position <= last and position % holes == 0
    return count


def _cudnn_flops(instruction: Instruction, target: str, operands: Sequence[Array]) -> float:
    """A call of cuDNN; its window and labels are those of the forward pass, whichever gradient it computes."""
    result = instruction.arrays[0]
    one, two = operands[:2]
    image, kernel, output = (
        (result, two, one) if "BackwardInput" in target
        else (one, result, two) if "BackwardFilter" in target
        else (one, two, result)
    )  # fmt: skip
    return _convolution_flops(instruction, image, kernel, output)


# --- Bytes -----------------------------------------------------------------------------------------------------------


def _bytes(program: Program, computation: str, instruction: Instruction) -> float:
    around, inner = program.computations[computation], _inner(program, instruction)
    operands = [around[name] for name in instruction.operands if name in around]
    if inner:
        return _fusion_bytes(instruction, inner, operands)
    opcode = instruction.opcode.removesuffix("-start")
    results = _results(instruction)
    if opcode in _SLICES and operands:
        # A slice that is copied to the chip is only read.
        return min(operands[0].nbytes, results[0].stored_bytes) + results[0].nbytes
    if opcode == "dynamic-update-slice" and len(operands) > 1:
        update = operands[1].arrays[0]
        return update.nbytes + (update.stored_bytes if results[0].in_main_memory else 0.0)
    return sum(operand.nbytes for operand in _distinct(operands)) + sum(array.nbytes for array in results)


def _results(instruction: Instruction) -> tuple[Array, ...]:
    """The arrays that an instruction makes, without a library's workspace (the `u8` at the end of a tuple).

    The result of the start of an asynchronous one names its operands, too: before the results, of `copy-start` behind
    them, of `all-reduce-start` not at all.
    """
    arrays, count = instruction.arrays, len(instruction.operands)
    if instruction.opcode == "copy-start":
        return arrays[:1]
    if instruction.opcode.endswith("-start") and instruction.opcode != "all-reduce-start":
        return arrays[count : 2 * count if instruction.opcode.startswith(COLLECTIVES) else count + 1]
    if instruction.opcode == "custom-call" and len(arrays) > 1 and arrays[-1].dtype in ("u8", "s8"):
        return arrays[:-1]
    return arrays


def _distinct(operands: Sequence[Instruction]) -> list[Instruction]:
    return list({operand.name: operand for operand in operands}.values())


def _fusion_bytes(fusion: Instruction, inner: dict[str, Instruction], operands: Sequence[Instruction]) -> float:
    users: dict[str, list[Instruction]] = {}
    for step in inner.values():
        for name in step.operands:
            users.setdefault(name, []).append(step)
    parameters = {int(step.inside): step for step in inner.values() if step.opcode == "parameter"}
    read: dict[str, float] = {}
    for number, operand in enumerate(operands):
        parameter = parameters.get(number)
        whole = operand.nbytes
        used = whole if parameter is None else min(whole, _read_of(parameter, users, inner, whole))
        read[operand.name] = min(whole, read.get(operand.name, 0.0) + used)
    return sum(read.values()) + _fusion_written(fusion, inner)


def _read_of(
    parameter: Instruction, users: dict[str, list[Instruction]], inner: dict[str, Instruction], whole: float
) -> float:
    """Bytes of a fusion's operand that are read: all, or the slices if nothing else uses it."""
    item = whole / max(1, parameter.arrays[0].size) if parameter.arrays else 0.0
    total = 0.0
    for user in users.get(parameter.name, []):
        if user.opcode in _SLICES and user.operands[0] == parameter.name:
            total += user.arrays[0].size * item
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name:
            continue  # written in place
        elif user.opcode == "bitcast":
            total += _read_of(user, users, inner, whole)
        else:
            return whole
    return total


def _fusion_written(fusion: Instruction, inner: dict[str, Instruction]) -> float:
    """Bytes that a fusion writes: its results, of a `dynamic-update-slice` at its end the update."""
    root = next((step for step in inner.values() if step.root), None)
    if root is None:
        return fusion.nbytes
    results = [inner[name] for name in root.operands if name in inner] if root.opcode == "tuple" else [root]
    if len(results) != len(fusion.arrays):
        return fusion.nbytes
    total = 0.0
    for result, array in zip(results, fusion.arrays, strict=True):
        while result.opcode == "bitcast" and result.operands[0] in inner:
            result = inner[result.operands[0]]
        update = inner.get(result.operands[1]) if result.opcode == "dynamic-update-slice" else None
        total += array.nbytes if update is None else min(array.nbytes, update.nbytes)
    return total
