"""Evaluation protocols: the one that there is, and what is said of those that there are not."""

import numpy as np
import pytest

from inception_jax.data.eval_protocols import PROTOCOLS, get_protocol
from inception_jax.data.images import EvalCrop
from inception_jax.errors import UserError


def test_single_is_the_runs_own_centre_crop():
    crop = EvalCrop("central_fraction", 0.9)
    assert get_protocol("single").crops(crop) == (crop,)


def test_average_of_one_crop_is_that_crop_and_of_another_number_is_refused():
    probabilities = np.array([[[0.25, 0.75], [0.5, 0.5]]], np.float32)
    average = get_protocol("single").average(probabilities)
    np.testing.assert_array_equal(average, probabilities[0])
    assert average.dtype == np.float64
    with pytest.raises(ValueError, match="has 1 crops, not 2"):
        get_protocol("single").average(np.concatenate([probabilities] * 2))


@pytest.mark.parametrize(("name", "hint"), [("singel", "; did you mean 'single'?"), ("144-crop", "")])
def test_an_unknown_protocol_lists_those_that_there_are(name, hint):
    with pytest.raises(UserError) as error:
        get_protocol(name)
    assert str(error.value) == f"unknown evaluation protocol {name!r}{hint}; protocols: {', '.join(PROTOCOLS)}"


def test_every_protocol_is_found_by_its_own_name():
    assert all(get_protocol(name).name == name for name in PROTOCOLS)
