"""Runs at addresses from Python: loaded, and the start of another run; in a file system and in fsspec's memory."""

import fsspec
import jax
import numpy as np
import pytest

import inception_jax
from inception_jax.errors import UserError
from inception_jax.evaluation import trained_network
from inception_jax.training.warm_start import WarmStart


@pytest.fixture
def addresses(small_run, tmp_path, monkeypatch):
    """The addresses of the small run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    memory = fsspec.filesystem("memory")
    memory.put(str(small_run), "/bucket/run", recursive=True)
    yield [f"file://{small_run}", "memory://bucket/run"]
    memory.rm("/bucket", recursive=True)


def same(first, second):
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), first, second))


def test_load_run_and_initialize_from_an_address(addresses, small_run):
    local = inception_jax.load_run(small_run)
    zeros = jax.tree.map(np.zeros_like, jax.tree.map(np.asarray, local.variables))
    for address in addresses:
        stored = inception_jax.load_run(address)
        assert (stored.step, stored.weights, stored.class_names) == (local.step, local.weights, local.class_names)
        assert same(stored.variables, local.variables)
        start = WarmStart(address, weights=local.weights)
        begun = start.restore_into(zeros)
        assert same(begun, local.variables)
        assert start.to_json()["checkpoint"] == address and start.workdir is not None
        assert trained_network.load_class_names(start.workdir) == local.class_names
    with pytest.raises(UserError, match="memory://bucket/absent"):
        inception_jax.load_run("memory://bucket/absent")
