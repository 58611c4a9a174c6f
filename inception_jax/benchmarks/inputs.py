"""Measures the input pipeline: its speed alone, and the data wait of a training step that it feeds."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from typing import Any

from inception_jax.benchmarks.input_sides import count_batches
from inception_jax.benchmarks.steps import Bench
from inception_jax.data.pipeline import TrainPipeline
from inception_jax.training.clock import Clock
from inception_jax.training.compilation import no_compilation
from inception_jax.training.device_prefetch import DevicePrefetcher
from inception_jax.training.train_metrics import TrainMetrics


def measure_rate(pipeline: TrainPipeline, seconds: float) -> dict[str, Any]:
    """Measures images per second of the input pipeline alone: read, decode, crop, flip, resize.

    Batches that were prefetched while the workers started are drawn first, and not counted.

    Args:
      pipeline: of the training split.
      seconds: duration of the measurement.

    Returns:
      "dataset", "images_per_second", "images_per_cpu_second" (of this process and its worker processes, user and
      system time), "threads", "workers", "cores", "batches".
    """
    ahead = pipeline.prefetch + pipeline.threads * max(1, pipeline.workers)
    with contextlib.closing(pipeline.batches(0)) as batches:
        counted = count_batches(batches, ahead, seconds)
    count = counted["steps"] * pipeline.local_batch_size
    return {
        "dataset": pipeline.dataset.name,
        "images_per_second": count / counted["seconds"],
        "images_per_cpu_second": count / counted["cpu_seconds"],
        "threads": pipeline.threads,
        "workers": pipeline.workers,
        "cores": len(os.sched_getaffinity(0)),
        "batches": counted["steps"],
    }


def measure_fed_step(bench: Bench, seconds: float) -> dict[str, float]:
    """Measures the training step fed as `train` feeds it: speed and data wait, as in the log of `train`.

    Args:
      bench: its training step must be compiled.
      seconds: duration of the measurement, approximately.

    Returns:
      "step_seconds", "images_per_second", "data_wait_fraction", "steps".
    """
    setup = bench.setup
    size = setup.config.batch_size
    feed = DevicePrefetcher(setup.data.train.batches(0), setup.devices.put, setup.data.prefetch)
    with contextlib.closing(feed):
        window, clock, per_call = TrainMetrics(), Clock(), bench.steps_per_call
        firsts = itertools.count(1, per_call)

        def take_steps() -> float:
            """Dispatches the steps of one call; returns the seconds that they waited for their batches."""
            batches = [next(feed) for _ in range(per_call)]
            waited = feed.pop_wait_seconds()
            window.add(next(firsts), bench.step("train", batches), per_call)
            return waited

        for _ in range(3):  # prefetched batches, which say nothing of the pipeline's speed
            take_steps()
        window.pop_row()
        clock.start_lap()
        start, steps = time.perf_counter(), 0
        with no_compilation():
            while time.perf_counter() - start < seconds or steps < 3:
                clock.add("data_wait", take_steps())
                steps += per_call
            window.pop_row()  # waits for the steps that are still running
        lap = clock.lap(steps, size)
    return {name: lap[name] for name in ("step_seconds", "images_per_second", "data_wait_fraction")} | {"steps": steps}
