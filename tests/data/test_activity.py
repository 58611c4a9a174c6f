"""Thread activity: entries by slot and by process. The data loader: order, errors, closing, threads that hang."""

import os
import pickle
import re
import threading
import time

import pytest

from inception_jax.data import activity, loader
from inception_jax.data.datasets import load
from inception_jax.data.pipeline import TrainPipeline


def test_a_table_tells_slots_apart_and_lists_the_longest_activity_first():
    table = activity.ActivityTable(slots=2, workers=2)
    try:
        table.register_worker(1)
        table.begin_batch(0, 41, worker=1)
        activity.update(3, 1234)
        there = pickle.loads(pickle.dumps(table))  # as a worker gets it: the same memory
        time.sleep(0.01)

        def another():
            there.begin_batch(1, 42, worker=0)
            activity.update(0, 7)

        thread = threading.Thread(target=another)
        thread.start()
        thread.join()
        first, second = table.activities()
        assert (first.worker, first.pid, first.batch, first.row, first.record) == (
            1,
            table.worker_pids()[1],
            41,
            3,
            1234,
        )
        assert (second.worker, second.pid, second.batch, second.row, second.record) == (0, 0, 42, 0, 7)
        assert 5 > first.seconds > second.seconds >= 0
        there.cancel()
        with pytest.raises(activity.Cancelled):
            activity.update(4, 1235)
    finally:
        table.end_batch()
    activity.update(5, 1)  # of no table's batch: nothing happens
    assert [thread.batch for thread in table.activities()] == [42]


def test_a_table_that_has_gone_is_replaced_and_nothing_else_is_written_to(tmp_path):
    """A worker that starts late finds another file under the number of the table's."""
    table = activity.ActivityTable(slots=1, workers=1)
    pickled, number = pickle.dumps(table), int(table._path.rpartition("/")[2])
    del table
    with pytest.raises(OSError):
        os.fstat(number)  # closed with the table
    path = tmp_path / "checkpoint"
    path.write_bytes(b"7" * 5000)
    for descriptor in (None, os.open(path, os.O_RDWR)):
        if descriptor is not None and descriptor != number:
            os.dup2(descriptor, number)
            os.close(descriptor)
        alone = pickle.loads(pickled)
        assert alone.activities() == []
        alone.register_worker(0)
    os.close(number)
    assert path.read_bytes() == b"7" * 5000


def test_a_thread_that_hangs_in_a_read_is_named_with_its_file_and_not_waited_for(
    image_folder, stalled_file, monkeypatch
):
    monkeypatch.setattr(loader, "_JOIN_SECONDS", 0.2)
    data = load(f"folder:{image_folder}", "train")
    path = stalled_file(image_folder / "train" / "eel" / "2.png")
    source = TrainPipeline(data, batch_size=14, image_size=8, seed=1, augmentation={}, threads=1, workers=0).batches(2)
    end = time.monotonic() + 10
    while str(path) not in (text := source.describe_activity()) and time.monotonic() < end:
        time.sleep(0.01)
    assert text.startswith("batch 2 is due; a thread has been at batch 2, row ")
    assert re.search(rf"folder:{re.escape(str(image_folder))} \[train\], {re.escape(str(path))}, for \d+ s$", text)
    started = time.monotonic()
    source.close()
    assert time.monotonic() - started < 5
    with pytest.raises(StopIteration):
        next(source)


def test_closing_breaks_batches_off():
    """A batch of a thousand images that nobody needs is not finished."""
    begun = threading.Event()

    def make(number):
        for row in range(1000):
            activity.update(row, row)
            begun.set()
            time.sleep(0.01)

    source = loader.DataLoader(loader.ThreadProducer(make, 2), 0, 10, 2, record_name=str)
    begun.wait(5)
    started = time.monotonic()
    source.close()
    assert time.monotonic() - started < 3
    assert not any(thread.is_alive() for thread in source._threads)


def test_a_loader_that_nobody_closes_ends_its_threads():
    source = loader.DataLoader(loader.ThreadProducer(lambda number: number, 2), 0, 10, 4, record_name=str)
    threads = source._threads
    assert next(source) == 0
    del source
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)


def test_the_end_of_the_data_ends_the_threads():
    source = loader.DataLoader(loader.ThreadProducer(lambda number: number, 2), 3, 13, 4, record_name=str)
    assert list(source) == list(range(3, 13))
    assert not any(thread.is_alive() for thread in source._threads)


def test_an_error_stands_in_the_place_of_its_batch_and_stays():
    def make(number):
        if number == 2:
            raise OSError("the cable")
        return number

    with loader.DataLoader(loader.ThreadProducer(make, 3), 0, 10, 4, record_name=str) as source:
        assert [next(source), next(source)] == [0, 1]
        for _ in range(2):
            with pytest.raises(OSError, match="the cable"):
                next(source)


def test_it_waits_for_a_batch_an_error_the_end_and_closing_but_no_longer_than_it_is_told():
    go = threading.Event()

    def make(number):
        go.wait()
        if number == 1:
            raise OSError("the cable")
        return number

    source = loader.DataLoader(loader.ThreadProducer(make, 1), 0, 2, 1, record_name=str)
    started = time.monotonic()
    assert not source.wait(0) and not source.wait(0.2)
    assert 0.15 < time.monotonic() - started < 5
    go.set()
    assert source.wait(10) and next(source) == 0
    assert source.wait(10)
    with pytest.raises(OSError, match="the cable"):
        next(source)
    go.clear()
    with loader.DataLoader(loader.ThreadProducer(make, 1), 0, 2, 1, record_name=str) as hanging:
        threading.Timer(0.2, hanging.close).start()
        assert hanging.wait(10)
        with pytest.raises(StopIteration):
            next(hanging)
        go.set()
    with loader.DataLoader(loader.ThreadProducer(lambda number: number, 1), 0, 0, 1, record_name=str) as empty:
        assert empty.wait(0)
        with pytest.raises(StopIteration):
            next(empty)


def test_it_makes_no_more_batches_ahead_than_it_is_told():
    made = []
    with loader.DataLoader(loader.ThreadProducer(made.append, 2), 0, 100, 5, record_name=str) as source:
        for taken in range(3):
            end = time.monotonic() + 10
            while len(made) < taken + 5 and time.monotonic() < end:
                time.sleep(0.005)
            time.sleep(0.05)
            assert sorted(made) == list(range(taken + 5))
            next(source)
