"""Configures Orbax's CheckpointManager: which checkpoints are kept, how the JSON item is written, what is logged."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from inception_jax.checkpoints import layout, reading
from inception_jax.errors import DiskFull, UserError, is_disk_full, write_error
from inception_jax.multihost import processes

DELETED = "deleted"
"""Subdirectory of steps that are being deleted."""

_FILES = 32
"""Files and directories of a checkpoint beside those of its arrays: 18, counted in one of one process."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class LatestAndBest(checkpoint_managers.PreservationPolicy):
    """Keeps the latest checkpoints and the best ones.

    Orbax's own BestN reads a metrics file of each step when it starts, and fails on a damaged one; and its sorting is
    not defined for NaN, so that one NaN can delete the best checkpoint.

    Attributes:
      latest: number of newest checkpoints to keep.
      best: number of best checkpoints to keep in addition.
      scores: {step: `reading.score`}; the owner keeps it up to date.
    """

    latest: int
    best: int
    scores: Mapping[int, float | None]

    def should_preserve(
        self,
        checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> list[bool]:
        """Returns for each of the checkpoints whether it is kept (the signature is Orbax's)."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*sorted(steps)[-self.latest :]}
        kept.update(reading.best_first({step: self.scores.get(step) for step in steps})[: self.best])
        return [step in kept for step in steps]


class RecordHandler(ocp.JsonCheckpointHandler):
    """Writes the record in Orbax's background thread, when its text, with the checksums of the arrays, is ready."""

    async def async_save(self, directory: Any, item: Any = None, args: RecordSave | None = None) -> list[Any]:
        """Starts the write; Orbax waits for it before it finishes the step (the signature is Orbax's)."""
        assert args is not None  # only optional in Orbax's signature
        path = Path(directory) / layout.RECORD_FILE
        return [ocp.future.CommitFutureAwaitingContractedSignals(_write(path, args.text), name="checkpoint record")]


@ocp.args.register_with_handler(RecordHandler, for_save=True)
@dataclasses.dataclass
class RecordSave(ocp.args.CheckpointArgs):
    """Arguments of `RecordHandler`: the text, as a future."""

    text: Future[str]


async def _write(path: Path, text: Future[str]) -> None:
    content = text.result()  # this coroutine has its own thread
    if processes.is_first():
        with open(path, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def open_manager(directory: Path, preservation: LatestAndBest) -> ocp.CheckpointManager:
    """Opens the manager of one directory, for saving only.

    Args:
      directory: an absolute path; it exists.
      preservation: selects what is kept after each save. Other steps are renamed into `DELETED`, because a kill during
        a deletion in place would leave a step that is listed, but incomplete.
    """
    # Measured on 516 MB of random weights: compression saves 8 % of the space and takes a third longer.
    arrays = ocp.PyTreeCheckpointHandler(use_compression=False)
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    handlers.add(layout.STATE, ocp.args.PyTreeSave, arrays)
    handlers.add(layout.HOST, RecordSave, RecordHandler())
    return ocp.CheckpointManager(
        directory,
        options=ocp.CheckpointManagerOptions(
            create=False,
            preservation_policy=preservation,
            todelete_subdir=DELETED,
            # Metrics and times of the steps are kept by this package; a damaged file of Orbax's must not stop a run.
            lightweight_initialize=True,
            prevent_write_metrics=True,
            save_root_metadata=False,
            async_options=ocp.options.AsyncOptions(barrier_sync_fn=_wait_unless_failed),
        ),
        handler_registry=handlers,
    )


def _wait_unless_failed(*, key: str, timeout_ms: int) -> None:
    """Orbax's barrier, for its background threads; where this process's save has failed, raises that error.

    Orbax enters a barrier also where it leaves a block by an exception. The others come there 20 minutes later, when
    they no longer wait for the files of this process.
    """
    if (error := sys.exc_info()[1]) is not None:
        raise error
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def remove_deleted(directory: Path) -> None:
    """Empties `DELETED`, on process 0; the directory stays, because Orbax may be renaming the next step into it."""
    if processes.is_first() and (directory / DELETED).is_dir():
        for path in (directory / DELETED).iterdir():
            shutil.rmtree(path, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Removes the remains of a killed or failed save, on process 0. No save may be in progress."""
    remove_deleted(directory)
    if processes.is_first():
        for path in directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(path, ignore_errors=True)


def check_disk_space(
    directory: Path, leaves: Mapping[str, Any], step: int, steps: Sequence[int], free_space: Callable[[], Any]
) -> None:
    """Raises before a save that cannot succeed: Orbax leaves threads behind when a save fails.

    Args:
      directory: where the checkpoint is to be written.
      leaves: the arrays to be saved.
      step: of the checkpoint.
      steps: of the existing checkpoints.
      free_space: called where the disk is too full; it may free space.

    Raises:
      DiskFull: the file system has too little free space. (A quota is noticed only when it is exceeded.)
      UserError: the directory cannot be written. Both are raised on every process where process 0 has the problem.
    """
    with processes.fail_together():
        if processes.is_first() and (problem := _find_problem(directory, leaves, step, steps, free_space)):
            raise problem


def _find_problem(
    directory: Path, leaves: Mapping[str, Any], step: int, steps: Sequence[int], free_space: Callable[[], Any]
) -> UserError | None:
    needed = sum(leaf.nbytes for leaf in leaves.values()) + len(leaves) * 1024  # and its name, shape, checksum
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
        if shutil.disk_usage(directory).free < needed or not _has_inodes(directory, len(leaves)):
            free_space()
        free, has_inodes = shutil.disk_usage(directory).free, _has_inodes(directory, len(leaves))
    except OSError as error:
        return write_error(directory, error)
    if not has_inodes:
        return DiskFull(
            f"the disk is full: the checkpoint of step {step} needs up to {len(leaves) + _FILES} files in {directory}, "
            f"and the file system has no inodes for them; {_format_kept_steps(steps)}; remove files and run the same "
            "command again"
        )
    if free >= needed:
        return None
    return DiskFull(
        f"the disk is full: the checkpoint of step {step} needs {needed / 1e6:,.1f} MB in {directory}, "
        f"{free / 1e6:,.1f} MB are free; {_format_kept_steps(steps)}; free some space and run the same command again"
    )


def _has_inodes(directory: Path, count: int) -> bool:
    """Returns whether a checkpoint of `count` arrays fits: TensorStore writes up to one file for each."""
    stat = os.statvfs(directory)
    return stat.f_files == 0 or stat.f_favail >= count + _FILES  # 0: the file system does not count them


def save_error(error: BaseException, directory: Path, step: int | None, steps: Sequence[int]) -> UserError:
    """Returns an error of one line for a save that failed: `DiskFull` where that was the reason.

    Args:
      error: of Orbax, TensorStore or the file system.
      directory: where the checkpoint was to be written.
      step: of the checkpoint.
      steps: of the existing checkpoints.
    """
    if is_disk_full(error):
        return DiskFull(
            f"the disk is full: no checkpoint of step {step} in {directory}; {_format_kept_steps(steps)}; free "
            "some space and run the same command again"
        )
    return UserError(
        f"no checkpoint of step {step} in {directory}: {reading.one_line(error)}; {_format_kept_steps(steps)}"
    )


def _format_kept_steps(steps: Sequence[int]) -> str:
    return f"existing checkpoints: {', '.join(map(str, steps)) or 'none'}"


class _OrbaxLogFilter(logging.Filter):
    """Filters redundant messages of Orbax from the log.

    These are progress (INFO), the waits that this package requests (WARNING), and failed saves, which the caller gets
    as one exception (ERROR, from four threads, up to thousands of lines; and from asyncio, when abandoned writes are
    garbage collected). Other warnings stay. All filtered messages go to this module's logger at level DEBUG.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether the record is shown."""
        if self._is_redundant(record):
            logger.debug("Orbax: %s", record.getMessage(), exc_info=record.exc_info)
            return False
        return True

    def _is_redundant(self, record: logging.LogRecord) -> bool:
        if record.name == "asyncio":
            error = record.exc_info[1] if record.exc_info else None
            return "exception was never retrieved" in str(record.msg) and _is_from_orbax(error)
        redundant = record.levelno != logging.WARNING or "Waiting for previous save" in str(record.msg)
        return redundant and _IN_ORBAX in record.pathname


_IN_ORBAX = f"{os.sep}orbax{os.sep}"


def _is_from_orbax(error: BaseException | None) -> bool:
    """Returns whether Orbax's code is in an exception's traceback."""
    frames = traceback.walk_tb(error.__traceback__ if error else None)
    return any(_IN_ORBAX in frame.f_code.co_filename for frame, _ in frames)


def quiet_logs() -> None:
    """Installs the filter for the whole process; a second call does nothing."""
    for name in ("absl", "asyncio"):
        log = logging.getLogger(name)
        if not any(isinstance(known, _OrbaxLogFilter) for known in log.filters):
            log.addFilter(_OrbaxLogFilter())
    if not isinstance(sys.excepthook, _AbandonedWrites):
        sys.excepthook = _AbandonedWrites(sys.excepthook)


class _AbandonedWrites:
    """A `sys.excepthook` that does not print what TensorStore's threads report of a save that has failed.

    Where one write of a save fails (no space, no inodes), Orbax closes the event loop; each write that ends later
    prints a traceback "Event loop is closed", beside the one line that says what was wrong.
    """

    def __init__(self, previous: Callable[..., Any]):
        self._previous = previous

    def __call__(self, kind: type[BaseException], error: BaseException, tb: TracebackType | None) -> None:
        # A call from C++: there is no Python frame before asyncio's.
        called = tb is not None and tb.tb_frame.f_code.co_name == "call_soon_threadsafe"
        if called and isinstance(error, RuntimeError) and "Event loop is closed" in str(error):
            logger.debug("a write was abandoned", exc_info=error)
        else:
            self._previous(kind, error, tb)
