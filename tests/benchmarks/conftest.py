"""A small network for real measurements, and the interpreter that has PyTorch."""

import os
import subprocess
import sys

import pytest

from inception_jax.models import registry

from . import two_modules as small


@pytest.fixture(scope="module")
def two_modules():
    """The name of a small network for real measurements."""
    small.register()
    yield small.NAME
    del registry._SPECS[small.NAME]


@pytest.fixture(scope="session")
def torch_python():
    """The interpreter that has PyTorch; a test that wants it is skipped where there is none."""
    python = os.environ.get("INCEPTION_JAX_TORCH_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import torch, torchvision, timm"], capture_output=True).returncode:
        pytest.skip(f"{python} has no torch, torchvision and timm; INCEPTION_JAX_TORCH_PYTHON names one that has")
    return python
