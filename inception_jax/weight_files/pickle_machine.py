"""Reads the pickles of PyTorch without executing anything that they name.

A pickle is a program for a stack machine, and Python's own machine calls whatever the program names. This one knows the
47 instructions that a state dict needs, and `pickle_names` lists the names that may occur and what they stand for.
Everything else is refused, and the refusal names what the pickle asked for.

Source: Lib/pickletools.py, which describes every instruction.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from typing import Any

from inception_jax.weight_files.pickle_names import (
    ALLOWED_CALLS,
    GlobalName,
    PickledOrderedDict,
    check_dict_key,
    describe_value,
    resolve_global,
)
from inception_jax.weight_files.types import ReadBudget, ReadError, decode_utf8

MAX_PICKLE = 32 << 20  # bytes; that of a state dict has some 100 kB
_MAX_LONG = 16  # bytes of an integer; sizes take eight, and the magic number of old files ten

_OPCODE_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_MARK = object()


class PickleMachine:
    """Runs one pickle after the other from a stream of bytes.

    Attributes:
      data: the bytes.
      persistent_load: makes an object of a persistent id, by which a pickle refers to a storage.
      budget: to which the instructions are charged.
      position: of the next byte.
    """

    def __init__(self, data: memoryview, persistent_load: Callable[[Any], Any], budget: ReadBudget) -> None:
        """Starts at the first byte; arguments as the attributes."""
        self.data, self.persistent_load, self.budget, self.position = data, persistent_load, budget, 0

    def load(self) -> Any:
        """Returns the object of the next pickle; `position` is then behind it.

        Raises:
          ReadError: the pickle is damaged, too large, or has an instruction or name that a state dict does not need.
        """
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        end = self.position + MAX_PICKLE
        while True:
            if self.position > end:
                raise ReadError(f"a pickle of more than {MAX_PICKLE:,} bytes, which no state dict needs")
            self.count_steps(1)
            code = self.read_bytes(1)[0]
            if code == 0x2E:  # STOP
                return self.pop()
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                known = _OPCODE_NAMES.get(code)
                raise ReadError(
                    f"the pickle has the instruction {known or hex(code)}, which a state dict does not "
                    "need: nothing was executed"
                )
            instruction(self)

    def count_steps(self, steps: int) -> None:
        """Charges instructions, and items passed to calls, which copy them: a few bytes could ask for any number."""
        self.budget.charge_objects(steps, "a pickle of many steps")

    def read_bytes(self, count: int) -> memoryview:
        """Reads the next bytes."""
        if count > len(self.data) - self.position:
            raise ReadError("the pickle is cut off: the file is truncated")
        self.position += count
        return self.data[self.position - count : self.position]

    def read_number(self, layout: str) -> Any:
        """Reads the next number, by its struct layout."""
        return struct.unpack(layout, self.read_bytes(struct.calcsize(layout)))[0]

    def read_line(self) -> str:
        """Reads the next line, without its end."""
        for length in range(min(512, len(self.data) - self.position)):
            if self.data[self.position + length] == 0x0A:
                return decode_utf8(self.read_bytes(length + 1)[:-1], "a name in the pickle")
        raise ReadError("a name in the pickle does not end: the file is damaged")

    def pop(self) -> Any:
        """Removes and returns the top of the stack."""
        if not self.stack or self.stack[-1] is _MARK:
            raise ReadError("the pickle pops from an empty stack: the file is damaged")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        """Removes the last mark and all above it; returns the latter."""
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                items = self.stack[place + 1 :]
                del self.stack[place:]
                return items
        raise ReadError("the pickle pops to a mark that is not on the stack: the file is damaged")

    def peek(self, kind: type, what: str) -> Any:
        """Returns the top of the stack, which must be of a type; `what` says what the pickle does, for the error."""
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise ReadError(f"the pickle {what}: the file is damaged")
        return self.stack[-1]


def _global(machine: PickleMachine) -> None:
    machine.stack.append(resolve_global(machine.read_line(), machine.read_line()))


def _stack_global(machine: PickleMachine) -> None:
    name = machine.pop()
    machine.stack.append(resolve_global(machine.pop(), name))


def _inst(machine: PickleMachine) -> None:
    target = resolve_global(machine.read_line(), machine.read_line())
    raise ReadError(f"the pickle makes an instance of {target.module}.{target.name} in a way that no state dict does")


def _reduce(machine: PickleMachine) -> None:
    arguments, target = machine.pop(), machine.pop()
    if (
        not isinstance(target, GlobalName)
        or (target.module, target.name) not in ALLOWED_CALLS
        or not isinstance(arguments, tuple)
    ):
        raise ReadError(f"the pickle calls {describe_value(target)}, which may not be called: nothing was executed")
    machine.count_steps(sum(len(argument) for argument in arguments if isinstance(argument, list | tuple)))
    try:
        machine.stack.append(ALLOWED_CALLS[target.module, target.name](*arguments))
    except TypeError:
        raise ReadError(f"the pickle gives {target.name} {len(arguments)} arguments: the file is damaged") from None


def _build(machine: PickleMachine) -> None:
    machine.pop()
    machine.peek(PickledOrderedDict, "sets attributes of an object that is not an OrderedDict")


def _set_items(machine: PickleMachine, items: list[Any]) -> None:
    target = machine.peek(dict, "sets items of an object that is not a dictionary")
    if len(items) % 2:
        raise ReadError("the pickle sets a key without a value: the file is damaged")
    for key, value in zip(items[0::2], items[1::2], strict=True):
        check_dict_key(key)
        target[key] = value


def _set_item(machine: PickleMachine) -> None:
    value = machine.pop()
    _set_items(machine, [machine.pop(), value])


def _append(machine: PickleMachine) -> None:
    item = machine.pop()
    machine.peek(list, "appends to an object that is not a list").append(item)


def _appends(machine: PickleMachine) -> None:
    items = machine.pop_to_mark()
    machine.peek(list, "appends to an object that is not a list").extend(items)


def _dict_of(machine: PickleMachine) -> None:
    items = machine.pop_to_mark()
    machine.stack.append({})
    _set_items(machine, items)


def _tuple_of(count: int) -> Callable[[PickleMachine], None]:
    def instruction(machine: PickleMachine) -> None:
        items = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(items)))

    return instruction


def _long(layout: str) -> Callable[[PickleMachine], None]:
    def instruction(machine: PickleMachine) -> None:
        size = machine.read_number(layout)
        if not 0 <= size <= _MAX_LONG:
            raise ReadError(f"the pickle has an integer of {size:,} bytes, which no state dict needs")
        machine.stack.append(int.from_bytes(machine.read_bytes(size), "little", signed=True))

    return instruction


def _text(layout: str, encoding: str = "utf-8") -> Callable[[PickleMachine], None]:
    def instruction(machine: PickleMachine) -> None:
        size = machine.read_number(layout)
        if size < 0:
            raise ReadError("the pickle has a text of negative length: the file is damaged")
        data = machine.read_bytes(size)
        machine.stack.append(decode_utf8(data, "a text in the pickle") if encoding == "utf-8" else bytes(data))

    return instruction


def _number(layout: str) -> Callable[[PickleMachine], None]:
    return lambda machine: machine.stack.append(machine.read_number(layout))


def _put(layout: str) -> Callable[[PickleMachine], None]:
    def instruction(machine: PickleMachine) -> None:
        place = machine.read_number(layout)
        machine.memo[place] = machine.peek(object, "writes a memo entry from an empty stack")

    return instruction


def _get(layout: str) -> Callable[[PickleMachine], None]:
    def instruction(machine: PickleMachine) -> None:
        place = machine.read_number(layout)
        if place not in machine.memo:
            raise ReadError("the pickle reads a memo entry that was never written: the file is damaged")
        machine.stack.append(machine.memo[place])

    return instruction


def _memoize(machine: PickleMachine) -> None:
    machine.memo[len(machine.memo)] = machine.peek(object, "writes a memo entry from an empty stack")


def _push(value: Any) -> Callable[[PickleMachine], None]:
    return lambda machine: machine.stack.append(value)


def _protocol(machine: PickleMachine) -> None:
    if (version := machine.read_number("<B")) > 5:
        raise ReadError(f"a pickle of protocol {version}; protocols 0 to 5 are read")


def _persistent(machine: PickleMachine) -> None:
    machine.stack.append(machine.persistent_load(machine.pop()))


_INSTRUCTIONS: dict[int, Callable[[PickleMachine], Any]] = {
    0x80: _protocol, 0x95: lambda machine: machine.read_number("<Q"), 0x28: _push(_MARK), 0x30: PickleMachine.pop,
    0x31: PickleMachine.pop_to_mark, 0x4E: _push(None), 0x88: _push(True), 0x89: _push(False), 0x4B: _number("<B"),
    0x4D: _number("<H"), 0x4A: _number("<i"), 0x47: _number(">d"), 0x8A: _long("<B"), 0x8B: _long("<i"),
    0x58: _text("<I"), 0x8C: _text("<B"), 0x8D: _text("<Q"), 0x55: _text("<B"), 0x54: _text("<i"),
    0x42: _text("<I", "bytes"), 0x43: _text("<B", "bytes"), 0x8E: _text("<Q", "bytes"),
    0x7D: lambda machine: machine.stack.append({}), 0x5D: lambda machine: machine.stack.append([]), 0x29: _push(()),
    0x64: _dict_of, 0x6C: lambda machine: machine.stack.append(machine.pop_to_mark()),
    0x74: lambda machine: machine.stack.append(tuple(machine.pop_to_mark())),
    0x85: _tuple_of(1), 0x86: _tuple_of(2), 0x87: _tuple_of(3), 0x61: _append, 0x65: _appends, 0x73: _set_item,
    0x75: lambda machine: _set_items(machine, machine.pop_to_mark()), 0x71: _put("<B"), 0x72: _put("<I"),
    0x94: _memoize, 0x68: _get("<B"), 0x6A: _get("<I"), 0x63: _global, 0x93: _stack_global, 0x69: _inst,
    0x52: _reduce, 0x62: _build, 0x51: _persistent,
}  # fmt: skip
