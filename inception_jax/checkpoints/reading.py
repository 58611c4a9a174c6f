"""Reads checkpoints from disk, completely or in part, and detects damaged ones."""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import numpy as np
import tensorstore as ts

from inception_jax import tree_paths
from inception_jax.checkpoints import checksums
from inception_jax.errors import ExitCode, UserError, nearest

SUBDIRECTORY = "checkpoints"
"""The directory of checkpoints in a workdir."""

STATE, HOST, RECORD_FILE = "state", "host", "metadata"
"""The two items of a step's directory, and the file in the second (the name that Orbax's JsonRestore expects)."""

FORMAT = 1
"""Version of the record; incremented when older readers cannot read it."""

Warn = Callable[[str], None]
T = TypeVar("T")

logger = logging.getLogger(__name__)


class CheckpointError(UserError):
    """Checkpoints exist, but none is usable."""

    exit_code = ExitCode.NO_CHECKPOINT


class CheckpointDamaged(CheckpointError):
    """A checkpoint is damaged: it is not what was saved."""


class CheckpointMismatch(UserError):
    """An undamaged checkpoint, but of another state than requested."""


def list_steps(directory: Path) -> list[int]:
    """Returns the steps of the finished checkpoints in a directory, ascending. (Orbax renames a finished step.)

    Raises:
      UserError: the directory cannot be read.
    """
    if not directory.is_dir():
        return []
    try:
        return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal() and path.is_dir())
    except OSError as error:
        raise UserError(f"cannot read {directory}: {error.strerror}") from None


def read_record(path: Path) -> dict[str, Any]:
    """Reads the record of one step: "format", "step", "host", "metrics", "best" and "leaves".

    Args:
      path: the step's directory.

    Raises:
      CheckpointDamaged: the record is missing or damaged.
      CheckpointMismatch: a later version of this package wrote it.
    """
    file = path / HOST / RECORD_FILE
    try:
        record = checksums.load_with_crc(file.read_text(encoding="utf-8"))
    except OSError as error:
        if _is_transient(error):
            raise CheckpointError(f"cannot read {file}: {error.strerror}") from None
        raise CheckpointDamaged(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointDamaged(f"{file}: {one_line(error)}") from None
    if record["format"] > FORMAT:
        raise CheckpointMismatch(
            f"{path} was written by a later version of this package (format {record['format']}, "
            f"this one reads up to {FORMAT})"
        )
    return record


def read_leaves(path: Path, record: Mapping[str, Any], names: Iterable[str]) -> dict[str, np.ndarray]:
    """Reads some or all arrays of one step, and checks them against the record.

    TensorStore reads what Orbax wrote (Zarr arrays in one OCDBT database, named by their path with dots). Orbax's own
    reader takes three times as long, casts to another dtype without a warning, and on a damaged file prints pages of
    tracebacks from threads, which cannot be caught.

    Args:
      path: the step's directory.
      record: from `read_record`.
      names: of the leaves to read, each in the record.

    Returns:
      {name: array in host memory}.

    Raises:
      CheckpointDamaged: a leaf cannot be read, or does not match its checksum.
      CheckpointError: it cannot be read now, for a reason outside the file (memory, open files, permission).
    """
    database = {"driver": "ocdbt", "base": f"file://{quote(str((path / STATE).absolute()))}/"}
    context = ts.Context({"cache_pool": {"total_bytes_limit": 100_000_000}})  # the database's index, read once
    try:
        opening = {
            name: ts.open(
                {
                    "driver": "zarr",
                    "kvstore": {**database, "path": name.replace("/", ".") + "/"},
                    "fill_missing_data_reads": False,
                },
                read=True,
                context=context,
            )
            for name in names
        }
        reading = {name: store.result().read() for name, store in opening.items()}
        leaves = {name: np.asarray(array.result()) for name, array in reading.items()}
    except (ValueError, KeyError, OSError, MemoryError) as error:  # TensorStore raises ValueError
        logger.debug("reading %s", path, exc_info=True)
        if _is_transient(error):
            raise CheckpointError(f"cannot read {path}: {one_line(error)}") from None
        raise CheckpointDamaged(f"{path}: {one_line(error)}") from None
    corruption = checksums.first_corruption(record["leaves"], leaves)
    if corruption:
        raise CheckpointDamaged(f"{path}: {corruption}")
    return leaves


def score(metrics: Mapping[str, float] | None, rule: Mapping[str, str] | None) -> float | None:
    """Returns the score of a checkpoint, higher is better; NaN is worse than everything, None is unknown.

    Args:
      metrics: {name: value} of an evaluation.
      rule: {"name": the metric that decides, "mode": "max" or "min"}.
    """
    if not metrics or not rule or rule["name"] not in metrics:
        return None
    value = metrics[rule["name"]] if rule["mode"] == "max" else -metrics[rule["name"]]
    return -math.inf if math.isnan(value) else value


def read_score(path: Path, rule: Mapping[str, str] | None) -> float | None:
    """Reads the `score` of one step; None also where it is damaged, which is reported when this step is requested."""
    try:
        return score(read_record(path)["metrics"], rule)
    except UserError:
        return None


def best_first(scores: Mapping[int, float | None]) -> list[int]:
    """Sorts steps from the best score to the worst, equal ones by the later step; leaves out those without a score."""
    known = {step: value for step, value in scores.items() if value is not None}
    return sorted(known, key=lambda step: (known[step], step), reverse=True)


def first_usable(steps: Sequence[int], read: Callable[[int], T]) -> tuple[T, dict[int, str]]:
    """Reads the first step that is not damaged; returns what `read` returned, and {damaged step: reason}.

    Raises:
      CheckpointError: all are damaged.
    """
    damages: dict[int, str] = {}
    for step in steps:
        try:
            return read(step), damages
        except CheckpointDamaged as error:
            damages[step] = str(error)
    how_many = f"all {len(damages)} are damaged; " if len(damages) > 1 else ""
    raise CheckpointError(f"no usable checkpoint: {how_many}{next(iter(damages.values()))}")


def load_variables(
    path: str | Path,
    weights: Literal["raw", "ema"] = "raw",
    step: int | Literal["best"] | None = None,
    warn: Warn = logger.warning,
) -> dict[str, Any]:
    """Loads the network's variables from a checkpoint, of any optimizer. Changes nothing on disk.

    Args:
      path: a workdir, its directory of checkpoints, or one step's directory.
      weights: "raw" for the trained parameters, "ema" for their exponential moving average.
      step: None for the newest undamaged checkpoint, "best", or one step.
      warn: gets one line for every damaged checkpoint that is skipped.

    Returns:
      {"params": …, "batch_stats": … ({} where the network has none)}: nested dictionaries of NumPy arrays.

    Raises:
      UserError: no checkpoints there, no such step, or no EMA weights.
      CheckpointError: checkpoints exist, but all are damaged.
    """
    if weights not in ("raw", "ema"):
        raise UserError(f"weights {weights!r}: 'raw' or 'ema'{nearest(weights, ('raw', 'ema'))}")
    return _read_first_usable(path, step, lambda directory: _variables(directory, weights), warn)


def load_record(
    path: str | Path, step: int | Literal["best"] | None = None, warn: Warn = logger.warning
) -> dict[str, Any]:
    """Reads the record of the checkpoint that `load_variables` would load, with the same arguments."""
    return _read_first_usable(path, step, read_record, warn)


def one_line(error: BaseException) -> str:
    """Formats an error as one line of at most 300 characters (both ends), without the details TensorStore appends."""
    lines = [line.strip() for line in str(error).split(" [tensorstore_spec")[0].splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    return line if len(line) <= 300 else f"{line[:80]} … {line[-217:]}"


def _variables(directory: Path, weights: str) -> dict[str, Any]:
    record = read_record(directory)
    prefix = "ema/" if weights == "ema" else ""
    names = [name for name in record["leaves"] if name.startswith((f"{prefix}params/", f"{prefix}batch_stats/"))]
    if not names:
        raise CheckpointMismatch(f"{directory} has no EMA weights, because the run has no EMA; use weights 'raw'")
    leaves = read_leaves(directory, record, names)
    return {"batch_stats": {}, **tree_paths.nest({name.removeprefix(prefix): leaf for name, leaf in leaves.items()})}


def _read_first_usable(path: str | Path, step: int | str | None, read: Callable[[Path], T], warn: Warn) -> T:
    directory, steps = _candidates(Path(path), step)
    found, damages = first_usable(steps, lambda step: read(directory / str(step)))
    for reason in damages.values():
        warn(f"damaged checkpoint skipped: {reason}")
    return found


def _candidates(path: Path, step: int | str | None) -> tuple[Path, Sequence[int]]:
    """Returns the directory of checkpoints, and its steps that fit the request, the preferred first."""
    directory = path / SUBDIRECTORY if (path / SUBDIRECTORY).is_dir() else path
    steps = list_steps(directory)
    if not steps and path.name.isdecimal() and (path / HOST).is_dir():
        return path.absolute().parent, [int(path.name)]
    if not steps:
        raise UserError(f"no checkpoints in {path}" + ("" if path.exists() else ": there is no such directory"))
    if step is None:
        return directory, steps[::-1]
    if step == "best":
        return directory, _best(directory, steps)
    if step not in steps:
        raise UserError(f"no checkpoint of step {step} in {directory}; there are {', '.join(map(str, steps))}")
    return directory, [int(step)]


def _best(directory: Path, steps: Sequence[int]) -> list[int]:
    newest, _ = first_usable(steps[::-1], lambda step: read_record(directory / str(step)))
    found = best_first({step: read_score(directory / str(step), newest["best"]) for step in steps})
    if not found:
        raise UserError(
            f"no checkpoint in {directory} has a score, so there is no best one; leave out 'best' for the newest"
        )
    return found


def _is_transient(error: BaseException) -> bool:
    """Returns whether reading failed for a reason that does not mean a damaged file."""
    if isinstance(error, MemoryError):
        return True
    numbers = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM, errno.EINTR, errno.ESTALE)
    if isinstance(error, OSError) and error.errno in numbers:
        return True
    messages = ("RESOURCE_EXHAUSTED", "Out of memory", "PERMISSION_DENIED", "Too many open files")
    return any(message in str(error) for message in messages)
