"""Validation of a network's options and inputs; each error is one line that says what is allowed."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp


class ModelError(ValueError):
    """A name, an option or an input that a network does not accept; the message is one line for the user."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns `; did you mean '…'?` with the nearest known name, or `""` if none is near."""
    matches = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def check_choice(field: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raises ModelError unless `value` is one of `allowed`."""
    if value not in allowed:
        hint = nearest(value, [str(a) for a in allowed])
        raise ModelError(f"{field} = {value!r}: it must be one of {', '.join(repr(a) for a in allowed)}{hint}")


_MOST_FLOAT, _MOST_INT = 3.4028234e38, 2**31 - 1
_KINDS = {bool: (bool, "True or False"), int: (numbers.Integral, "a whole number"), float: (numbers.Real, "a number")}


def check_kind(field: str, value: Any, default: Any) -> None:
    """Raises ModelError if the default is a bool or a number and the value is not, or the device does not hold it.

    The string "False" is truthy, and NaN is not in any range.
    """
    kind, what = _KINDS.get(type(default), (object, ""))
    number: Any = value
    if not isinstance(value, kind) or (isinstance(value, bool) and type(default) in (int, float)):
        raise ModelError(f"{field}: {value!r} is not {what}")
    # Both comparisons hold for whole numbers of any size, and for NaN neither does.
    if type(default) is float and not abs(number) <= _MOST_FLOAT:
        raise ModelError(f"{field}: {value!r} is not a finite float32")
    if type(default) is int and not abs(number) <= _MOST_INT:
        raise ModelError(f"{field}: {value!r} is not an int32")


def check_modules(modules: Mapping[str, Sequence[int]], names: Iterable[str], widths: int) -> None:
    """Raises ModelError unless `modules` has at least one of `names`, and `widths` numbers of filters for each."""
    if not modules:
        raise ModelError("modules: {} has none; give at least one module, or None for the paper's table")
    for name, row in modules.items():
        check_choice("modules", name, tuple(names))
        if len(row) != widths or not all(isinstance(width, numbers.Integral) and width >= 0 for width in row):
            raise ModelError(f"modules: {name!r} has {tuple(row)!r}; expected {widths} numbers of filters")


def check_number(field: str, value: Any, what: str, good: bool) -> None:
    """Raises ModelError unless `good`; `what` says what the number must be."""
    if not good:
        raise ModelError(f"{field}: {value!r} is not {what}")


def check_float_dtype(field: str, dtype: Any) -> None:
    """Raises ModelError unless `dtype` is a floating-point type that JAX can hold as it is configured."""
    try:
        name = jnp.dtype(dtype)
    except TypeError as error:
        raise ModelError(f"{field}: {dtype!r} is not a dtype; allowed: float32, bfloat16, float16, float64") from error
    if not jnp.issubdtype(name, jnp.floating):
        raise ModelError(f"{field}: {name} is not a floating-point dtype; allowed: float32, bfloat16, float16, float64")
    if name == jnp.float64 and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]  # jax declares no types for it
        raise ModelError(f"{field}: float64 needs 64-bit JAX (JAX_ENABLE_X64=1)")


def check_images(images: jax.Array, minimum: int, model: str, channels: int = 3) -> None:
    """Raises ModelError unless `images` is a float [B, H, W, channels] with H and W of at least `minimum` pixels."""
    shape = jnp.shape(images)
    if len(shape) != 4 or shape[3] != channels:
        hint = "" if len(shape) != 4 else f": the network's in_channels is {channels}"
        raise ModelError(f"images: shape {shape} is not [batch, height, width, {channels}]{hint}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ModelError(f"images: {images.dtype} pixels; the network takes normalized floating-point pixels")
    if min(shape[1:3]) < minimum:
        raise ModelError(f"images: {shape[1]}x{shape[2]} pixels are too few for {model}: at least {minimum}x{minimum}")


def check_example_keys(keys: jax.Array, batch: int) -> None:
    """Raises ModelError unless `keys` holds one typed PRNG key per example."""
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or keys.shape != (batch,):
        raise ModelError(
            f"example_keys: {keys.dtype} of shape {keys.shape}; expected {batch} typed PRNG keys, one per example "
            "(jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), positions))"
        )
