"""From a file to our variables: who published it is found out, and nothing is guessed."""

import dataclasses
import hashlib
import re

import numpy as np
import pytest

from inception_jax.config import Config
from inception_jax.errors import UserError
from inception_jax.parity.seeded_weights import seeded_arrays
from inception_jax.pretrained import catalog, loading, preprocessing, records, workdir
from inception_jax.pretrained.importing import ImportedWeights
from inception_jax.pretrained.publishers import registry
from inception_jax.training import network_setup, preprocess


def arrays_of(model, source, num_classes=None, aux_heads=False):
    """A full-size file's arrays, which take no memory: one zero each, in every place."""
    variant = registry.get_variant(model, source)
    count = num_classes or variant.num_classes
    named = {}
    for path, shape in variant.leaves(aux_heads=aux_heads, num_classes=count).items():
        theirs = variant.source_array(path, shape)
        named[theirs.name] = np.broadcast_to(np.float32(0.5), theirs.layout.shape(shape))
    return named


@pytest.mark.parametrize(
    ("model", "source", "num_classes"),
    [
        ("inception_v1_bn", "torchvision", 1000),
        ("inception_v4", "timm", 1000),
        ("inception_v4", "cadene", 1001),  # the same names as timm's
        ("inception_resnet_v2", "pytorchcv", 1000),
        ("inception_v3", "slim", 1001),
    ],
)
def test_the_publisher_is_found_out(model, source, num_classes, tmp_path):
    arrays = arrays_of(model, source, num_classes)
    variant, sentence = loading.find_variant(arrays, tmp_path / "x", "0" * 64, None, None)
    assert (variant.model, variant.source) == (model, source)
    assert sentence == f"{source}'s {model} (100 % of the names and shapes fit)"


def test_several_publishers_alike_are_named(tmp_path):
    """torchvision's Inception-v3 is timm's: name and hash of the file decide, and nothing else does."""
    arrays = arrays_of("inception_v3", "torchvision", aux_heads=True)
    with pytest.raises(UserError, match=r"names and shapes fit several variants: .*--source=torchvision") as raised:
        loading.find_variant(arrays, tmp_path / "x.pth", "0" * 64, None, None)
    assert "--source=timm" in str(raised.value)
    variant, _ = loading.find_variant(arrays, tmp_path / "x.pth", "0cc3c7bd" + "0" * 56, None, None)
    assert variant.source == "torchvision"
    variant, _ = loading.find_variant(arrays, tmp_path / "x.pth", "0" * 64, None, "timm")
    assert variant.source == "timm"


def test_what_is_done_is_said_and_foreign_layers_can_be_ignored(tmp_path):
    """A fine-tuned file, as small as it can be: named, refused with the remedy, and imported with it."""
    narrow = {"width_multiplier": 0.05, "min_width": 4}
    variant = registry.get_variant("xception", "keras")
    arrays = seeded_arrays(variant, aux_heads=False, dtype=np.float32, **narrow)
    arrays = {name: array for name, array in arrays.items() if not name.startswith("predictions/")}
    np.savez(tmp_path / "mine.npz", **arrays, **{"dense/kernel": np.zeros((2, 3), np.float32)})
    given = {"model": "xception", "source": "keras", "options": {"num_classes": 0, **narrow}}
    path, lines = tmp_path / "mine.npz", []
    with pytest.raises(UserError, match=r"unexpected: dense/kernel; leave them out \(convert: --ignore=PATTERN\)"):
        loading.load_weights(path, **given)
    loaded = loading.load_weights(path, **given, ignore=["^dense"], report=lines.append)
    assert loaded.ignored == ("dense/kernel",) and loaded.findings[0] == "ignored: dense/kernel"
    assert workdir.provenance(loaded)["ignored"] == ["dense/kernel"]
    assert lines == [f"{path}: reading", f"{path}: importing {len(arrays)} arrays"]
    for pattern, message in (
        ("^dens3", "no array of .* has such a name; names: block1_conv1/kernel, "),
        ("(", "is not a regular expression"),
    ):
        with pytest.raises(UserError, match=f"--ignore.*: .*{message}"):
            loading.load_weights(path, **given, ignore=[pattern])
    lines.clear()
    whole = arrays_of("inception_v4", "timm")
    loading.find_variant(whole, path, "0" * 64, None, None, report=lines.append)
    assert lines[0].startswith(f"{path}: comparing the names and shapes of 747 arrays with ")
    assert lines[1] == f"{path}: looks like timm's inception_v4 (100 %), cadene's inception_v4 (100 %)"
    del whole["features.0.conv.weight"]
    loading.find_variant(whole, path, "0" * 64, None, "timm", report=lines.append)
    assert lines[3].startswith(f"{path}: looks like timm's inception_v4 (99 %); next by their names: timm's ")


def test_arrays_that_fit_no_variant(tmp_path):
    with pytest.raises(UserError, match=r"x.pth: the arrays \(layer.weight, …\) fit no known variant; name"):
        loading.find_variant({"layer.weight": np.zeros((3, 3))}, tmp_path / "x.pth", "0" * 64, None, None)
    with pytest.raises(UserError, match=r"x.pth: these are variables by this .* load_safetensors\(path\)"):
        loading.find_variant({"params/conv1/kernel": np.zeros(3)}, tmp_path / "x.pth", "0" * 64, None, None)
    arrays = arrays_of("inception_v4", "timm")
    with pytest.raises(UserError, match="fit no known variant of slim; name network and publisher"):
        loading.find_variant(arrays, tmp_path / "x.pth", "0" * 64, None, "slim")


def test_a_published_file_that_cannot_be_used_is_told_as_such(tmp_path):
    """By its hash, whatever its name: otherwise its arrays would be compared with networks that they are not of."""
    record = catalog.get_record("onnx/inception_v2")
    reason = re.escape(record.unusable)
    with pytest.raises(UserError, match=rf"mine\.onnx is onnx/inception_v2, which cannot be used: {reason}"):
        loading.find_variant({"x": np.zeros(3)}, tmp_path / "mine.onnx", record.digest.hex, None, None)


def test_a_records_hash_is_checked(tmp_path):
    path = tmp_path / "mine.h5"
    path.write_bytes(b"weights")
    md5 = hashlib.md5(b"weights").hexdigest()
    for digits, right in ((md5, True), (md5[:10], True), ("0" * 32, False)):
        record = records.WeightRecord(
            "keras/mine",
            "xception",
            "keras",
            "mine.h5",
            preprocessing.KERAS,
            digest=records.Digest("md5", digits, "mine.h5"),
        )
        said = loading._digest_mismatch(record, path, "0" * 64)
        assert said is None if right else said == f"its md5 is {md5}, that of mine.h5 is {'0' * 32}"


def test_the_hash_of_what_is_inside_an_archive_is_not_the_archives(tmp_path):
    """pytorchcv gives the hash of the .pth in the .pth.zip."""
    record = catalog.get_record("pytorchcv/inceptionv4")
    archive = tmp_path / record.file
    archive.write_bytes(b"a zip")
    assert loading._digest_mismatch(record, archive, "0" * 64) is None
    inner = tmp_path / record.digest.of
    inner.write_bytes(b"another file")
    assert "its " in loading._digest_mismatch(record, inner, "0" * 64)


def test_a_file_is_opened_with_nothing_said(tmp_path):
    """Found out: the network, the publisher, the record, the classes; and said, line by line."""
    arrays = arrays_of("inception_v1_bn", "torchvision")
    np.savez_compressed(tmp_path / "mine.npz", **arrays)
    loaded = loading.load_weights(tmp_path / "mine.npz")
    assert loaded.imported.variant is registry.get_variant("inception_v1_bn", "torchvision")
    assert loaded.record is None and loaded.preprocessing == preprocessing.torchvision(224, 256)
    assert loaded.findings[0] == "torchvision's inception_v1_bn (100 % of the names and shapes fit)"
    assert loaded.findings[1].startswith("record: none, neither hash nor file name") and len(loaded.findings) == 2
    assert loaded.imported.num_classes == 1000 and not loaded.imported.background_dropped
    # A record that is named is checked: this is another file.
    with pytest.raises(UserError, match=r"is not torchvision/googlenet: its sha256 is .*, that of googlenet"):
        (tmp_path / "mine.npz").rename(tmp_path / "renamed.pth")
        loading.load_weights(tmp_path / "renamed.pth", record="torchvision/googlenet")


@pytest.mark.parametrize("variant", registry.all_variants(), ids=lambda variant: f"{variant.source}-{variant.model}")
def test_every_forms_recipe_makes_the_forms_network(variant):
    """No switch is lost on the way through a config."""
    rule = preprocessing.slim(variant.image_size)
    for aux_heads in {variant.aux_heads, False}:
        options = {**variant.options, "num_classes": 7, "aux_heads": aux_heads, "width_multiplier": 0.5}
        loaded = loading.LoadedWeights(None, None, ImportedWeights(variant, options, {}, 7, False, ()), None, rule, ())
        config = Config(workdir.config_of(loaded))
        wanted = variant.create(aux_heads=aux_heads, num_classes=7, width_multiplier=0.5)
        assert network_setup.build_model(config, 7) == wanted
        assert network_setup.read_input(config).eval_crop == rule.crop
        assert network_setup.read_input(config).normalization is preprocess.get_normalization(rule.normalization)


@pytest.mark.parametrize("record", catalog.all_records(), ids=lambda record: record.name)
def test_every_records_images_pass_through_a_recipe(record):
    if record.unusable:
        pytest.skip(f"not usable: {record.unusable}")
    variant = registry.get_variant(record.model, record.source)
    imported = ImportedWeights(
        variant, {**variant.options, "num_classes": 1000, "aux_heads": False}, {}, 1000, False, ()
    )
    loaded = loading.LoadedWeights(None, None, imported, record, record.preprocessing, ())
    config = Config(workdir.config_of(loaded))
    assert network_setup.read_input(config).eval_crop == record.preprocessing.crop
    assert config.data.name == "imagenet2012" and config.data.eval_split == "validation"
    # At half the size the side before the crop is halved too.
    half = Config(workdir.config_of(loaded, image_size=112))
    crop, whole = network_setup.read_input(half).eval_crop, record.preprocessing
    if whole.crop.resize:
        assert crop.resize == max(112, round(whole.crop.resize * 112 / whole.image_size))
    else:
        assert crop == whole.crop


def test_classes_of_a_thousand_and_one():
    variant = registry.get_variant("inception_v4", "cadene")

    def names(count):
        return workdir.class_names_of(
            loading.LoadedWeights(
                None, None, ImportedWeights(variant, {}, {}, count, False, ()), None, preprocessing.KERAS, ()
            )
        )

    assert names(1001)[:2] == ["background", "n01440764"] and names(1000) == names(1001)[1:]
    assert len(names(1001)) == 1001 and names(1000) == sorted(names(1000))
    assert names(3) == ["class 0", "class 1", "class 2"]


@pytest.mark.parametrize(
    ("source", "classes", "expected"), [("slim", 1001, "drop"), ("slim", 1000, "keep"), ("torchvision", 1001, "keep")]
)
def test_only_a_publishers_background_is_dropped(source, classes, expected):
    variant = registry.get_variant("inception_v3", source)
    theirs = variant.source_array("params/classifier/kernel", (2048, classes))
    arrays = {theirs.name: np.broadcast_to(np.float32(0), theirs.layout.shape((2048, classes)))}
    assert loading._default_background(variant, arrays) == expected


def test_names_of_classes_from_a_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("cat\n\n dog \n")
    assert workdir.read_class_names(path, 2) == ["cat", "dog"]
    with pytest.raises(UserError, match=r"names.txt: 2 names; the weights have 3 classes"):
        workdir.read_class_names(path, 3)
    with pytest.raises(UserError, match="cannot read"):
        workdir.read_class_names(tmp_path / "none.txt", 2)


def test_a_record_without_a_classifier(tmp_path, monkeypatch):
    """By its name and hash: Keras's file without the top, at full size (of one number, which packs well)."""
    h5py = pytest.importorskip("h5py", reason="reading Keras's files needs h5py (the extra `convert`)")
    arrays = {n: a for n, a in arrays_of("xception", "keras").items() if not n.startswith("predictions/")}
    (record,) = [record for record in catalog.select_records("xception", "keras") if record.classes == 0]
    path = tmp_path / f"{record.file}"
    with h5py.File(path, "w") as file:
        for layer in dict.fromkeys(name.rpartition("/")[0] for name in arrays):
            group = file.create_group(layer)
            names = [name for name in arrays if name.rpartition("/")[0] == layer]
            group.attrs["weight_names"] = [f"{name}:0".encode() for name in names]
            for name in names:
                group.create_dataset(f"{name}:0", data=arrays[name], compression="gzip")
        file.attrs["layer_names"] = [layer.encode() for layer in dict.fromkeys(n.rpartition("/")[0] for n in arrays)]
        file.attrs["keras_version"] = b"2.0.4"
    with pytest.raises(UserError, match=r"'predictions/kernel' is missing; num_classes=0 imports without a classifier"):
        loading.load_weights(path)
    given = {"model": "xception", "source": "keras", "options": {"num_classes": 0}}
    loaded = loading.load_weights(path, **given)
    assert loaded.record is None and "named like keras/Xception-notop, but its md5 is" in loaded.findings[0]
    with pytest.raises(UserError, match=rf"is not {record.name}: its md5 is .* that of "):
        loading.load_weights(path, record=record.name)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    published = dataclasses.replace(record, digest=records.Digest("md5", md5, record.file))
    everything = [published if other == record else other for other in catalog.all_records()]
    monkeypatch.setattr(catalog, "all_records", lambda: everything)
    loaded = loading.load_weights(path)
    assert loaded.record == published and loaded.imported.num_classes == 0
    assert "classifier" not in loaded.imported.variables["params"]
    assert workdir.class_names_of(loaded) == [] and workdir.config_of(loaded).model.num_classes == 0
