"""Runs inside each of Grain's worker processes: signals, the end of the trainer, shared values read without locks.

Grain checks a stop flag and a counter, both shared with the trainer, through `multiprocessing`'s locks, before every
batch and while a batch waits to be handed over. A worker that is killed while it holds such a lock keeps it forever,
and the trainer, which needs both locks to stop its workers, then hangs in `close()`. README.md beside this file has the
text of an issue for Grain, with a program that reproduces it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing import sharedctypes, synchronize
from typing import Any

from inception_jax.data.activity import ActivityTable, warn

# How long a worker goes on after SIGTERM or SIGHUP. The signal of a preemption, or of a closed terminal, reaches the
# whole process group; the trainer then saves and closes its workers itself, and must not lose them before.
_TERM_GRACE_SECONDS = 30.0
# The newest Grain whose worker loop (`_put_dataset_elements_in_buffer`) was read and tested for what
# `_read_shared_values_without_locks` relies on: a worker reads these two values and never writes them here.
GRAIN_CHECKED = "0.2.18"


@functools.cache
def warn_of_newer_grain() -> None:
    """Warns, once per process, if the installed Grain is newer than the one that was checked; runs in the trainer."""
    installed = importlib.metadata.version("grain")
    if _numbers(installed) > _numbers(GRAIN_CHECKED):
        warn(
            f"grain {installed} is newer than {GRAIN_CHECKED}, with which worker processes were checked; if they hang "
            f"or do not end, install grain=={GRAIN_CHECKED} or set data.workers=0"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def start(trainer: int, activity: ActivityTable, worker: int, workers: int) -> None:
    """Grain's `worker_init_fn`: runs first in each worker process.

    The worker ends with the trainer, however that ends: it would hold its shared memory and its standard output.
    Ctrl-C is for the trainer alone, which closes its workers itself.

    Args:
      trainer: process id of the trainer.
      activity: where the worker records what it reads.
      worker: number of this worker.
      workers: how many there are.
    """
    del workers
    _read_shared_values_without_locks()
    activity.register_worker(worker)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, lambda *_: _in_background(_exit_later))
    _in_background(_exit_with_trainer, trainer)


def _read_shared_values_without_locks() -> None:
    """Makes `Event.is_set` and `Value.value` read without a lock, in this process.

    The result is the same: a semaphore's value and a C integer are each read in one piece, and this process, which
    never resets the trainer's iterator, does not write them.
    """
    event: Any = synchronize.Event
    event.is_set = lambda self: not self._flag._semlock._is_zero()
    number: Any = sharedctypes.Synchronized
    number.value = property(lambda self: self.get_obj().value, number.value.fset)


def _in_background(function: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=function, args=arguments, daemon=True).start()


def _exit_later() -> None:
    time.sleep(_TERM_GRACE_SECONDS)
    os._exit(128 + signal.SIGTERM)  # not 0: Grain would wait forever for a worker that exits with 0


def _exit_with_trainer(trainer: int) -> None:
    while os.getppid() == trainer:
        time.sleep(0.5)
    os._exit(1)
