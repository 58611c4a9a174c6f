"""Batches made ahead by worker processes of Grain's, which are replaced when they die and never outlive the trainer."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing import sharedctypes, synchronize
from typing import Any

from inception_jax.data.activity import ActivityTable, warn
from inception_jax.data.loader import DataLoader
from inception_jax.errors import UserError

_SHARED_MEMORY = "/dev/shm"
# How long a worker goes on after SIGTERM. The signal of a preemption reaches the whole process group; the trainer then
# saves and closes its workers itself, and must not lose them before.
_TERM_GRACE_SECONDS = 30.0
# When none of the workers has ended for so long after all were asked to, they hang in a read, and are killed.
_CLOSE_SECONDS = 5.0
_MAX_DEATHS = 3
# Grain's words (process_prefetch.py) where a worker has ended with another exit code than 0.
_DEATH = re.compile(r"Worker process was terminated unexpectedly with exit code (-?\d+)")
_REMEDIES = {
    -signal.SIGKILL: "out of memory? try fewer workers or threads, or a smaller batch",
    -signal.SIGBUS: f"is {_SHARED_MEMORY} full? enlarge it (docker: --shm-size), or set fewer workers",
}
_REMEDY = "look above for its own words; workers=0 decodes in the trainer itself"


class WorkerDataLoader(DataLoader):
    """Batches made ahead by worker processes.

    A batch is a function of its number. So when a worker dies (killed, out of memory, crashed in a decoder), all of
    them are replaced by new ones that begin at the batch that is due: none is lost, made twice or changed.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        start: int,
        stop: int,
        threads: int,
        workers: int,
        ahead: int,
        nbytes: int,
        record_name: Callable[[int], str],
    ):
        """Starts the workers.

        Args:
          make: makes one batch, a dict of arrays; picklable.
          start: number of the first batch.
          stop: one past the last.
          threads: batches that a worker makes at once.
          workers: processes.
          ahead: batches made ahead by all workers, at least.
          nbytes: of one batch.
          record_name: the words for a record of the data set, by its index.

        Raises:
          UserError: the machine's shared memory cannot hold the workers' batches.
        """
        super().__init__(start, stop, record_name)
        self._make, self._threads, self._workers = make, threads, workers
        self._per_worker = -(-ahead // workers)
        # Grain has for each worker its queue and another one in the trainer, and one batch waiting to enter either. The
        # consumer has `ahead` batches in its queue and as many on the way to the devices (which may read them where
        # they are), one in its hand and one in use.
        check_shared_memory((workers * (2 * self._per_worker + 2) + 2 * ahead + 2) * nbytes, workers)
        self._deaths = 0
        self._lock = threading.Lock()  # of the group, which `close()` must not miss
        self._group = self._open()

    def _open(self) -> _WorkerGroup:
        return _WorkerGroup(self._make, self._number, self._stop, self._threads, self._workers, self._per_worker)

    def _next_batch(self) -> Any:
        while True:
            try:
                batch = next(self._group.iterator)
            except StopIteration:  # Grain's answer after an error, too; `DataLoader` has seen to the end of the data
                raise RuntimeError(f"the workers ended before batch {self._number}") from None
            except RuntimeError as error:
                death = _DEATH.match(str(error))
                if death is None or self._closed.is_set():
                    raise
                self._replace(int(death[1]))
            else:
                self._deaths = 0
                return batch

    def _replace(self, exit_code: int) -> None:
        """New workers for the ones of which one has died; a `UserError` when that helps no more."""
        self._deaths += 1
        what = f"a worker process that decodes pictures {_describe_exit(exit_code)} before batch {self._number}"
        dead = [place for place in self._group.table.activities() if place.pid and not _is_running(place.pid)]
        if dead:
            what += f" ({self.describe(dead[0])})"
        if self._deaths == _MAX_DEATHS:
            remedy = _REMEDIES.get(exit_code, _REMEDY)
            raise UserError(f"{what}, {self._deaths} times in a row without a batch; {remedy}")
        warn(f"{what}; new workers go on from there")
        self._group.close()
        with self._lock:
            if not self._closed.is_set():
                self._group = self._open()

    def close(self) -> None:
        """As `Batches.close`. A thread that waits for a batch of workers that hang may be left waiting: Grain empties
        the queue under it without a word. It should be a daemon, as the feed's is.
        """
        with self._lock:
            self._closed.set()
            group = self._group
        group.close()

    def _activity_table(self) -> ActivityTable:
        return self._group.table

    def _describe_idle(self) -> str:
        pids = [pid for pid in self._group.table.worker_pids() if pid]
        processes = f"; those that run: {', '.join(map(str, pids))}" if pids else ""
        return f"no thread of the {self._workers} worker processes is making one{processes}"


class _WorkerGroup:
    """One generation of worker processes."""

    def __init__(self, make: Callable[[int], Any], start: int, stop: int, threads: int, workers: int, per_worker: int):
        import grain  # two seconds, and it imports jax where there is one: not before it is needed

        _mark_flags_parsed()
        # Grain has one more batch under way than its buffer holds: the one that its consumer waits for.
        self.table = ActivityTable(threads + 1, workers)
        source = grain.MapDataset.source(_BatchSource(make, start, stop, workers, threads + 1, self.table))
        options = grain.MultiprocessingOptions(workers, per_worker)
        begin = functools.partial(_start_worker, os.getpid(), self.table)
        ahead = source.to_iter_dataset(grain.ReadOptions(threads, threads))
        self.iterator = iter(ahead.mp_prefetch(options, worker_init_fn=begin))

    def close(self) -> None:
        """Asks the workers to end, and kills those that do not.

        Grain asks one after another, and waits 25 seconds for each; for a worker that hangs in a read, in vain.
        """
        self.table.cancel()
        asking = threading.Thread(target=self.iterator.close, name="close-workers", daemon=True)
        asking.start()
        left = None
        while asking.is_alive() and left != (left := self._running()):
            asking.join(_CLOSE_SECONDS)
        if asking.is_alive():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            asking.join(_CLOSE_SECONDS)

    def _running(self) -> list[int]:
        return [pid for pid in self.table.worker_pids() if pid and _is_running(pid)]


class _BatchSource:
    """The batches `start … stop - 1` as Grain's random access source."""

    def __init__(
        self, make: Callable[[int], Any], start: int, stop: int, workers: int, slots: int, table: ActivityTable
    ):
        self._make, self._start, self._stop = make, start, stop
        self._workers, self._slots, self._table = workers, slots, table

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, index: int) -> Any:
        # Grain gives worker w the indices w, w + workers, …: so the index alone says whose slot is free.
        turn, worker = divmod(int(index), self._workers)
        self._table.begin_batch(turn % self._slots, self._start + int(index), worker)
        try:
            return self._make(self._start + int(index))
        finally:
            self._table.end_batch()

    def __repr__(self) -> str:
        return f"batches {self._start} to {self._stop}"


def check_shared_memory(needed: int, workers: int, path: str = _SHARED_MEMORY) -> None:
    """Raises `UserError` if the workers' batches do not fit; without the check they die of signal 7, without a word."""
    try:
        stat = os.statvfs(path)
    except OSError:
        return  # no such file system here: then this is not where they go
    free = stat.f_bavail * stat.f_frsize
    if free < needed:
        raise UserError(
            f"{path}: {free / 2**20:.0f} MiB free, but the batches of {workers} workers need {needed / 2**20:.0f} MiB;"
            f" enlarge it (docker: --shm-size), or set fewer workers or a smaller batch (workers=0 needs none)"
        )


def _describe_exit(exit_code: int) -> str:
    """The words for how a process ended: "was killed by SIGKILL", "ended with exit code 1"."""
    if exit_code < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-exit_code).name} (exit code {exit_code})"
    return f"ended with exit code {exit_code}"


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _mark_flags_parsed() -> None:
    """Grain reads absl flags when it starts workers, which fails in a program that never parsed any."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _start_worker(trainer: int, table: ActivityTable, worker: int, workers: int) -> None:
    """Runs first in each worker process.

    A trainer that is killed takes its workers with it: they would hold its shared memory and its standard output.
    Ctrl-C is for the trainer alone, which closes its workers itself.
    """
    del workers
    _read_shared_values_without_locks()
    table.register_worker(worker)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: _in_background(_exit_later))
    _in_background(_exit_with_trainer, trainer)


def _read_shared_values_without_locks() -> None:
    """In this process, looking at what Grain shares with the trainer takes no lock.

    Whoever is killed while it holds one keeps it for ever, and the trainer needs both to stop its workers. Grain looks
    before every batch and while it waits to hand one over; it writes neither here, and a look is one read.
    """
    synchronize.Event.is_set = lambda event: not event._flag._semlock._is_zero()
    locked = sharedctypes.Synchronized.value
    sharedctypes.Synchronized.value = property(lambda number: number.get_obj().value, locked.fset)


def _in_background(function: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=function, args=arguments, daemon=True).start()


def _exit_later() -> None:
    time.sleep(_TERM_GRACE_SECONDS)
    os._exit(128 + signal.SIGTERM)  # not 0: Grain would wait for ever for a worker that ended in peace


def _exit_with_trainer(trainer: int) -> None:
    while os.getppid() == trainer:
        time.sleep(0.5)
    os._exit(1)
