"""The PyTorch side: the same bytes and the same work as ours, in an interpreter without JAX.

Most of it needs one with torch, torchvision and timm: this one, or that which INCEPTION_JAX_TORCH_PYTHON names.
"""

import os
import sys

import pytest

from inception_jax import create_model
from inception_jax.benchmarks import paired, versus, versus_report
from inception_jax.benchmarks.synthetic_batches import fingerprint, make_batch
from inception_jax.benchmarks.worker import SideError, Worker
from inception_jax.models.cost import count_cost
from inception_jax.models.registry import get_spec

# Pixels: small, and no map of them even; torchvision's Inception-v3 trains with its head at 299 alone.
WORKING = {
    "inception_v1": 64,
    "inception_v1_bn": 64,
    "inception_v3": 299,
    "inception_v4": 107,
    "inception_resnet_v2": 107,
    "xception": 107,
}


def workload(model, image_size, **changes):
    weights = get_spec(model).aux_weights
    return versus.make_workload(
        model,
        image_size=image_size,
        backend="cpu",
        aux_weights=weights,
        **{"batch_size": 2, "num_classes": 10} | changes,
    )


def worker(python, variant="eager", **environment):
    (side,) = versus.torch_sides("cpu", python, [variant])
    return Worker(side.name, side.command, {**side.environment, **environment}, timeout=300)


def test_without_pytorch_it_says_what_to_install():
    (side,) = versus.torch_sides("cpu", None, ["eager"])
    # Without site-packages: neither PyTorch nor anything else that only looks as if the side did not need it.
    with Worker(side.name, (side.command[0], "-S", *side.command[1:])) as bare, pytest.raises(SideError) as caught:
        bare.prepare(workload("inception_v1_bn", 32))
    assert caught.value.kind == "unavailable"
    assert str(caught.value) == (
        f"torch-eager: {sys.executable} cannot import torch (No module named 'torch'); install there, in versions that "
        "belong together: torch torchvision numpy; or name an interpreter that has them with --torch_python"
    )


def test_a_torchvision_of_another_pytorch_is_one_line(tmp_path):
    (tmp_path / "torch.py").write_text("__version__ = '9.9'")
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist\\nat …')")
    with worker(sys.executable, PYTHONPATH=str(tmp_path)) as broken, pytest.raises(SideError) as caught:
        broken.prepare(workload("inception_v1_bn", 32))
    assert caught.value.kind == "unavailable"
    assert "cannot import torchvision (operator torchvision::nms does not exist); install" in str(caught.value)


def test_max_autotune_is_for_gpus():
    with worker(sys.executable, "compile_max_autotune") as side:
        with pytest.raises(SideError, match="max-autotune is for GPUs; on a CPU: eager, channels_last, compile"):
            side.prepare(workload("inception_v1", 32))


@pytest.mark.parametrize("model", WORKING)
def test_the_work_is_ours(model, torch_python):
    size = WORKING[model]
    asked = workload(model, size, num_classes=1000, kinds=("train",))
    with worker(torch_python) as side:
        prepared = side.prepare(asked)
    ours = count_cost(create_model(model, num_classes=1000, **asked["options"]), size)
    assert prepared["parameters"] == ours.parameters_with_aux
    assert prepared["macs"] == ours.macs_with_aux
    assert prepared["pictures"] == fingerprint([make_batch(0, number, 2, size, 1000) for number in range(3)])
    assert len(prepared["losses"]) == 1


def test_it_learns_and_says_how_it_ran(torch_python):
    asked = workload("inception_v1_bn", 32, batch_size=16, threads=1)
    with worker(torch_python, "channels_last", OMP_WAIT_POLICY="passive") as side:
        prepared = side.prepare(asked)
        block = side.block("train", 15)
        inference = side.block("inference", 2)
    assert sum(block["losses"][-4:]) < 0.8 * sum([*prepared["losses"], *block["losses"][:3]])
    assert block["finite"] and inference["finite"] and len(block["losses"]) == 15
    assert 0 < inference["seconds"] < block["seconds"]
    assert set(prepared["versions"]) == {"python", "numpy", "torch", "torchvision"}
    flags = prepared["flags"]
    assert flags["threads"] == 1 and flags["channels_last"] and flags["compile"] is None and flags["amp"] is None
    assert flags["environment"]["OMP_WAIT_POLICY"] == "passive" and "/" not in str(flags["environment"])
    assert flags["cores"] == len(os.sched_getaffinity(0)) and "memory_bytes" not in prepared


def test_bfloat16_is_autocast_and_heads_can_be_left_out(torch_python):
    losses = {}
    for dtype in ("float32", "bfloat16"):
        asked = workload("inception_v1", 32, dtype=dtype, options={"aux_heads": False, "dropout_rate": 0.0})
        with worker(torch_python) as side:
            prepared = side.prepare(asked)
        losses[dtype] = prepared["losses"][0]
    assert losses["bfloat16"] != losses["float32"] == pytest.approx(losses["bfloat16"], rel=0.02)
    ours = count_cost(create_model("inception_v1", num_classes=10, **asked["options"]), 32)
    assert prepared["flags"]["amp"] == "bfloat16" and prepared["flags"]["threads"] == prepared["flags"]["cores"]
    assert prepared["parameters"] == ours.parameters_with_aux == ours.parameters


def test_a_gpu_that_is_not_there_is_unavailable(torch_python):
    with worker(torch_python, CUDA_VISIBLE_DEVICES="") as side, pytest.raises(SideError, match="sees no GPU") as caught:
        side.prepare(workload("inception_v1", 32) | {"backend": "gpu"})
    assert caught.value.kind == "unavailable"


@pytest.mark.slow
def test_a_real_comparison_is_valid(torch_python):
    asked = workload("inception_v1_bn", 32, batch_size=8)
    sides = [versus.jax_side("cpu"), *versus.torch_sides("cpu", torch_python)]
    result = paired.compare(asked, sides, rounds=3, steps=4)
    assert versus_report.find_problems(result) == []
    assert {len(side["train"]["blocks"]) for side in result["sides"].values()} == {3}
