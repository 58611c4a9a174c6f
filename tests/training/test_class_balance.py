"""Class weights: scikit-learn's numbers for "balanced", a mapping as it is, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from inception_jax import config as configs
from inception_jax.config import Config, ConfigError
from inception_jax.data.datasets import Dataset
from inception_jax.data.records import MemoryRecords
from inception_jax.training import class_balance

GOLDEN = json.loads((Path(__file__).parents[1] / "metric_goldens.json").read_text())


def weights(value, **fields):
    recipe = configs.default()
    recipe.loss.class_weights = value
    for path, other in fields.items():
        recipe.data[path] = other
    labels = np.array(GOLDEN["labels"])
    source = MemoryRecords(np.zeros((len(labels), 1, 1, 3), np.uint8), labels)
    return class_balance.read_class_weights(Config(recipe), Dataset("mine", "train", [*"abcdef", "v1.5"], source))


def test_balanced_is_scikit_learns_and_its_mean_over_the_examples_is_1():
    found = weights("balanced")
    np.testing.assert_allclose(found[:6], GOLDEN["class_weights"], rtol=1e-12)
    assert found[6] == 1  # no training example
    assert np.mean([found[label] for label in GOLDEN["labels"]]) == pytest.approx(1.0)


@pytest.mark.parametrize("value", [{"b": 3, "v1.5": 0.5}, (("b", 3.0), ("v1.5", 0.5))])
def test_a_mapping_is_taken_as_it_is(value):
    assert weights(value) == (1, 3, 1, 1, 1, 1, 0.5)
    assert weights(None) is None


def test_the_config_has_one_form_of_a_mapping():
    recipe = configs.default()
    recipe.loss.class_weights = {"b": 3, "v1.5": 0.5}
    stored = Config(recipe).to_dict()
    assert stored["loss"]["class_weights"] == [["b", 3], ["v1.5", 0.5]]
    assert Config(configs.from_dict(stored)).to_dict() == stored


@pytest.mark.parametrize(
    ("value", "fields", "message"),
    [
        ({"bb": 1.0}, {}, "'mine' has no class 'bb'.*did you mean 'b'"),
        (dict.fromkeys([*"abcdef", "v1.5"], 0.0), {}, "every class has weight 0"),
        ("balanced", {"sampling": "balanced"}, "twice; set one of the two"),
        ((("a", 1.0), ("a", 2.0)), {}, "class 'a' has 2 weights; one is needed"),
        ("even", {}, "class_weights = 'even': it must be 'balanced', or pairs"),
        ({"a": -1.0}, {}, "must be 'balanced', or pairs"),
        (3.0, {}, "must be 'balanced', or pairs"),
    ],
)
def test_what_is_refused(value, fields, message):
    with pytest.raises(ConfigError, match=message):
        weights(value, **fields)
