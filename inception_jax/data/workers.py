"""`WorkerProducer`: makes batches in Grain's worker processes, and replaces those that die."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import os
import re
import signal
import tempfile
import threading
from collections.abc import Callable
from multiprocessing import spawn
from typing import Any

from inception_jax.data import worker_process
from inception_jax.data.activity import ActivityTable, warn
from inception_jax.data.loader import Producer
from inception_jax.errors import UserError

_SHARED_MEMORY = "/dev/shm"
# When none of the workers has ended for so long after all were asked to, they hang in a read, and are killed.
_CLOSE_SECONDS = 5.0
_MAX_DEATHS = 3
_GRAIN_PROCESS = "grain-process-prefetch-"  # how the name of Grain's worker processes begins (process_prefetch.py)
# Grain's message (process_prefetch.py) where a worker has ended with another exit code than 0.
_DEATH = re.compile(r"Worker process was terminated unexpectedly with exit code (-?\d+)")
_REMEDIES = {
    -signal.SIGKILL: "out of memory? try fewer workers or threads, or a smaller batch",
    -signal.SIGBUS: f"is {_SHARED_MEMORY} full? enlarge it (docker: --shm-size), or set fewer workers",
}
_REMEDY = "look above for its own error message; workers=0 decodes in the trainer itself"


class WorkerProducer(Producer):
    """Makes the batches in worker processes.

    A batch is a function of its number. So when a worker dies (killed, out of memory, crashed in a decoder), all of
    them are replaced by new ones that begin at the batch that is due: none is lost, made twice or changed.

    Grain keeps the order and buffers batches in the workers. Its iterator has no timeout, which is why one thread of
    the loader draws from it, as many batches ahead as the devices are to get at once.
    """

    threads = 1

    def __init__(
        self,
        make: Callable[[int], Any],
        start: int,
        stop: int,
        *,
        threads: int,
        workers: int,
        prefetch: int,
        nbytes: int,
        record_name: Callable[[int], str],
    ):
        """Prepares the workers; they start with the first call of `make`.

        Args:
          make: makes one batch, a dict of arrays; picklable.
          start: number of the first batch.
          stop: one past the last.
          threads: batches that a worker makes at the same time.
          workers: worker processes.
          prefetch: batches that wait in all workers together, at least.
          nbytes: of one batch.
          record_name: the name of a record in messages, by its index in the data set.

        Raises:
          UserError: the machine's shared memory cannot hold the workers' batches.
        """
        self._make, self._stop, self._record_name = make, stop, record_name
        self._worker_threads, self._workers = threads, workers
        self._per_worker = -(-prefetch // workers)
        check_shared_memory(needed_shared_memory(workers, prefetch, nbytes), workers)
        worker_process.warn_of_newer_grain()
        self._deaths = 0
        self._closed = threading.Event()
        self._lock = threading.Lock()  # of the group, which `close()` must not miss
        self._group = self._open(start)

    @property
    def activity(self) -> ActivityTable:
        return self._group.activity

    def _open(self, start: int) -> _WorkerGroup:
        return _WorkerGroup(self._make, start, self._stop, self._worker_threads, self._workers, self._per_worker)

    def make(self, number: int, slot: int) -> Any:
        del slot  # there is one
        while True:
            try:
                batch = next(self._group.iterator)
            except StopIteration:  # Grain's answer after an error, too; the loader asks for no batch past the last one
                raise RuntimeError(f"the workers ended before batch {number}") from None
            except RuntimeError as error:
                death = _DEATH.match(str(error))
                if death is None or self._closed.is_set():
                    raise
                self._replace(number, int(death[1]))
            else:
                self._deaths = 0
                return batch

    def _replace(self, number: int, exit_code: int) -> None:
        """Replaces all workers after one of them has died; raises `UserError` where that has not helped."""
        self._deaths += 1
        what = f"a worker process that decodes images {_describe_exit(exit_code)} before batch {number}"
        dead = [thread for thread in self.activity.activities() if thread.pid and not _is_running(thread.pid)]
        if dead:
            what += f" ({dead[0].describe(self._record_name)})"
        if self._deaths == _MAX_DEATHS:
            remedy = _REMEDIES.get(exit_code, _REMEDY)
            raise UserError(f"{what}, {self._deaths} times in a row without a batch; {remedy}")
        warn(f"{what}; new workers continue from there")
        self._group.close()
        with self._lock:
            if not self._closed.is_set():
                self._group = self._open(number)

    def describe_idle(self) -> str:
        pids = [pid for pid in self.activity.worker_pids() if pid]
        processes = f"; those that run: {', '.join(map(str, pids))}" if pids else ""
        return f"no thread of the {self._workers} worker processes is making one{processes}"

    def close(self) -> None:
        """Ends the workers.

        A thread that waits in `make` for workers that hang may wait forever, since Grain empties its queue without a
        message. The loader's threads are daemons.
        """
        with self._lock:
            self._closed.set()
            group = self._group
        group.close()

    def finish(self) -> None:
        """Waits until Grain has removed the shared memory of batches that nobody has any more.

        Grain removes it in a thread that ends with the interpreter: what still waited for it stayed until Python's
        resource tracker removed it, with a warning.
        """
        _wait_for_removal()


def _wait_for_removal() -> None:
    from grain._src.python.ipc.shared_memory_array import SharedMemoryArray

    pool = SharedMemoryArray._del_thread_pool
    if pool is not None:
        pool.apply(bool)  # it has one thread, which takes its work in order


def free_shared_memory() -> None:
    """Frees the shared memory of batches that only cycles of objects hold; the interpreter would find them too late."""
    gc.collect()
    _wait_for_removal()


@functools.cache
def _free_at_exit() -> None:
    """Has `free_shared_memory` run when the process ends, before Grain's thread ends."""
    atexit.register(free_shared_memory)


class _WorkerGroup:
    """Worker processes that were started together."""

    def __init__(self, make: Callable[[int], Any], start: int, stop: int, threads: int, workers: int, per_worker: int):
        import grain  # two seconds, and it imports jax where there is one: not before it is needed

        mark_flags_parsed()
        _start_without_main_module()
        _free_at_exit()
        # Grain has one more batch under way than its buffer holds: the one that its consumer waits for.
        self.activity = ActivityTable(threads + 1, workers)
        source = grain.MapDataset.source(_BatchSource(make, start, stop, workers, threads + 1, self.activity))
        options = grain.MultiprocessingOptions(workers, per_worker)
        begin = functools.partial(worker_process.start, os.getpid(), self.activity)
        threaded = source.to_iter_dataset(grain.ReadOptions(threads, threads))
        self.iterator = iter(threaded.mp_prefetch(options, worker_init_fn=begin))

    def close(self) -> None:
        """Asks the workers to end, and kills those that do not.

        Grain asks one after another, and waits 25 seconds for each; for a worker that hangs in a read, without success.
        """
        self.activity.cancel()
        asking = threading.Thread(target=self.iterator.close, name="close-workers", daemon=True)
        asking.start()
        running: list[int] | None = None
        while asking.is_alive() and running != (running := self._running()):
            asking.join(_CLOSE_SECONDS)
        if asking.is_alive():
            for pid in running or []:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            asking.join(_CLOSE_SECONDS)

    def _running(self) -> list[int]:
        return [pid for pid in self.activity.worker_pids() if pid and _is_running(pid)]


class _BatchSource:
    """The batches `start … stop - 1` as Grain's random access source."""

    def __init__(
        self,
        make: Callable[[int], Any],
        start: int,
        stop: int,
        workers: int,
        slots: int,
        activity: ActivityTable,
    ):
        self._make, self._start, self._stop = make, start, stop
        self._workers, self._slots, self._activity = workers, slots, activity

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, index: int) -> Any:
        # Grain gives worker w the indices w, w + workers, …: so the index alone determines which slot is free.
        turn, worker = divmod(int(index), self._workers)
        self._activity.begin_batch(turn % self._slots, self._start + int(index), worker)
        try:
            return self._make(self._start + int(index))
        finally:
            self._activity.end_batch()

    def __repr__(self) -> str:
        return f"batches {self._start} to {self._stop}"


def needed_shared_memory(workers: int, prefetch: int, nbytes: int) -> int:
    """Bytes of shared memory that the batches of workers take; the arguments are those of `WorkerProducer`.

    Grain has for each worker its queue and another one in the trainer, and one batch waiting to enter either. The
    loader holds `prefetch`, as many are on the devices (which may read them where they are), and one is in use.
    """
    return (workers * (2 * -(-prefetch // workers) + 2) + 2 * prefetch + 1) * nbytes


def check_shared_memory(needed: int, workers: int, path: str = _SHARED_MEMORY) -> None:
    """Raises `UserError` if the workers' batches do not fit, or nothing can be written there.

    Without this check, workers die of SIGBUS with no message, and their semaphores end in a traceback.

    Args:
      needed: bytes.
      workers: worker processes.
      path: where shared memory is mounted.
    """
    try:
        stat = os.statvfs(path)
    except OSError:
        return  # no such file system here: then this is not where they go
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}), and worker processes share memory there; make it writable, "
            "or set data.workers=0"
        ) from None
    free = stat.f_bavail * stat.f_frsize
    if free < needed:
        raise UserError(
            f"{path}: {free / 2**20:.0f} MiB free, but the batches of {workers} workers need {needed / 2**20:.0f} MiB;"
            f" enlarge it (docker: --shm-size), or set fewer workers or a smaller batch (workers=0 needs none)"
        )


def _describe_exit(exit_code: int) -> str:
    """Describes how a process ended: "was killed by SIGKILL (exit code -9)", "ended with exit code 1"."""
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


@functools.cache
def _start_without_main_module() -> None:
    """Makes Grain's worker processes start without the program's main module; they need nothing of it.

    `multiprocessing` imports that module in each process that it spawns. A script without `if __name__ == "__main__"`
    would train once more in each worker, and one that Python reads from standard input has no file to import. Grain
    sends its workers what they need by cloudpickle, with what the main module defines by value. Other processes that
    the program spawns are not affected: Grain names its own.
    """
    original = spawn.get_preparation_data

    def without_main_module(name: str) -> dict[str, Any]:
        data = original(name)
        if name.startswith(_GRAIN_PROCESS):
            data.pop("init_main_from_name", None)
            data.pop("init_main_from_path", None)
        return data

    spawn.get_preparation_data = without_main_module


def mark_flags_parsed() -> None:
    """Grain reads absl flags when it starts workers, which fails in a program that never parsed any."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
