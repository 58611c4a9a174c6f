"""A small network for real measurements."""

import dataclasses
import functools

import pytest

from inception_jax.models import registry
from inception_jax.models.inception_v1 import MODULES


@pytest.fixture(scope="module")
def two_modules():
    """The name of GoogLeNet with the two modules of nine that have the heads: every kind of layer, small programs."""
    googlenet, name = registry.get_spec("inception_v1"), "two_modules"
    few = functools.partial(googlenet.constructor, modules={module: MODULES[module] for module in ("4a", "4d")})
    registry.add(
        dataclasses.replace(googlenet, name=name, constructor=few, parameters=0, parameters_with_aux=0, macs=0)
    )
    yield name
    del registry._SPECS[name]
