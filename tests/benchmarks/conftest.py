"""A small network for real measurements."""

import dataclasses
import functools

import pytest

from inception_jax.models import registry
from inception_jax.models.inception_v1 import MODULES


@pytest.fixture(scope="module")
def three_modules():
    """The name of GoogLeNet with three modules of nine and both heads: every kind of layer, a third of the programs."""
    googlenet, name = registry.get_spec("inception_v1"), "three_modules"
    few = functools.partial(googlenet.constructor, modules={module: MODULES[module] for module in ("3a", "4a", "4d")})
    registry.add(
        dataclasses.replace(googlenet, name=name, constructor=few, parameters=0, parameters_with_aux=0, macs=0)
    )
    yield name
    del registry._SPECS[name]
