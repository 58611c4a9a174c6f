"""Finds local response normalization in a jaxpr: its window and its constants."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from inception_jax.exports import windows
from inception_jax.exports.windows import Windows


@dataclasses.dataclass(frozen=True)
class ResponseNorm:
    """x * (k + alpha / size * S) ** -beta, where S is the sum of x squared over `size` channels centered on each.

    Attributes:
      size: channels per window.
      alpha: Caffe's and ONNX's alpha, which is divided by `size`.
      beta: the exponent.
      k: the constant that is added.
    """

    size: int
    alpha: float
    beta: float
    k: float


@dataclasses.dataclass(eq=False)
class _Map:
    """The input, or its square."""

    shape: tuple[Any, ...]
    square: bool = False


@dataclasses.dataclass(frozen=True)
class _Affine:
    """k + factor * (the sum of squares over the windows)."""

    windows: Windows
    factor: float
    k: float = 0.0


@dataclasses.dataclass(frozen=True)
class _Power:
    """base ** exponent, or (`logarithm`) exponent * log(base)."""

    base: _Affine
    exponent: float
    logarithm: bool = False


def find_response_norm(jaxpr: Any) -> ResponseNorm | None:
    """Finds the local response normalization that a jaxpr of one input computes, by its arithmetic.

    Args:
      jaxpr: an open jaxpr.

    Returns:
      Its window and constants; None where the jaxpr computes something else.
    """
    if len(jaxpr.invars) != 1 or len(jaxpr.outvars) != 1 or jaxpr.constvars:
        return None
    found = _evaluate(jaxpr, [_Map(jaxpr.invars[0].aval.shape)])
    return found if isinstance(found, ResponseNorm) else None


def _evaluate(jaxpr: Any, arguments: list[Any]) -> Any:
    """Returns the symbolic value of a jaxpr's first output; None where it is not part of a response normalization."""
    known: dict[Any, Any] = dict(zip(jaxpr.invars, arguments, strict=True))
    for equation in jaxpr.eqns:
        values = [float(v.val) if hasattr(v, "val") else known.get(v) for v in equation.invars]
        found = None if None in values else _apply(equation, values)
        if len(equation.outvars) == 1:
            known[equation.outvars[0]] = found
    return known.get(jaxpr.outvars[0])


def _apply(equation: Any, values: list[Any]) -> Any:
    """Returns the symbolic value of an equation; None where it is not part of a response normalization."""
    name, params = equation.primitive.name, equation.params
    match (name, *values):
        case ("mul", _Map(square=False) as a, _Map(square=False)):
            return _Map(a.shape, square=True) if values[0] is values[1] else None
        case ("pad", (_Map(square=True) | Windows()) as source, float(fill)):
            *others, (low, high, interior) = params["padding_config"]
            if fill == interior == 0 and not any(any(edge) for edge in others):
                return windows.pad_windows(source, len(others), low, high, fill)
        case ("slice", (_Map(square=True) | Windows()) as source):
            return _channels(source, params)
        case ("add", Windows() as a, Windows() as b):
            return windows.join_windows(a, b, "add")
        case ("mul", float(factor), Windows() as sums) | ("mul", Windows() as sums, float(factor)):
            return _Affine(sums, factor)
        case ("add", float(k), _Affine(k=0.0) as sums) | ("add", _Affine(k=0.0) as sums, float(k)):
            return dataclasses.replace(sums, k=k)
        case ("mul", _Map(square=False), _Power(logarithm=False) as power):
            return _response_norm(power)
        case _:
            return _power(name, values)
    return None


def _channels(source: _Map | Windows, params: Any) -> Windows | None:
    """Returns a slice along the last axis; None for other slices."""
    starts, stops, strides = params["start_indices"], params["limit_indices"], params["strides"]
    whole = all(a == 0 and b == size for a, b, size in zip(starts[:-1], stops[:-1], source.shape[:-1], strict=True))
    if not whole or (strides is not None and set(strides) != {1}):
        return None
    return windows.slice_windows(source, len(starts) - 1, starts[-1], stops[-1], 1)


def _power(name: str, values: list[Any]) -> _Power | None:
    """Returns the value of an equation of powers of one base; None for other equations."""
    values = [_Power(value, 1.0) if isinstance(value, _Affine) else value for value in values]
    match (name, *values):
        case ("rsqrt", _Power(base, exponent, False)):
            return _Power(base, -exponent / 2)
        case ("sqrt", _Power(base, exponent, False)):
            return _Power(base, exponent / 2)
        case ("mul", _Power(base, a, False), _Power(other, b, False)) if base is other:
            return _Power(base, a + b)
        case ("div", 1.0, _Power(base, exponent, False)):
            return _Power(base, -exponent)
        case ("log", _Power(base, exponent, False)):
            return _Power(base, exponent, True)
        case ("mul", float(factor), _Power(base, exponent, True)):
            return _Power(base, exponent * factor, True)
        case ("exp", _Power(base, exponent, True)):
            return _Power(base, exponent)
    return None


def _response_norm(power: _Power) -> ResponseNorm | None:
    """Returns the normalization of x times this power; None where its windows are not centered on each channel."""
    found = power.base.windows
    source, size = found.source, len(found.offsets)
    centered = found.offsets == tuple(range(-(size // 2), size // 2 + 1))
    channels = source.shape[-1]
    if not isinstance(source, _Map) or not centered or (found.stride, found.count) != (1, channels):
        return None
    return ResponseNorm(size, float(np.float64(power.base.factor) * size), -power.exponent, power.base.k)
