"""Finds the runs under a folder and lists the status of each."""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from inception_jax.errors import UserError, nearest
from inception_jax.metric_definitions import METRICS
from inception_jax.runs import formatting, run_state, tables
from inception_jax.runs.run_state import RunState

COMPARISON_FILE = "comparison.md"
"""The file that marks the output folder of an earlier comparison."""

_LEVELS = 3  # of folders that an error searches for runs: a folder of images may have a million files


@dataclasses.dataclass(frozen=True)
class RunEntry:
    """A line of the listing; None stands for what is not known.

    Attributes:
      path: of the workdir.
      status: of `run_state.RunStatus`.
      why: what ended the run, where that is known.
      step: steps done.
      total_steps: steps of the whole run.
      epoch: passes over the training split.
      loss: training loss of the newest row, summed over the weighted heads.
      top1: accuracy of the newest evaluation, of `weights` on `split`; None of several labels per example.
      weights: "ema" where the run has an EMA of its weights, otherwise "raw".
      split: that was evaluated.
      value: of a sweep's trial: the final value of the sweep's metric.
      age_seconds: since the last row was written.
      images_per_second: of the newest row.
      model: its name.
      data: name of the data set.
      device: of the newest start.
      notes: what is wrong with the files.
      mean_average_precision: of the newest evaluation, of several labels per example.
    """

    path: str
    status: str
    why: str
    step: int | None
    total_steps: int | None
    epoch: float | None
    loss: float | None
    top1: float | None
    weights: str | None
    split: str | None
    value: float | None
    age_seconds: float | None
    images_per_second: float | None
    model: str | None
    data: str | None
    device: str | None
    notes: tuple[str, ...]
    mean_average_precision: float | None = None


def find_runs(folder: str | os.PathLike, levels: int | None = None) -> Iterator[Path]:
    """Yields the workdirs at or under a folder, in natural order of their names; does not search inside a run.

    Args:
      folder: where to search.
      levels: of folders below it that are searched; None: all.
    """
    folder = Path(folder)
    if run_state.is_run(folder):
        yield folder
        return
    if levels == 0:
        return
    try:
        children = [entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except OSError:  # an unreadable folder is skipped
        return
    for name in sorted(children, key=natural_order):
        yield from find_runs(folder / name, None if levels is None else levels - 1)


def expand_paths(paths: Sequence[str | os.PathLike]) -> list[Path]:
    """Expands the paths of a command line to runs: each path is a run, or a folder (also a sweep's) of runs.

    Args:
      paths: as given.

    Returns:
      Workdirs, each once, in the order given.

    Raises:
      UserError: a path is neither; the error names the nearest runs.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if run_state.is_run(path):
            runs = [path]
        else:
            inside = path / "trials" if (path / run_state.STUDY).exists() else path
            runs = [child for child in _children(inside) if run_state.is_run(child)]
        if not runs and not (path / COMPARISON_FILE).exists():  # `runs/*` also matches an earlier comparison's folder
            raise UserError(f"{path}: {explain_no_run(path)}")
        for run in runs:
            found.setdefault(run.resolve(), run)
    if not found:
        raise UserError(f"{', '.join(map(str, paths))}: holds a comparison, but no runs")
    return list(found.values())


def common_folder(paths: Sequence[Path]) -> Path:
    """Returns the deepest folder above all runs, for files about all of them; for a sweep's trials, the sweep's folder.

    Runs that share only the root of the file system get the current directory.
    """
    parents = [path.absolute().parent for path in paths]
    folder = Path(os.path.commonpath(parents))
    if folder.name == "trials" and (folder.parent / run_state.STUDY).exists():
        folder = folder.parent
    return folder if folder != Path(folder.anchor) or set(parents) == {folder} else Path()


def explain_no_run(path: Path) -> str:
    """Describes in one line why a path is not a run's workdir, with the nearest runs above, below and beside it."""
    if not path.exists():
        siblings = [run.name for run in runs_beside(path)]
        near = nearest(path.name, siblings)
        some = f"; runs there: {_few(siblings)}" if siblings and not near else ""
        return f"there is no such directory{near}{some}"
    above = next((parent for parent in path.absolute().parents if run_state.is_run(parent)), None)
    if above is not None:
        return f"not a run, but inside one: {above}"
    if not path.is_dir():
        return "a file; a run is a directory"
    if inside := [str(child) for child in _children(path) if run_state.is_run(child)]:
        return f"not a run, but a folder of runs: {_few(inside)}"
    below = [str(run) for _, run in zip(range(4), find_runs(path, _LEVELS), strict=False)]
    return "holds no runs" + (f" one level below; further down: {_few(below)}" if below else "")


def runs_beside(path: Path) -> list[Path]:
    """The workdirs of runs in the folder of a path, which need not exist."""
    return [child for child in _children(path.parent) if run_state.is_run(child)]


def read_entry(path: Path) -> RunEntry:
    """Reads the listing's line of one run; reads only the ends of its metric files."""
    return make_entry(run_state.read(path, all_rows=False))


def make_entry(run: RunState) -> RunEntry:
    """Makes the listing's line of a run that has been read."""
    train, evaluations = run.of_kind("train"), run.evaluations()
    last, evaluated = (rows[-1] if rows else {} for rows in (train, evaluations))
    step, per_epoch = run.step, run.steps_per_epoch
    return RunEntry(
        path=str(run.path),
        status=str(run.status),
        why=run.why,
        step=step,
        total_steps=run.total_steps,
        epoch=step / per_epoch if step is not None and per_epoch else None,
        loss=last.get("loss"),
        top1=evaluated.get("top1"),
        weights=evaluated.get("weights"),
        split=evaluated.get("split"),
        value=run.trial.get("value"),
        age_seconds=run.age,
        images_per_second=run.timing[-1].get("images_per_second") if run.timing else None,
        model=(run.config.get("model") or {}).get("name"),
        data=(run.config.get("data") or {}).get("name"),
        device=", ".join(map(str, run.manifest.get("devices") or [])) or None,
        notes=tuple(run.notes),
        mean_average_precision=evaluated.get("mean_average_precision"),
    )


def to_json(entries: Sequence[RunEntry]) -> list[dict[str, Any]]:
    """Returns the listing as JSON values; NaN and infinities are strings, as in the metric files."""
    from inception_jax.runs.result import to_json_values

    return [to_json_values(dataclasses.asdict(one)) for one in entries]


def format_text(entries: Sequence[RunEntry], folder: str | os.PathLike) -> str:
    """Formats the listing as a table, followed by counts and by notes on damaged files.

    Args:
      entries: from `read_entry`.
      folder: that was listed; the names of runs are relative to it.
    """
    head = (
        "run",
        "status",
        "step",
        "epoch",
        "loss",
        "top-1",
        "weights",
        "last row",
        "images/s",
        "model",
        "data",
        "device",
    )
    rows = [_cells(one, Path(folder)) for one in entries]
    counts = collections.Counter(one.status for one in entries)
    summary = f"{len(entries)} run{'s' * (len(entries) != 1)}: " + ", ".join(f"{n} {s}" for s, n in counts.items())
    notes = [f"note: {note}" for one in entries for note in one.notes]
    return "\n".join([tables.format_table([head, *rows], "llrrrrlrrlll"), "", summary, *notes])


def format_status(one: RunEntry) -> str:
    """Formats the status of a run, with the signal that ended it."""
    return f"{one.status} ({one.why})" if one.why.startswith("SIG") or one.why == "killed" else one.status


def natural_order(name: str) -> list[tuple[int, str]]:
    """Returns a sort key by which `trial 9` comes before `trial 10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _cells(one: RunEntry, folder: Path) -> list[str]:
    step = "–" if one.step is None else f"{one.step:,}"
    return [
        os.path.relpath(one.path, folder) if one.path != str(folder) else ".",
        format_status(one),
        step + ("" if one.total_steps is None else f"/{one.total_steps:,}"),
        "–" if one.epoch is None else f"{one.epoch:.4g}",
        formatting.format_metric(METRICS["loss"], one.loss),
        _format_accuracy(one),
        one.weights or "–",
        "–" if one.age_seconds is None else f"{formatting.format_duration(one.age_seconds)} ago",
        "–" if one.images_per_second is None else formatting.format_rate(one.images_per_second),
        one.model or "–",
        one.data or "–",
        one.device or "–",
    ]


def _format_accuracy(one: RunEntry) -> str:
    if one.top1 is None and one.mean_average_precision is not None:
        return f"{100 * one.mean_average_precision:.2f} % mAP"
    return formatting.format_metric(METRICS["top1"], one.top1)


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(
            (child for child in folder.iterdir() if child.is_dir()), key=lambda path: natural_order(path.name)
        )
    except OSError:
        return []


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
