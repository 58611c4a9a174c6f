"""One parameter of a sweep: a range or a choice, its values, and how Optuna holds them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

FEW_INTEGERS = 16
"""A range of at most so many integers is its own grid."""

When = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Range:
    """A real number or an integer between two others, both included.

    Attributes:
      kind: "real" or "integer".
      log: uniform in the logarithm.
      step: the values are low, low + step, …; None: all.
      grid: number of points that a grid takes; None: what `step` or a few integers give.
      when: {field: value, or a list of values}: the parameter exists only where each of these fields has such a value.
    """

    kind: str
    low: float
    high: float
    log: bool = False
    step: float | None = None
    grid: int | None = None
    when: When = dataclasses.field(default_factory=dict)

    def points(self) -> list[Any] | None:
        """The values of a grid, ascending; None where nothing says which."""
        if self.grid is not None:
            return self._spread(self.grid)
        if self.step is not None:
            count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
            return [self.low + i * self.step for i in range(count)]
        if self.low == self.high:
            return [self.low]
        if self.kind == "integer" and self.high - self.low < FEW_INTEGERS:
            return list(range(self.low, self.high + 1))
        return None

    def _spread(self, count: int) -> list[Any]:
        inner = [i / (count - 1) for i in range(1, count - 1)]
        if self.log:
            inner = [self.low * (self.high / self.low) ** part for part in inner]
        else:
            inner = [self.low + (self.high - self.low) * part for part in inner]
        values = [self.low, *inner, self.high]
        return sorted({round(value) for value in values}) if self.kind == "integer" else values

    def values_to_check(self) -> list[Any]:
        """The values by which the range is checked against the schema."""
        return [self.low, self.high]

    def encode(self, value: Any) -> Any:
        """The value as Optuna holds it; None where it is not in the range."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return None
        if self.step is not None:
            steps = (value - self.low) / self.step
            if abs(steps - round(steps)) > 1e-8:
                return None
        if self.kind == "integer":
            return int(value) if value == int(value) else None
        return float(value)

    def decode(self, encoded: Any) -> Any:
        """The config's value of what Optuna holds."""
        return encoded

    def to_json(self) -> dict[str, Any]:
        """As study.json has it."""
        return {
            "kind": self.kind,
            "low": self.low,
            "high": self.high,
            "log": self.log,
            "step": self.step,
            "grid": self.grid,
            "choices": None,
            "when": _json_value(self.when),
        }

    def summary(self) -> str:
        """In a line, for messages."""
        return f"{self.low!r} to {self.high!r}" + (f" in steps of {self.step!r}" if self.step is not None else "")


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several values of any kind that a config holds, without order.

    Attributes:
      values: what there is to choose from, different from each other.
      when: as `Range.when`.
    """

    values: tuple[Any, ...]
    when: When = dataclasses.field(default_factory=dict)

    kind = "choice"

    @property
    def encoded(self) -> list[Any]:
        """The categories as Optuna takes them.

        It holds texts and numbers only, and tells categories apart by `==`, by which True is 1: a choice that has
        anything but texts, or but numbers of one kind, goes by the texts that Python writes for its values.
        """
        kinds = {type(value) for value in self.values}
        as_it_is = len(kinds) == 1 and kinds <= {str, int, float, bool}
        return [value if as_it_is else repr(value) for value in self.values]

    def points(self) -> list[Any]:
        """The values of a grid: all."""
        return list(self.values)

    def values_to_check(self) -> list[Any]:
        """The values by which the choice is checked against the schema: all."""
        return list(self.values)

    def encode(self, value: Any) -> Any:
        """The value as Optuna holds it; None where it is not among the choices."""
        index = index_of(self.values, value)
        return None if index is None else self.encoded[index]

    def decode(self, encoded: Any) -> Any:
        """The config's value of what Optuna holds."""
        return self.values[self.encoded.index(encoded)]

    def to_json(self) -> dict[str, Any]:
        """As study.json has it."""
        return {
            "kind": "choice",
            "low": None,
            "high": None,
            "log": False,
            "step": None,
            "grid": None,
            "choices": [_json_value(value) for value in self.values],
            "when": _json_value(self.when),
        }

    def summary(self) -> str:
        """In a line, for messages."""
        return "one of " + ", ".join(map(repr, self.values))


Parameter = Range | Choice


def alternatives(wanted: Any) -> list[Any]:
    """The values of a condition, of which one must hold."""
    return wanted if isinstance(wanted, list) else [wanted]


def index_of(values: tuple[Any, ...] | list[Any], value: Any) -> int | None:
    """Where a value stands, without taking True for 1 or a list for anything but the tuple of its values."""
    value = tuple(value) if isinstance(value, list) else value
    same = (
        i
        for i, other in enumerate(values)
        if isinstance(other, bool) == isinstance(value, bool)
        and isinstance(other, str) == isinstance(value, str)
        and other == value
    )
    return next(same, None)


def _json_value(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, Mapping):
        return {name: _json_value(item) for name, item in value.items()}
    return [_json_value(item) for item in value] if isinstance(value, list | tuple) else value
