"""Images that cannot be used: left out of their batch, masked, named once; everything else is as without them."""

import re

import numpy as np
import pytest

from inception_jax.data import images
from inception_jax.data.datasets import load
from inception_jax.data.pipeline import EvalPipeline, TrainPipeline
from inception_jax.errors import UserError


@pytest.fixture
def intact(image_folder):
    """Training and evaluation batches of the folder before anything happens to it."""
    return training(image_folder).batch(0), EvalPipeline(data(image_folder), batch_size=16, image_size=16).batch(0)


@pytest.fixture
def damaged(intact, image_folder):
    """The folder with a JPEG cut in half, an empty PNG, and a file that is gone since it was listed."""
    dataset = data(image_folder)
    half, empty, gone = (image_folder / "train" / name for name in ("cat/1.jpg", "dog/0.png", "eel/1.jpg"))
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    empty.write_bytes(b"")
    gone.unlink()
    return dataset, [str(half), str(empty), str(gone)]


def data(folder):
    return load(f"folder:{folder}", "train")


def training(folder_or_data, **options):
    dataset = folder_or_data if hasattr(folder_or_data, "record") else data(folder_or_data)
    fields = {"batch_size": 14, "image_size": 16, "seed": 3, "augmentation": {}, "skip_corrupt": True}
    return TrainPipeline(dataset, **(fields | options))


def assert_left_out(batch, before, records, paths, dataset):
    """`batch` is `before`, but the rows of `paths` are black, of label 0 and masked."""
    bad = np.array([dataset.record_name(record).rpartition(", ")[2] in paths for record in records])
    assert bad.sum() == len(paths)
    assert np.array_equal(batch["mask"][: len(bad)], ~bad)
    assert not batch["image"][: len(bad)][bad].any() and not batch["label"][: len(bad)][bad].any()
    for key in before:
        assert np.array_equal(batch[key][: len(bad)][~bad], before[key][: len(bad)][~bad]), key


def test_training_leaves_them_out_and_names_each_once(intact, damaged, capfd):
    dataset, paths = damaged
    pipeline = training(dataset)
    order = pipeline._order.indices(0, 14)
    assert_left_out(pipeline.batch(0), intact[0], order, paths, dataset)
    shares = [training(dataset, process_index=i, process_count=2).batch(0) for i in range(2)]
    whole = {key: np.concatenate([share[key] for share in shares]) for key in shares[0]}
    assert_left_out(whole, intact[0], order, paths, dataset)
    with pipeline.batches() as batches:  # three epochs, in several threads
        for _ in range(3):
            assert next(batches)["mask"].sum() == 11
    assert {name.rpartition(", ")[2] for name in pipeline.left_out} == {*paths}
    lines = capfd.readouterr().err.splitlines()
    lines = [line for line in lines if not line.startswith("libpng")]  # its own message about the same image
    assert len(lines) == 3
    for path, reason in zip(paths, ("not a readable image", "not a readable image", "No such file"), strict=True):
        (line,) = (line for line in lines if path in line)
        assert line.startswith("warning: left out: ") and reason in line


def test_workers_leave_them_out_too_and_evaluation_does(intact, damaged, capfd):
    dataset, paths = damaged
    reference = training(dataset)
    with training(dataset, workers=1, threads=1).batches() as batches:
        capfd.readouterr()
        for k in range(2):
            batch, expected = next(batches), reference.batch(k)
            assert all(np.array_equal(batch[key], expected[key]) for key in expected)
    err = capfd.readouterr().err
    assert all(len(re.findall(re.escape(path), err)) >= 1 for path in paths)
    evaluation = EvalPipeline(dataset, batch_size=16, image_size=16, skip_corrupt=True).batch(0)
    assert_left_out(evaluation, intact[1], range(14), paths, dataset)
    assert not evaluation["mask"][14:].any()


def test_without_the_option_the_first_of_them_ends_it_in_a_worker_as_here(damaged):
    dataset, paths = damaged
    named = "|".join(map(re.escape, paths))
    evaluation = EvalPipeline(dataset, batch_size=16, image_size=16)
    with pytest.raises(UserError, match=named) as here:
        evaluation.batch(0)
    with training(dataset, skip_corrupt=False, workers=1, threads=1).batches() as batches:
        for _ in range(2):  # and again: the batch is never passed over
            with pytest.raises(UserError, match=named) as there:
                next(batches)
    assert type(there.value) is type(here.value) is images.UndecodableImage


def test_the_centre_crop_masks_alike(damaged):
    dataset, _ = damaged
    assert training(dataset, augmentation=images.EvalCrop()).batch(0)["mask"].sum() == 11
