"""Prepared data sets with a bool or a 0 and 1 for each class, as CelebA is; `flags` of the golden, in three formats."""

import hashlib
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds

from inception_jax.data.datasets import load
from inception_jax.data.example_records import LabelForm
from inception_jax.data.label_sets import Wanted
from inception_jax.data.pipeline import TrainPipeline
from inception_jax.data.prepared_features import read_features
from inception_jax.errors import UserError

from .test_example_records import EXPECTED, GOLDEN

NAMES = ["5_o_clock_shadow", "bald", "young"]


def flags(label_key, split="train", root=GOLDEN / "tfrecord", **options):
    return load("shapes/flags", split, str(root), label_key=label_key, **{"labels": "multi", **options})


def described(data):
    found = [data.record(i) for i in range(data.num_examples)]
    return [(hashlib.sha256(image).hexdigest(), label.tolist()) for image, label in found]


def bits(split, *places):
    return [(digest, [number >> place & 1 for place in places]) for _, number, digest in EXPECTED[split]]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_each_entry_of_a_dict_is_a_class(run, tmp_path):
    assert run("convert", "shapes/flags", f"--data_dir={GOLDEN / 'parquet'}", f"--output={tmp_path}") == 0
    roots = [GOLDEN / "tfrecord", GOLDEN / "parquet", tmp_path]
    for root in roots:
        for split in EXPECTED:
            data = flags("attributes", split, root)
            assert data.class_names == NAMES and described(data) == bits(split, 2, 1, 0)
            assert described(pickle.loads(pickle.dumps(data))) == described(data)
    sources = [flags("attributes", root=root) for root in roots]
    assert len({type(data.source) for data in sources}) == 3
    options = {"batch_size": 4, "image_size": 8, "seed": 3, "augmentation": {}, "threads": 1}
    batches = [TrainPipeline(data, **options).batch(3) for data in sources]
    assert all((batch[key] == batches[0][key]).all() for batch in batches for key in batch)
    assert batches[0]["label"].shape == (4, 3) and batches[0]["label"].dtype == "uint8"
    assert described(flags(None)) == described(sources[0])  # the only one of bools
    assert described(flags("attributes", "train[2:4]+test")) == bits("train", 2, 1, 0)[2:4] + bits("test", 2, 1, 0)


def test_bools_beside_the_image_and_integers():
    beside = flags("*")
    assert beside.class_names == ["late", "odd"] and described(beside) == bits("train", 3, 0)
    numbers = flags("bits")
    assert numbers.class_names == ["high", "low"] and described(numbers) == bits("train", 3, 0)
    digests = [data.source.digest() for data in (beside, numbers, flags("attributes"))]
    assert len({*digests}) == 3 and digests[0] == flags("*").source.digest()
    assert beside.source.label_form.digest_parts() == ("multi", 2, True, "late", "odd")
    assert LabelForm(3, is_table=True).digest_parts() == ("multi", 3, True)  # as in the data.json of older runs


def test_what_cannot_be_labels():
    with pytest.raises(UserError, match=r"record 0 of .*'points/y' is \d+; a class of several has 0 or 1"):
        flags("points").record(0)
    missing = flags("attributes")
    form = LabelForm(1, is_table=True, keys=("attributes/none",))
    with pytest.raises(UserError, match=r"no feature 'attributes/none'"):
        type(missing.source)(missing.source.parts, "image", "attributes", form)[0]
    choices = r"; it has '\*', 'attributes', 'bits', 'points'$"
    for key, what in (
        ("atributes", "no feature; did you mean 'attributes'"),
        ("image", "a feature Image"),
        ("odd", r"a feature (Tensor|Scalar).*; with config.data.labels = 'multi' .* a dict of bools"),
    ):
        with pytest.raises(UserError, match=f"config.data.label_key = '{key}': {what}.*{choices}"):
            flags(key)
    with pytest.raises(UserError, match=r"read with --config.data.labels=multi: \*, attributes\); it has Features"):
        flags(None, labels="single")
    with pytest.raises(
        UserError, match=r"'attributes': a feature FeaturesDict\(\{ '5_o.*; one image and one class"
    ) as e:
        flags("attributes", labels="single")
    assert "--config.data.labels=multi" in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(UserError, match=r"'\*': no feature; with config.data.labels = 'multi' a Sequence"):
        load("shapes/plain", "train", str(GOLDEN / "tfrecord"), label_key="*", labels="multi")


def test_label_sets_come_before_bools():
    """Without `data.label_key`: runs that read a set before dicts of bools could be read go on with its labels."""
    features = tfds.features
    labels = features.Sequence(features.ClassLabel(names=["a", "b"]))
    inner = {"image": features.Image(), "tags": labels, "flags": {"x": np.bool_}, "sizes": {"w": np.int64}}
    info = SimpleNamespace(features=features.FeaturesDict(inner), supervised_keys=None)
    assert read_features("set", info, Wanted(several=True)) == ("image", "tags", ["a", "b"])
    del inner["tags"]
    info.features = features.FeaturesDict(inner)
    assert read_features("set", info, Wanted(several=True)) == ("image", "flags", ["x"])
    info.features = features.FeaturesDict(inner | {"more": {"y": np.bool_}})
    with pytest.raises(UserError, match=r"labels 'flags', 'more'; choose one: --config.data.label_key=flags"):
        read_features("set", info, Wanted(several=True))
    del inner["flags"]  # integers may be anything: only by their key
    info.features = features.FeaturesDict(inner)
    with pytest.raises(UserError, match=r"a dict of bools .* is read.*; it has FeaturesDict"):
        read_features("set", info, Wanted(several=True))
    assert read_features("set", info, Wanted(label_key="sizes", several=True))[1:] == ("sizes", ["w"])
