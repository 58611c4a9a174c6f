"""Verification against the publishers' code: limits of equality, sensitivity, the ledger and its page."""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.parity import ledger, runs, verification
from inception_jax.parity.runs import Case, Outputs
from inception_jax.parity.seeded_weights import seeded_arrays, seeded_images
from inception_jax.pretrained.publishers import registry

PAGE = Path(ledger.__file__).with_name("README.md")


def outputs(shift=0.0, gradients=()):
    random = np.random.RandomState(0)
    logits = random.standard_normal((2, 16))
    return Outputs(logits * (1 + shift), (logits + shift,), dict(gradients), "test 1")


def test_differences_are_relative_to_theirs():
    theirs = np.array([3.0, -4.0])
    assert verification.relative_difference(theirs * 1.5, theirs) == verification.RelativeDifference(0.5, 0.5)
    assert verification.relative_difference(np.array([3.0, -4.5]), theirs) == verification.RelativeDifference(
        0.1, 0.125
    )
    with pytest.raises(ValueError, match="shapes"):
        verification.relative_difference(theirs[:1], theirs)


def test_gradients_are_compared_array_by_array_and_noise_is_no_array():
    theirs = {"a": np.full(4, 2.0), "b": np.full(4, 1e-3), "noise": np.full(2, 1e-15)}
    ours = {"a": np.full(4, 2.0), "b": np.full(4, 2e-3), "noise": np.full(2, 9e-15), "unused": np.zeros(3)}
    found = verification.compare_gradients(ours, theirs)
    assert found["array"] == "b" and found["worst"] == pytest.approx(1.0)
    assert found["rms"] == pytest.approx(5e-4, rel=1e-3)
    with pytest.raises(ValueError, match="unused"):
        verification.compare_gradients(ours | {"unused": np.ones(3)}, theirs)
    with pytest.raises(ValueError, match="noise"):
        verification.compare_gradients({"a": ours["a"], "b": ours["b"]}, theirs)


@pytest.mark.parametrize(
    ("shift", "dtype", "equal"),
    [
        (0.0, "float64", True),
        (5e-10, "float64", True),
        (2e-9, "float64", False),
        (1e-6, "float32", True),
        (4e-6, "float32", False),
    ],
)
def test_what_counts_as_equal(shift, dtype, equal):
    row = verification.compare_outputs(outputs(shift), outputs())
    assert verification.is_equal(row, dtype) is equal
    # One auxiliary head, or one gradient, is enough to differ.
    row = verification.compare_outputs(outputs(), outputs())
    assert not verification.is_equal(row | {"aux": [{"rms": 1e-3, "max": 1e-3}]}, dtype)
    assert not verification.is_equal(row | {"gradients": {"rms": 2e-5}}, dtype)


def test_a_missing_head_is_no_equality():
    with pytest.raises(ValueError, match="auxiliary heads"):
        verification.compare_outputs(dataclasses.replace(outputs(), aux=()), outputs())


def test_goldens_keep_enough_to_see_a_change(tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "GOLDENS", tmp_path)
    variant, case = registry.get_variant("inception_v4", "timm"), Case("eval", 75, gradients=True)
    random = np.random.RandomState(1)
    gradients = {f"array{i}": random.standard_normal((3, 5)) for i in range(4)}
    theirs = outputs(gradients=gradients)
    verification.write_golden(variant, case, theirs)
    verification.write_golden(variant, Case("eval", 76), outputs(0.5))
    ours = {"found": theirs}
    monkeypatch.setattr(runs, "run_ours", lambda *_, **__: ours["found"])
    monkeypatch.setattr(runs, "case_arrays", lambda *_: {})
    row, version = verification.verify_golden(variant, case)
    assert version == "test 1" and row["logits"]["rms"] == row["gradients"]["rms"] == row["aux"][0]["rms"] == 0
    # Two arrays exchanged, and one value's sign: the norms are the same, the fingerprints are not.
    flipped = {**gradients, "array2": gradients["array2"] * np.where(np.arange(15).reshape(3, 5) == 7, -1, 1)}
    for wrong in (flipped, {**gradients, "array0": gradients["array1"], "array1": gradients["array0"]}):
        ours["found"] = outputs(gradients=wrong)
        assert verification.verify_golden(variant, case)[0]["gradients"]["rms"] > 1e-3
    with pytest.raises(UserError, match="no goldens of timm's inception_v4 for eval_77_float64"):
        verification.verify_golden(variant, Case("eval", 77))


def test_seeded_weights_belong_to_their_names():
    variant = registry.get_variant("inception_v4", "timm")
    narrow = {"width_multiplier": 0.05, "min_width": 4, "num_classes": 10}
    arrays = seeded_arrays(variant, aux_heads=False, **narrow)
    assert next(iter(arrays)) == "features.0.conv.weight" and next(reversed(arrays)) == "last_linear.bias"
    assert arrays["features.0.conv.weight"].shape == (4, 3, 3, 3)
    again = seeded_arrays(variant, aux_heads=False, dtype=np.float32, **narrow)
    assert all((again[name] == array.astype(np.float32)).all() for name, array in arrays.items())
    kernels = [array for name, array in arrays.items() if name.endswith("conv.weight")]
    assert not np.array_equal(kernels[4].ravel()[:9], kernels[5].ravel()[:9])
    images = seeded_images(2, 31)
    assert np.abs(images).max() <= 1 and images.std() > 0.3 and not np.allclose(images[0], images[1])


def test_a_wrong_switch_is_seen():
    """Narrow, against ourselves: an average pool that counts the padding is another function."""
    variant = registry.get_variant("inception_v3", "slim")
    narrow = {"width_multiplier": 0.05, "min_width": 4, "num_classes": 8}
    case = Case("eval", 75, batch=1)
    arrays = seeded_arrays(variant, aux_heads=False, **narrow)
    right = runs.run_ours(variant, case, arrays, width_multiplier=0.05, min_width=4)
    wrong = runs.run_ours(variant, case, arrays, width_multiplier=0.05, min_width=4, count_include_pad=True)
    assert verification.relative_difference(wrong.logits, right.logits).rms > 1e-4
    assert right.logits.dtype == np.float64


def test_a_publisher_that_is_not_there_is_named():
    variant, case = registry.get_variant("inception_v4", "timm"), Case("eval", 75)
    program = runs.Path(runs.references.__file__).with_name("torch_side.py")
    assert program.exists()
    with pytest.raises(UserError, match=r"timm's inception_v4 in .*python.*: "):
        runs.run_theirs(variant, case, {"features.0.conv.weight": np.zeros(1)}, runs.default_python())


# --- The ledger ------------------------------------------------------------------------------------------------------


def test_the_ledger_has_every_case_that_is_not_named_as_open_and_all_are_equal():
    rows = {(r["model"], r["source"], r["mode"], r["size"], r["dtype"]): r for r in ledger.read_ledger()}
    wanted = {
        (variant.model, variant.source, case.mode, case.size, case.dtype): case
        for variant in registry.all_variants()
        for case in verification.cases_of(variant)
    }
    assert set(rows) <= set(wanted)
    # A variant that is new has to be compared, or to be named as open.
    assert ledger.read_open_cases() == {(k[1], k[0], case.name) for k, case in wanted.items() if k not in rows}
    for key, row in rows.items():
        assert verification.is_equal(row, row["dtype"]), key
        assert ("gradients" in row) == wanted[key].gradients, key
        assert row["against"] == "publisher's code" and row["version"]
        variant = registry.get_variant(row["model"], row["source"])
        assert bool(row.get("aux")) == (row["mode"] == "train" and variant.aux_heads), key


def test_the_page_has_the_ledger(tmp_path):
    table = ledger.format_ledger(ledger.read_ledger(), markdown=True)
    assert f"{ledger.BEGIN}\n\n{table}\n\n{ledger.END}" in PAGE.read_text(encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(f"a\n{ledger.BEGIN}\nold\n{ledger.END}\nz\n", encoding="utf-8")
    ledger.update_table(page)
    assert page.read_text(encoding="utf-8") == f"a\n{ledger.BEGIN}\n\n{table}\n\n{ledger.END}\nz\n"
    page.write_text("nothing", encoding="utf-8")
    with pytest.raises(UserError, match="has no lines <!-- ledger --> and <!-- end of ledger -->"):
        ledger.update_table(page)


def test_rows_replace_those_of_the_same_case(tmp_path):
    path = tmp_path / "ledger.json"
    row = {"model": "m", "source": "s", "mode": "eval", "size": 9, "dtype": "float64", "logits": {"rms": 1.0}}
    ledger.write_ledger([row, {**row, "size": 8}], path)
    ledger.write_ledger([{**row, "logits": {"rms": 2.0}}], path)
    assert [(r["size"], r["logits"]["rms"]) for r in ledger.read_ledger(path)] == [(8, 1.0), (9, 2.0)]
    assert json.loads(path.read_text(encoding="utf-8"))["rows"] == ledger.read_ledger(path)


def test_the_command_without_a_publisher_takes_the_goldens_and_says_what_differs(monkeypatch, capsys):
    variant = registry.get_variant("inception_v4", "timm")
    case = Case("eval", 299, dtype="float32")
    monkeypatch.setattr(verification, "cases_of", lambda _: (case, Case("eval", 101)))
    monkeypatch.setattr(ledger, "find_python", lambda *_: None)
    shift = {"by": 0.0}

    def golden(*_):
        return verification.compare_outputs(outputs(shift["by"]), outputs()), "timm 9"

    monkeypatch.setattr(verification, "verify_golden", golden)
    flags = argparse.Namespace(
        model=variant.model, source=variant.source, torch_python=None, tf_python=None, write_ledger=None
    )
    assert ledger.verify_variants(flags) == 0
    printed = capsys.readouterr().out
    assert "inception_v4 of timm, eval_299_float32: equal (logits 0e+00, aux1 0e+00) against goldens" in printed
    shift["by"] = 1e-3
    assert ledger.verify_variants(flags) == 1
    assert "eval_101_float64: DIFFERENT (logits 1e-3" in capsys.readouterr().out

    def none(*_):
        raise UserError("no goldens of this")

    monkeypatch.setattr(verification, "verify_golden", none)
    assert ledger.verify_variants(flags) == 1
    assert "not compared: no goldens of this" in capsys.readouterr().out
    with pytest.raises(UserError, match="timm has no inception_v1"):
        ledger.verify_variants(argparse.Namespace(**{**vars(flags), "model": "inception_v1"}))


def test_where_the_publishers_code_is_looked_for(monkeypatch):
    monkeypatch.setenv("INCEPTION_JAX_TF_PYTHON", "elsewhere")
    assert ledger.find_python("tf", None) == "elsewhere"
    assert ledger.find_python("tf", "given") == "given"
    monkeypatch.delenv("INCEPTION_JAX_TF_PYTHON")
    monkeypatch.setattr(ledger.importlib.util, "find_spec", lambda name: None)
    assert ledger.find_python("tf", None) is None
    monkeypatch.setattr(ledger.importlib.util, "find_spec", lambda name: name == "tensorflow")
    assert ledger.find_python("tf", None) == runs.default_python()


# --- The goldens, recomputed -----------------------------------------------------------------------------------------

# One variant of the quicker networks; the others, and the gradients, with -m slow.
_QUICK = {
    ("caffe", "inception_v1"),
    ("torchvision", "inception_v1_bn"),
    ("slim", "inception_v2"),
    ("keras", "inception_v3"),
    ("timm", "xception"),
}


def golden_cases():
    for variant in registry.all_variants():
        for case in verification.cases_of(variant):
            if (variant.source, variant.model, case.name) in ledger.read_open_cases():
                continue
            quick = (variant.source, variant.model) in _QUICK and case.size != variant.image_size
            marks = () if quick else (pytest.mark.slow,)
            yield pytest.param(variant, case, marks=marks, id=f"{variant.source}-{variant.model}-{case.name}")


@pytest.mark.parametrize(("variant", "case"), list(golden_cases()))
def test_our_network_still_gives_the_publishers_numbers(variant, case):
    row, _ = verification.verify_golden(variant, case)
    assert verification.is_equal(row, case.dtype), row
