"""Axis scales of the plots: of parameters (linear, logarithmic, categorical) and of the metric."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inception_jax.runs import curves
from inception_jax.runs.tables import format_value
from inception_jax.sweeps.parameters import Choice, Parameter
from inception_jax.sweeps.study_files import StoredStudy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GOLDEN = 0.6180339887498949  # the fractional parts of its multiples fill [0, 1) evenly, however many there are
_FEW_TICKS, _MOST_TICKS = 3, 6


class AxisScale:
    """Maps the values of one parameter to positions from 0 to 1."""

    def __init__(self, parameter: Parameter, values: Iterable[Any]):
        """Determines the ends of the axis, or its categories.

        Args:
          parameter: of the space.
          values: of the trials; a value outside the parameter's range (from a listed config) extends the axis.
        """
        values = list(values)
        self.is_choice = isinstance(parameter, Choice)
        self.log = parameter.log
        if isinstance(parameter, Choice):
            # Compared by `repr`: True is not 1.
            self.choices = list({repr(value): value for value in (*parameter.values, *values)}.items())
            return
        numbers = [value for value in (parameter.low, parameter.high, *values) if _is_number(value)]
        self.log &= min(numbers) > 0
        self.low, self.high = min(numbers), max(numbers)

    def position(self, value: Any) -> float:
        """Position of a value, from 0 to 1; NaN where it is not on the axis."""
        if self.is_choice:
            names = [name for name, _ in self.choices]
            return (names.index(repr(value)) + 0.5) / len(names) if repr(value) in names else math.nan
        if not _is_number(value) or (self.log and value <= 0):
            return math.nan
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return (value - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """(position, label) of the ticks."""
        if self.is_choice:
            return [
                ((index + 0.5) / len(self.choices), format_value(choice, digits=6))
                for index, (_, choice) in enumerate(self.choices)
            ]
        return [(self.position(value), f"{value:g}") for value in self._tick_values()]

    def _tick_values(self) -> list[float]:
        if self.low == self.high:
            return [self.low]
        if not self.log:
            from matplotlib.ticker import MaxNLocator

            integer = all(float(end).is_integer() for end in (self.low, self.high)) and self.high - self.low >= 2
            found = MaxNLocator(5, integer=integer, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
            room = 1e-9 * (self.high - self.low)
            return [value for value in found if self.low - room <= value <= self.high + room]
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for factors in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
            found = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
            found = [value for value in found if self.low * 0.9999 <= value <= self.high * 1.0001]
            if len(found) >= _FEW_TICKS:
                return found if len(found) <= _MOST_TICKS else found[:: math.ceil(len(found) / _MOST_TICKS)]
        return [self.low, self.high]


def jitter(numbers: Sequence[int]) -> np.ndarray:
    """An offset from -0.5 to 0.5 for each trial number, evenly spread: it separates trials of the same category.

    Args:
      numbers: of the trials.

    Returns:
      float64 [trials].
    """
    return np.asarray(numbers, np.float64) * _GOLDEN % 1.0 - 0.5


def metric_to_axis(values: Sequence[float], study: StoredStudy) -> np.ndarray:
    """Transforms values of the metric like the axes of the plots: accuracies near 100 % by the logarithm of the error.

    Args:
      values: of the metric (accuracies from 0 to 1).
      study: has the metric.

    Returns:
      float64, one per value, increasing with the value.
    """
    shown = study.unit * np.asarray(values, np.float64)
    if study.metric.percent:
        return -np.log(np.maximum(100 - shown, 0) + 0.25) if _near_100(shown) else shown
    is_wide = len(shown) and np.nanmin(shown) > 0 and np.nanmax(shown) > 5 * np.nanmin(shown)
    return np.log(shown) if is_wide else shown


def set_metric_axis(axes: Axes, values: Sequence[float], study: StoredStudy) -> None:
    """Sets scale, limits and label of a y axis for the metric.

    Args:
      axes: which show `study.unit * value`.
      values: that are shown; at least one of them is finite.
      study: has the metric.
    """
    shown = study.unit * np.asarray([value for value in values if math.isfinite(value)], np.float64)
    low, high = shown.min(), shown.max()
    margin = 0.06 * (high - low) or 0.02 * abs(high) or 0.1
    axes.set_ylabel(study.metric.axis_label)
    if not study.metric.percent:
        if low > 0 and high > 5 * low:
            axes.set_yscale("log", nonpositive="mask")
            curves.plain_log_ticks(axes, low, high)
            axes.set_ylim(low / 1.2, high * 1.2)
        else:
            axes.set_ylim(low - margin, high + margin)
    elif _near_100(shown):
        curves.spread_near_100(axes, low)
        axes.set_ylabel(f"{study.metric.axis_label}, by the logarithm of the error")
    else:
        axes.set_ylim(max(0.0, low - margin), min(100.0, high + margin))


def _near_100(shown: np.ndarray) -> bool:
    return len(shown) > 0 and np.nanmax(shown) > 95


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
