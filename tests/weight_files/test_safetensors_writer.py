"""Our variables in safetensors files, read by the format's own library and by ours."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from inception_jax.errors import UserError
from inception_jax.weight_files.safetensors_writer import load_safetensors, read_metadata, save_arrays, save_safetensors

library = pytest.importorskip("safetensors.numpy", reason="the library safetensors is not installed")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_there_and_back_bit_for_bit(dtype, tmp_path):
    random = np.random.RandomState(7)
    unit = {"conv": {"kernel": random.standard_normal((3, 3, 2, 5))}, "bn": {"bias": random.standard_normal(5)}}
    statistics = {"conv": {"bn": {"mean": random.standard_normal(5), "var": random.uniform(size=5)}}}
    variables = {"params": {"mixed_5b": unit, "stem": unit["conv"]}, "batch_stats": {"mixed_5b": statistics}}
    variables = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
    save_safetensors(tmp_path / "a.safetensors", variables)
    loaded = flatten_dict(load_safetensors(tmp_path / "a.safetensors"), sep="/")
    given = flatten_dict(variables, sep="/")
    assert loaded.keys() == given.keys()
    assert all(loaded[path].dtype == leaf.dtype for path, leaf in given.items())
    assert all(loaded[path].tobytes() == leaf.tobytes() for path, leaf in given.items())
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_library_reads_it_and_what_it_says(tmp_path):
    kernel = np.arange(6, dtype=np.float32).reshape(3, 2).T  # not in C's order
    variables = {"params": {"a": {"kernel": kernel, "bias": jnp.ones(2)}, "step": np.array(3.0, np.float32)}}
    save_safetensors(tmp_path / "a", variables, {"model": "inception_v4", "options": {"bn_scale": True}})
    arrays = library.load_file(tmp_path / "a")
    np.testing.assert_array_equal(arrays["params/a/kernel"], kernel)
    np.testing.assert_array_equal(arrays["params/a/bias"], [1, 1])
    assert arrays["params/step"].shape == ()
    about = read_metadata(tmp_path / "a")
    assert about["model"] == "inception_v4"
    assert json.loads(about["options"]) == {"bn_scale": True}


def test_others_may_read_it_as_other_files(tmp_path):
    (tmp_path / "other").touch()
    save_arrays(tmp_path / "w.safetensors", {"a": np.zeros(2)})
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_any_named_arrays(tmp_path):
    save_arrays(tmp_path / "a", {"fc.weight": np.ones((2, 3)), "num_batches_tracked": np.array(5)})
    arrays = library.load_file(tmp_path / "a")
    assert arrays["fc.weight"].sum() == 6
    assert arrays["num_batches_tracked"] == 5
    with pytest.raises(UserError, match=r"' is not a variable of this package's networks"):
        load_safetensors(tmp_path / "a")


def test_what_is_refused(tmp_path):
    save_arrays(tmp_path / "a", {"x": np.ones(3)})
    with pytest.raises(UserError, match="x: the dtype is <U5"):
        save_arrays(tmp_path / "a", {"x": np.array("hello")})
    with pytest.raises(UserError, match="__metadata__: not allowed as the name of an array"):
        save_arrays(tmp_path / "a", {"__metadata__": np.ones(3)})
    with pytest.raises(UserError, match="cannot write"):
        save_arrays(tmp_path / "no" / "a", {"x": np.ones(3)})
    assert library.load_file(tmp_path / "a")["x"].sum() == 3  # the old file is as it was
    save_arrays(tmp_path / "b", {})
    with pytest.raises(UserError, match="b: the file holds no variable of this package's networks"):
        load_safetensors(tmp_path / "b")
    (tmp_path / "b").write_bytes((tmp_path / "a").read_bytes()[:-1])
    with pytest.raises(UserError, match="truncated"):
        load_safetensors(tmp_path / "b")
