"""The training loop of the package's README, as it stands there, with a generator of one number."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

import inception_jax
from inception_jax import features, score
from inception_jax.data import digits
from inception_jax.features import fid_network, frechet_distance

README = Path(inception_jax.__file__).parent / "features" / "README.md"


def code_of_the_page(word):
    section = README.read_text().split("### In a training loop\n")[1].split("\n### ")[0]
    [code] = (code for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL) if word in code)
    return code


def test_the_loop_of_the_readme(small_run, tmp_path, monkeypatch):
    """A generator that learns the real images' contrast comes near to their statistics; the sums are NumPy's."""
    monkeypatch.chdir(tmp_path)
    real = np.repeat(digits.load("train")[0][:64, ..., None], 3, axis=-1)
    np.savez("images.npz", arr_0=real)
    assert score.main(["images.npz", f"--network={small_run}", "--statistics=real.npz", "--input=pytorch-fid"]) == 0

    network = fid_network.feature_network(inception_jax.load_run(small_run), "pytorch-fid")
    monkeypatch.setattr(fid_network, "feature_network", lambda loaded: network)
    monkeypatch.setattr("inception_jax.features.feature_network", lambda loaded: network, raising=False)
    monkeypatch.setattr(inception_jax, "load_pretrained", lambda name: None)

    def generate(contrast, key):
        chosen = jax.random.choice(key, real.astype(np.float32), (16,), replace=False)
        return (chosen * contrast + 0.5) / 127.5 - 1  # between two bytes, so that rounding does not choose

    code = code_of_the_page("DeviceMoments")
    names = {"generate": generate, "train": lambda contrast, epoch: contrast + 0.3, "params": 0.1, "epochs": 3}
    exec(compile(code, str(README), "exec"), names)
    distances = names["distances"]
    assert distances[0] > 2 * distances[1] > 4 * distances[2] > 0

    apply = jax.jit(lambda pixels: network.apply(network.network.variables, pixels)["pool"])
    keys = jax.random.split(jax.random.key(0), 8)
    rows = np.concatenate([apply(np.floor((generate(1.0, key) + 1) * 127.5)) for key in keys]).astype(np.float64)
    expected = frechet_distance(*names["real"], rows.mean(0), np.cov(rows.T))
    assert distances[2] == pytest.approx(expected, rel=1e-3)

    found = {}
    monkeypatch.setattr(features, "kernel_distance", lambda *sets: found.update(kid=sets))
    monkeypatch.setattr(features, "inception_score", lambda logits: found.update(logits=logits))
    names |= {"key": jax.random.key(0), "params": 1.0, "batches": 8, "real_features": rows}
    exec(compile(code_of_the_page("DeviceRows"), str(README), "exec"), names)
    np.testing.assert_allclose(found["kid"][1], rows, rtol=1e-5, atol=1e-5)
    assert found["logits"].shape == (128, 10)
