"""The input beside the step: how fast the host makes batches, and what a step that is fed by it waits."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

from inception_jax.benchmarks.steps import Bench
from inception_jax.data.pipeline import TrainPipeline
from inception_jax.training.clock import Clock
from inception_jax.training.compilation import no_compilation
from inception_jax.training.device_prefetch import DevicePrefetcher
from inception_jax.training.train_metrics import TrainMetrics

_WARMUP_SECONDS = 1.0


def measure_rate(
    pipeline: TrainPipeline, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Any]:
    """How many pictures a second the host makes when nobody else wants its cores: read, decode, crop, flip, resize.

    Batches that were made ahead while the workers started are drawn first, and not counted.

    Args:
      pipeline: of the training split.
      seconds: for how long.
      clock: seconds.
    """
    batches = pipeline.batches(0)
    try:
        ahead = pipeline.prefetch + pipeline.threads * max(1, pipeline.workers)
        end = clock() + _WARMUP_SECONDS
        drawn = 0
        while drawn < ahead or clock() < end:
            next(batches)
            drawn += 1
        start, count = clock(), 0
        while (passed := clock() - start) < seconds or count < 2:
            next(batches)
            count += 1
        passed = clock() - start
    finally:
        if hasattr(batches, "close"):
            batches.close()
    return {
        "dataset": pipeline.dataset.name,
        "images_per_second": count * pipeline.local_batch_size / passed,
        "threads": pipeline.threads,
        "workers": pipeline.workers,
        "cores": len(os.sched_getaffinity(0)),
        "batches": count,
    }


def measure_fed_step(bench: Bench, seconds: float) -> dict[str, float]:
    """The training step fed as `train` feeds it: data wait and speed in the words of its log.

    Args:
      bench: with its training step compiled.
      seconds: for how long, about.

    Returns:
      "step_seconds", "images_per_second", "data_wait_fraction", "steps".
    """
    setup = bench.setup
    size = setup.config.batch_size
    feed = DevicePrefetcher(setup.data.train.batches(0), setup.devices.put, setup.data.prefetch)
    with contextlib.closing(feed):
        window, clock = TrainMetrics(), Clock()
        for number in range(1, 4):  # as many as are made ahead, and are no measure of the pipeline
            window.add(number, bench.step("train", feed.next_batch()))
        window.pop_row()
        feed.pop_wait_seconds()
        clock.start_lap()
        start, steps = time.perf_counter(), 0
        with no_compilation():
            while time.perf_counter() - start < seconds or steps < 3:
                batch = feed.next_batch()
                clock.add("data_wait", feed.pop_wait_seconds())
                steps += 1
                window.add(steps, bench.step("train", batch))
            window.pop_row()  # waits for the steps that are under way
        lap = clock.lap(steps, size)
    return {name: lap[name] for name in ("step_seconds", "images_per_second", "data_wait_fraction")} | {"steps": steps}
