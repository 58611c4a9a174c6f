"""Worker processes that die or hang: replaced without a trace in the batches, named, and never waited for."""

import gc
import os
import signal
import sys
import threading
import time
import types
from multiprocessing import active_children, resource_tracker, spawn

import grain
import numpy as np
import pytest
from grain._src.python.ipc.shared_memory_array import SharedMemoryArray

from inception_jax.data import loader, worker_process, workers
from inception_jax.data.datasets import load
from inception_jax.data.pipeline import TrainPipeline
from inception_jax.errors import UserError


def pipeline(data=None, **options):
    fields = {"batch_size": 8, "image_size": 16, "seed": 3, "augmentation": {}, "threads": 2}
    return TrainPipeline(data or load("digits", "train"), **(fields | options))


def children() -> list[int]:
    return [process.pid for process in active_children()]


def assert_none_left():
    end = time.monotonic() + 20
    while children():
        assert time.monotonic() < end, "a worker lives on"
        time.sleep(0.05)


@pytest.fixture
def shared_memory(monkeypatch):
    """(names of all shared memory that this process has opened, of that which was not removed yet: that takes time)."""
    opened, present = set(), set()

    def register(name, kind):
        if kind == "shared_memory":
            opened.add(name)
            present.add(name)
        original[0](name, kind)

    def unregister(name, kind):
        present.discard(name)
        original[1](name, kind)

    def remove(memory, unlink):
        time.sleep(0.05)
        remove_at_once(memory, unlink)

    remove_at_once = SharedMemoryArray.close_shm_async
    monkeypatch.setattr(SharedMemoryArray, "close_shm_async", staticmethod(remove))
    original = resource_tracker.register, resource_tracker.unregister
    monkeypatch.setattr(resource_tracker, "register", register)
    monkeypatch.setattr(resource_tracker, "unregister", unregister)
    return opened, present


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_worker_is_replaced_and_no_batch_is_lost_doubled_or_changed(count, capfd):
    reference = pipeline()
    with pipeline(workers=count).batches(177) as batches:
        first = next(batches)
        before = set(children())
        assert len(before) == count
        os.kill(max(before), signal.SIGKILL)
        drawn = [first, *(next(batches) for _ in range(24))]
        after = set(children())
    for k, batch in enumerate(drawn, 177):
        expected = reference.batch(k)
        assert all(np.array_equal(batch[key], expected[key]) for key in expected), k
    assert len(after) == count and not after & before  # all are new
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and err.startswith(
        "warning: a worker process that decodes images was killed by SIGKILL (exit code -9) before batch "
    ), err
    assert_none_left()


def test_workers_do_not_run_the_main_module_again(tmp_path, monkeypatch):
    """Neither a script without `if __name__ == "__main__"`, nor one from standard input, which is no file."""
    script = tmp_path / "script.py"
    script.write_text("import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nraise SystemExit(1)\n")
    main = types.ModuleType("__main__")
    main.__file__, main.__spec__ = str(script), None
    monkeypatch.setitem(sys.modules, "__main__", main)
    expected = pipeline().batch(5)
    with pipeline(workers=1).batches(5) as batches:
        found = next(batches)
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
    assert not (tmp_path / "ran").exists()
    assert spawn.get_preparation_data("another")["init_main_from_path"] == str(script)  # other processes are as ever
    main.__file__ = "<stdin>"
    assert "init_main_from_path" not in spawn.get_preparation_data("grain-process-prefetch-x")
    assert_none_left()


def test_as_many_finished_batches_wait_in_the_trainer_as_are_to_be_transferred_ahead(shared_memory):
    """With only one, the next is not there yet when the device prefetcher asks for it, and it never gets ahead."""
    with pipeline(workers=1, prefetch=3).batches() as batches:
        end = time.monotonic() + 60
        while (count := len(batches._buffer._made)) < 3:
            assert time.monotonic() < end, f"{count} batch(es)"
            time.sleep(0.05)
        time.sleep(0.2)
        assert len(batches._buffer._made) == 3
    opened, present = shared_memory
    assert len(opened) >= 3 and not present, "Python would remove it, with a warning, when it ends"
    assert_none_left()


def test_closing_waits_until_the_shared_memory_of_batches_is_removed(monkeypatch):
    """Grain removes it in a thread, which may be late."""
    removed, remove_at_once = [], SharedMemoryArray.close_shm_async

    def remove(memory, unlink):
        time.sleep(0.2)
        remove_at_once(memory, unlink)
        removed.append(memory.name)

    monkeypatch.setattr(SharedMemoryArray, "close_shm_async", staticmethod(remove))
    SharedMemoryArray.enable_async_del()
    producer, arrays = object.__new__(workers.WorkerProducer), [SharedMemoryArray((8,), np.uint8) for _ in range(2)]
    names = [array.metadata.name for array in arrays]
    for array in arrays:
        array.unlink_on_del()
    del array, arrays
    producer.finish()
    assert sorted(removed) == sorted(names)
    cycle = [SharedMemoryArray((8,), np.uint8)]  # as the last batches of a run: freed at the end of the process
    cycle[0].unlink_on_del()
    names.append(cycle[0].metadata.name)
    cycle.append(cycle)
    del cycle
    workers.free_shared_memory()
    assert {*names} <= {*removed}  # with what tests before have left in cycles


def test_a_loader_finishes_its_producer_when_all_has_ended():
    calls = []

    class Source(loader.ThreadProducer):
        def close(self):
            calls.append("close")

        def finish(self):
            calls.append(("finish", sum(thread.name.startswith("data-loader") for thread in threading.enumerate())))

    before = sum(thread.name.startswith("data-loader") for thread in threading.enumerate())
    with loader.DataLoader(Source(lambda number: number, 2), 0, 10, 4, record_name=str) as source:
        next(source)
    assert calls == ["close", ("finish", before)]


def grain_iterator():
    """Grain's iterator over its one running worker process."""
    (running,) = [
        found
        for found in gc.get_objects()
        if type(found).__name__ == "ProcessPrefetchDatasetIterator"
        and found._prefetch_process is not None
        and found._prefetch_process.is_alive()
    ]
    return running


def draw_while_locked(batches, count, seconds):
    """Batches that come while this process holds both locks that it shares with the worker, and the drawing thread."""
    drawn, iterator = [], grain_iterator()
    drawing = threading.Thread(target=lambda: drawn.extend(next(batches) for _ in range(count)), daemon=True)
    with iterator._prefetch_should_stop._cond, iterator._set_state_request_count.get_lock():
        drawing.start()
        drawing.join(timeout=seconds)
        return len(drawn), drawing


def test_a_worker_holds_no_lock_that_the_trainer_needs_to_stop_it():
    """Killed while it holds one, it would keep it, and the trainer wait forever: so batches come without the locks."""
    with pipeline(workers=1).batches(5) as batches:
        next(batches)
        assert draw_while_locked(batches, 20, seconds=60)[0] == 20
    assert_none_left()


def test_a_worker_of_grain_alone_does_need_these_locks():
    """If this fails with a newer Grain, `worker_process` need no longer read the shared values without locks."""
    workers.mark_flags_parsed()
    dataset = grain.MapDataset.range(1000).to_iter_dataset()
    batches = iter(dataset.mp_prefetch(grain.MultiprocessingOptions(1, 1)))
    next(batches)
    count, drawing = draw_while_locked(batches, 20, seconds=2)
    assert count < 20  # those that had been made before
    drawing.join(60)
    assert not drawing.is_alive()
    batches.close()
    assert_none_left()


def test_a_grain_newer_than_the_one_that_was_checked_is_warned_of_once(monkeypatch, capfd):
    worker_process.warn_of_newer_grain.cache_clear()
    worker_process.warn_of_newer_grain()
    assert capfd.readouterr().err == ""  # the installed one was checked
    monkeypatch.setattr(worker_process, "GRAIN_CHECKED", "0.1.99")
    worker_process.warn_of_newer_grain.cache_clear()
    for _ in range(2):
        worker_process.warn_of_newer_grain()
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and "is newer than 0.1.99" in err and "grain==0.1.99" in err


def test_workers_that_die_three_times_without_a_batch_end_it_with_their_exit_code(image_folder, stalled_file, capfd):
    data = load(f"folder:{image_folder}", "train")
    stalled_file(image_folder / "train" / "cat" / "2.png")  # no batch is ever whole
    over = threading.Event()

    def kill_all():
        while not over.wait(0.02):
            for pid in children():
                os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        with pipeline(data, batch_size=14, workers=1).batches(5) as batches:
            for _ in range(2):
                with pytest.raises(UserError, match=r"SIGKILL \(exit code -9\) before batch 5.*, 3 times .*memory"):
                    next(batches)
    finally:
        over.set()
        killer.join()
    assert capfd.readouterr().err.count("new workers continue from there") == 2


def test_a_worker_that_hangs_is_named_with_its_file_and_not_waited_for(image_folder, stalled_file, monkeypatch):
    monkeypatch.setattr(workers, "_CLOSE_SECONDS", 0.5)
    data = load(f"folder:{image_folder}", "train")
    path = stalled_file(image_folder / "train" / "cat" / "2.png")
    batches = pipeline(data, batch_size=14, workers=1, threads=1).batches()
    assert batches.describe_activity() == "batch 0 is due; no thread of the 1 worker processes is making one"
    drawing = threading.Thread(target=lambda: next(batches, None), daemon=True)
    drawing.start()
    try:
        end = time.monotonic() + 30
        while str(path) not in (text := batches.describe_activity()) and time.monotonic() < end:
            time.sleep(0.05)
        (pid,) = children()
        assert text.startswith(f"batch 0 is due; worker 0 (process {pid}) has been at batch 0, row ")
        assert f"{path}, for " in text
    finally:
        started = time.monotonic()
        batches.close()
    assert time.monotonic() - started < 5
    assert_none_left()


def test_exit_codes_are_described():
    assert workers._describe_exit(-7) == "was killed by SIGBUS (exit code -7)"
    assert workers._describe_exit(-200) == "ended with exit code -200"
    assert workers._describe_exit(1) == "ended with exit code 1"
