"""Reads a compiled program's text (HLO): computations, instructions, shapes with their layout."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8,
    "f8e4m3fn": 1, "f8e5m2": 1, "f16": 2, "bf16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16, "token": 0,
}  # fmt: skip
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+)(?: \(.*)? ?\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_OPERAND = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """Shape of an array in the device's memory.

    Attributes:
      dtype: HLO's name, such as `bf16`.
      dims: sizes.
      layout: text between the braces behind the sizes, such as `3,2,1,0:T(8,128)S(1)`.
    """

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def in_main_memory(self) -> bool:
        """Whether it lies in the device's main memory, not in memory on the chip (memory space 0 of the layout)."""
        space = re.search(r"S\((\d+)\)", self.layout)
        return space is None or space[1] == "0"

    @property
    def nbytes(self) -> float:
        """Bytes in main memory, those that the layout's tiles pad with included; 0 for an array in other memory."""
        return self.stored_bytes if self.in_main_memory else 0.0

    @property
    def stored_bytes(self) -> float:
        """Bytes in the memory in which it lies, those that the layout's tiles pad with included."""
        return _padded(self.dims, self.layout) * BYTES.get(self.dtype, 4)


@functools.lru_cache(100_000)
def _padded(dims: tuple[int, ...], layout: str) -> int:
    """Number of elements, padded to the layout's first tile: `3,0,2,1:T(8,128)` tiles the dimensions 0 and 3."""
    tile = re.search(r"T\(([\d,]+)\)", layout)
    order = [int(number) for number in layout.partition(":")[0].split(",") if number.isdigit()]
    if tile is None or len(order) != len(dims):
        return math.prod(dims)
    sizes = [dims[axis] for axis in order]  # the fastest varying first
    for place, side in enumerate(reversed([int(number) for number in tile[1].split(",")])):
        if place < len(sizes):
            sizes[place] = -(-sizes[place] // side) * side
    return math.prod(sizes)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a computation.

    Attributes:
      name: unique in the program.
      opcode: HLO's, such as `fusion`.
      arrays: the arrays of its result.
      operands: names of the instructions that it reads.
      rest: the text behind its operands: attributes, metadata, configuration.
      root: whether it is the result of its computation.
      inside: the text between the parentheses of its operands (the number of a parameter, a constant's value).
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str
    root: bool
    inside: str

    @property
    def nbytes(self) -> float:
        """Bytes of the result in main memory."""
        return sum(array.nbytes for array in self.arrays)

    def attribute(self, name: str) -> str | None:
        """The value of an attribute such as `kind=kLoop`, without quotes; of `{…}` the text between the braces."""
        match = re.search(rf'\b{name}=(?:"([^"]*)"|\{{([^{{}}]*)\}}|%?([^\s,]+))', self.rest)
        return None if match is None else next(group for group in match.groups() if group is not None)

    @property
    def op_name(self) -> str:
        """JAX's path of the operation: names of functions and modules, separated by slashes; empty: none."""
        return self.attribute("op_name") or ""

    def called(self) -> list[str]:
        """Names of the computations that it calls."""
        names = re.findall(r"\b(?:calls|to_apply|body|async_computation)=%?([\w.\-]+)", self.rest)
        branches = re.search(r"branch_computations=\{([^}]*)\}", self.rest)
        return names + (_OPERAND.findall(branches[1]) if branches else [])


@dataclasses.dataclass(frozen=True)
class Program:
    """A program.

    Attributes:
      computations: {name: {name of an instruction: instruction}}, in the order of the text, in which they run.
      entry: name of the computation that runs first.
    """

    computations: dict[str, dict[str, Instruction]]
    entry: str


def parse(text: str) -> Program:
    """Parses the text that `jax.stages.Compiled.as_text` returns.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            head = _HEAD.match(line) if line.endswith("{") and not line.startswith("HloModule") else None
            if head:
                current = computations.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        else:
            instruction = _parse_instruction(line)
            if instruction:
                current[instruction.name] = instruction
    if not entry:
        raise ValueError("the text is no HLO program: it has no ENTRY computation")
    return Program(computations, entry)


def _parse_instruction(line: str) -> Instruction | None:
    head = _INSTRUCTION.match(line)
    if head is None:
        return None
    start = head.end()
    end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    shape, opcode = line[start:end], _OPCODE.match(line, end)
    if opcode is None:
        return None
    close = _closing(line, opcode.end() - 1)
    inside = line[opcode.end() : close - 1]
    return Instruction(
        name=head[2],
        opcode=opcode[1],
        arrays=parse_arrays(shape),
        operands=_operands(inside) if opcode[1] not in ("constant", "parameter") else (),
        rest=line[close:],
        root=head[1] is not None,
        inside=inside,
    )


def _operands(text: str) -> tuple[str, ...]:
    """The names in `%a, %b`, `f32[2]{0} %a, f32[2]{0} %b` or, in texts without percent signs, `a, b`."""
    if "%" in text:
        return tuple(_OPERAND.findall(text))
    return tuple(re.findall(r"(?:^|[\s,])([A-Za-z_][\w.\-]*)(?=$|,)", re.sub(r"/\*.*?\*/", "", text)))


def parse_arrays(text: str) -> tuple[Array, ...]:
    """Parses all arrays of a shape: one, or those of a tuple.

    A layout has parentheses, and no braces: `f32[8,128]{1,0:T(8,128)}`.
    """
    return tuple(
        Array(dtype, tuple(int(size) for size in sizes.split(",") if size), layout or "")
        for dtype, sizes, layout in _ARRAY.findall(text)
    )


def _closing(line: str, start: int) -> int:
    """The place behind the parenthesis that closes the one at `start`; parentheses in quotes do not count."""
    depth, quoted = 0, False
    for place in range(start, len(line)):
        letter = line[place]
        if letter == '"' and line[place - 1] != "\\":
            quoted = not quoted
        elif not quoted:
            depth += (letter in "({") - (letter in ")}")
            if depth == 0:
                return place + 1
    return len(line)
