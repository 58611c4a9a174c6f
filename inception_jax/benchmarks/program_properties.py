"""Finds collectives, dtypes, 16-bit sums and donated arguments of a compiled program from its text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from inception_jax.benchmarks.hlo_text import Array, Program
from inception_jax.benchmarks.program_cost import CALLS, COLLECTIVES, trip_count

_HALF = {"bf16", "f16"}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation: its opcode, the bytes of one device's operand, and how often it runs per step."""

    opcode: str
    nbytes: float
    runs: int


def find_collectives(program: Program) -> list[Collective]:
    """All collective operations, in the order in which they run."""
    found = []
    for computation, runs in _run_computations(program, program.entry, 1):
        around = program.computations[computation]
        for instruction in around.values():
            opcode = instruction.opcode.removesuffix("-start")
            if opcode in COLLECTIVES:
                size = sum(
                    array.size * Array(array.dtype, (1,)).nbytes
                    for name in instruction.operands
                    for array in around[name].arrays
                )
                found.append(Collective(opcode, size, runs))
    return found


def _run_computations(program: Program, computation: str, runs: int) -> Iterator[tuple[str, int]]:
    yield computation, runs
    for instruction in program.computations[computation].values():
        if instruction.opcode in CALLS:
            count = runs * (trip_count(program, instruction) if instruction.opcode == "while" else 1)
            for name in instruction.called():
                if name in program.computations:
                    yield from _run_computations(program, name, count)


def convolution_dtypes(program: Program) -> set[str]:
    """The dtypes of the operands of all convolutions."""
    found: set[str] = set()
    for steps in program.computations.values():
        for step in steps.values():
            if step.opcode == "convolution" or "conv" in (step.attribute("custom_call_target") or "").lower():
                operands = [steps[name] for name in step.operands[:2] if name in steps]
                found |= {operand.arrays[0].dtype for operand in operands}
    return found


def half_precision_sums(program: Program) -> list[str]:
    """Names of the reductions (reduce, reduce-window, all-reduce, reduce-scatter) that add in 16 bits."""
    found = []
    for steps in program.computations.values():
        for step in steps.values():
            if step.opcode.removesuffix("-start") not in ("reduce", "reduce-window", "all-reduce", "reduce-scatter"):
                continue
            body = program.computations.get(next(iter(step.called()), ""), {})
            adds = [inner for inner in body.values() if inner.opcode == "add"]
            if any(inner.arrays[0].dtype in _HALF for inner in adds):
                found.append(step.name)
    return found


def count_aliased(text: str) -> int:
    """Number of results that are written over an argument (donation), by the head of the program's text."""
    head = text.partition("\n")[0]
    match = re.search(r"input_output_alias=\{(.*?)\}, (?:entry|allow|num|frontend|buffer)", head)
    return len(re.findall(r"(?:may|must)-alias", match[1] if match else head))
