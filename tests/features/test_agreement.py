"""The numbers of pytorch-fid, torch-fidelity, clean-fid, torchmetrics and prdc, of make_fid_goldens.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.features import fid_network, generative_metrics, image_sets, resizing
from inception_jax.features.maximum_mean_discrepancy import squared_mmd
from inception_jax.parity.seeded_weights import seeded_arrays
from inception_jax.pretrained import importing
from inception_jax.pretrained.publishers import registry

from . import make_fid_goldens as made

HERE = Path(__file__).parent
NUMBERS = json.loads((HERE / "fid_goldens.json").read_text())


@pytest.fixture(scope="module")
def arrays():
    with np.load(HERE / "fid_goldens.npz") as file:
        return dict(file)


def test_metrics_of_the_same_features():
    """Every metric of every tool, to 1e-6; counts of neighbors, which the tools hold in float32, are the same."""
    real, fake, logits = made.features(80, 60, 16)
    sets = [generative_metrics.measure(image_sets.of_arrays(rows), role, ["fid", "kid"], None)
            for rows, role in ((real, "real"), (fake, "fake"))]  # fmt: skip
    sets[1].rows["logits"] = logits
    options = generative_metrics.Options(kid_subsets=10, kid_subset_size=40, splits=4)
    names = [name for name in generative_metrics.METRICS if name != "sfid"]
    ours = generative_metrics.compute(*sets, names, options)
    ours["kid_of_60"] = squared_mmd(real[:60], fake)
    compared = 0
    for tool, numbers in NUMBERS.items():
        for name, value in numbers.items():
            assert ours[name] == pytest.approx(value, rel=1e-6), (tool, name)
            compared += 1
    assert compared == 15


@pytest.mark.parametrize("name", resizing.RESIZES)
def test_resizes(name, arrays):
    """On the host, and inside a compiled function."""
    for height, width, side in made.SIZES:
        expected, image = arrays[f"{name} {height} {width} {side}"], made.small_image(height, width)
        host = resizing.resize(image, side, name)
        assert host.dtype == np.float32
        exact = name in ("tf1_bilinear", "pillow_bicubic")
        np.testing.assert_allclose(host, expected, rtol=0, atol=0 if exact else 6e-5)
        device = jax.jit(resizing.resize_on_device, static_argnums=(1, 2))(image[None], side, name)
        np.testing.assert_allclose(device[0], expected, rtol=0, atol=1e-4)


def test_quantize_as_the_tools():
    values = np.array([-0.1, 0, 0.1, 0.5, 0.999, 1, 1.5], np.float32)
    assert resizing.quantize(values, (0, 1), "down").tolist() == [0, 0, 25, 127, 254, 255, 255]
    assert resizing.quantize(values, (0, 1), "nearest").tolist() == [0, 0, 26, 128, 255, 255, 255]
    assert resizing.quantize(values, (-1, 1), "down").tolist() == [114, 127, 140, 191, 254, 255, 255]
    for wrong in (
        lambda: resizing.quantize(values, (1, 0), "down"),
        lambda: resizing.quantize(values, (0, 1), "up"),
        lambda: resizing.quantize(values * np.nan, (0, 1), "down"),
        lambda: resizing.quantize(values.astype(np.uint8), (0, 1), "down"),
        lambda: resizing.quantize_on_device(values.astype(np.uint8), (0, 1), "down"),
        lambda: resizing.resize(values, 1, "x"),
    ):
        with pytest.raises(UserError):
            wrong()


def test_quantize_on_device_and_of_bfloat16():
    """The host's bytes; bfloat16 has 8 bits, in which (x + 1) * 127.5 would be rounded, not cut."""
    values = np.tanh(np.random.RandomState(0).standard_normal((64, 64))).astype(np.float32)
    for dtype in (np.float32, jnp.bfloat16, np.float16):
        images = values.astype(dtype)
        expected = np.floor((images.astype(np.float64) + 1) * 127.5)
        host = resizing.quantize(images, (-1, 1), "down")
        device = jax.jit(lambda x: resizing.quantize_on_device(x, (-1, 1), "down"))(images)
        assert host.dtype == np.uint8 and device.dtype == np.float32
        np.testing.assert_array_equal(device, host)
        # float32 rounds x + 1 before, as ADM's sampler does; 16 bits need no rounding there.
        assert (host != expected).sum() <= 2 * (dtype == np.float32)


@pytest.mark.parametrize(
    ("low", "high", "named"), [(-1, 1, (0, 1)), (0, 255, (-1, 1)), (0, 255, (0, 1)), (-1, 1, (0, 255))]
)
def test_images_of_another_range_are_refused(low, high, named):
    """Half of the values would be black, or all white. Values that lie a little outside, or a few, are cut."""
    images = np.random.RandomState(0).uniform(low, high, (2, 8, 8, 3)).astype(np.float32)
    device = jax.jit(resizing.quantize_on_device, static_argnums=(1, 2))
    assert np.isfinite(device(images, (low, high), "nearest")).all()
    if named == (0, 255):
        assert device(images, named, "nearest").max() <= 1  # within it: they may be dark
        return
    with pytest.raises(UserError, match=r"% of the values lie far outside of the range \("):
        resizing.quantize(images, named, "nearest")
    assert np.isnan(device(images, named, "nearest")).all()
    noise = np.random.RandomState(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    noise[0, 0, 0, 0] = 1e3
    np.testing.assert_array_equal(device(noise, (-1, 1), "down"), resizing.quantize(noise, (-1, 1), "down"))


class Network:
    """The members of a trained network that are read."""

    def __init__(self, imported):
        self.model, self.variables = imported.variant.create(**imported.options), imported.variables
        self.input = type("Input", (), {"eval_image_size": 299, "channels": 3, "dtype": np.dtype("float32")})


@pytest.fixture(scope="module")
def network():
    """The network of the FID with the seeded weights of the goldens."""
    variant = registry.get_variant("inception_v3", "pytorch-fid")
    arrays = seeded_arrays(variant, aux_heads=False, dtype=np.float32)
    return Network(importing.import_variant(variant, arrays))


@pytest.mark.parametrize("endpoint", ["maxpool_3a", pytest.param("global_pool", marks=pytest.mark.slow)])
def test_features_of_the_same_weights_and_images(endpoint, network, arrays):
    """The four tools' input rules, in float32 from bytes to features, to 1e-4 of the largest feature."""
    images = made.images()
    pool = 64 if endpoint == "maxpool_3a" else 2048
    if pool == 2048:
        images = images[:2]
    outputs = ("pool",) if pool == 64 else ("pool", "logits")
    run = jax.jit(lambda variables, inputs: rules["own"].apply(variables, inputs, outputs))
    rules = {
        tool: fid_network.FeatureNetwork(network, rule, endpoint) for tool, rule in fid_network.INPUT_RULES.items()
    }
    rules["own"] = fid_network.FeatureNetwork(network, fid_network.INPUT_RULES["torch-fidelity"], endpoint)
    for tool, one in rules.items():
        if tool == "own":
            continue
        pixels = np.stack([resizing.resize(image, 299, one.rule.resize) for image in images])
        # One program for all: the rule of the others is (x - 128) / 128 at 299 pixels.
        found = run(network.variables, (pixels - one.rule.mean) * (128 / one.rule.scale) + 128)
        for name, key in (("pool", str(pool)), ("logits", "logits"))[: len(outputs)]:
            expected, ours = arrays.get(f"{tool} {key}"), np.asarray(found[name])
            if expected is None:
                continue
            ours = ours if pool == 64 else ours[:, ::32]
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=tool)
    assert np.abs(arrays[f"pytorch-fid {pool}"] - arrays[f"clean-fid {pool}"]).max() > 0.01  # the resize matters


@pytest.mark.slow
def test_end_to_end():
    """From images to numbers, beside the tools' own: float64 networks to 1e-6, float32 to 1e-3; 6 CPU-minutes."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, str(HERE / "compare_end_to_end.py")]
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    compared = 0
    for dtype, tolerance in (("wide", 1e-6), ("float64", 1e-6), ("float32", 1e-3)):
        for tool, numbers in json.loads(run.stdout)[dtype].items():
            for name, (theirs, ours, _) in numbers.items():
                # torchmetrics' antialiased resize has other roundings than ours, in float32.
                least = 5e-6 if tool == "torchmetrics" else 0
                assert ours == pytest.approx(theirs, rel=max(tolerance, least)), (dtype, tool, name)
                compared += 1
    assert compared == 36
