"""Metric files: JSON lines, the record of a run, and TensorBoard events, a copy for viewing (others: `sinks.py`).

`metrics.jsonl` holds the computed values, `timing.jsonl` the measured times: two runs of the same arithmetic have the
same bytes in the first. One row is one line, written with one system call and not buffered here, so that a killed
process loses at most the line that it was writing.
"""

from __future__ import annotations

import contextlib
import numbers
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from inception_jax.errors import UserError, write_error
from inception_jax.runs.manifest import replace_bytes
from inception_jax.runs.metric_rows import encode_row, parse_lines, parse_row, to_plain_scalar
from inception_jax.runs.tensorboard import AppendedFile, EventFile

METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"
FILES = (METRICS, TIMING)
EVENTS = "tensorboard"


class MetricWriter:
    """Appends rows to the metric files of a workdir, and copies their numbers to TensorBoard.

    On a resumed run, call `truncate` first and give `purge_step`.

    Attributes:
      written: `describe_rows` of the content of metrics.jsonl; of no rows where the writer is quiet.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        tensorboard: bool = True,
        *,
        purge_step: int | None = None,
        quiet: bool = False,
        notify: Callable[[], None] | None = None,
    ):
        """Opens the files, and drops an incomplete last line that a killed process left.

        Args:
          workdir: an existing directory.
          tensorboard: also write events, under `workdir/tensorboard`.
          purge_step: the first step that this process may write again (the restored step + 1): TensorBoard hides the
            events of earlier processes from there on. None where there are none.
          quiet: check the rows and write nothing (every process but process 0).
          notify: called after each row, when the file has it.

        Raises:
          UserError: a file cannot be opened.
        """
        workdir = Path(workdir)
        self.written = describe_rows(b"")
        self._files: dict[str, Any] = {}
        self._events: EventFile | None = None
        self._quiet = quiet
        self._notify = notify or (lambda: None)
        self.tensorboard_error: str | None = None
        """Why the TensorBoard events are incomplete; None: they are not."""
        if quiet:
            return
        try:
            for name in FILES:
                _filter_rows(workdir / name, keep=lambda row: True)
            for name in FILES:
                self._files[name] = AppendedFile(workdir / name)
            self.written = describe_rows((workdir / METRICS).read_bytes())
            if tensorboard:
                self._events = EventFile(workdir / EVENTS, purge_step)
        except OSError as error:
            self.close()
            raise write_error(error.filename or workdir, error) from None

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends one row to metrics.jsonl.

        Args:
          row: scalars (numbers, strings, booleans, None; of Python, NumPy or JAX), among them an integer "step" and a
            "kind". In TensorBoard, training rows are under `train/`, evaluations under e.g. `test_ema/`.

        Raises:
          ValueError: a row without a step, or a value that is not a scalar.
          UserError: the file cannot be written; `DiskFull` where the disk is full.
        """
        self._append(METRICS, row)

    def write_timing(self, row: Mapping[str, Any]) -> None:
        """Appends one row to timing.jsonl; in TensorBoard it is under `timing/`. Otherwise as `write`."""
        self._append(TIMING, row)

    def write_images(self, step: int, images: Mapping[str, str | os.PathLike]) -> None:
        """Copies PNG files into the TensorBoard events, byte for byte; does nothing where there are no events.

        Args:
          step: the step that they belong to.
          images: {name: path of a PNG file}.

        Raises:
          ValueError: a file is not a PNG.
          UserError: a file cannot be read.
        """
        if self._events is None:
            return
        try:
            contents = {f"pictures/{name}": Path(path).read_bytes() for name, path in images.items()}
        except OSError as error:
            raise _cannot_read(error.filename, error) from None
        self._to_tensorboard(step, images=contents)

    def close(self) -> None:
        """Writes everything to disk (fsync) and closes the files; a second call does nothing."""
        files, events = self._files, self._events
        self._files, self._events = {}, None
        if events is not None:
            with contextlib.suppress(OSError):  # a copy; the files below are the record
                events.close()
        for file in files.values():
            try:
                file.close()
            except OSError as error:
                raise write_error(file.name, error) from None

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        row = {key: to_plain_scalar(key, value) for key, value in row.items()}
        if type(row.get("step")) is not int:
            raise ValueError(f"a row of {name} needs an integer 'step', not {row.get('step')!r}")
        if self._quiet:
            return
        file = self._files[name]
        try:
            file.append(content := encode_row(row))
        except OSError as error:
            raise write_error(file.name, error) from None
        if name == METRICS:
            self.written = describe_rows(content, self.written)
        _, step, scalars = to_scalars(name, row)
        self._to_tensorboard(step, scalars=scalars)
        self._notify()

    def _to_tensorboard(self, step: int, **content: Mapping[str, Any]) -> None:
        """Writes to the events; where that fails, they end: the run does not."""
        if self._events is None:
            return
        try:
            self._events.add(step, **content)
        except OSError as error:
            self.tensorboard_error = f"failed at step {step:,}: {write_error(self._events.name, error)}"
            with contextlib.suppress(OSError):
                self._events.close()
            self._events = None


Scalars = tuple[str, int, dict[str, float]]
"""Group of a row ("train", "test_ema", "timing"), its step, and its numbers by name ("train/loss")."""


def to_scalars(file: str, row: Mapping[str, Any]) -> Scalars:
    """The numbers of a row, for programs that show curves.

    Args:
      file: `METRICS` or `TIMING`, which the row is of.
      row: with NaN and infinities as floats.
    """
    group = "timing" if file == TIMING else row.get("kind", "metrics")
    if group == "evaluation":
        group = f"{row.get('split', group)}_{row.get('weights', 'raw')}"
    scalars = {
        f"{group}/{key}": float(value)
        for key, value in row.items()
        if key != "step" and isinstance(value, numbers.Real) and not isinstance(value, bool)
    }
    return group, row["step"], scalars


class FollowedFile:
    """Reads the rows of a metric file that a run is writing, each once.

    Attributes:
      offset: bytes that have been read.
    """

    def __init__(self, path: str | os.PathLike):
        """Starts before the first row of a file, which may be missing."""
        self._path, self.offset = Path(path), 0

    def new_rows(self) -> list[dict[str, Any]]:
        """The rows that were added since the last call. Raises OSError where the file cannot be read."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self.offset)
                content = file.read()
        except FileNotFoundError:
            return []
        complete = content[: content.rfind(b"\n") + 1]
        self.offset += len(complete)
        return [row for line in complete.split(b"\n") if (row := parse_row(line)) is not None]


def describe_rows(content: bytes, before: Mapping[str, int] | None = None) -> dict[str, int]:
    """Describes rows: their number, and a checksum, by which a checkpoint knows those that were written before it.

    Args:
      content: whole rows.
      before: the description of the rows before them; None: there are none.

    Returns:
      {"rows": number, "crc32": checksum}.
    """
    rows, checksum = (before["rows"], before["crc32"]) if before else (0, 0)
    return {"rows": rows + content.count(b"\n"), "crc32": zlib.crc32(content, checksum)}


def note_missing_rows(workdir: str | os.PathLike, recorded: Any) -> list[str]:
    """Compares metrics.jsonl, truncated to a checkpoint, with what that checkpoint recorded of it.

    Args:
      workdir: of the run.
      recorded: `describe_rows` of the checkpoint; None in one of an earlier version, and for a new run.

    Returns:
      A warning where rows were removed, added or changed; they are in no other file.

    Raises:
      UserError: the file cannot be read.
    """
    path = Path(workdir) / METRICS
    try:
        found = describe_rows(path.read_bytes() if path.exists() else b"")
    except OSError as error:
        raise _cannot_read(path, error) from None
    if not isinstance(recorded, Mapping) or recorded == found:
        return []
    number = f"{found['rows']:,} rows up to the checkpoint, which was saved with {recorded.get('rows'):,}"
    if recorded.get("rows") == found["rows"]:
        number = "other rows than those with which the checkpoint was saved"
    return [
        f"warning: {path} has {number}: it was changed since. Curves and report lack what is missing; the training "
        "does not depend on it"
    ]


def truncate(workdir: str | os.PathLike, step: int) -> int:
    """Truncates the metric files to a step, before a resumed run writes the steps after it again.

    Drops rows with a greater step and an incomplete last line. Each file is replaced atomically; a file with nothing to
    drop is not touched.

    Args:
      workdir: a directory; missing files are ignored.
      step: the restored step; -1 where nothing was restored, which drops every row.

    Returns:
      How many rows were dropped, incomplete lines included.

    Raises:
      UserError: a line before the last is not a row, or a file cannot be replaced.
    """
    dropped = 0
    for name in FILES:
        path = Path(workdir) / name
        try:
            dropped += _filter_rows(path, keep=lambda row: row["step"] <= step)
        except OSError as error:
            raise write_error(error.filename or path, error) from None
    return dropped


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads the rows of a metric file, in order, with NaN and infinities as floats.

    Ignores an incomplete last line: the file may be read while a run is writing it.

    Args:
      path: a file that `MetricWriter` wrote.

    Raises:
      UserError: no such file, or a line before the last is not a row.
    """
    try:
        lines, _ = parse_lines(Path(path))
    except OSError as error:
        raise _cannot_read(path, error) from None
    return [row for _, row in lines]


def _filter_rows(path: Path, keep: Callable[[dict[str, Any]], bool]) -> int:
    """Drops the rows for which `keep` is false and an incomplete last line, atomically; returns how many."""
    if not path.exists():
        return 0
    before = path.stat().st_size
    lines, incomplete = parse_lines(path)
    kept = [line for line, row in lines if keep(row)]
    content = b"".join(kept)
    if len(content) == before:
        return 0
    replace_bytes(path, content)
    return len(lines) - len(kept) + incomplete


def _cannot_read(path: Any, error: OSError) -> UserError:
    return UserError(f"cannot read {path}: {error.strerror or error}")
