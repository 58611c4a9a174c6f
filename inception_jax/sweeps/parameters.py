"""A parameter of a search space: a range or a choice, its grid points, and its encoding for Optuna."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from inception_jax.config import to_tuples
from inception_jax.errors import UserError
from inception_jax.runs.manifest import same_value

FEW_INTEGERS = 16
"""The largest integer range whose grid is all of its values."""

When = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A range of real numbers or integers, with both ends.

    Attributes:
      kind: "real" or "integer".
      low: the smallest value.
      high: the largest value.
      log: whether values are sampled uniformly in the logarithm.
      step: the values are low, low + step, …; None: all values of the range.
      grid: number of grid points; None: all steps, or all values of a small integer range.
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
        """The grid points, ascending; None where the range does not determine them."""
        if self.grid is not None:
            return self._spread(self.grid)
        if self.step is not None:
            count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
            return [self.low + i * self.step for i in range(count)]
        if self.low == self.high:
            return [self.low]
        if self.kind == "integer" and self.high - self.low < FEW_INTEGERS:
            return list(range(int(self.low), int(self.high) + 1))
        return None

    def count_points(self) -> int:
        """The number of grid points where a step determines them, without making them; else 0."""
        return 0 if self.step is None else math.floor((self.high - self.low) / self.step + 1e-9) + 1

    def _spread(self, count: int) -> list[Any]:
        inner = [i / (count - 1) for i in range(1, count - 1)]
        if self.log:
            inner = [self.low * (self.high / self.low) ** part for part in inner]
        else:
            inner = [self.low + (self.high - self.low) * part for part in inner]
        values = [self.low, *inner, self.high]
        return sorted({round(value) for value in values}) if self.kind == "integer" else values

    def values_to_check(self) -> list[Any]:
        """The values that are checked against the schema: both ends."""
        return [self.low, self.high]

    def encode(self, value: Any) -> Any:
        """Encodes a config value for Optuna; None where it is outside the range or between two steps."""
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
        """Decodes a value from Optuna into the config value: the same."""
        return encoded

    def to_json(self) -> dict[str, Any]:
        """The parameter as study.json has it."""
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
        """The range as one line, for messages."""
        return f"{self.low!r} to {self.high!r}" + (f" in steps of {self.step!r}" if self.step is not None else "")


@dataclasses.dataclass(frozen=True)
class Choice:
    """A categorical parameter: one of several values of any kind that a config can hold, without order.

    Attributes:
      values: the alternatives, all different.
      when: as `Interval.when`.
    """

    values: tuple[Any, ...]
    when: When = dataclasses.field(default_factory=dict)

    kind = "choice"
    log = False

    @property
    def encoded(self) -> list[Any]:
        """The categories for Optuna.

        Optuna stores strings and numbers only, and compares categories with `==`, where True equals 1. So values that
        are not all strings, or all numbers of one type, are encoded by their `repr`.
        """
        kinds = {type(value) for value in self.values}
        as_it_is = len(kinds) == 1 and kinds <= {str, int, float, bool}
        return [value if as_it_is else repr(value) for value in self.values]

    def count_points(self) -> int:
        """The number of grid points."""
        return len(self.values)

    def points(self) -> list[Any]:
        """The grid points: all values."""
        return list(self.values)

    def values_to_check(self) -> list[Any]:
        """The values that are checked against the schema: all."""
        return list(self.values)

    def encode(self, value: Any) -> Any:
        """Encodes a config value for Optuna; None where it is not one of the values."""
        index = index_of(self.values, value)
        return None if index is None else self.encoded[index]

    def decode(self, encoded: Any) -> Any:
        """Decodes a category from Optuna into the config value."""
        return self.values[self.encoded.index(encoded)]

    def to_json(self) -> dict[str, Any]:
        """The parameter as study.json has it."""
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
        """The choice as one line, for messages."""
        return "one of " + ", ".join(map(repr, self.values))


Parameter = Interval | Choice


def from_json(content: Mapping[str, Any]) -> Parameter:
    """The parameter that study.json has as `to_json` gives it.

    Raises:
      UserError: a range without its ends, or a field of another type.
    """
    damaged = f"study.json: the parameter {content.get('field')} needs "
    when, choices = content.get("when") or {}, content.get("choices") or ()
    if not isinstance(when, Mapping):
        raise UserError(f"{damaged}an object 'when'; restore a copy of the file")
    if not isinstance(choices, list | tuple):
        raise UserError(f"{damaged}a list 'choices'; restore a copy of the file")
    if (content.get("kind") or ("choice" if choices else "real")) == "choice":
        return Choice(to_tuples(choices), when)
    low, high, step = (content.get(name) for name in ("low", "high", "step"))
    if not (isinstance(low, int | float) and isinstance(high, int | float)):
        raise UserError(f"{damaged}numbers 'low' and 'high'; restore a copy of the file")
    kind, log = content.get("kind") or "real", bool(content.get("log"))
    return Interval(kind, low, high, log, step, content.get("grid"), when)


def alternatives(wanted: Any) -> list[Any]:
    """The alternative values of a condition, as a list."""
    return wanted if isinstance(wanted, list) else [wanted]


def index_of(values: Sequence[Any], value: Any) -> int | None:
    """Index of a value, where True differs from 1, and a list equals the tuple of its items; None: not there."""
    return next((index for index, other in enumerate(values) if same_value(other, value)), None)


def _json_value(value: Any) -> Any:
    """The value with lists for tuples and dicts for mappings, for JSON."""
    if isinstance(value, Mapping):
        return {name: _json_value(item) for name, item in value.items()}
    return [_json_value(item) for item in value] if isinstance(value, list | tuple) else value
