"""Batches: functions of their number; blocks that make the global batch; every example once in evaluation."""

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import time
from multiprocessing import active_children

import numpy as np
import pytest

from inception_jax.data import images, sampling
from inception_jax.data.datasets import Dataset, load
from inception_jax.data.pipeline import EvalPipeline, TrainPipeline
from inception_jax.data.pipeline_base import default_threads, default_workers
from inception_jax.data.records import MemoryRecords
from inception_jax.data.workers import check_shared_memory
from inception_jax.errors import UserError


def train_pipeline(data=None, **options):
    fields = {"batch_size": 8, "image_size": 16, "seed": 3, "augmentation": {"area": (0.5, 1.0)}}
    return TrainPipeline(data or load("digits", "train"), **(fields | options))


def digest(batch) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(batch[key]).tobytes() for key in sorted(batch))).hexdigest()


def assert_same(a, b):
    assert a.keys() == b.keys() == {"image", "label", "mask"}
    for key in a:
        assert a[key].dtype == b[key].dtype and np.array_equal(a[key], b[key]), key


def test_batch_has_the_promised_form():
    pipeline = train_pipeline()
    batch = pipeline.batch(5)
    assert batch["image"].shape == (8, 16, 16, 3) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (8,) and batch["label"].dtype == np.int32
    assert batch["mask"].dtype == np.bool_ and batch["mask"].all()
    assert pipeline.steps_per_epoch == 1437 / 8 and pipeline.local_batch_size == 8


def test_rows_are_the_examples_of_the_positions():
    """Against the components, combined by hand: order, record, numbers of the position, window."""
    data = load("digits", "train")
    pipeline = train_pipeline(data)
    batch = pipeline.batch(400)  # in the third epoch
    augmentation = images.Augmentation(area=(0.5, 1.0))
    for row in range(8):
        epoch, offset = divmod(400 * 8 + row, 1437)
        image, label = data.record(int(sampling.permutation(3, epoch, 1437)[offset]))
        numbers = sampling.uniforms(3, 400 * 8 + row, 1)[0]
        assert batch["label"][row] == label
        assert np.array_equal(batch["image"][row], images.augment(image, 16, numbers, augmentation))


def test_an_epoch_is_every_example_once_across_batches():
    images_of_their_number = np.arange(21, dtype=np.uint8)[:, None, None, None].repeat(3, -1) * np.ones(
        (1, 4, 4, 1), np.uint8
    )
    data = Dataset("numbers", "train", ["a"], MemoryRecords(images_of_their_number, np.zeros(21, int)))
    pipeline = train_pipeline(data, batch_size=5, image_size=4)
    drawn = np.concatenate([pipeline.batch(k)["image"][:, 0, 0, 0] for k in range(21)])
    epochs = drawn.reshape(5, 21)
    assert all(sorted(epoch.tolist()) == list(range(21)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 5


def test_batches_may_be_asked_for_in_any_order():
    """As threads do: where a data set is smaller than a batch, one of them is epochs behind another."""
    data = load("digits", "train[:5]")
    forward = [digest(train_pipeline(data).batch(k)) for k in range(12)]
    backward = train_pipeline(data)
    assert [digest(backward.batch(k)) for k in reversed(range(12))] == forward[::-1]


def test_no_two_seeds_share_batches():
    digests = {digest(train_pipeline(seed=seed).batch(k)) for seed in range(5) for k in range(4)}
    assert len(digests) == 20


@pytest.mark.parametrize(("threads", "prefetch_size"), [(1, 1), (2, 4), (7, 2)])
def test_iterating_gives_the_batches_whatever_the_threads_and_the_start(threads, prefetch_size):
    reference = train_pipeline()
    for start in (0, 3, 177, 10**9):
        with train_pipeline(threads=threads, prefetch=prefetch_size).batches(start) as batches:
            for k in range(start, start + 6):
                assert_same(next(batches), reference.batch(k))


def test_a_new_process_makes_the_same_batches():
    code = (
        "import hashlib\nimport numpy as np\n"
        "from inception_jax.data.datasets import load\n"
        "from inception_jax.data.pipeline import TrainPipeline\n"
        "p = TrainPipeline(load('digits', 'train'), batch_size=8, image_size=16, seed=3,"
        " augmentation={'area': (0.5, 1.0)})\n"
        "b = p.batch(1234)\n"
        "print(hashlib.sha256(b''.join(b[key].tobytes() for key in sorted(b))).hexdigest())\n"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == digest(train_pipeline().batch(1234))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_blocks_of_the_processes_make_the_global_batch(count):
    for k in (0, 179, 5000):  # 179: across the end of an epoch
        whole = train_pipeline().batch(k)
        shares = [train_pipeline(process_index=i, process_count=count).batch(k) for i in range(count)]
        assert all(len(share["label"]) == 8 // count for share in shares)
        assert_same({key: np.concatenate([share[key] for share in shares]) for key in whole}, whole)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_evaluation_sees_every_example_once(count):
    data = load("digits", "test")
    fields = {"batch_size": 16, "image_size": 8, "crop": {"fraction": 1.0}}
    shares = [EvalPipeline(data, process_index=i, process_count=count, **fields) for i in range(count)]
    assert {share.num_batches for share in shares} == {23}  # 360 / 16 = 22.5
    seen = []
    for batches in zip(*(share.batches() for share in shares), strict=True):
        whole = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
        assert whole["image"].shape == (16, 8, 8, 3)
        assert not whole["image"][~whole["mask"]].any() and not whole["label"][~whole["mask"]].any()
        seen += zip(whole["image"][whole["mask"]], whole["label"][whole["mask"]], strict=True)
    assert len(seen) == 360
    for (image, label), index in zip(seen, range(360), strict=True):
        expected, expected_label = data.record(index)
        assert np.array_equal(image, expected) and label == expected_label


def test_evaluation_of_fewer_examples_than_a_batch():
    data = load("digits", "test[:3]")
    pipeline = EvalPipeline(data, batch_size=8, image_size=8, process_index=1, process_count=2)
    assert pipeline.num_batches == 1
    (batch,) = list(pipeline.batches())
    assert not batch["mask"].any() and batch["image"].shape == (4, 8, 8, 3)
    with pytest.raises(IndexError):
        pipeline.batch(1)


def test_training_on_the_centre_crop():
    data = load("digits", "train")
    batch = train_pipeline(data, augmentation=images.EvalCrop(fraction=1.0), image_size=8).batch(0)
    for row, index in enumerate(sampling.permutation(3, 0, 1437)[:8]):
        assert np.array_equal(batch["image"][row], data.record(int(index))[0])


def children() -> list[int]:
    return [process.pid for process in active_children()]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_same_batches_survive_signals_and_end(workers):
    """Ctrl-C and a preemption's SIGTERM reach the whole process group, and are for the trainer to answer."""
    reference = train_pipeline()
    batches = train_pipeline(workers=workers, threads=2, prefetch=2).batches(177)
    try:
        for k in range(177, 183):
            assert_same(next(batches), reference.batch(k))
        processes = children()
        assert len(processes) == workers
        for pid in processes:
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        for k in range(183, 200):
            assert_same(next(batches), reference.batch(k))
    finally:
        started = time.monotonic()
        batches.close()
    assert time.monotonic() - started < 15 and not children()


def test_workers_end_with_a_trainer_that_is_killed():
    code = (
        "import os, signal, sys\n"
        "from multiprocessing import active_children\n"
        "from inception_jax.data.datasets import load\n"
        "from inception_jax.data.pipeline import EvalPipeline\n"
        "if __name__ == '__main__':\n"
        "    batches = EvalPipeline(load('digits', 'test'), batch_size=4, image_size=8, workers=1).batches()\n"
        "    next(batches)\n"
        "    print(*(process.pid for process in active_children()), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as trainer:
        worker = int(trainer.stdout.readline())
        trainer.wait(20)
        assert trainer.returncode == -signal.SIGKILL
        deadline = time.monotonic() + 10
        while state(worker) != "Z" and time.monotonic() < deadline:
            time.sleep(0.1)
        survived = state(worker) != "Z"
        if survived:
            os.kill(worker, signal.SIGKILL)  # it holds our pipe
    assert not survived


def state(pid: int) -> str:
    """The state letter of a process: "Z" once it has ended and nobody has asked."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


def test_an_unreadable_record_is_named_in_threads_and_closes(image_folder):
    broken = image_folder / "train" / "dog" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    data = load(f"folder:{image_folder}", "train")
    pipeline = train_pipeline(data, batch_size=14)
    for make in (lambda: pipeline.batch(0), lambda: next(pipeline.batches(0))):
        with pytest.raises(UserError, match=r"folder:.* \[train\], .*train/dog/1.jpg: not a readable image"):
            make()


def test_folder_images_of_all_sizes_make_batches(image_folder):
    data = load(f"folder:{image_folder}", "train")
    for augmentation in ({}, {"rule": "random_crop", "resize": 20}):
        batch = train_pipeline(data, augmentation=augmentation).batch(1)
        assert batch["image"].std(axis=(1, 2, 3)).min() > 10  # noise stays noise: every row was written


def test_shared_memory_is_checked_before_workers_start(tmp_path):
    check_shared_memory(1, 2, str(tmp_path))
    with pytest.raises(UserError, match=r"MiB free, but the batches of 2 workers need 1099511627776 MiB.*workers=0"):
        check_shared_memory(1 << 60, 2, str(tmp_path))
    check_shared_memory(1 << 60, 2, str(tmp_path / "none"))
    with pytest.raises(
        UserError, match=r"/proc/self cannot be written \(.*\), and worker .*; make it writable, or set d"
    ):
        check_shared_memory(0, 2, "/proc/self")
    huge = EvalPipeline(load("synthetic", "test"), batch_size=1 << 14, image_size=1 << 10, workers=2)
    huge._empty_batch = lambda: {"image": np.broadcast_to(np.uint8(0), (1 << 20, 1 << 20, 3))}
    with pytest.raises(UserError, match="/dev/shm"):
        huge.batches()


def test_defaults_follow_the_cores(monkeypatch):
    memory, files = load("digits", "train"), Dataset("f", "train", ["a"], load("digits", "train").source)
    object.__setattr__(files, "source", type("Files", (), {"in_memory": False, "__len__": lambda self: 5})())
    for cores, threads, workers in ((2, 2, 0), (8, 8, 0), (16, 8, 4), (96, 8, 24)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert default_threads() == threads
        assert default_workers(memory) == 0 and default_workers(files) == workers
        assert EvalPipeline(files, batch_size=4, image_size=8).threads == (4 if workers else threads)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: 0"),
        ({"batch_size": 2.5}, "batch_size: 2.5"),
        ({"image_size": 0}, "image_size: 0"),
        ({"process_count": 3}, "batch_size: 8 does not divide evenly among 3 processes"),
        ({"process_index": 2, "process_count": 2}, "process_index: 2; 0 to 1"),
        ({"threads": 0}, "threads: 0"),
        ({"workers": -1}, "workers: -1"),
        ({"prefetch": 0}, "prefetch: 0"),
        ({"skip_corrupt": 3}, "skip_corrupt: 3"),
        ({"seed": -1}, "seed: -1"),
        ({"augmentation": {"aera": 1}}, "unknown field augmentation.aera; did you mean 'area'"),
        ({"augmentation": None}, "augmentation: None"),
        (
            {"augmentation": {"rule": "random_crop", "resize": 15}},
            "augmentation.resize: 15; at least the image",
        ),
    ],
)
def test_refuses_options_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        train_pipeline(**options)


def test_pipelines_pickle():
    pipeline = train_pipeline()
    assert_same(pickle.loads(pickle.dumps(pipeline)).batch(7), pipeline.batch(7))


def test_scaled_decoding_is_for_crops_of_files(image_folder):
    data = load(f"folder:{image_folder}", "train")
    fields = {"batch_size": 2, "image_size": 8, "seed": 0, "threads": 1, "workers": 0}
    exact, scaled = (TrainPipeline(data, augmentation={}, decode=how, **fields) for how in ("exact", "scaled"))
    differ = [not np.array_equal(exact.batch(k)["image"], scaled.batch(k)["image"]) for k in range(20)]
    assert any(differ) and not all(differ)  # PNG files, and small crops of JPEGs, are the same
    for augmentation in ({"rule": "random_crop", "resize": 20}, images.EvalCrop()):
        with pytest.raises(UserError, match=r"data\.decode: 'scaled' has no effect without augmentation\.rule"):
            TrainPipeline(data, augmentation=augmentation, decode="scaled", **fields)
    with pytest.raises(UserError, match=r"data\.decode: 'scaled' has no effect on digits, which has no files"):
        TrainPipeline(load("digits", "train"), augmentation={}, decode="scaled", **fields)
    with pytest.raises(UserError, match=r"data\.decode: 'scale'; did you mean 'scaled'"):
        TrainPipeline(data, augmentation={}, decode="scale", **fields)
