"""The runs under a folder, and how each of them stands."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from inception_jax.errors import UserError, nearest
from inception_jax.runs import formatting, run_state, tables
from inception_jax.runs.run_state import RunState

COMPARISON_FILE = "comparison.md"
"""By this file the folder is known that an earlier comparison wrote."""


@dataclasses.dataclass(frozen=True)
class RunEntry:
    """A line of the listing; None stands for what is not known.

    Attributes:
      path: of the workdir.
      status: of `run_state.RunStatus`.
      why: what ended it, where that is known.
      step: steps done.
      total_steps: of how many.
      epoch: passes over the training split.
      loss: training loss of the newest row, all heads weighted.
      top1: newest evaluation's accuracy, of `weights` on `split`.
      weights: "ema" where the run keeps the average, or else "raw".
      split: that was evaluated.
      value: of a sweep's trial: what it was judged by, in the end.
      age_seconds: since the last row was written.
      images_per_second: of the newest row.
      model: its name.
      data: name of the data set.
      device: what the newest start ran on.
      notes: what is wrong with its files.
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


def find_runs(folder: str | os.PathLike) -> Iterator[Path]:
    """The workdirs under a folder, itself among them; what lies inside a run is not searched.

    In the order of their names, numbers by their value.
    """
    folder = Path(folder)
    if run_state.is_run(folder):
        yield folder
        return
    try:
        children = [entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except OSError:  # not readable: nothing is known of what is in there
        return
    for name in sorted(children, key=natural_order):
        yield from find_runs(folder / name)


def expand_paths(paths: Sequence[str | os.PathLike]) -> list[Path]:
    """The runs that a command line names: each path a run, or a folder (also a sweep's) that holds runs.

    Args:
      paths: as given.

    Returns:
      Workdirs, each once, in the order given.

    Raises:
      UserError: a path that is neither, with the nearest runs.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if run_state.is_run(path):
            runs = [path]
        else:
            inside = path / "trials" if (path / run_state.STUDY).exists() else path
            runs = [child for child in _children(inside) if run_state.is_run(child)]
        if not runs and not (path / COMPARISON_FILE).exists():  # an earlier comparison's folder, beside `runs/*`
            raise UserError(_no_run(path))
        for run in runs:
            found.setdefault(run.resolve(), run)
    if not found:
        raise UserError(f"{', '.join(map(str, paths))} holds a comparison, but no runs")
    return list(found.values())


def common_folder(paths: Sequence[Path]) -> Path:
    """The folder that all runs lie under, for what is said of all of them; of a sweep's trials, the sweep's own.

    Runs that have nothing in common (but the root of the file system) have the current directory.
    """
    parents = [path.absolute().parent for path in paths]
    folder = Path(os.path.commonpath(parents))
    if folder.name == "trials" and (folder.parent / run_state.STUDY).exists():
        folder = folder.parent
    return folder if folder != Path(folder.anchor) or set(parents) == {folder} else Path()


def read_entry(path: Path) -> RunEntry:
    """The line of one run; reads only the ends of its metric files."""
    return make_entry(run_state.read(path, whole=False))


def make_entry(run: RunState) -> RunEntry:
    """The line of a run that has been read."""
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
    )


def to_json(entries: Sequence[RunEntry]) -> list[dict[str, Any]]:
    """The listing as plain values; NaN and the infinities as the strings that the metric files have for them."""
    from inception_jax.runs.result import to_json_values

    return [to_json_values(dataclasses.asdict(one)) for one in entries]


def format_text(entries: Sequence[RunEntry], folder: str | os.PathLike) -> str:
    """The listing as a table, and below it what is wrong with files.

    Args:
      entries: as `read_entry` gives them.
      folder: that was listed: the names begin below it.
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
    counts: dict[str, int] = {}
    for one in entries:
        counts[one.status] = counts.get(one.status, 0) + 1
    summary = f"{len(entries)} run{'s' * (len(entries) != 1)}: " + ", ".join(f"{n} {s}" for s, n in counts.items())
    notes = [f"note: {note}" for one in entries for note in one.notes]
    return "\n".join([tables.format_table([head, *rows], "llrrrrlrrlll"), "", summary, *notes])


def natural_order(name: str) -> list[tuple[int, str]]:
    """A key by which `trial 9` comes before `trial 10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _cells(one: RunEntry, folder: Path) -> list[str]:
    words = one.status + (f" ({one.why})" if one.why.startswith("SIG") or one.why == "killed" else "")
    step = "–" if one.step is None else f"{one.step:,}"
    return [
        os.path.relpath(one.path, folder) if one.path != str(folder) else ".",
        words,
        step + ("" if one.total_steps is None else f"/{one.total_steps:,}"),
        "–" if one.epoch is None else f"{one.epoch:.4g}",
        "–" if one.loss is None else formatting.format_number(one.loss),
        "–" if one.top1 is None else f"{100 * one.top1:.2f} %",
        one.weights or "–",
        "–" if one.age_seconds is None else f"{formatting.format_duration(one.age_seconds)} ago",
        "–" if one.images_per_second is None else formatting.format_rate(one.images_per_second),
        one.model or "–",
        one.data or "–",
        one.device or "–",
    ]


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(
            (child for child in folder.iterdir() if child.is_dir()), key=lambda path: natural_order(path.name)
        )
    except OSError:
        return []


def _no_run(path: Path) -> str:
    """One line on a path that is no run: what it is, and the nearest runs above, below and beside it."""
    if not path.exists():
        beside = [child.name for child in _children(path.parent) if run_state.is_run(child)]
        near = nearest(path.name, beside)
        some = f"; runs there: {_few(beside)}" if beside and not near else ""
        return f"{path}: there is no such directory{near}{some}"
    above = next((parent for parent in path.absolute().parents if run_state.is_run(parent)), None)
    if above is not None:
        return f"{path} is no run, but lies inside one: {above}"
    if not path.is_dir():
        return f"{path} is a file; a run is a directory"
    below = [str(run) for _, run in zip(range(4), find_runs(path), strict=False)]
    return f"{path} holds no runs" + (f" one level below; further down: {_few(below)}" if below else "")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
