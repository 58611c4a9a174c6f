"""FLOPs, bytes and bounds: counted by hand, and held against the compiler's count."""

import dataclasses
from pathlib import Path

import jax
import pytest

from inception_jax.benchmarks import hardware, roofline, steps, workload
from inception_jax.errors import UserError
from inception_jax.models.cost import LayerCost, count_cost
from inception_jax.models.registry import create_model

CONV = LayerCost(
    "a", "a/conv", (3, 3, 8, 16), (10, 10, 8), (10, 10, 16), macs=115_200, inside_macs=100_352, reads_image=False
)


def bench(name, width, pixels, batch, devices=1, **fields):
    recipe = workload.config_of_model(name, 10)
    workload.set_fields(
        recipe,
        {
            "batch_size": batch,
            "data.image_size": pixels,
            "model.width_multiplier": width,
            "parallel.devices": devices,
            **fields,
        },
    )
    return steps.Bench(workload.build_setup(recipe))


@pytest.mark.parametrize(
    ("padding", "size", "stride", "expected"),
    # Along one axis: a window of 3 over 5 pixels touches 2 + 3 + 3 + 3 + 2 of them with one pixel of padding.
    [("SAME", 5, 1, 13 * 13), ("VALID", 5, 1, 9 * 9), ("SAME", 5, 2, 7 * 7), (1, 4, 1, 10 * 10), ("SAME", 1, 1, 1)],
)
def test_multiply_adds_inside_the_map(padding, size, stride, expected):
    from inception_jax.models.convolution import explicit_padding
    from inception_jax.models.cost import _taps_inside

    (low, high), _ = explicit_padding((size, size), (3, 3), (stride, stride), padding)
    count = (size + low + high - 3) // stride + 1
    assert _taps_inside(size, 3, 1, stride, low, count) ** 2 == expected


def test_multiply_adds_of_a_dilated_kernel():
    from inception_jax.models.cost import _taps_inside

    # Three taps two pixels apart on five pixels, two of padding: the places' taps on the map are 2, 2, 3, 2, 2.
    assert _taps_inside(5, 3, 2, 1, 2, 5) == 11


def test_layers_are_the_blocks_in_detail():
    counted = count_cost(create_model("inception_v1"), 224)
    assert sum(layer.macs for layer in counted.layers if not layer.auxiliary) == counted.macs == 1_582_671_872
    assert sum(layer.macs for layer in counted.layers) == counted.macs_with_aux
    first = counted.layers[0]
    assert (first.name, first.kernel, first.input, first.output) == (
        "conv1",
        (7, 7, 3, 64),
        (224, 224, 3),
        (112, 112, 64),
    )
    assert [layer.name for layer in counted.layers if layer.reads_image] == ["conv1"]
    # Stride 2, three pixels of padding: the first windows miss 3 and 1 pixels, the last one misses 2: 784 - 6.
    assert first.inside_macs == 778 * 778 * 3 * 64
    last = counted.layers[-1]
    assert (last.block, last.kernel, last.input, last.output) == (
        "classifier",
        (1, 1, 1024, 1000),
        (1, 1, 1024),
        (1, 1, 1000),
    )
    assert last.macs == last.inside_macs == 1_024_000


def test_training_is_three_passes_but_for_the_first_layer():
    first = dataclasses.replace(CONV, reads_image=True)
    assert roofline.model_flops([CONV], "inference") == 2 * 115_200
    assert roofline.model_flops([CONV], "train") == 6 * 115_200
    assert roofline.model_flops([first], "train") == 4 * 115_200
    assert roofline.inside_flops([first, CONV], "train") == 10 * 100_352


def test_flops_of_googlenet_and_inception_v4():
    """FINDINGS' figures: 1.591 GMAC forward with heads, 9.3 GFLOP per training image; Inception-v4 73.5."""
    counted = count_cost(create_model("inception_v1"), 224)
    assert roofline.model_flops(roofline.layers_of(counted, "train"), "train") == pytest.approx(9.31e9, rel=1e-3)
    assert roofline.model_flops(roofline.layers_of(counted, "inference"), "inference") == 2 * 1_582_671_872
    counted = count_cost(create_model("inception_v4"), 299)
    assert roofline.model_flops(roofline.layers_of(counted, "train"), "train") == pytest.approx(73.5e9, rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "name", "width", "pixels", "batch"),
    [
        ("train", "inception_v1", 0.25, 32, 2),
        ("inference", "inception_v1_bn", 0.5, 64, 2),
        ("inference", "inception_v4", 0.125, 75, 2),
        pytest.param("train", "inception_v1_bn", 0.5, 64, 2, marks=pytest.mark.slow),
        pytest.param("train", "inception_v4", 0.125, 75, 2, marks=pytest.mark.slow),
        pytest.param("train", "inception_v1", 1.0, 224, 2, marks=pytest.mark.slow),
        pytest.param("train", "inception_v4", 1.0, 299, 1, marks=pytest.mark.slow),
    ],
)
def test_the_compiler_counts_what_we_count(kind, name, width, pixels, batch):
    measured = bench(name, width, pixels, batch)
    ours = roofline.inside_flops(measured.layers(kind), kind)
    per_image, beside = measured.count_flops(kind)
    assert 1.0 < roofline.check_flops(ours, per_image, kind) < 1.06  # the rest: activations, batch norm, pools, losses
    assert (beside > measured.num_parameters) if kind == "train" else (beside < 1e-3 * batch * per_image)


def test_the_count_is_of_the_whole_batch_on_any_number_of_devices(two_modules):
    one, two = (bench(two_modules, 0.25, 32, 4, devices).count_flops("inference")[0] for devices in (1, 2))
    assert two == pytest.approx(one, rel=1e-3)


def test_a_layer_that_the_program_does_not_run_is_noticed(two_modules):
    measured = bench(two_modules, 0.25, 32, 2)
    per_image, _ = measured.count_flops("inference")
    layers = measured.layers("inference")
    assert 1.0 < roofline.check_flops(roofline.inside_flops(layers, "inference"), per_image, "forward") < 1.06
    largest = max(layers, key=lambda layer: layer.inside_macs)
    assert largest.inside_macs > 0.15 * sum(layer.inside_macs for layer in layers)
    with pytest.raises(roofline.FlopsDisagree, match=r"forward: the compiler counts .* \+\d\d\.\d %"):
        roofline.check_flops(
            roofline.inside_flops([layer for layer in layers if layer is not largest], "inference"),
            per_image,
            "forward",
        )
    with pytest.raises(roofline.FlopsDisagree, match=r"-\d\d\.\d %"):
        roofline.check_flops(roofline.inside_flops([*layers, largest], "inference"), per_image, "forward")


def test_bounds_by_hand():
    peak, bandwidth = 1e12, 1e10
    (bound,) = roofline.block_bounds([CONV], "inference", 4, 2, peak, bandwidth)
    assert bound.flops == 2 * 115_200 * 4
    assert bound.bytes == 2 * (4 * (800 + 1600) + 1152)
    assert bound.compute_seconds == bound.flops / peak
    assert bound.memory_seconds == bound.bytes / bandwidth
    assert (bound.limited_by, bound.seconds) == ("memory", bound.memory_seconds)
    (bound,) = roofline.block_bounds([CONV], "train", 4, 2, 1e9, bandwidth)
    assert bound.bytes == 3 * 2 * (4 * (800 + 1600) + 1152)
    assert (bound.limited_by, bound.seconds) == ("compute", 3 * 2 * 115_200 * 4 / 1e9)


def test_a_block_is_bounded_layer_by_layer():
    """One layer bound by arithmetic and one by memory: the block takes the sum, not the larger of two sums."""
    heavy = dataclasses.replace(CONV, macs=10**9)
    peak, bandwidth = 1e12, 1e10
    alone = [roofline.block_bounds([layer], "inference", 1, 4, peak, bandwidth)[0] for layer in (heavy, CONV)]
    assert [bound.limited_by for bound in alone] == ["compute", "memory"]
    (both,) = roofline.block_bounds([heavy, CONV], "inference", 1, 4, peak, bandwidth)
    assert both.seconds == pytest.approx(alone[0].seconds + alone[1].seconds)
    assert both.seconds > max(both.compute_seconds, both.memory_seconds)


@pytest.mark.parametrize(
    ("kind", "dtype", "teraflops", "gigabytes"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.5, 3350),
        ("NVIDIA H200", "bfloat16", 989.5, 4800),
        ("NVIDIA H200 NVL", "float32", 417.5, 4800),
        ("NVIDIA A100-SXM4-40GB", "float32", 156, 1555),
        ("NVIDIA L4", "bfloat16", 121, 300),
        ("NVIDIA L40S", "bfloat16", 362.05, 864),
        ("TPU v4", "bfloat16", 275, 1200),
        ("TPU v5 lite", "bfloat16", 197, 800),
        ("TPU v5p", "bfloat16", 459, 2765),
        ("TPU v5", "bfloat16", 459, 2765),
        ("TPU v6 lite", "float32", 918, 1600),
    ],
)
def test_chips_by_their_kind(kind, dtype, teraflops, gigabytes):
    limits = hardware.device_limits(kind, dtype)
    assert limits.flops == pytest.approx(1e12 * teraflops)
    assert limits.bandwidth == pytest.approx(1e9 * gigabytes)


def test_unknown_chips_have_no_limits_and_overrides_win():
    assert hardware.device_limits("cpu", "float32") == hardware.Limits(None, None, "'cpu' is not in the table of chips")
    assert hardware.device_limits("TPU v4", "float64").flops is None
    given = hardware.device_limits("NVIDIA H200", "bfloat16", flops=5e14)
    assert (given.flops, given.bandwidth) == (5e14, 4.8e12)
    assert hardware.FLOPS_GIVEN in given.source and "H200" in given.source
    with pytest.raises(UserError, match="--peak_tflops"):
        hardware.device_limits("cpu", "float32", flops=0.0)
    assert all(chip.source and 0 < chip.flops["float32"] <= chip.flops["bfloat16"] for chip in hardware.CHIPS)


def test_the_readme_has_the_table_of_chips():
    readme = Path(hardware.__file__).with_name("README.md").read_text()
    for chip in hardware.CHIPS:
        numbers = (chip.flops["bfloat16"] / 1e12, chip.flops["float32"] / 1e12, chip.bandwidth / 1e9)
        cells = (chip.name, *(f"{number:,.6g}" for number in numbers), chip.source)
        assert f"| {' | '.join(cells)} |" in readme


def test_frozen_layers_are_refused():
    recipe = workload.config_of_model("inception_v1", 10)
    workload.set_fields(recipe, {"data.image_size": 32, "optimizer.freeze": ("^conv1/",), "parallel.devices": 1})
    with pytest.raises(UserError, match=r"optimizer\.freeze"):
        workload.build_setup(recipe)


def test_the_compiler_is_asked_with_the_real_step(monkeypatch, two_modules):
    """A step that does its work twice is told from one that does it once."""
    measured = bench(two_modules, 0.25, 32, 2)
    once = measured.count_flops("inference")[0]
    make = steps.make_inference_step

    def doubled(*arguments):
        step = make(*arguments)

        def twice(variables, batch):
            _, first = step(variables, batch)
            flipped = {**batch, "image": batch["image"][:, :, ::-1]}
            return {}, jax.tree.map(lambda a, b: a + b, first, step(variables, flipped)[1])

        return twice

    monkeypatch.setattr(steps, "make_inference_step", doubled)
    assert measured.count_flops("inference")[0] == pytest.approx(2 * once, rel=0.01)
