"""mixup, CutMix and random erasing beside timm's and torchvision's, with the same numbers: images, labels, statistics.

`mixing.npz` has theirs (`make_mixing.py`). With INCEPTION_JAX_TORCH_PYTHON they are computed anew and compared with it.
"""

import os
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.training import device_augmentation, mixing
from inception_jax.training.device_augmentation import DeviceAugmentation, Erasing
from inception_jax.training.mixing import Mixing
from inception_jax.training.step import example_keys

from . import make_mixing
from .test_device_augmentation import augment, images, soft_targets

FILE = Path(__file__).with_name("mixing.npz")
PYTHON = os.environ.get("INCEPTION_JAX_TORCH_PYTHON")
LIBRARIES = ("timm", "torchvision")
COUNT = make_mixing.CLASSES
ALPHA = 0.4  # of the mixup that is compared image by image


def drawn(use, count=COUNT, step=3):
    """The keys of one use of the examples of a step, as `augment` has them."""
    keys = example_keys(5, jnp.int32(step), jnp.arange(count, dtype=jnp.int32))
    return device_augmentation._keys(keys, use)


def given():
    """The images, and the numbers that are drawn for them."""
    fold = jax.vmap(jax.random.fold_in, (0, None))
    keys = drawn(device_augmentation._MIXING)
    pixels = images(COUNT)
    places = np.asarray(jax.vmap(lambda key: jax.random.uniform(key, (4,)))(fold(keys, 0)))[:, 2:]
    return {
        "images": pixels,
        "labels": np.arange(COUNT),
        "mixup_weights": np.asarray(mixing._beta(fold(keys, 1), ALPHA, jnp.float32)),
        "cutmix_weights": np.asarray(mixing._beta(fold(keys, 2), 1.0, jnp.float32)),
        "centers": (places * pixels.shape[1:3]).astype(np.int64),
        "erasing": np.asarray(
            device_augmentation._uniform(drawn(device_augmentation._ERASING), 23, jnp.float32), np.float64
        )[:, 1:],
    }


@pytest.fixture(scope="module")
def theirs():
    """The file, made of the numbers that are drawn today."""
    with np.load(FILE) as file:
        found = dict(file)
    for name, value in given().items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)
    return found


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_images_and_labels_are_theirs(theirs, name):
    method = Mixing(mixup_alpha=ALPHA) if name == "mixup" else Mixing(cutmix_alpha=1.0)
    out, labels = augment(DeviceAugmentation(mixing=method), images())
    # Of a side of an odd number of pixels timm's box has the last one; the authors' and torchvision's have not.
    sides = [int(s * (1 - w) ** 0.5) % 2 for w in theirs["cutmix_weights"] for s in out.shape[1:3]]
    odd = np.array(sides).reshape(-1, 2).any(1) & (name == "cutmix")
    assert name == "mixup" or 0 < odd.sum() < COUNT
    for library, rows, smoothing in (("timm", ~odd, make_mixing.SMOOTHING), ("torchvision", odd | ~odd, 0.0)):
        found = theirs[f"{library}/{name}/images"]
        np.testing.assert_allclose(out[rows], found[rows], rtol=1e-5, atol=1e-4)
        targets = soft_targets(labels, COUNT, smoothing)
        np.testing.assert_allclose(targets[rows], theirs[f"{library}/{name}/targets"][rows], rtol=1e-5, atol=1e-6)


def test_erased_rectangles_are_theirs(theirs):
    """Both draw the logarithm of the aspect ratio, the paper the ratio; from one ratio comes one rectangle."""
    erasing = Erasing(1.0, area=make_mixing.AREA, aspect=make_mixing.ASPECT, fill="zero")
    out, _ = augment(DeviceAugmentation(erasing=erasing), images())
    erased = (out == [7, 8, 9]).all(-1)  # the mean of `augment`
    assert erased.any((1, 2)).all()
    for library in LIBRARIES:
        np.testing.assert_array_equal(erased, (theirs[f"{library}/erasing/images"] == 0).all(-1), library)


def assert_same_distribution(ours, theirs):
    """The test of Kolmogorov and Smirnov for two samples, at 0.1 %; fixed seeds."""
    both, bound = np.concatenate([ours, theirs]), 1.95 * np.sqrt(1 / len(ours) + 1 / len(theirs))
    ours, theirs = (np.searchsorted(np.sort(one), both, side="right") / len(one) for one in (ours, theirs))
    assert np.abs(ours - theirs).max() < bound


def test_statistics_are_theirs(theirs):
    """Weights of mixup, weights of CutMix after the edge of the image, erased areas, and how many images are erased."""
    count, side = make_mixing.DRAWS, make_mixing.SIDE
    keys = drawn(device_augmentation._MIXING, count)
    fold = jax.vmap(jax.random.fold_in, (0, None))
    weights = np.asarray(mixing._beta(fold(keys, 1), make_mixing.ALPHA, jnp.float32))
    numbers = jax.vmap(lambda key: jax.random.uniform(key, (4,)))(fold(keys, 0))
    sides = jnp.sqrt(1 - mixing._beta(fold(keys, 2), 1.0, jnp.float32))
    boxes = [np.asarray(mixing._in_box(numbers[:, place], sides, make_mixing.CUTMIX_SIDE)).mean(1) for place in (2, 3)]
    uniform = np.asarray(device_augmentation._uniform(drawn(device_augmentation._ERASING, count), 23, jnp.float32))
    erasing = Erasing(0.25, area=make_mixing.AREA, aspect=make_mixing.ASPECT)
    top, bottom, left, right = map(np.asarray, device_augmentation._rectangle(uniform[:, 1:], side, side, erasing))
    areas = (bottom - top) * (right - left) / side**2
    for library in LIBRARIES:
        assert_same_distribution(weights, theirs[f"statistics/{library}/mixup"])
        assert_same_distribution(1 - boxes[0] * boxes[1], theirs[f"statistics/{library}/cutmix"])
        assert_same_distribution(areas, theirs[f"statistics/{library}/erasing"])
    erased = (uniform[:, 0] < erasing.probability).mean()
    assert abs(erased - theirs["statistics/timm/erased"][0]) < 5 * np.sqrt(2 * 0.25 * 0.75 / count)


@pytest.mark.skipif(
    not PYTHON, reason="INCEPTION_JAX_TORCH_PYTHON names no Python that has torch, torchvision and timm"
)
def test_the_libraries_still_do_this(theirs, tmp_path):
    np.savez(tmp_path / "given.npz", **given())
    script = Path(make_mixing.__file__)
    subprocess.run([PYTHON, script, tmp_path / "given.npz", tmp_path / "out.npz"], check=True, capture_output=True)
    with np.load(tmp_path / "out.npz") as file:
        assert set(file) == set(theirs)
        for name in set(theirs) - {"version"}:
            np.testing.assert_allclose(file[name], theirs[name], rtol=1e-5, atol=1e-5, err_msg=name)
