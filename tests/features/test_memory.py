"""What `score` holds in memory: mean and covariance alone for FID, one array of the features for other metrics."""

import tracemalloc

import numpy as np
import pytest

from inception_jax.features import generative_metrics
from inception_jax.features.image_sets import ImageSet

WIDTH = 128


class Network:
    """Features that are a function of the image's position."""

    def widths(self, outputs):
        return {name: WIDTH for name in outputs}

    def digest(self):
        return "same"

    def rows(self, read, start, stop, outputs, batch_size):
        for first in range(start, stop, batch_size):
            random = np.random.default_rng(first)
            batch = random.standard_normal((min(batch_size, stop - first), WIDTH), np.float32)
            yield {name: batch for name in outputs}


def peak(count, metrics, cache=None):
    """Bytes that NumPy holds at most while two sets of as many images are compared."""
    options = generative_metrics.Options(kid_subsets=2, kid_subset_size=50, batch_size=50)
    images = ImageSet("set", count, lambda position: None)
    tracemalloc.start()
    sets = [generative_metrics.measure(images, role, metrics, Network(), options=options, cache=cache)
            for role in ("real", "fake")]  # fmt: skip
    found = generative_metrics.compute(*sets, metrics, options)
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return highest, found


def test_fid_needs_no_more_for_more_images():
    (few, _), (many, _) = (peak(count, ["fid", "sfid"]) for count in (1000, 16_000))
    assert many < 1.02 * few + 20_000


def test_of_fewer_images_than_features_the_features_are_kept():
    """They take less memory than the covariance, and FID needs no eigenvalues of it."""
    few, many = (
        generative_metrics.measure(ImageSet("set", count, lambda position: None), "fake", ["fid"], Network())
        for count in (WIDTH, WIDTH + 1)
    )
    assert few.rows["pool"].shape == (WIDTH, WIDTH) and not few.moments
    assert many.moments["pool"][1].shape == (WIDTH, WIDTH) and not many.rows


@pytest.mark.parametrize("metrics", [["kid"], ["fid_infinity"], ["is", "fid"]])
def test_features_are_held_once_and_in_files_not_at_all(metrics, tmp_path):
    """16,000 images of 128 features in float32 are 8.2 MB a set; blocks of 1,024 rows in float64 are 1 MB."""
    features = {"kid": 2, "fid_infinity": 1, "is": 2}[metrics[0]] * 16_000 * WIDTH * 4
    in_memory, found = peak(16_000, metrics)
    assert features < in_memory < features + 6e6
    in_files, again = peak(16_000, metrics, cache=tmp_path)
    assert in_files < 7e6
    assert again == pytest.approx(found, rel=1e-9, abs=1e-9)  # a mapped file is not aligned as an array is
