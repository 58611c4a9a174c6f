"""Goodput: the fraction of a run's wall time, over all its starts, that was spent in training steps that were kept.

A start that is killed leaves its time in the rows of timing.jsonl after the checkpoint from which the next start
continues. That start drops these rows; before, it records what they say in its entry of manifest.json. Of a start that
left neither a row nor a checkpoint, the manifest has the time that it took to start up.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inception_jax.errors import UserError
from inception_jax.runs import metric_files

LOST = "lost"
"""The field of a start in manifest.json: {"from_step", "to_step", "seconds"} of the start before it."""
STARTUP = "startup_seconds"
"""The field of a start in manifest.json: seconds before its manifest was written."""
BEFORE = "wall_seconds_before"
"""The field of a start in manifest.json: wall seconds of the run up to the checkpoint from which it continued."""

_NOT_TRAINING = ("startup", "compile", "evaluation", "checkpoint", "plots")


def training_seconds(totals: Mapping[str, float]) -> float:
    """Seconds in training steps that were kept, and in waiting for their data.

    Args:
      totals: `training.clock.Clock.totals`, or a result.json.
    """
    return max(0.0, totals["wall_seconds"] - sum(totals.get(f"{name}_seconds", 0.0) for name in _NOT_TRAINING))


def measure_lost(workdir: Path, step: int, wall_seconds: float) -> dict[str, Any] | None:
    """What the start before this one did after the checkpoint from which this one continues.

    Args:
      workdir: of the run; the rows of its timing.jsonl are not truncated yet.
      step: of the checkpoint; 0: there is none.
      wall_seconds: of the run up to that checkpoint, as the checkpoint has it.

    Returns:
      {"from_step", "to_step", "seconds"}, up to the last row; None: there is no row after the checkpoint.
    """
    path = workdir / metric_files.TIMING
    try:
        rows = metric_files.read_rows(path) if path.exists() else []
    except UserError:  # reported where the rows are truncated
        return None
    last = rows[-1] if rows else {}
    if last.get("step", 0) <= step or not isinstance(last.get("wall_seconds"), int | float):
        return None
    return {"from_step": step, "to_step": last["step"], "seconds": max(0.0, last["wall_seconds"] - wall_seconds)}


def lost_seconds(starts: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of all starts that were lost, because the run continued from an earlier checkpoint.

    Args:
      starts: of manifest.json. Of equal entries `LOST` that follow one another one counts: a start that was killed
        before it truncated the rows left the same ones to the next. Of a start that left no row and no checkpoint, its
        `STARTUP` counts; manifests of earlier versions do not say which one that is.
    """
    seconds = 0.0
    for before, start in zip([{}, *starts], starts, strict=False):
        rows = _number(start.get(LOST, {}), "seconds") if start.get(LOST) != before.get(LOST) else None
        seconds += rows or 0.0
        began, continued = _number(before, BEFORE), _number(start, BEFORE)
        if began is None or continued is None or continued > began:
            continue  # it is not known, or it has saved a checkpoint
        if rows is None or continued + rows <= began:
            seconds += _number(before, STARTUP) or 0.0
    return seconds


def _number(content: Any, name: str) -> float | None:
    found = content.get(name) if isinstance(content, Mapping) else None
    return float(found) if isinstance(found, int | float) else None


def account(totals: Mapping[str, float], starts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The time of a run over all its starts, for result.json.

    Args:
      totals: `training.clock.Clock.totals`.
      starts: of manifest.json, up to this one.

    Returns:
      "starts"; "training_seconds"; "lost_seconds"; "between_starts_seconds", the rest since the first start, to about a
      second: no start ran, or one did what no clock that was kept has measured (after its last row, where it was
      killed; after its last checkpoint, where it ended; all, where it was killed before it wrote its manifest);
      "goodput", from 0 to 1.
    """
    lost = lost_seconds(starts)
    training, spent = training_seconds(totals), totals["wall_seconds"] + lost
    elapsed = 0.0
    with contextlib.suppress(KeyError, TypeError, ValueError):  # the manifest is an earlier version's, or was changed
        begun = datetime.datetime.fromisoformat(starts[0]["time"]).timestamp() - starts[0].get(STARTUP, 0.0)
        elapsed = datetime.datetime.now(datetime.UTC).timestamp() - begun
    return {
        "starts": len(starts),
        "training_seconds": training,
        "lost_seconds": lost,
        "between_starts_seconds": max(0.0, elapsed - spent) if len(starts) > 1 else 0.0,
        "goodput": max(0.0, training - totals["data_wait_seconds"]) / spent if spent else 0.0,
    }
