"""The device prefetcher: ahead, in order, errors in their place; a stalled input: named, interruptible, given up."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from inception_jax.data import loader
from inception_jax.data.activity import ActivityTable
from inception_jax.data.loader import DataLoader, Producer
from inception_jax.errors import ExitCode
from inception_jax.training import device_prefetch
from inception_jax.training.device_prefetch import DevicePrefetcher, InputStalled

ROOT = Path(device_prefetch.__file__).parents[2]


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


class Source(Producer):
    """Makes the number of each batch; at `hangs_at` it waits until `go` is set or it is closed."""

    threads = 1

    def __init__(self, stop=100, hangs_at=None, error=None, seconds=0.0):
        self.number, self.stop, self.hangs_at, self.error, self.seconds = 0, stop, hangs_at, error, seconds
        self.go, self.closed = threading.Event(), False

    def make(self, number, slot):
        assert number == self.number and slot == 0
        time.sleep(self.seconds)
        if number == self.hangs_at:
            self.go.wait()
        if number == self.stop and self.error is not None:
            raise self.error
        self.number += 1
        return number

    @property
    def activity(self):
        return ActivityTable(1)

    def describe_idle(self):
        return "a thread has been at image 7"

    def close(self):
        self.closed = True
        self.go.set()


def load(source, ahead=2):
    return DataLoader(source, 0, source.stop + (source.error is not None), ahead, record_name=str)


def test_it_stays_ahead_keeps_order_and_serves_the_devices_from_the_calling_thread():
    source, threads = Source(stop=30), []

    def put(batch):
        threads.append(threading.get_ident())
        return batch * 10

    batches = load(source)
    feed = DevicePrefetcher(batches, put, prefetch=2)
    assert feed.next_batch() == 0
    for expected in range(10, 300, 10):
        wait_for(lambda: source.number == 30 or len(batches._buffer._made) == 2)
        drawn = feed.next_batch()
        assert drawn == expected
        if expected < 280:
            assert len(feed._on_device) == 1  # one was handed out, one is on its way
    for _ in range(2):
        with pytest.raises(StopIteration):
            feed.next_batch()
    assert set(threads) == {threading.get_ident()}
    assert source.number == 30
    feed.close()
    assert source.closed and not any(thread.is_alive() for thread in batches._threads)
    with pytest.raises(ValueError, match="closed"):
        feed.next_batch()


def test_it_draws_no_further_than_it_was_told():
    source = Source()
    feed = DevicePrefetcher(load(source, ahead=3), lambda batch: batch, prefetch=3)
    assert feed.next_batch() == 0
    time.sleep(0.2)
    assert 3 <= source.number <= 6  # one handed out, up to two on their way, three with the loader
    feed.close()


def test_it_counts_what_it_waits():
    source = Source(stop=3, seconds=0.2)
    feed = DevicePrefetcher(load(source), lambda batch: batch, prefetch=2)
    assert feed.next_batch() == 0
    assert 0.1 < feed.pop_wait_seconds() < 5
    assert feed.pop_wait_seconds() == 0.0
    wait_for(lambda: source.number == 3)
    assert list(feed) == [1, 2]
    assert feed.pop_wait_seconds() < 0.5
    feed.close()


def test_an_error_of_the_source_comes_after_the_batches_before_it_and_stays():
    feed = DevicePrefetcher(load(Source(stop=3, error=OSError("the cable"))), lambda batch: batch, prefetch=5)
    assert [feed.next_batch(), feed.next_batch(), feed.next_batch()] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(OSError, match="the cable"):
            feed.next_batch()
    feed.close()


def test_a_stall_is_told_at_doubling_intervals_and_given_up():
    lines, times = [], []

    def report(text):
        lines.append(text)
        times.append(time.monotonic())

    feed = DevicePrefetcher(
        load(Source(hangs_at=2)), lambda batch: batch, 1, warn_after=0.4, give_up_after=2.8, report=report
    )
    assert [feed.next_batch(), feed.next_batch()] == [0, 1]
    started = time.monotonic()
    with pytest.raises(InputStalled) as stalled:
        feed.next_batch()
    assert 2.7 < time.monotonic() - started < 8
    assert stalled.value.exit_code == ExitCode.STALLED == 7
    text = "the input has stalled: no batch for 3 s; batch 2 is due; a thread has been at image 7"
    assert str(stalled.value).startswith(text) and "\n" not in str(stalled.value)
    assert len(lines) == 3  # after 0.4, 0.8 and 1.6 seconds
    assert all("batch 2 is due; a thread has been at image 7; giving up after 2.8 s" in line for line in lines)
    assert all(moment - started > least for moment, least in zip(times, (0.3, 0.7, 1.5), strict=True))
    feed.close()


def test_a_stall_that_ends_is_no_error(capsys):
    source = Source(hangs_at=0)
    feed = DevicePrefetcher(load(source), lambda batch: batch, 1, warn_after=0.2, give_up_after=60)
    threading.Timer(0.5, source.go.set).start()
    assert feed.next_batch() == 0
    assert 0.3 < feed.pop_wait_seconds() < 10
    assert capsys.readouterr().err.startswith("the input has stalled: no batch for ")
    feed.close()


def test_a_wait_ends_where_the_run_is_to_stop_and_the_batch_is_not_lost():
    source, stop = Source(hangs_at=1), threading.Event()
    feed = DevicePrefetcher(load(source), lambda batch: batch, 1, should_stop=stop.is_set)
    assert feed.next_batch() == 0
    threading.Timer(0.3, stop.set).start()
    started = time.monotonic()
    assert feed.next_batch() is None
    assert 0.2 < time.monotonic() - started < 5
    source.go.set()
    wait_for(lambda: source.number > 1)
    assert feed.next_batch() == 1  # it is there: nobody waits
    feed.close()


def test_closing_does_not_wait_for_a_source_that_hangs(monkeypatch):
    monkeypatch.setattr(loader, "_JOIN_SECONDS", 0.2)
    source = Source(hangs_at=1)
    monkeypatch.setattr(source, "close", lambda: None)
    batches = load(source)
    feed = DevicePrefetcher(batches, lambda batch: batch, 1)
    assert feed.next_batch() == 0
    time.sleep(0.1)
    started = time.monotonic()
    feed.close()
    assert time.monotonic() - started < 4
    assert batches._threads[0].is_alive()
    source.go.set()
    batches._threads[0].join(5)
    assert not batches._threads[0].is_alive()


STALLED = """
import os, sys
from pathlib import Path
import cv2, numpy as np
from inception_jax import command_line
from inception_jax.data import loader
from inception_jax.data.datasets import load
from inception_jax.data.pipeline import TrainPipeline
from inception_jax.training.device_prefetch import DevicePrefetcher
loader._JOIN_SECONDS = 0.3
root = Path(sys.argv[1])
for name in "ab":
    (root / "train" / name).mkdir(parents=True)
    for number in range(4):
        cv2.imwrite(str(root / "train" / name / f"{number}.png"), np.zeros((9, 9, 3), np.uint8))
data = load(f"folder:{root}", "train")
(root / "train" / "b" / "2.png").unlink()
os.mkfifo(root / "train" / "b" / "2.png")

def main(argv):
    source = TrainPipeline(data, batch_size=8, image_size=8, seed=0, augmentation={}, threads=2, workers=0).batches()
    feed = DevicePrefetcher(source, lambda batch: batch, 2, warn_after=0.7, give_up_after=1.3)
    try:
        feed.next_batch()
    finally:
        feed.close()

command_line.run(main)
"""


def test_a_process_whose_storage_hangs_ends_with_its_own_exit_code(tmp_path):
    """Python waits for ordinary threads when it ends; one that hangs in a read would hold the process forever."""
    done = subprocess.run(
        [sys.executable, "-c", STALLED, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    warning, error = done.stderr.splitlines()
    assert done.returncode == ExitCode.STALLED
    place = f"{tmp_path / 'train' / 'b' / '2.png'}, for "
    assert warning.startswith("the input has stalled: no batch for ") and place in warning
    assert error.startswith("error: the input has stalled: no batch for 1 s; batch 0 is due; ") and place in error
