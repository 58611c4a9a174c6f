"""Saves checkpoints with Orbax in the background, and restores them with their checksums verified.

`<directory>/<step>/state` holds the arrays (Orbax's own format, nested by path), `<directory>/<step>/host` one JSON
object with a checksum: the caller's host data, the metrics, and the record of every leaf. Beside the steps there are
`damaged/`, the steps that could not be restored, and `deleted/`, steps that are being deleted.

Orbax leaves to its user what is done here: checksums; falling back to an older step; deletion that a kill cannot
leave half done; a best checkpoint that survives a NaN; errors of one line.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import orbax.checkpoint as ocp

from inception_jax import tree_paths
from inception_jax.checkpoints import checksums, orbax_manager, reading
from inception_jax.checkpoints.identity import RunIdentity
from inception_jax.checkpoints.layout import SUBDIRECTORY as SUBDIRECTORY
from inception_jax.checkpoints.reading import CheckpointDamaged, CheckpointError
from inception_jax.checkpoints.reading import load_record as load_record
from inception_jax.checkpoints.reading import load_variables as load_variables
from inception_jax.errors import UserError, nearest, write_error
from inception_jax.multihost import peer_loss, processes

DAMAGED = "damaged"

logger = logging.getLogger(__name__)


class Restored(NamedTuple):
    """A restored state, the host data saved with it, and its step."""

    state: Any
    host: dict[str, Any]
    step: int


class Checkpoints:
    """The checkpoints of one run, in one directory that no other run uses.

    All processes of a run make the same calls in the same order; process 0 alone changes the directory.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        keep_latest: int = 2,
        keep_best: int = 1,
        best_metric: str | None = None,
        best_mode: Literal["max", "min"] = "max",
        run: RunIdentity | None = None,
        warn: Callable[[str], None] = logger.warning,
    ):
        """Makes the directory, and removes unfinished checkpoints of a killed process.

        Args:
          directory: for example `workdir / SUBDIRECTORY`.
          keep_latest: number of newest checkpoints to keep; at least 2, because Orbax does not force every file to disk
            before it calls a step finished: after a loss of power the newest may be damaged.
          keep_best: number of best checkpoints to keep in addition; 0 for none.
          best_metric: the name in `metrics` that decides which is best; None: there is no best.
          best_mode: whether a higher or a lower value is better. NaN is worse than everything.
          run: that the checkpoints belong to: recorded in each, and compared when one is restored; None: neither.
          warn: gets one line for each warning, such as a damaged checkpoint.

        Raises:
          UserError: the directory cannot be made, or an argument is out of range.
        """
        if keep_latest < 2:
            raise UserError(f"keep_latest = {keep_latest}: at least 2 must be kept, because the newest may be damaged")
        if best_mode not in ("max", "min"):
            raise UserError(f"best_mode = {best_mode!r}: 'max' or 'min'{nearest(best_mode, ('max', 'min'))}")
        self.directory = Path(directory).absolute()
        self._best = {"name": best_metric, "mode": best_mode} if best_metric else None
        self._run, self._warn = run, warn
        self._manager: ocp.CheckpointManager | None = None
        self._pending_step: int | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._deletion: Future[None] | None = None
        orbax_manager.quiet_logs()
        with processes.fail_together():
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                orbax_manager.remove_leftovers(self.directory)
            except OSError as error:
                raise write_error(self.directory, error) from None
        run_id = run.id if run else None
        self._scores = {
            step: reading.read_score(self.directory / str(step), self._best, run_id) for step in self.steps()
        }
        self._preservation = orbax_manager.LatestAndBest(keep_latest, keep_best, self._scores)

    def steps(self) -> list[int]:
        """Returns the steps of the finished checkpoints, ascending, without one that is still being written."""
        return reading.list_steps(self.directory)

    def save(self, step: int, state: Any, host: dict[str, Any], metrics: Mapping[str, float] | None = None) -> bool:
        """Saves a state in the background; returns when it has been copied, so that the state may be donated.

        Waits for the previous save where that is not finished. Older checkpoints are deleted when this one is finished,
        not before.

        Args:
          step: names the checkpoint.
          state: a tree of arrays; global arrays with any sharding.
          host: data of JSON's types, with string keys; floats are restored exactly.
          metrics: {name: value}; `best_metric` among them selects the best checkpoint. None: it has no score.

        Returns:
          False where a checkpoint of this step exists, which is not changed.

        Raises:
          DiskFull: the disk is too full for this save, or was for the previous one; earlier checkpoints are kept.
          UserError: this save or the previous one failed for another reason; earlier checkpoints are kept.
        """
        if processes.broadcast_from_first(step == self._pending_step or step in self.steps()):
            return False
        metrics = None if metrics is None else {name: float(value) for name, value in metrics.items()}
        if metrics and self._best and self._best["name"] not in metrics:
            name = self._best["name"]
            raise UserError(f"best_metric {name!r}: not measured{nearest(name, metrics)}; there are {sorted(metrics)}")
        start = time.monotonic()
        self._finish()
        if time.monotonic() - start > 1:
            self._warn(
                f"step {step} waited {time.monotonic() - start:.1f} s for the previous checkpoint to be written: "
                "save less often"
            )
        self._deletion = self._worker.submit(orbax_manager.remove_deleted, self.directory)
        leaves = checksums.arrays_to_save(tree_paths.named_leaves(state))
        orbax_manager.check_disk_space(self.directory, leaves, step, self.steps(), self._deletion.result)
        record = {"format": reading.FORMAT, "step": step, "host": host, "metrics": metrics, "best": self._best}
        if self._run:
            record["run"] = self._run.to_json()
        record = json.loads(json.dumps(record))  # a copy; and values that JSON cannot hold fail here, not later
        # Views or copies in host memory: the checksums are computed from them after this call has returned.
        text = self._worker.submit(checksums.dump_record, record, checksums.host_arrays(leaves))
        arrays = ocp.args.PyTreeSave(tree_paths.nest(leaves))
        self._pending_step, self._scores[step] = step, reading.score(metrics, self._best)
        with self._as_user_error():
            if self._manager is None:
                self._manager = orbax_manager.open_manager(self.directory, self._preservation)
            items = ocp.args.Composite(state=arrays, host=orbax_manager.RecordSave(text))
            self._manager.save(step, args=items, force=True)
        return True

    def restore_latest(self, abstract_state: Any) -> Restored | None:
        """Restores the newest usable checkpoint of this run.

        Moves newer ones that are damaged, or of another step or run, to `damaged/`, with a warning.

        Args:
          abstract_state: the tree to restore, of `jax.ShapeDtypeStruct` with shardings, or of arrays. A leaf without a
            sharding goes to the first device of this process.

        Returns:
          None where there is no checkpoint.

        Raises:
          CheckpointError: there are checkpoints, but none is usable. They are not moved.
          CheckpointMismatch: the newest undamaged checkpoint is of another state (names, shapes or dtypes).
        """
        self.wait()
        steps = processes.broadcast_from_first(self.steps()[::-1])
        return self._first_usable(steps, abstract_state) if steps else None

    def restore_best(self, abstract_state: Any) -> Restored:
        """Restores the undamaged checkpoint with the best score; otherwise as `restore_latest`.

        Raises:
          CheckpointError: no usable checkpoint has a score.
          CheckpointMismatch: as `restore_latest`.
        """
        self.wait()
        steps = processes.broadcast_from_first(
            reading.best_first({step: self._scores.get(step) for step in self.steps()})
        )
        if not steps:
            raise CheckpointError(f"no usable checkpoint in {self.directory} has a score, so there is no best one")
        return self._first_usable(steps, abstract_state)

    def restore(self, step: int, abstract_state: Any) -> Restored:
        """Restores the checkpoint of one step; does not move one that is damaged, or of another step or run.

        Raises:
          UserError: there is none of this step.
          CheckpointDamaged, CheckpointMismatch: it is not usable.
        """
        self.wait()
        if step not in self.steps():
            raise UserError(f"no checkpoint of step {step} in {self.directory}; there are {self.steps() or 'none'}")
        return self._read(step, abstract_state)

    def best_step(self) -> int | None:
        """Returns the step of the best finished checkpoint; None where none has a score."""
        return next(iter(reading.best_first({step: self._scores.get(step) for step in self.steps()})), None)

    def wait(self) -> None:
        """Waits until the pending save and deletions are finished.

        Raises:
          DiskFull, UserError: the save failed; as `save`.
        """
        self._finish()
        orbax_manager.remove_deleted(self.directory)

    def close(self) -> None:
        """Waits and raises as `wait`, and releases threads and files in any case; a second call does nothing."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()
            self._close_manager()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is not None and issubclass(kind, peer_loss.PeerLost):
            return  # a save in progress waits for the process that has gone, for minutes
        try:
            self.close()
        except UserError as error:
            if kind is None:
                raise
            self._warn(str(error))  # the error that ended the run is the one to raise

    def _first_usable(self, steps: list[int], abstract_state: Any) -> Restored:
        restored, problems = reading.first_usable(steps, lambda step: self._read(step, abstract_state))
        for step, problem in problems.items():
            self._move_to_damaged(step, problem)
        return restored

    def _read(self, step: int, abstract_state: Any) -> Restored:
        """Reads one step; all processes succeed, or all raise."""
        path = self.directory / str(step)
        problem: UserError | None = None
        try:
            wanted = tree_paths.named_leaves(abstract_state)
            record = reading.read_matching_record(path, wanted, self._run)
            leaves = reading.read_leaves(path, record, wanted)
        except UserError as error:
            problem = error
        worst = processes.max_over_processes(
            0 if problem is None else 1 if isinstance(problem, CheckpointDamaged) else 2
        )
        if problem:
            raise problem
        if worst:
            raise (CheckpointDamaged if worst == 1 else CheckpointError)(f"{path}: another process cannot use it")
        placed = [checksums.to_global_array(leaves[name], like) for name, like in wanted.items()]
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), placed)
        return Restored(state, record["host"], step)

    def _finish(self) -> None:
        with self._as_user_error():
            if self._manager is not None:
                self._manager.wait_until_finished()
            if self._deletion is not None:
                self._deletion.result()
        self._pending_step = self._deletion = None

    @contextlib.contextmanager
    def _as_user_error(self) -> Iterator[None]:
        """Converts any exception of a save to one `UserError`; the next save may be tried after it.

        Raises:
          PeerLost: it failed because another process has ended.
        """
        try:
            with peer_loss.lost_peers():
                yield
        except peer_loss.PeerLost:
            raise
        except Exception as error:  # Orbax, TensorStore and the file system raise different types
            logger.debug("saving step %s", self._pending_step, exc_info=True)
            step, self._pending_step, self._deletion = self._pending_step, None, None
            if step is not None:
                self._scores.pop(step, None)
            self._close_manager()
            with contextlib.suppress(OSError):
                orbax_manager.remove_leftovers(self.directory)
            raise orbax_manager.save_error(error, self.directory, step, self.steps()) from None

    def _close_manager(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            with contextlib.suppress(Exception):  # it raises the failure of its last save again
                manager.close()

    def _move_to_damaged(self, step: int, problem: CheckpointDamaged) -> None:
        """Moves a step that cannot be used to `damaged/`; deletes nothing."""
        self._close_manager()  # it would count the step among those to keep
        self._scores.pop(step, None)
        target = self.directory / DAMAGED / str(step)
        if processes.is_first():
            target.parent.mkdir(exist_ok=True)
            while target.exists():
                target = target.with_name(target.name + "+")
            with contextlib.suppress(FileNotFoundError):
                (self.directory / str(step)).rename(target)
        processes.barrier(f"checkpoint {step} set aside")
        self._warn(f"{problem.kind} moved to {target}: {problem}")
