"""Batches made ahead of their use: in threads, or in worker processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from inception_jax.data.batches import Batches, ThreadBatches
from inception_jax.data.workers import WorkerBatches


def prefetched(
    make: Callable[[int], Any],
    start: int,
    stop: int,
    threads: int,
    workers: int,
    prefetch: int,
    nbytes: int,
    name_record: Callable[[int], str],
) -> Batches:
    """`make(start), make(start + 1), … make(stop - 1)`, made ahead and handed on in order.

    Args:
      make: makes one batch, a dict of arrays; picklable where there are workers.
      start: first number.
      stop: one past the last.
      threads: batches that are made at once, per worker or in this process.
      workers: processes; 0 for none.
      prefetch: batches made ahead, at least.
      nbytes: of one batch.
      name_record: the words for a record of the data set, by its index.

    Raises:
      UserError: the machine's shared memory cannot hold the workers' batches.
    """
    if not workers:
        return ThreadBatches(make, start, stop, threads, max(threads, prefetch), name_record)
    return WorkerBatches(make, start, stop, threads, workers, prefetch, nbytes, name_record)
