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
from inception_jax.checkpoints import checksums, identity
from inception_jax.checkpoints.layout import HOST, RECORD_FILE, STATE, SUBDIRECTORY
from inception_jax.errors import ExitCode, UserError, nearest

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

    kind = "damaged checkpoint"


class CheckpointForeign(CheckpointDamaged):
    """A checkpoint in the wrong place: of another step than its directory's name, or of another run."""

    kind = "foreign checkpoint"


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


def read_record(path: Path, run_id: str | None = None, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Reads the record of one step: "format", "step", "run", "host", "metrics", "best" and "leaves".

    Args:
      path: the step's directory, named after the step.
      run_id: of the run that it must be of; None: of any.
      config: fields with which it must have been trained, as in `identity.RunIdentity`; None: with any.

    Raises:
      CheckpointDamaged: the record is missing or damaged.
      CheckpointForeign: it is of another step or run.
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
    if mismatch := identity.find_mismatch(record, int(path.name), run_id, config):
        raise CheckpointForeign(f"{path} {mismatch}")
    return record


def read_matching_record(
    path: Path, wanted: Mapping[str, Any], run: identity.RunIdentity | None = None
) -> dict[str, Any]:
    """Reads the record of one step, which must be of a run and have the leaves that are wanted; reads no array.

    Args:
      path: the step's directory.
      wanted: {name: leaf with dtype and shape}.
      run: that it must be of; None: any.

    Raises:
      CheckpointDamaged, CheckpointForeign: as `read_record`.
      CheckpointMismatch: names, shapes or dtypes differ.
    """
    record = read_record(path, run.id, run.config) if run else read_record(path)
    difference = checksums.first_difference(record["leaves"], checksums.dtypes_and_shapes(wanted))
    if difference:
        raise CheckpointMismatch(f"{path} is of another state: {difference}")
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


def read_score(path: Path, rule: Mapping[str, str] | None, run_id: str | None = None) -> float | None:
    """Reads the `score` of one step; None also where it is damaged, which is reported when this step is requested."""
    try:
        return score(read_record(path, run_id)["metrics"], rule)
    except UserError:
        return None


def best_first(scores: Mapping[int, float | None]) -> list[int]:
    """Sorts steps from the best score to the worst, equal ones by the later step; leaves out those without a score."""
    known = {step: value for step, value in scores.items() if value is not None}
    return sorted(known, key=lambda step: (known[step], step), reverse=True)


def first_usable(steps: Sequence[int], read: Callable[[int], T]) -> tuple[T, dict[int, CheckpointDamaged]]:
    """Reads the first step that is usable; returns what `read` returned, and {damaged or foreign step: its error}.

    Raises:
      CheckpointError: none is usable.
    """
    problems: dict[int, CheckpointDamaged] = {}
    for step in steps:
        try:
            return read(step), problems
        except CheckpointDamaged as error:
            problems[step] = error
    first, *others = problems.values()
    how = "damaged, or of another step or run" if CheckpointForeign in map(type, problems.values()) else "damaged"
    raise CheckpointError(f"no usable checkpoint: {f'all {len(problems)} are {how}; ' if others else ''}{first}")


def load_variables(
    path: str | Path,
    weights: Literal["raw", "ema"] = "raw",
    step: int | Literal["best"] | None = None,
    warn: Warn = logger.warning,
    run_id: str | None = None,
) -> dict[str, Any]:
    """Loads the network's variables from a checkpoint, of any optimizer. Changes nothing on disk.

    Args:
      path: a workdir, its directory of checkpoints, or one step's directory.
      weights: "raw" for the trained parameters, "ema" for their exponential moving average.
      step: None for the newest undamaged checkpoint, "best", or one step.
      warn: gets one line for every damaged or foreign checkpoint that is skipped.
      run_id: of the run that the checkpoint must be of; None: of any.

    Returns:
      {"params": …, "batch_stats": … ({} where the network has none)}: nested dictionaries of NumPy arrays.

    Raises:
      UserError: no checkpoints there, no such step, or no EMA weights.
      CheckpointError: checkpoints exist, but none is usable.
    """
    return load_variables_and_step(path, weights, step, warn, run_id)[0]


def load_variables_and_step(
    path: str | Path,
    weights: Literal["raw", "ema"] = "raw",
    step: int | Literal["best"] | None = None,
    warn: Warn = logger.warning,
    run_id: str | None = None,
) -> tuple[dict[str, Any], int]:
    """As `load_variables`; returns them and their step, which is not the newest where that one is damaged."""
    if weights not in ("raw", "ema"):
        raise UserError(f"weights {weights!r}: 'raw' or 'ema'{nearest(weights, ('raw', 'ema'))}")
    return _read_first_usable(
        path, step, lambda directory: (_variables(directory, weights, run_id), int(directory.name)), warn, run_id
    )


def load_record(
    path: str | Path,
    step: int | Literal["best"] | None = None,
    warn: Warn = logger.warning,
    run_id: str | None = None,
) -> dict[str, Any]:
    """Reads the record of the newest, best or given checkpoint, whose arrays it does not read, so may be damaged.

    The arguments are those of `load_variables`, which skips a checkpoint with damaged arrays: for these variables and
    their step, give it a step, or call `load_variables_and_step`.
    """
    return _read_first_usable(path, step, lambda directory: read_record(directory, run_id), warn, run_id)


def one_line(error: BaseException) -> str:
    """Formats an error as one line of at most 300 characters (both ends), without the details TensorStore appends."""
    lines = [line.strip() for line in str(error).split(" [tensorstore_spec")[0].splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    return line if len(line) <= 300 else f"{line[:80]} … {line[-217:]}"


def _variables(directory: Path, weights: str, run_id: str | None) -> dict[str, Any]:
    record = read_record(directory, run_id)
    prefix = "ema/" if weights == "ema" else ""
    names = [name for name in record["leaves"] if name.startswith((f"{prefix}params/", f"{prefix}batch_stats/"))]
    if not names:
        raise CheckpointMismatch(f"{directory} has no EMA weights, because the run has no EMA; use weights 'raw'")
    leaves = read_leaves(directory, record, names)
    return {"batch_stats": {}, **tree_paths.nest({name.removeprefix(prefix): leaf for name, leaf in leaves.items()})}


def _read_first_usable(
    path: str | Path, step: int | str | None, read: Callable[[Path], T], warn: Warn, run_id: str | None
) -> T:
    directory, steps = _candidates(Path(path), step, run_id)
    found, problems = first_usable(steps, lambda step: read(directory / str(step)))
    for problem in problems.values():
        warn(f"{problem.kind} skipped: {problem}")
    return found


def _candidates(path: Path, step: int | str | None, run_id: str | None) -> tuple[Path, Sequence[int]]:
    """Returns the directory of checkpoints, and its steps that fit the request, the preferred first."""
    directory = path / SUBDIRECTORY if (path / SUBDIRECTORY).is_dir() else path
    steps = list_steps(directory)
    if not steps and path.name.isdecimal() and (path / HOST).is_dir():
        return path.absolute().parent, [int(path.name)]
    if not steps:
        reason = "a file" if path.is_file() else "" if path.exists() else "there is no such directory"
        raise UserError(
            f"no checkpoints in {path}{reason and ': '}{reason}; a run's workdir, its directory of checkpoints, or one "
            "of these is needed"
        )
    if step is None:
        return directory, steps[::-1]
    if step == "best":
        return directory, _best(directory, steps, run_id)
    if step not in steps:
        raise UserError(f"no checkpoint of step {step} in {directory}; there are {', '.join(map(str, steps))}")
    return directory, [int(step)]


def _best(directory: Path, steps: Sequence[int], run_id: str | None) -> list[int]:
    newest, _ = first_usable(steps[::-1], lambda step: read_record(directory / str(step), run_id))
    found = best_first({step: read_score(directory / str(step), newest["best"], run_id) for step in steps})
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
