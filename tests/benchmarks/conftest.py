"""A small network for real measurements."""

import pytest

from inception_jax.models import registry

from . import two_modules as small


@pytest.fixture(scope="module")
def two_modules():
    """The name of a small network for real measurements."""
    small.register()
    yield small.NAME
    del registry._SPECS[small.NAME]
