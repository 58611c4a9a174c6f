"""The training step as it is given to the compilers for GPUs and TPUs, lowered on this machine: no plugin is needed."""

import re

import jax
import numpy as np
import pytest

from inception_jax.benchmarks import steps, workload
from inception_jax.models import blocks, inception_v1, pooling, registry
from inception_jax.models.initialization import caffe_xavier

PLATFORMS = ("cuda", "tpu")
HALF = ("bf16", "f16")


@pytest.fixture(scope="module")
def lowered(two_modules):
    """(programs, {platform: StableHLO} of the training step with both heads and EMA in bfloat16, on two devices)."""
    recipe = workload.config_of_model(two_modules, 10)
    values = {
        "batch_size": 4,
        "data.image_size": 32,
        "model.width_multiplier": 0.25,
        "model.dtype": "bfloat16",
        "parallel.devices": 2,
        "ema.decay": 0.9,
    }
    workload.set_fields(recipe, values)
    programs = steps.StepPrograms(workload.build_setup(recipe))
    traced = programs.trace_train()
    return programs, {name: traced.lower(lowering_platforms=(name,)).as_text() for name in PLATFORMS}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_step(lowered, platform):
    programs, texts = lowered
    text = texts[platform]
    assert "stablehlo.scatter" not in text
    assert platform == "tpu" or "select_and_scatter" not in text  # a TPU has an instruction for it
    types = re.findall(r"stablehlo\.convolution\(.*: \(tensor<[\dx]*x(\w+)>, tensor<[\dx]*x(\w+)>\)", text)
    # Forward pass and both gradients of each of the layers, but the gradient of the images.
    convolutions = [layer for layer in programs.layers("train") if layer.output[:2] != (1, 1)]
    assert len(types) >= 3 * len(convolutions) - 1
    assert set(types) == {("bf16", "bf16")}
    assert half_precision_sums(text) == []
    assert len(re.findall(r"stablehlo\.all_reduce", text)) == 1
    (bytes_reduced,) = (int(size) for size in re.findall(r"all_reduce.*?\}\) : \(tensor<(\d+)xf32>\)", text, re.S))
    assert bytes_reduced > programs.num_parameters
    assert len(re.findall(r"jax\.buffer_donor = true|tf\.aliasing_output", text)) == len(
        jax.tree.leaves(programs._state)
    )


def half_precision_sums(text):
    """The lines of StableHLO that add numbers of 16 bits over an axis, a window or the devices."""
    lines = re.findall(r".*stablehlo\.reduce\(.*applies stablehlo\.add .*", text)
    windows = re.findall(r"stablehlo\.(?:reduce_window|all_reduce|reduce_scatter)\".*?\}\) : \(.*?\)", text, re.S)
    lines += [window for window in windows if "stablehlo.add" in window]
    return [line for line in lines if re.search(rf": \(tensor<[\dx]*({'|'.join(HALF)})>", line)]


def test_sums_in_16_bits_are_found():
    x = jax.ShapeDtypeStruct((4, 8), "bfloat16")
    text = jax.jit(lambda x: jax.lax.reduce(x, np.array(0, x.dtype), jax.lax.add, (1,))).lower(x).as_text()
    assert len(half_precision_sums(text)) == 1
    text = jax.jit(lambda x: jax.lax.reduce_window(x, np.array(0, x.dtype), jax.lax.add, (1, 3), (1, 1), "SAME"))
    assert len(half_precision_sums(text.lower(x).as_text())) == 1


@pytest.mark.parametrize("platform", PLATFORMS)
def test_pools_have_no_scatter(platform):
    """The gradient of XLA's own max pool is a select-and-scatter: atomic additions on a GPU."""
    x = jax.ShapeDtypeStruct((2, 9, 9, 4), "bfloat16")

    def run(x):
        y, pullback = jax.vjp(lambda x: pooling.max_pool(x, 3, 2), x)
        return pullback(y)

    text = jax.jit(run).trace(x).lower(lowering_platforms=(platform,)).as_text()
    assert platform == "tpu" or "scatter" not in text
    assert half_precision_sums(text) == []


@pytest.mark.parametrize("platform", PLATFORMS)
def test_batch_norm_adds_in_float32(platform):
    model = registry.create_model("inception_v1_bn", num_classes=10, dtype="bfloat16", width_multiplier=0.25)
    widths = inception_v1.GoogLeNetWidths(*inception_v1.MODULES["3a"])
    options = model.layer_options(caffe_xavier, caffe_xavier)
    block = blocks.Mixed(inception_v1.reduced_module(widths, 5), options)
    x = jax.ShapeDtypeStruct((2, 8, 8, 16), "bfloat16")
    variables = jax.eval_shape(lambda x: block.init(jax.random.key(0), x, train=False), x)

    def run(variables, x):
        y, pullback = jax.vjp(lambda *v: block.apply(*v, train=True, mutable=["batch_stats"])[0], variables, x)
        return pullback(y)

    text = jax.jit(run).trace(variables, x).lower(lowering_platforms=(platform,)).as_text()
    assert "applies stablehlo.add" in text and half_precision_sums(text) == []
