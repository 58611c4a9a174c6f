"""Decoded images in memory: the batches are those of decoding them anew, and what is kept is not written to."""

import pickle

import numpy as np
import pytest

from inception_jax.data import datasets, images
from inception_jax.data.datasets import load
from inception_jax.data.image_cache import ImageCache
from inception_jax.data.pipeline import TrainPipeline
from inception_jax.errors import UserError

from .test_example_records import GOLDEN

IMAGE = 20 * 24 * 3  # bytes of an image of `image_folder`


@pytest.fixture
def decoded(monkeypatch):
    """The names of the images that are decoded."""
    names = []
    for module, name in ((images, "decode"), (images.jpeg_rows, "decode")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real=real, **k: (names.append(a[0]), real(*a, **k))[1])
    return names


def pipeline(data, cache_mb=1, **options):
    options = {"batch_size": 4, "image_size": 8, "seed": 3, "augmentation": {}, "threads": 2} | options
    return TrainPipeline(data, cache_mb=cache_mb, **options)


def assert_same(one, other, batches=range(9)):
    for k in batches:
        mine, theirs = one.batch(k), other.batch(k)
        assert all((mine[key] == theirs[key]).all() for key in mine), k


@pytest.mark.parametrize("augmentation", [{}, {"rule": "random_crop", "resize": 10}, images.CENTER_CROP])
def test_batches_are_the_same_and_each_image_is_decoded_once(image_folder, augmentation, decoded):
    data = load(f"folder:{image_folder}", "train")
    kept, anew = (pipeline(data, mb, augmentation=augmentation) for mb in (1, 0))
    for k in range(4):  # an epoch of 14 images, and more
        kept.batch(k)
    assert len(decoded) == 14 == len(kept._cache)
    decoded.clear()
    kept.batch(5)
    assert decoded == []
    assert_same(kept, anew)
    assert_same(pickle.loads(pickle.dumps(kept)), anew, [7])  # as in another process: begins empty
    with kept.batches(2, 6) as batches:  # threads
        assert all((batch["image"] == anew.batch(k)["image"]).all() for k, batch in enumerate(batches, 2))


def test_records_of_tfds_and_their_several_labels():
    data = load("shapes/flags", "train", str(GOLDEN / "tfrecord"), label_key="attributes", labels="multi")
    assert_same(pipeline(data), pipeline(data, 0))


def test_the_first_that_come_are_kept(image_folder, monkeypatch, capsys):
    monkeypatch.setattr("inception_jax.data.image_cache.MEGABYTE", 3 * IMAGE + 5)
    data = load(f"folder:{image_folder}", "train")
    kept = pipeline(data)
    assert_same(kept, pipeline(data, 0))
    assert len(kept._cache) == 3
    assert capsys.readouterr().err == (
        "warning: config.data.cache_mb = 1 holds 3 of 14 images; the others are decoded in every epoch\n"
    )


def test_a_kept_image_is_read_only_and_a_users_own_is_copied(image_folder, registrations):
    def darken(image, size, uniforms):
        image //= 2
        return image[:size, :size]

    data = load(f"folder:{image_folder}", "train")
    kept = pipeline(data, augmentation=images.CustomAugmentation("darken", darken))
    with pytest.raises(UserError, match=r"augmentation 'darken': ValueError: .*read-only"):
        kept.batch(0)

    class Items:
        buffer = np.zeros((9, 9, 3), np.uint8)

        def __len__(self):
            return 5

        def __getitem__(self, index):
            self.buffer[...] = index
            return self.buffer, index

    datasets.add("items", lambda: {"train": Items()}, ["a", "b", "c", "d", "e"])
    own = pipeline(load("items", "train"))
    for k in range(4):
        batch = own.batch(k)
        assert (batch["image"][:, 0, 0, 0] == batch["label"]).all()


def test_a_corrupt_image_is_left_out_every_time(image_folder, capsys):
    (image_folder / "train" / "cat" / "0.png").write_bytes(b"none")
    kept = pipeline(load(f"folder:{image_folder}", "train"), skip_corrupt=True)
    masks = sum(int((~kept.batch(k)["mask"]).sum()) for k in range(7))  # two epochs
    assert masks == 2 and "left out" in capsys.readouterr().err


def test_what_it_does_not_fit(image_folder, monkeypatch):
    monkeypatch.setattr("inception_jax.data.pipeline_base.default_workers", lambda dataset: 5)
    data = load(f"folder:{image_folder}", "train")
    assert pipeline(data).workers == 0
    for options, message in (
        ({"workers": 2}, r"config.data.cache_mb = 1: threads share .* set config.data.workers = 0 instead of 2"),
        ({"decode": "scaled"}, r"config.data.decode = 'scaled' decodes an image for its crop"),
        ({"cache_mb": -1}, r"cache_mb: -1; a whole number of 0 or more"),
    ):
        with pytest.raises(UserError, match=message):
            pipeline(data, **options)
    with pytest.raises(UserError, match="digits is in memory already; leave it 0"):
        pipeline(load("digits", "train"))
    assert ImageCache(3).get(0) is None
