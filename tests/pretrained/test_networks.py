"""`load_pretrained`: by the name of a published file, by the path of a file, and with a classifier of one's own."""

import dataclasses

import jax
import numpy as np
import pytest

from inception_jax import load_pretrained
from inception_jax.errors import UserError
from inception_jax.parity.seeded_weights import seeded_arrays
from inception_jax.pretrained import catalog, downloading, networks
from inception_jax.pretrained.publishers import registry

MODEL, SOURCE, NAME = "inception_v1_bn", "torchvision", "torchvision/googlenet"
NARROW = {"width_multiplier": 0.05, "min_width": 4}


@pytest.fixture
def record(monkeypatch):
    """A published file, narrow, without a hash; `catalog` has it alone."""
    record = dataclasses.replace(catalog.get_record(NAME), digest=None, file="weights.npz", url="http://127.0.0.1:1/a")
    monkeypatch.setattr(catalog, "PUBLISHED", (record,))
    return record


@pytest.fixture(scope="module")
def arrays():
    return seeded_arrays(registry.get_variant(MODEL, SOURCE), aux_heads=True, dtype=np.float32, **NARROW)


def test_a_published_file_is_downloaded_once(record, arrays, tmp_path, monkeypatch, capsys):
    calls = []

    def download(record, path, *, remedy):
        calls.append((record.name, remedy))
        np.savez(path, **arrays)
        return "sha256 1234"

    monkeypatch.setattr(downloading, "download", download)
    monkeypatch.setenv(networks.CACHE_VARIABLE, str(tmp_path / "cache"))
    path = tmp_path / "cache" / NAME / "weights.npz"
    for count in (1, 2):
        network = load_pretrained(NAME, image_size=64, **NARROW)
        assert calls == [(NAME, f"put it at {path}")] and path.is_file()
        said = capsys.readouterr().err
        assert (f"{NAME}: downloading http://127.0.0.1:1/a to {path}" in said) == (count == 1)
    assert (len(network.class_names), network.class_names[0]) == (1000, "n01440764")
    assert network.image_size == 64 and network.crop.rule == "torchvision" and network.weights == "raw"
    np.testing.assert_array_equal(network.variables["params"]["classifier"]["bias"], arrays["fc.bias"])
    assert network.model == registry.get_variant(MODEL, SOURCE).create(aux_heads=True, **NARROW)
    # The trunk with a new classifier, or with none: a file's path, for which nothing is downloaded.
    given = {"model": MODEL, "source": SOURCE, "image_size": 64, **NARROW}
    for num_classes in (0, 7):
        other = load_pretrained(path, num_classes=num_classes, **given)
        assert other.model.num_classes == len(other.class_names) == num_classes and not other.model.aux_heads
        params, published = (dict(n.variables["params"]) for n in (other, network))
        classifier = params.pop("classifier", None)
        assert (classifier is None) == (num_classes == 0)
        assert not classifier or classifier["kernel"].shape[-1] == 7
        trunk = {name: layer for name, layer in published.items() if not name.startswith(("aux", "classifier"))}
        jax.tree.map(np.testing.assert_array_equal, params, trunk)
    kernel = classifier["kernel"]
    for seed, same in ((0, True), (1, False)):
        again = load_pretrained(path, num_classes=7, seed=seed, **given).variables["params"]["classifier"]["kernel"]
        assert np.array_equal(again, kernel) is same


def test_without_a_network_one_line_names_the_address_and_the_place(record, tmp_path):
    with pytest.raises(UserError) as raised:
        load_pretrained(NAME, cache=tmp_path)
    path = tmp_path / NAME / "weights.npz"
    assert str(raised.value).startswith("cannot download http://127.0.0.1:1/a: ")
    assert str(raised.value).endswith(f"download it where there is a network, and put it at {path}")
    assert "\n" not in str(raised.value) and not path.exists()


def test_mistakes(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"timm/inception_v4.tf_in2k: neither a file nor .*; did you mean 'timm/incept"):
        load_pretrained("timm/inception_v4.tf_in2k")
    with pytest.raises(UserError, match="cannot be used: quantized"):
        load_pretrained("torchvision/googlenet_fbgemm")
    with pytest.raises(UserError, match="onnx/googlenet: the address of this file is not known; give the path of your"):
        load_pretrained("onnx/googlenet")
    with pytest.raises(UserError, match=f"only https is downloaded; download .* put it at {tmp_path}/slim"):
        load_pretrained("slim/inception_v4_2016_09_09", cache=tmp_path)
    monkeypatch.delenv(networks.CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(networks.cache_folder()) == "/x/inception_jax/weights"
