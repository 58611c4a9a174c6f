"""The values that fields of a config may have: ranges of numbers, names, and forms of tuples and strings.

What is not a range is (predicate that a value must satisfy, its description).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from inception_jax import patterns
from inception_jax.ranges import FLOAT32_MAX, FLOAT32_TINY, INT32_MAX, MAX_BATCH, MAX_SIDE, Range

Form = tuple[Callable[[Any], bool], str]

_BATCH_NORM = "one of 'local', 'global', 'groups:N', 'examples:N'"


def up_to(high: float) -> Range:
    """Returns the range of the numbers above 0 and up to `high`."""
    return Range(0, high, open_low=True)


def one_of(*names: str) -> Form:
    """Returns the form of a string that is one of some names."""
    return (lambda value: value in names), "one of " + ", ".join(repr(name) for name in names)


def parse_batch_norm(value: str) -> tuple[str, int | None]:
    """Parses a value of `parallel.batch_norm`.

    Returns:
      ("local", None), ("global", None), ("groups", N) or ("examples", N).

    Raises:
      ValueError: the value is none of "local", "global", "groups:N" and "examples:N", N > 0.
    """
    kind, colon, size = value.partition(":")
    if kind in ("local", "global") and not colon:
        return kind, None
    if kind in ("groups", "examples") and size.isdigit() and int(size) > 0:
        return kind, int(size)
    raise ValueError(f"{value!r}: it must be {_BATCH_NORM}")


def _is_batch_norm(value: str) -> bool:
    try:
        parse_batch_norm(value)
    except ValueError:
        return False
    return True


def _are_class_weights(value: Any) -> bool:
    return value == "balanced" or (
        isinstance(value, tuple)
        and len(value) > 0
        and all(_is_pair(pair) and isinstance(pair[0], str) and pair[1] in DEVICE_NUMBER for pair in value)
    )


def _are_options(value: Any) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) and _is_plain(pair[1]) for pair in value
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    if isinstance(value, bool | str | None):
        return True
    return value in Range(-FLOAT32_MAX, FLOAT32_MAX)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2


def _are_multipliers(value: tuple) -> bool:
    return all(_is_pair(pair) and patterns.is_pattern(pair[0]) and pair[1] in DEVICE_NUMBER for pair in value)


def _ordered_pair(allowed: Range, words: str) -> Form:
    def is_allowed(value: Any) -> bool:
        return _is_pair(value) and value[0] in allowed and value[1] in allowed and value[0] <= value[1]

    return is_allowed, f"two numbers, {words}"


# The ranges end where a number has no meaning any more, far above every value that was ever trained with.
BATCH = up_to(MAX_BATCH)
SIDE = up_to(MAX_SIDE)
MAX_THREADS = 1024
MAX_EPOCHS = 1e9
COUNT = Range(0, INT32_MAX)
POSITIVE_COUNT = up_to(INT32_MAX)
STEPS_PER_EXECUTION = up_to(1024)  # each batch is an argument of the program
SECONDS = up_to(1e9)  # threads wait at most 9.2e9
DEVICE_NUMBER = Range(0, FLOAT32_MAX)
POSITIVE_DEVICE_NUMBER = Range(FLOAT32_TINY, FLOAT32_MAX)
FRACTION = Range(0, 1, open_high=True)
AREA = _ordered_pair(Range(0, 1, open_low=True), "0 < low <= high <= 1")
ALPHA = Range(0, 1000)
ASPECT = _ordered_pair(Range(1e-3, 1e3), "0.001 <= low <= high <= 1,000")
WEIGHTS = (lambda value: all(weight in DEVICE_NUMBER for weight in value)), f"numbers, each {DEVICE_NUMBER}"
POSITIVE_NUMBERS = (
    (lambda value: all(number in POSITIVE_DEVICE_NUMBER for number in value)),
    f"numbers, each {POSITIVE_DEVICE_NUMBER}",
)
PATTERNS = (lambda value: all(map(patterns.is_pattern, value))), f"regular expressions {patterns.LIMIT}"
DTYPE = one_of("float32", "bfloat16", "float64")
BATCH_NORM = _is_batch_norm, _BATCH_NORM
CLASS_WEIGHTS = _are_class_weights, "'balanced', or pairs of a class name and a number of 0 or greater"
OPTIMIZER_OPTIONS = _are_options, "a mapping of option names to numbers, strings, booleans or tuples"
MULTIPLIERS = _are_multipliers, "pairs of a regular expression and a number of 0 or greater"
