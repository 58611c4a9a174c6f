"""The digest of a network: those in files that earlier versions wrote stay valid."""

import dataclasses
import types

import jax.numpy as jnp
import pytest

from inception_jax import create_model
from inception_jax.config import Config, default
from inception_jax.features import network_digest
from inception_jax.features.fid_network import INPUT_RULES
from inception_jax.models.inception_v3 import InceptionV3
from inception_jax.training import network_setup


def digest_of(model, rule=None, endpoint="pool5"):
    recipe = default()
    recipe.model.name, recipe.data.image_size = "inception_v3", 75
    recipe_input = network_setup.read_input(Config(recipe))
    network = types.SimpleNamespace(model=model, variables={"params": {"w": jnp.arange(3.0)}}, input=recipe_input)
    return network_digest.digest(network, INPUT_RULES.get(rule), endpoint)


@pytest.mark.parametrize(
    ("name", "options", "rule", "endpoint", "golden"),
    [
        ("inception_v3", {"num_classes": 1008, "last_pool": "max"}, "pytorch-fid", "pool3", "173a76aa4bb7fe47"),
        ("inception_v1", {"width_multiplier": 0.25}, None, "pool5", "fe98fb9fb67a7a22"),
        ("inception_resnet_v2", {"form": "paper"}, None, "x", "51a5a842f4cd34d6"),
    ],
)
def test_the_digests_of_the_first_version(name, options, rule, endpoint, golden):
    """Files of statistics hold them: a change here makes every such file useless."""
    assert digest_of(create_model(name, **options), rule, endpoint) == golden


@dataclasses.dataclass
class InceptionV3WithMore(InceptionV3):
    """A network of this package with a field that it does not have yet."""

    later: int = 7


InceptionV3WithMore.__module__ = InceptionV3.__module__
InceptionV3WithMore.__name__ = InceptionV3.__name__


def test_a_field_that_came_later_counts_where_it_differs_from_its_default():
    before = digest_of(create_model("inception_v3"))
    assert digest_of(InceptionV3WithMore()) == before
    assert digest_of(InceptionV3WithMore(later=8)) != before


@dataclasses.dataclass
class Own(InceptionV3):
    """A network of a recipe: its own fields have counted ever since."""

    own: int = 7


def test_every_field_of_a_registered_network_counts(monkeypatch):
    counted = digest_of(Own())
    monkeypatch.setattr(Own, "__module__", InceptionV3.__module__)
    assert digest_of(Own()) != counted
