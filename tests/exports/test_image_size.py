"""The `image_size` argument of the exports."""

import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.exports.image_size import height_and_width


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (224, (224, 224)),
        (np.int64(75), (75, 75)),
        (np.array(75), (75, 75)),
        ((32, 48), (32, 48)),
        ([32, 48], (32, 48)),
        (np.array([32, 48]), (32, 48)),
    ],
)
def test_sizes(given, size):
    sides = height_and_width(given)
    assert sides == size and all(type(side) is int for side in sides)


@pytest.mark.parametrize("given", [0, -1, True, 2.5, "224", None, (32,), (32, 48, 3), (32, 0), (32.0, 48)])
def test_sizes_that_are_none(given):
    with pytest.raises(UserError, match=r"image_size: .* is not a number of pixels"):
        height_and_width(given)
