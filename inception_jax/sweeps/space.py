"""Defines a search space: ranges and categorical choices over config fields, some of them conditional.

from inception_jax.sweeps.space import choice, integer, real

def get_space():
    return {
        "optimizer.name": choice("sgd", "rmsprop"),
        "optimizer.learning_rate": real(1e-3, 1e-1, log=True),
        "optimizer.nesterov": choice(False, True, when={"optimizer.name": "sgd"}),
        "batch_size": integer(16, 128, log=True),
    }
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from inception_jax.errors import UserError, nearest, shorten
from inception_jax.sweeps.parameters import Choice, Interval, Parameter, When, alternatives, index_of

MAX_GRID = 100_000
"""Largest number of grid points; a larger grid is refused as a mistake."""
MAX_CHOICES = 1000
"""Most values of a choice: each is compared with the others, and checked against the schema."""
_LARGEST = 2.0**63  # of the numbers of a range: Optuna samples in int64 and float64


def real(
    low: float,
    high: float,
    *,
    log: bool = False,
    step: float | None = None,
    grid: int | None = None,
    when: When | None = None,
) -> Interval:
    """A real number from `low` to `high`, both included.

    Args:
      low: the smallest value; greater than 0 with `log`.
      high: the largest value.
      log: sample uniformly in the logarithm (for learning rates, decays).
      step: only the values low, low + step, …; not with `log`.
      grid: number of points for `--sampler=grid`, spaced evenly from low to high (in the logarithm with `log`).
      when: {field: value or list of values}: the condition under which this parameter exists.

    Raises:
      UserError: an invalid range.
    """
    return _range("real", low, high, log, step, grid, when)


def integer(
    low: int,
    high: int,
    *,
    log: bool = False,
    step: int | None = None,
    grid: int | None = None,
    when: When | None = None,
) -> Interval:
    """An integer from `low` to `high`, both included; the arguments and errors are those of `real`."""
    return _range("integer", low, high, log, step, grid, when)


def choice(*values: Any, when: When | None = None) -> Choice:
    """One of these values: strings, numbers, booleans, tuples, None (a field that the recipe leaves unset).

    Args:
      values: two or more different values (a single one is allowed: the field is then fixed).
      when: as in `real`.

    Raises:
      UserError: no value, or a value given twice.
    """
    if not values:
        raise UserError("choice() has no values")
    if len(values) > MAX_CHOICES:
        raise UserError(
            f"choice() of {len(values):,} values; at most {MAX_CHOICES:,} are allowed: numbers in a range are "
            "integer(low, high) or real(low, high)"
        )
    call = shorten(f"choice({', '.join(map(repr, values))})")
    values = tuple(tuple(value) if isinstance(value, list) else value for value in values)
    for index, value in enumerate(values):
        if index_of(values[:index], value) is not None:
            raise UserError(f"{call}: {shorten(repr(value))} is given twice")
    return Choice(values, dict(when or {}))


def _range(kind: str, low: Any, high: Any, log: bool, step: Any, grid: Any, when: When | None) -> Interval:
    number = float if kind == "real" else int
    call = f"{kind}({shorten(repr(low))}, {shorten(repr(high))})"
    for name, value in (("low", low), ("high", high), ("step", step)):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (whole or (kind == "real" and isinstance(value, float) and math.isfinite(value))):
            allowed = "a finite number" if kind == "real" else "an int"
            raise UserError(f"{call}: {name} = {value!r}; it must be {allowed}")
        if kind == "integer" and value is not None and abs(value) >= _LARGEST:
            raise UserError(f"{call}: {name} is not an int64")
    if low is None or high is None or low > high:
        raise UserError(f"{call}: the first number must be the smallest value, the second the largest")
    if log and low <= 0:
        raise UserError(f"{call}, log=True: a logarithm needs low > 0")
    if log and step is not None:
        raise UserError(f"{call}: log and step exclude each other")
    if step is not None and step <= 0:
        raise UserError(f"{call}: step = {step!r}; it must be greater than 0")
    if grid is not None and not (isinstance(grid, int) and not isinstance(grid, bool) and grid >= 2):
        raise UserError(f"{call}: grid = {grid!r}; it is the number of points and must be 2 or more")
    if grid is not None and grid > MAX_GRID:
        raise UserError(f"{call}: grid = {shorten(repr(grid))}; at most {MAX_GRID:,} points are allowed")
    if step is not None and (high - low) / step >= _LARGEST:
        raise UserError(f"{call}: step = {step!r} gives more steps than an int64 counts")
    if grid is not None and step is not None:
        raise UserError(f"{call}: grid and step exclude each other: with a step, the grid has all steps")
    if step is not None:  # move high to the last step inside the range: Optuna would warn about it in every trial
        high = low + math.floor((high - low) / step + 1e-9) * step
    return Interval(
        kind, number(low), number(high), log, None if step is None else number(step), grid, dict(when or {})
    )


class Space:
    """A search space: parameters in dependency order, those in conditions before those that depend on them."""

    def __init__(self, parameters: Mapping[str, Parameter]):
        """Checks the conditions and orders the parameters.

        Args:
          parameters: {config field: range or choice}.

        Raises:
          UserError: a condition that names no choice of this space or can never hold, or circular conditions.
        """
        for field, parameter in parameters.items():
            for other, values in parameter.when.items():
                _check_condition(field, other, values, parameters)
        self.parameters = _in_dependency_order(parameters)

    def is_active(self, field: str, values: Mapping[str, Any]) -> bool:
        """Returns whether the condition of a parameter holds.

        Args:
          field: of the parameter.
          values: {field: value} of the active parameters before it.
        """
        return all(
            other in values and index_of(alternatives(wanted), values[other]) is not None
            for other, wanted in self.parameters[field].when.items()
        )

    def grid(self) -> Iterator[dict[str, Any]]:
        """Yields every combination of grid points once; a parameter is absent where its condition does not hold.

        Raises:
          UserError: a range does not determine its grid points, or there are more than `MAX_GRID` combinations.
        """
        for field, parameter in self.parameters.items():
            if parameter.count_points() > MAX_GRID:
                raise UserError(f"--sampler=grid: {field} has more than {MAX_GRID:,} values; use fewer points")
            if parameter.points() is None:
                raise UserError(
                    f"--sampler=grid: {field} ({parameter.summary()}) has infinitely many values; give the "
                    "number of points with grid=N, or a step"
                )
        combinations = self._combinations(list(self.parameters), {})
        yield from itertools.islice(combinations, MAX_GRID)
        if next(combinations, None) is not None:
            raise UserError(f"--sampler=grid: the space has more than {MAX_GRID:,} combinations; use fewer points")

    def _combinations(self, fields: list[str], values: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if not fields:
            yield dict(values)
        elif not self.is_active(fields[0], values):
            yield from self._combinations(fields[1:], values)
        else:
            for point in self.parameters[fields[0]].points() or ():  # `grid` refuses parameters without points
                yield from self._combinations(fields[1:], {**values, fields[0]: point})

    def to_json(self) -> list[dict[str, Any]]:
        """The space as study.json has it: one object per field."""
        return [{"field": field, **parameter.to_json()} for field, parameter in self.parameters.items()]


def _check_condition(field: str, other: str, wanted: Any, parameters: Mapping[str, Parameter]) -> None:
    if other not in parameters:
        near = nearest(other, parameters)
        raise UserError(f"{field}: its condition names {other!r}, which is not in the space{near}")
    parameter = parameters[other]
    if not isinstance(parameter, Choice):
        raise UserError(f"{field}: its condition names {other}, which is not a choice")
    for value in alternatives(wanted):
        if index_of(parameter.values, value) is None:
            raise UserError(f"{field}: its condition {other} = {value!r} never holds: {other} is {parameter.summary()}")


def _in_dependency_order(parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
    ordered: dict[str, Parameter] = {}
    while len(ordered) < len(parameters):
        ready = [
            field
            for field, parameter in parameters.items()
            if field not in ordered and all(other in ordered for other in parameter.when)
        ]
        if not ready:
            circle = ", ".join(field for field in parameters if field not in ordered)
            raise UserError(f"the conditions of {circle} depend on each other in a circle")
        ordered.update((field, parameters[field]) for field in ready)
    return ordered
