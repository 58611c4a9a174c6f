"""A comparison of sides: equal networks, interleaved blocks, ratios within rounds, and checks of the result."""

import copy
import dataclasses
import importlib
import json
import os
import sys
from pathlib import Path

import pytest

from inception_jax import create_model
from inception_jax.benchmarks import equivalents, paired, versus, versus_report
from inception_jax.benchmarks.worker import Unavailable
from inception_jax.errors import UserError
from inception_jax.exports import onnx_side
from inception_jax.exports.onnx_side import OnnxSide
from inception_jax.models.cost import count_cost

ROOT = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).with_name("fake_side.py")
# BVLC's bvlc_googlenet, torchvision's googlenet and inception_v3 with their heads, timm's networks; at 1000 classes.
PARAMETERS = {
    "inception_v1": 13_378_280,
    "inception_v1_bn": 13_004_888,
    "inception_v3": 27_161_264,
    "inception_v4": 42_679_816,
    "inception_resnet_v2": 55_843_464,
    "xception": 22_855_952,
}
TASK = {
    "model": "fake",
    "kinds": ["train", "inference"],
    "batch_size": 4,
    "image_size": 8,
    "dtype": "float32",
    "backend": "cpu",
    "options": {},
}
FALLING = [5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.25, 0.1]


def fake(name, train, inference=None, losses=FALLING, **script):
    """A side that reports these seconds per step; the first of each kind is the warm-up's."""
    script |= {"name": name, "losses": losses, "seconds": {"train": train, "inference": inference or train}}
    return paired.Side(name, (sys.executable, str(FAKE), json.dumps(script)), {"PYTHONPATH": str(ROOT)})


def compare(*sides, workload=TASK, rounds=3, steps=2, **options):
    return paired.compare(workload, sides, rounds=rounds, steps=steps, settle_seconds=0.0, timeout=60, **options)


@pytest.mark.parametrize("model", PARAMETERS)
def test_our_network_has_the_parameters_of_pytorchs(model):
    assert set(PARAMETERS) == set(equivalents.EQUIVALENTS)
    workload = versus.make_workload(model, batch_size=2, image_size=96, backend="cpu", aux_weights=(0.3, 0.3))
    network = create_model(model, num_classes=1000, **workload["options"])
    assert count_cost(network, 96).parameters_with_aux == PARAMETERS[model]
    # The rates that both sides take are the ones that ours has by itself.
    for name in ("dropout_rate", "aux_dropout_rate"):
        assert workload["options"].get(name) == getattr(create_model(model), name, None)


def test_a_workload_is_of_json_values_and_knows_the_heads():
    workload = versus.make_workload("inception_v1", batch_size=2, image_size=96, backend="cpu", aux_weights=(0.3, 0.3))
    assert json.loads(json.dumps(workload)) == workload
    assert workload["aux_weights"] == [0.3, 0.3]
    headless = versus.make_workload(
        "inception_v1_bn",
        batch_size=2,
        image_size=96,
        backend="cpu",
        aux_weights=(0.3, 0.3),
        options={"aux_heads": False, "dropout_rate": 0.5},
    )
    assert headless["aux_weights"] == []
    assert headless["options"] == {
        "dropout_rate": 0.5,
        "five_by_five": 3,
        "pool4_window": 2,
        "aux_pool": "adaptive",
        "aux_heads": False,
    }
    create_model("inception_v1_bn", **headless["options"])  # refuses a rate of heads that are not there
    v4 = versus.make_workload("inception_v4", batch_size=2, image_size=96, backend="cpu", aux_weights=(0.4,))
    assert v4["aux_weights"] == []


@pytest.mark.parametrize(
    "model, changes, message",
    [
        ("inception_v1", {"backend": "tpu"}, r"backend 'tpu': --vs=torch compares on cpu, gpu"),
        ("inception_v2", {}, r"--model='inception_v2': no equivalent .*compares: inception_v1, inception_v1_bn, "),
        ("inception_v1_bn", {"options": {"five_by_five": 5}}, r"--set five_by_five=5: torchvision.*five_by_five=3"),
        (
            "inception_v1_bn",
            {"options": {"width_multiplier": 0.5}},
            r"--set width_multiplier=0.5: .* has no such option",
        ),
        ("inception_v4", {"options": {"aux_heads": True}}, r"--set aux_heads=True: timm.* with aux_heads=False"),
        ("inception_v4", {"options": {"aux_dropout_rate": 0.5}}, r"--set aux_dropout_rate=0.5: has no effect"),
        ("inception_v4", {"dtype": "float16"}, r"--dtype='float16': --vs=torch compares float32, bfloat16"),
    ],
)
def test_an_option_that_pytorch_has_not_is_refused(model, changes, message):
    with pytest.raises(UserError, match=message):
        versus.make_workload(model, batch_size=2, image_size=96, aux_weights=(), **{"backend": "cpu"} | changes)


def test_sides_of_pytorch():
    assert [side.name for side in versus.torch_sides("cpu")] == ["torch-eager", "torch-channels_last"]
    assert len(versus.torch_sides("gpu")) == 4
    (side,) = versus.torch_sides("cpu", "/there/python", ["compile"])
    assert side.command[0] == "/there/python" and side.command[-1] == "--variant=compile"
    with pytest.raises(
        UserError, match=r"--torch_variants: unknown variant 'channel_last'; did you mean 'channels_last'\?"
    ):
        versus.torch_sides("cpu", None, ["channel_last"])


def test_known_speeds_give_the_known_ratio():
    # The machine slows down by up to a factor of 100 between rounds; in each of them B takes about 2.5 times A's time.
    pace = [1.0, 1.0, 100.0, 30.0, 7.0, 50.0]
    share = [1.0, 2.5, 2.4, 2.5, 2.6, 9.0]
    result = compare(
        fake("A", pace, [0.001] * 6),
        fake("B", [p * s for p, s in zip(pace, share, strict=True)], [0.0005] * 6),
        rounds=5,
    )
    ratio = result["sides"]["B"]["train"]["ratio"]
    assert ratio["median"] == pytest.approx(2.5)
    assert ratio["rounds"] == pytest.approx(share[1:])
    assert (ratio["p10"], ratio["p90"]) == pytest.approx((2.44, 6.44))
    assert result["sides"]["B"]["inference"]["ratio"]["median"] == pytest.approx(0.5)
    assert result["sides"]["A"]["train"]["ratio"]["rounds"] == [1.0] * 5
    train = result["sides"]["A"]["train"]
    assert train["blocks"] == pytest.approx(pace[1:]) and train["steps_per_block"] == 2
    assert train["step_seconds"]["median"] == pytest.approx(30) and train["images_per_second"] == pytest.approx(4 / 30)
    assert train["cpu_seconds"] == 2.0
    assert versus_report.find_problems(result) == []
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_the_order_rotates_and_every_side_takes_every_turn(tmp_path):
    path, said = str(tmp_path / "turns"), []
    result = compare(*(fake(name, [1.0] * 4, path=path) for name in "ABC"), log=said.append)
    turns = [line.split() for line in Path(path).read_text().splitlines()]
    orders = ["ABC", "ABC", "BCA", "CAB"]  # of the warm-up and of three rounds
    assert turns == [[name, kind] for order in orders for kind in TASK["kinds"] for name in order]
    assert result["order"] == [list(order) for order in orders[1:]]
    assert said[:3] == [f"{name}: ready after 0.0 s" for name in "CBA"]
    assert said[3] == "round 1 of 3: " + "; ".join(f"{name} train 1000 ms, inference 1000 ms" for name in "ABC")


def test_a_side_may_take_more_steps_than_it_is_asked_for():
    result = compare(fake("A", [1.0] * 4, taken=[2, 4, 5, 8]), fake("B", [1.0] * 4))
    train = result["sides"]["A"]["train"]
    assert train["blocks"] == [2 / 4, 2 / 5, 2 / 8] and train["steps_per_block"] == 4
    assert train["cpu_blocks"] == [4 / 4, 4 / 5, 4 / 8]
    ratios = result["sides"]["B"]["train"]
    assert ratios["ratio"]["rounds"] == [2.0, 2.5, 4.0] and ratios["cpu_ratio"]["rounds"] == [2.0, 2.5, 4.0]


def test_losses_are_judged_from_the_first_step():
    prepared = {"losses": [9.0, 9.0, 8.0, 8.0]}  # it took four steps to prepare
    result = compare(fake("A", [1.0] * 4), fake("B", [1.0] * 4, losses=[5.0] * 6 + [7.0] * 2, prepared=prepared))
    a, b = (result["sides"][name] for name in "AB")
    assert a["losses"] == {"steps": 8, "first_quarter": 4.5, "last_quarter": pytest.approx(0.175)}
    assert a["falling"] is True and a["finite"] is True
    assert b["losses"] == {"steps": 12, "first_quarter": pytest.approx(26 / 3), "last_quarter": pytest.approx(19 / 3)}
    assert b["falling"] is True

    result = compare(fake("A", [1.0] * 4), fake("B", [1.0] * 4, losses=[5.0, 4.0, float("nan"), *[1.0] * 5]))
    assert result["sides"]["B"]["falling"] is False


@pytest.mark.parametrize(
    "changes, problem",
    [
        (
            {"losses": FALLING[::-1]},
            "B: the training loss does not fall: 0.175 is the mean of the first quarter of 8 steps, 4.5 of the last",
        ),
        (
            {"losses": [1.0] * 8},
            "B: the training loss does not fall: 1 is the mean of the first quarter of 8 steps, 1 of the last",
        ),
        ({"losses": [*FALLING[:3], float("nan"), *FALLING[4:]]}, "B: a loss or a logit is not finite"),
        ({"losses": [*FALLING[:7], float("inf")]}, "B: a loss or a logit is not finite"),
        ({"finite": False}, "B: a loss or a logit is not finite"),
        ({"prepared": {"pictures": "cd"}}, "B: its images (SHA-256) are cd, those of A ab"),
        ({"prepared": {"parameters": 8}}, "B: its parameters are 8, those of A 7"),
        ({"prepared": {"macs": 5}}, "B: its multiply-adds are 5, those of A 4"),
        ({"prepared": {"flags": {"threads": 1}}}, "B: its threads are 1, those of A 2"),
    ],
)
def test_an_invalid_result_gives_its_reasons(changes, problem):
    result = compare(
        fake("A", [1.0] * 4, prepared={"macs": 4, "flags": {"threads": 2}}), fake("B", [1.0] * 4, **changes)
    )
    assert versus_report.find_problems(result) == [problem]
    assert f"! {problem}" in versus_report.format_text(result).splitlines()
    json.dumps(result, allow_nan=False)  # not a number: not JSON


def test_a_time_limit_keeps_the_rounds_that_were_made():
    said = []
    result = compare(fake("A", [1.0] * 4), fake("B", [2.0] * 4), time_limit=0.0, log=said.append)
    assert result["rounds"] == 1 and result["order"] == [["A", "B"]]
    assert result["sides"]["B"]["train"]["ratio"]["rounds"] == [2.0]
    assert "time limit of 0 s reached: 1 of 3 rounds are made" in said


def test_a_side_takes_its_own_kinds_of_steps():
    forward = dataclasses.replace(fake("B", [2.0] * 4, losses=[]), kinds=("inference",))
    result = compare(fake("A", [1.0] * 4), forward)
    side = result["sides"]["B"]
    assert "train" not in side and side["losses"] is None and side["inference"]["ratio"]["rounds"] == [2.0] * 3
    assert side["prepared"]["task"]["kinds"] == ["inference"]
    assert len(result["sides"]["A"]["train"]["blocks"]) == 3 and versus_report.find_problems(result) == []


def test_onnxruntime_compares_inference():
    given = {"batch_size": 2, "image_size": 96, "backend": "cpu", "aux_weights": ()}
    workload = versus.make_workload("inception_v2", peers=("onnxruntime",), kinds=("inference",), **given)
    assert workload["peers"] == ["onnxruntime"] and workload["options"] == {}
    with pytest.raises(UserError, match="--vs=onnxruntime compares inference only: add --what=inference"):
        versus.make_workload("inception_v2", peers=("onnxruntime",), **given)
    assert versus.onnx_side().kinds == ("inference",)


# Trainable parameters of keras.applications 3.15 at 10 classes.
@pytest.mark.parametrize(
    ("model", "parameters"),
    [("inception_v3", 21_788_842), ("inception_resnet_v2", 54_291_562), ("xception", 20_827_442)],
)
def test_our_network_has_the_parameters_of_kerass(model, parameters):
    given = {"batch_size": 2, "image_size": 96, "backend": "cpu", "aux_weights": (0.3,), "num_classes": 10}
    workload = versus.make_workload(model, peers=("keras",), **given)
    network = create_model(model, num_classes=10, **workload["options"])
    assert count_cost(network, 96).parameters_with_aux == parameters
    with pytest.raises(UserError, match=r"--set bn_scale: keras\.applications has no such option.* allowed: conv"):
        versus.make_workload(model, peers=("keras",), options={"bn_scale": True}, **given)
    own = versus.make_workload(model, peers=("keras",), options={"convolution": "exact"}, **given)
    assert own["options"] == workload["options"] | {"convolution": "exact"}


def test_keras_has_some_networks_and_not_those_of_pytorch():
    given = {"batch_size": 2, "image_size": 96, "backend": "cpu", "aux_weights": ()}
    with pytest.raises(UserError, match="--model='inception_v4': --vs=keras compares: inception_v3, inception_resnet"):
        versus.make_workload("inception_v4", peers=("keras",), **given)
    with pytest.raises(UserError, match="compare one at a time"):
        versus.make_workload("inception_v3", peers=("torch", "keras"), **given)
    assert versus.keras_side("cpu", "python9").command[0] == "python9"


@pytest.mark.slow
def test_a_comparison_with_keras_is_valid():
    pytest.importorskip("keras", reason="Keras is not installed: pip install keras")
    given = {"batch_size": 2, "image_size": 75, "backend": "cpu", "aux_weights": (), "num_classes": 5}
    workload = versus.make_workload("xception", peers=("keras",), **given)
    result = paired.compare(workload, [versus.jax_side("cpu"), versus.keras_side("cpu")], rounds=3, steps=4)
    assert versus_report.find_problems(result) == []


def test_the_onnxruntime_side_runs_our_network():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    workload = versus.make_workload(
        "inception_v1",
        peers=("onnxruntime",),
        kinds=("inference",),
        batch_size=2,
        image_size=32,
        backend="cpu",
        aux_weights=(),
        options={"width_multiplier": 0.1, "min_width": 2},
        num_classes=3,
    )
    side = OnnxSide()
    prepared = side.prepare(workload)
    block = side.block("inference", 2)
    assert block["finite"] and block["seconds"] > 0 and set(prepared["versions"]) == {"onnx", "onnxruntime"}
    cost = count_cost(create_model("inception_v1", num_classes=3, **workload["options"]), 32)
    assert (prepared["parameters"], prepared["macs"]) == (cost.parameters_with_aux, cost.macs_with_aux)
    onnx = importlib.import_module("onnx")
    normalized = onnx_side._export(workload | {"model": "inception_v1_bn"})[2]
    operators = {node.op_type for node in onnx.load_model_from_string(normalized).graph.node}
    assert "Conv" in operators and "Mul" not in operators  # batch norm is folded
    with pytest.raises(Unavailable, match="on a CPU in float32 only"):
        side.prepare(workload | {"dtype": "bfloat16"})


def test_a_side_without_training_is_not_asked_to_learn():
    sides = [fake(name, [1.0] * 4, losses=[]) for name in "AB"]
    result = compare(*sides, workload=TASK | {"kinds": ["inference"]})
    assert result["sides"]["A"]["losses"] is None and "train" not in result["sides"]["A"]
    assert versus_report.find_problems(result) == []


@pytest.mark.parametrize("moment", ["prepare", 0, 4])  # 0: the warm-up; 4: the first block of the second round
def test_a_side_that_fails_is_excluded_and_named(moment):
    said = []
    sides = [fake("A", [1.0] * 4), fake("B", [2.0] * 4, fault="cuda", before=moment), fake("C", [3.0] * 4)]
    result = compare(*sides, log=said.append)
    why = (
        "B: RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB.; all sides hold their memory at the same "
        "time: use a smaller batch"
    )
    assert result["sides"]["B"] == {"error": why, "kind": "out_of_memory"}
    assert versus_report.find_problems(result) == [f"excluded: {why}"]
    assert f"excluded: {why}" in said
    assert result["sides"]["C"]["train"]["ratio"]["rounds"] == [3.0] * 3


def test_nothing_is_left_to_compare():
    with pytest.raises(UserError, match=r"^B: no torch here$"):
        compare(fake("A", [1.0] * 4), fake("B", [1.0] * 4, fault="unavailable", before="prepare"))
    with pytest.raises(UserError, match=r"^A: its worker died with exit code 3 in 'block'"):
        compare(fake("A", [1.0] * 4, fault="die"), fake("B", [1.0] * 4), fake("C", [1.0] * 4))
    with pytest.raises(UserError, match=r"^--rounds=0: must be 1 or more$"):
        compare(fake("A", []), rounds=0)


def test_tables_show_every_side_and_kind():
    result = compare(
        fake("A", [0.2] * 4, [0.1] * 4, prepared={"device": "chip", "versions": {"jax": "1.2"}}),
        fake("bee", [0.1] * 4, [0.3] * 4, prepared={"flags": {"threads": 2, "amp": None}}),
    )
    result["cores_of_others"] = 0.05 * result["cores"]  # as much as a quiet machine has
    lines = versus_report.format_text(result).splitlines()
    assert lines[0].startswith("fake, 8 px, batch 4, float32, on chip: 3 rounds of 2 steps; ")
    assert lines[1].split() == "side step ms/step p10 p90 images/s time p10 p90 loss".split()
    assert [line.split() for line in lines[2:6]] == [
        "A train 200 200 200 20 1.000 1.000 1.000 4.500 to 0.175".split(),
        "bee train 100 100 100 40 0.500 0.500 0.500 4.500 to 0.175".split(),
        "A inference 100 100 100 40 1.000 1.000 1.000".split(),
        "bee inference 300 300 300 13.33 3.000 3.000 3.000".split(),
    ]
    assert lines[6:8] == ["A: jax 1.2", "bee: threads 2"]
    assert [line[:41] for line in lines[8:] if "host memory" not in line] == [
        "our forward pass is of one JAX device; ev"
    ]
    assert "our weights are prepared" not in "\n".join(lines)
    result["task"] = result["task"] | {"options": {"convolution": "onednn_winograd"}}
    assert "\nour weights are prepared before the time" in versus_report.format_text(result)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system tells no peak of a process")
def test_peaks_of_memory_are_of_each_process_and_phase():
    large = fake("A", [0.5] * 4, [0.5] * 4, allocated=[300_000_000] * 4)
    result = compare(large, fake("B", [0.5] * 4, [0.5] * 4))
    peaks = {name: side["host_memory"] for name, side in result["sides"].items()}
    assert 280e6 < peaks["A"]["steps"] - peaks["A"]["prepare"] < 340e6 and peaks["B"]["steps"] < 200e6
    for name, peak in ("A", {"prepare": 2_345_000_000, "steps": 1_004_000_000}), ("B", {"prepare": 5}):
        result["sides"][name]["host_memory"] = peak
    note = "host memory at the most, until ready and while it took steps: A 2.35 and 1.00 GB"
    assert note in versus_report.format_text(result).splitlines()


def test_a_busy_machine_is_reported():
    result = compare(fake("A", [1.0] * 4), fake("B", [1.0] * 4))
    assert result["cores"] >= 1 and (result["cores_of_others"] is None or result["cores_of_others"] >= 0)
    for others, told in ((None, False), (0.1, False), (0.11, True)):
        result |= {"cores_of_others": others, "cores": 2}
        assert (
            "the machine was busy: other processes used 0.11 of 2 cores" in versus_report.format_text(result)
        ) is told


def test_a_table_says_where_the_networks_differ():
    result = compare(fake("A", [1.0] * 4), fake("B", [1.0] * 4))
    result = copy.deepcopy(result) | {"task": TASK | {"model": "inception_v4", "dtype": "bfloat16"}}
    assert "timm.create_model('inception_v4')" in versus_report.format_text(result)
    assert "gradient norm" in versus_report.format_text(result) and "autocast" in versus_report.format_text(result)
