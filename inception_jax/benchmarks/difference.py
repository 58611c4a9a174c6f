"""Two measurements side by side: what was different about them, and what came out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inception_jax.benchmarks.measure import FORMAT, WORDS
from inception_jax.errors import UserError
from inception_jax.runs import manifest
from inception_jax.runs.tables import aligned

_SETTINGS = ("task", "device", "host", "limits", "versions", "git")
# (words, path below a kind of step, factor, unit): smaller is better in all but the rates.
_FIGURES = (
    ("step, median", "step_seconds.median", 1e3, "ms"),
    ("step, p10", "step_seconds.p10", 1e3, "ms"),
    ("step, p90", "step_seconds.p90", 1e3, "ms"),
    ("images/s", "images_per_second", 1.0, ""),
    ("utilisation", "flops.utilization", 100.0, "%"),
    ("of the roofline", "roofline.fraction", 100.0, "%"),
    ("memory planned", "memory.program.total", 1 / 2**20, "MiB"),
    ("memory at most", "memory.device.peak", 1 / 2**20, "MiB"),
    ("tracing, lowering", "compile.lowering", 1.0, "s"),
    ("compiler, cold", "compile.cold", 1.0, "s"),
    ("start, cached", "compile.cached", 1.0, "s"),
)


def read(path: str | Path) -> dict[str, Any]:
    """A measurement from its JSON file.

    Raises:
      UserError: no such file, or one of something else.
    """
    content = manifest.read_object(path)
    if content is None:
        raise UserError(f"{path}: there is no such file")
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path}: not a measurement of `benchmark --json` (its format is {content.get('format')!r}, "
            f"{FORMAT!r} is needed)"
        )
    return content


def tell(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]) -> str:
    """Both measurements as text: the settings that differ, then every figure that both have, and its ratio.

    Args:
      first, second: as `read` gives them.
      names: of the two, for the head of the columns.

    Raises:
      UserError: they have no kind of step in common.
    """
    kinds = [kind for kind in WORDS if kind in first and kind in second]
    if not kinds:
        raise UserError(f"{names[0]} and {names[1]}: one has no step that the other has")
    settings = [{name: content.get(name) for name in _SETTINGS} for content in (first, second)]
    differences = manifest.config_differences(*settings)
    parts = []
    if differences:
        parts.append("What was different:\n" + aligned([("", *names), *differences]))
    for kind in kinds:
        rows = list(_rows(first[kind], second[kind]))
        parts.append(f"{WORDS[kind]}:\n" + aligned([("", *names, "ratio"), *rows], "lrrr"))
    return "\n\n".join(parts)


def _rows(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    for words, path, factor, unit in _FIGURES:
        one, two = _at(first, path), _at(second, path)
        if one is not None and two is not None:
            cells = (f"{factor * value:,.4g} {unit}".rstrip() for value in (one, two))
            yield (words, *cells, f"{two / one:.3f}" if one else "")


def _at(content: Any, path: str) -> float | None:
    """The number at a dotted path, None where any part of it is missing."""
    for name in path.split("."):
        content = content.get(name) if isinstance(content, Mapping) else None
    return content
