"""Orbax's CheckpointManager as this package wants it: what stays, how the JSON item is written, what is logged."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from inception_jax.checkpoints import reading
from inception_jax.errors import NO_SPACE_MESSAGES, DiskFull, UserError, write_error
from inception_jax.multihost import processes

DELETED = "deleted"
"""Subdirectory of steps on their way out."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class LatestAndBest(checkpoint_managers.PreservationPolicy):
    """Keeps the latest checkpoints and the best ones.

    Orbax's own BestN reads a metrics file of each step when it starts, and dies of a damaged one; and it sorts by a
    comparison that NaN does not answer, so that one NaN can delete the best checkpoint.

    Attributes:
      latest: how many of the newest stay.
      best: how many of the best stay besides.
      scores: by step, as `stored.score` gives them; the owner keeps it up to date.
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
        """Whether each of the checkpoints stays (the signature is Orbax's)."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*sorted(steps)[-self.latest :]}
        kept.update(reading.best_first({step: self.scores.get(step) for step in steps})[: self.best])
        return [step in kept for step in steps]


class RecordHandler(ocp.JsonCheckpointHandler):
    """Writes a text that is still being made (it has the checksums of the arrays) in Orbax's background thread."""

    async def async_save(self, directory: Any, item: Any = None, args: RecordSave | None = None) -> list[Any]:
        """Starts the write; Orbax does not finish the step before it is done (the signature is Orbax's)."""
        path = Path(directory) / reading.RECORD_FILE
        return [ocp.future.CommitFutureAwaitingContractedSignals(_write(path, args.text), name="sealed record")]


@ocp.args.register_with_handler(RecordHandler, for_save=True)
@dataclasses.dataclass
class RecordSave(ocp.args.CheckpointArgs):
    """Arguments of `RecordHandler`: the text, when it is there."""

    text: Future[str]


async def _write(path: Path, text: Future[str]) -> None:
    content = text.result()  # this coroutine has a thread for itself
    if processes.is_first():
        with open(path, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def open_manager(directory: Path, preservation: LatestAndBest) -> ocp.CheckpointManager:
    """The manager of one directory, for saving only.

    Args:
      directory: absolute; there.
      preservation: what stays after each save. What does not is renamed into `DELETED`, for a kill in the middle of a
        deletion in place would leave a step that is listed and half gone.
    """
    # Measured on 516 MB of random weights: compression saves 8 % of the room and takes a third longer.
    arrays = ocp.PyTreeCheckpointHandler(use_compression=False)
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    handlers.add(reading.STATE, ocp.args.PyTreeSave, arrays)
    handlers.add(reading.HOST, RecordSave, RecordHandler())
    return ocp.CheckpointManager(
        directory,
        options=ocp.CheckpointManagerOptions(
            create=False,
            preservation_policy=preservation,
            todelete_subdir=DELETED,
            # Metrics and times of the steps are our own business, and a damaged file of theirs must not stop a run.
            lightweight_initialize=True,
            prevent_write_metrics=True,
            save_root_metadata=False,
        ),
        handler_registry=handlers,
    )


def remove_deleted(directory: Path) -> None:
    """Empties `DELETED`, on process 0; its content only, for Orbax may be about to rename the next step into it."""
    if processes.is_first() and (directory / DELETED).is_dir():
        for path in (directory / DELETED).iterdir():
            shutil.rmtree(path, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Removes what a killed or failed save left, on process 0. Nothing may be being written."""
    remove_deleted(directory)
    if processes.is_first():
        for path in directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(path, ignore_errors=True)


def check_disk_space(
    directory: Path, leaves: Mapping[str, Any], step: int, steps: Sequence[int], make_room: Callable[[], Any]
) -> None:
    """Refuses a save that cannot succeed, before Orbax has begun it: of one that fails it leaves threads behind.

    Args:
      directory: where it is to go.
      leaves: what is to be saved.
      step: its step.
      steps: the checkpoints that stand.
      make_room: is called before a refusal for lack of room; it may free something.

    Raises:
      DiskFull: the file system has not room enough. (A quota shows only when it is met.)
      UserError: the directory cannot be written; as `DiskFull`, on every process, where process 0 finds it.
    """
    problem = _find_problem(directory, leaves, step, steps, make_room) if processes.is_first() else None
    if processes.max_over_processes(int(problem is not None)):
        raise problem or UserError(f"process 0 cannot save the checkpoint of step {step} in {directory}")


def _find_problem(
    directory: Path, leaves: Mapping[str, Any], step: int, steps: Sequence[int], make_room: Callable[[], Any]
) -> UserError | None:
    needed = sum(leaf.nbytes for leaf in leaves.values()) + len(leaves) * 1024  # and its name, shape, checksum
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
        if shutil.disk_usage(directory).free < needed:
            make_room()
        free = shutil.disk_usage(directory).free
    except OSError as error:
        return write_error(directory, error)
    if free >= needed:
        return None
    return DiskFull(
        f"the disk is full: the checkpoint of step {step} needs {needed / 1e6:,.1f} MB in {directory}, "
        f"{free / 1e6:,.1f} MB are free; {_format_kept_steps(steps)}; make room and run the same command again"
    )


def save_error(error: BaseException, directory: Path, step: int | None, steps: Sequence[int]) -> UserError:
    """One line for a save that failed: `DiskFull` where that was the reason.

    Args:
      error: what Orbax, TensorStore or the file system raised.
      directory: where the checkpoint was to go.
      step: which.
      steps: the checkpoints that stand.
    """
    if _is_disk_full(error):
        return DiskFull(
            f"the disk is full: no checkpoint of step {step} in {directory}; {_format_kept_steps(steps)}; make room "
            "and run the same command again"
        )
    return UserError(
        f"no checkpoint of step {step} in {directory}: {reading.one_line(error)}; {_format_kept_steps(steps)}"
    )


def _format_kept_steps(steps: Sequence[int]) -> str:
    return f"the checkpoints that stand: {', '.join(map(str, steps)) or 'none'}"


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether the disk or a quota is full, here or in what led to it; TensorStore says so in words only."""
    while error is not None:
        if any(words in str(error) for words in NO_SPACE_MESSAGES):
            return True
        error = error.__cause__ or error.__context__
    return False


class _OrbaxLogFilter(logging.Filter):
    """Keeps from the log what Orbax says twice: progress (INFO), the waits that we ask for ourselves (WARNING), and a
    failed save (ERROR, from four threads, up to thousands of lines; and from asyncio, when the garbage collector meets
    the writes that nobody waited for any more), which our caller gets as one exception. Other warnings stay. All of it
    goes to this module's logger at level DEBUG."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is shown; all are that are not Orbax's."""
        if self._is_noise(record):
            logger.debug("Orbax: %s", record.getMessage(), exc_info=record.exc_info)
            return False
        return True

    def _is_noise(self, record: logging.LogRecord) -> bool:
        if record.name == "asyncio":
            error = record.exc_info[1] if record.exc_info else None
            return "exception was never retrieved" in str(record.msg) and _is_from_orbax(error)
        told = record.levelno != logging.WARNING or "Waiting for previous save" in str(record.msg)
        return told and _IN_ORBAX in record.pathname


_IN_ORBAX = f"{os.sep}orbax{os.sep}"


def _is_from_orbax(error: BaseException | None) -> bool:
    """Whether an exception went through Orbax's code."""
    frames = traceback.walk_tb(error.__traceback__ if error else None)
    return any(_IN_ORBAX in frame.f_code.co_filename for frame, _ in frames)


def quiet_logs() -> None:
    """Keeps the log readable, for the whole process; a second call does nothing."""
    for name in ("absl", "asyncio"):
        log = logging.getLogger(name)
        if not any(isinstance(known, _OrbaxLogFilter) for known in log.filters):
            log.addFilter(_OrbaxLogFilter())
