"""The speed of the input pipeline alone, and the data wait of a step that it feeds."""

import itertools
import math
import subprocess
import sys
import time
import types

import pytest

from inception_jax.benchmarks import input_sides, inputs
from inception_jax.data import datasets
from inception_jax.data.images import EvalCrop
from inception_jax.data.pipeline import TrainPipeline
from inception_jax.errors import NonFiniteLoss


class SlowPipeline(TrainPipeline):
    """Batches of 8 that take 20 ms each, in one thread."""

    def batch(self, k):
        time.sleep(0.02)
        return super().batch(k)


@pytest.fixture
def pipeline():
    return SlowPipeline(
        datasets.load("digits", "train"),
        batch_size=8,
        image_size=8,
        seed=0,
        augmentation=EvalCrop("center", 1.0),
        threads=1,
    )


def test_the_rate_is_that_of_making_batches_not_of_taking_them(pipeline):
    measured = inputs.measure_rate(pipeline, 0.6)
    assert measured["images_per_second"] <= 8 / 0.02  # no faster than they are made; those made ahead do not count
    assert measured["images_per_second"] > 0.3 * 8 / 0.02
    assert (measured["dataset"], measured["threads"], measured["workers"]) == ("digits", 1, 0)


def test_batches_that_were_made_ahead_do_not_count():
    seconds = 0.0

    def batches():
        nonlocal seconds
        for took in itertools.chain([0.3] * 5, itertools.repeat(1.0)):
            seconds += took
            yield

    counted = input_sides.count_batches(batches(), 5, 4.0, clock=lambda: seconds)
    assert (counted["steps"], counted["seconds"]) == (4, 4.0)
    assert input_sides.count_batches(batches(), 5, 4.0, least=6, clock=lambda: seconds)["steps"] == 6


def test_the_time_of_worker_processes_counts(monkeypatch):
    work = (
        "import time\nfor n in range(1, 6):\n while time.process_time() < 0.2 * n: pass\n print(n, flush=True)\ninput()"
    )
    with subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        monkeypatch.setattr(input_sides.multiprocessing, "active_children", lambda: [worker])
        counted = input_sides.count_batches(worker.stdout, 2, 0.0, least=3)
        worker.stdin.close()
    assert counted["cpu_seconds"] == pytest.approx(0.6, abs=0.1)  # of three batches; the clock ticks every 0.01 s


def test_a_step_that_waits_for_its_input_says_so(pipeline):
    class Setup:
        class config:
            batch_size = 8

        class devices:
            put = staticmethod(lambda batch: batch)

        data = types.SimpleNamespace(train=pipeline, prefetch=2)

    class Bench:
        setup, steps_per_call = Setup, 2

        def __init__(self, bad=None):
            self.taken, self.bad = 0, bad

        def step(self, kind, batches):
            assert kind == "train" and [batch["image"].shape for batch in batches] == [(8, 8, 8, 3)] * 2
            losses = [math.nan if self.taken + index == self.bad else 1.0 for index in range(2)]
            self.taken += 2
            return {"loss": losses, "count": [8.0] * 2, "gradient_norm": [1.0] * 2}

    fed = inputs.measure_fed_step(Bench(), 0.5)
    with pytest.raises(NonFiniteLoss, match="step 14 is not finite"):
        inputs.measure_fed_step(Bench(bad=13), 0.5)
    assert fed["data_wait_fraction"] > 0.9
    assert fed["images_per_second"] == pytest.approx(8 / 0.02, rel=0.5)
    assert fed["steps"] >= 3 and fed["steps"] % 2 == 0
