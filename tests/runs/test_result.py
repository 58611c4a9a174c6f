"""result.json, and the fingerprint of a state."""

import collections
import hashlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from inception_jax.errors import UserError
from inception_jax.runs import result
from inception_jax.runs.result import fingerprint


def tree():
    return {
        "params": {"conv": {"kernel": np.float32(np.arange(12).reshape(3, 4)), "bias": np.zeros(4, jnp.bfloat16)}},
        "step": np.int32(3),
        "none": None,
        "opt_state": optax.TraceState(trace={"a": np.zeros((0, 2))}),
    }


def test_a_fingerprint_is_known():
    """The recipe, written once more: a change of it would make old results incomparable."""
    digest = hashlib.sha256()
    digest.update(b'["a", "int32", []]\n' + np.int32(1).tobytes())
    digest.update(b'["b/c", "float32", [2]]\n' + np.float32([0.5, -0.0]).tobytes())
    assert fingerprint({"b": {"c": np.float32([0.5, -0.0])}, "a": np.int32(1)}) == digest.hexdigest()


def test_where_and_how_the_arrays_lie_does_not_matter():
    expected = fingerprint(tree())
    replicated = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("data",)), PartitionSpec())
    with jax.enable_x64(True):
        assert fingerprint(jax.tree.map(jnp.asarray, tree())) == expected
        assert fingerprint(jax.device_put(tree(), replicated)) == expected
    assert fingerprint({name: tree()[name] for name in reversed(tree())}) == expected
    assert fingerprint({**tree(), "opt_state": {"trace": {"a": np.zeros((0, 2))}}}) == expected
    backward = collections.namedtuple("Backward", ["step", "params", "opt_state"])
    assert fingerprint(backward(*(tree()[name] for name in backward._fields))) == expected
    kernel = np.asfortranarray(tree()["params"]["conv"]["kernel"])
    assert fingerprint({**tree(), "params": {"conv": {**tree()["params"]["conv"], "kernel": kernel}}}) == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t["params"]["conv"]["kernel"].__setitem__((2, 3), np.nextafter(np.float32(11), np.float32(12))),
        lambda t: t["params"]["conv"].update(kernel=t["params"]["conv"]["kernel"].reshape(4, 3)),
        lambda t: t["params"]["conv"].update(kernel=t["params"]["conv"]["kernel"].view(np.int32)),
        lambda t: t["params"]["conv"].update(bias=-t["params"]["conv"]["bias"]),  # -0.0 is not 0.0
        lambda t: t["params"].update(conv2=t["params"].pop("conv")),
        lambda t: t.pop("opt_state"),
        lambda t: t.update(step=np.int64(3)),
    ],
)
def test_every_difference_matters(change):
    changed = tree()
    change(changed)
    assert fingerprint(changed) != fingerprint(tree())


def test_leaves_cannot_trade_bytes():
    first, second = ({"a": np.uint8([1, 2]), "b": np.uint8([3])}, {"a": np.uint8([1]), "b": np.uint8([2, 3])})
    assert fingerprint(first) != fingerprint(second)


def test_a_result_comes_back(tmp_path):
    content = {
        "status": "done", "steps": np.int64(10), "numpy": np.float32(0.1), "jax": jnp.float32(0.5), "exact": 0.1 + 0.2,
        "bfloat16": jnp.bfloat16(1.5), "flag": np.bool_(True), "nothing": None, "list": (1, {"deep": math.inf}),
        "loss": math.nan, "least": -math.inf,
    }  # fmt: skip
    path = result.write_result(tmp_path, content)
    assert path == tmp_path / "result.json"

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    raw = json.loads(path.read_text(), parse_constant=refuse)
    assert (raw["loss"], raw["least"], raw["list"]) == ("NaN", "-Infinity", [1, {"deep": "Infinity"}])
    found = result.read_result(tmp_path)
    assert math.isnan(found.pop("loss"))
    assert found == {
        "status": "done",
        "steps": 10,
        "numpy": float(np.float32(0.1)),
        "jax": 0.5,
        "exact": 0.1 + 0.2,
        "bfloat16": 1.5,
        "flag": True,
        "nothing": None,
        "list": [1, {"deep": math.inf}],
        "least": -math.inf,
    }


def test_a_result_that_json_cannot_hold_leaves_the_old_one(tmp_path):
    result.write_result(tmp_path, {"a": 1})
    with pytest.raises(TypeError):
        result.write_result(tmp_path, {"a": np.zeros(2)})
    assert result.read_result(tmp_path) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_no_result_and_a_damaged_one(tmp_path):
    assert result.read_result(tmp_path) is None
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"result\.json is damaged"):
        result.read_result(tmp_path)
