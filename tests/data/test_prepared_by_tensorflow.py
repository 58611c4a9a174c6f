"""A data set that TFDS itself writes through TensorFlow as TFRecord, ArrayRecord and Parquet: one set in every respect.

It needs a Python that has tensorflow and tensorflow-datasets, which INCEPTION_JAX_TF_PYTHON names.
"""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from inception_jax.data.datasets import load
from inception_jax.data.example_records import FORMATS
from inception_jax.data.pipeline import EvalPipeline, TrainPipeline

PYTHON = os.environ.get("INCEPTION_JAX_TF_PYTHON")
NAME = "shapes/plain:1.2.0"
COUNT = 480  # 240 and 120 in the other splits; a Parquet shard of TFDS 4.9.10 holds at most 100 records

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="INCEPTION_JAX_TF_PYTHON names no Python that has tensorflow-datasets"),
]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The folder with a folder of each format, and what TensorFlow reads of the TFRecord files."""
    folder = tmp_path_factory.mktemp("sets")
    script = Path(__file__).with_name("make_prepared_sets.py")
    subprocess.run([PYTHON, script, folder, str(COUNT), "6"], check=True, capture_output=True)
    return folder, json.loads((folder / "expected.json").read_text())


def test_records(sets):
    folder, expected = sets
    for split, examples in expected.items():
        for file_format in FORMATS:
            data = load(NAME, split, str(folder / file_format))
            assert type(data.source).FORMAT == file_format and len(data.source.parts) == 6
            found = [data.record(i) for i in range(data.num_examples)]
            assert [label for _, label in found] == [label for label, _, _ in examples]
            assert [hashlib.sha256(image).hexdigest() for image, _ in found] == [digest for _, _, digest in examples]
    for split in ("train[13%:77%]+test", "train[:2shard]", "validation[-30:]+train[100:200]"):
        sources = [load(NAME, split, str(folder / file_format)) for file_format in FORMATS]
        records = [[data.record(i) for i in range(data.num_examples)] for data in sources]
        assert records[0] == records[1] == records[2] and len(records[0]) > 20


def test_a_bool_for_each_class(sets):
    """`attributes` of `flags`, which has the images of `plain` in the same order: three bits of their numbers."""
    folder, expected = sets
    for file_format in FORMATS:
        data = load("shapes/flags", "train", str(folder / file_format), label_key="attributes", labels="multi")
        assert type(data.source).FORMAT == file_format and data.class_names == ["5_o_clock_shadow", "bald", "young"]
        labels = [data.record(i)[1].tolist() for i in range(data.num_examples)]
        assert labels == [[number >> place & 1 for place in (2, 1, 0)] for _, number, _ in expected["train"]]


def assert_same(expected, found):
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def take(pipeline, start: int, count: int):
    batches = pipeline.batches(start, count)
    try:
        return [{key: value.copy() for key, value in batch.items()} for batch in batches]
    finally:
        batches.close()


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
@pytest.mark.parametrize("processes", [1, 2])
def test_batches(sets, workers, processes):
    """40 batches of 16: past the end of the epoch; then from batch 25 on, as after a resume."""
    folder, _ = sets
    for process in range(processes):
        expected = None
        for file_format in FORMATS:
            data = load(NAME, "train", str(folder / file_format))
            settings = {"batch_size": 16, "image_size": 12, "process_index": process, "process_count": processes}
            pipeline = TrainPipeline(data, seed=5, augmentation={}, threads=2, workers=workers, **settings)
            found = take(pipeline, 0, 40)
            expected = expected or found
            assert_same(expected, found)
            assert_same(expected[25:], take(pipeline, 25, 15))
            evaluated = EvalPipeline(load(NAME, "test", str(folder / file_format)), **settings).batch(7)
            assert evaluated["mask"].sum() == (8 if process == 0 else 0) if processes == 2 else 8
