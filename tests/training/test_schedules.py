"""Schedules against float64 NumPy, at steps where float32 arithmetic would show."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.training import schedules

TOTAL = 10_000_000
STEPS_PER_EPOCH = 1_281_167 / 32  # ImageNet at batch 32: 40,036.46875
BASE, END = 0.045, 1e-5

# name -> (options, the shape as a function of float64 steps)
SHAPES = {
    "constant": ({}, lambda s: np.full_like(s, BASE)),
    "staircase": (
        {"decay_rate": 0.96, "decay_epochs": 8.0, "staircase": True},
        lambda s: BASE * 0.96 ** np.floor(s / (8.0 * STEPS_PER_EPOCH)),
    ),
    "smooth": (
        {"decay_rate": 0.94, "decay_epochs": 2.0, "staircase": False},
        lambda s: BASE * 0.94 ** (s / (2.0 * STEPS_PER_EPOCH)),
    ),
    "floor": (
        {"decay_rate": 0.5, "decay_epochs": 2.0, "staircase": True, "end_learning_rate": END},
        lambda s: np.maximum(BASE * 0.5 ** np.floor(s / (2.0 * STEPS_PER_EPOCH)), END),
    ),
    # (TOTAL - s) / TOTAL, not 1 - s / TOTAL, which loses its digits near the end even in float64.
    "poly": ({"power": 0.5}, lambda s: BASE * ((TOTAL - s) / TOTAL) ** 0.5),
    "poly_to_end": (
        {"power": 1.0, "end_learning_rate": END},
        lambda s: END + (BASE - END) * (1 - s / TOTAL),
    ),
    "cosine": (
        {"end_learning_rate": END},
        # The half-angle form, for the same reason.
        lambda s: END + (BASE - END) * np.sin(0.5 * np.pi * (TOTAL - s) / TOTAL) ** 2,
    ),
}
NAMES = {
    "staircase": "exponential",
    "smooth": "exponential",
    "floor": "exponential",
    "poly": "polynomial",
    "poly_to_end": "polynomial",
}


def make(case, **more):
    options = {
        "base_learning_rate": BASE,
        "steps_per_epoch": STEPS_PER_EPOCH,
        "total_steps": TOTAL,
        **SHAPES[case][0],
        **more,
    }
    return schedules.make_schedule(NAMES.get(case, case), **options)


def probes():
    """Steps over the whole run, its ends, and both sides of the boundaries of 8-epoch and 2-epoch stairs."""
    rng = np.random.default_rng(0)
    stairs = np.ceil(np.arange(1, 125) * 2.0 * STEPS_PER_EPOCH).astype(np.int64)
    steps = np.concatenate(
        [rng.integers(0, TOTAL, 500), stairs - 1, stairs, np.arange(5), TOTAL - 1 - np.arange(5), [TOTAL]]
    )
    return np.sort(steps[steps <= TOTAL]).astype(np.int32)


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize(("warmup_epochs", "warmup_start"), [(0.0, 0.1), (5.5, 0.25)])
def test_float32_under_jit_equals_float64(case, warmup_epochs, warmup_start):
    steps = probes()
    rates = jax.jit(make(case, warmup_epochs=warmup_epochs, warmup_start=warmup_start))(steps)
    expected = SHAPES[case][1](steps.astype(np.float64))
    if warmup_epochs:
        share = np.minimum(steps / (warmup_epochs * STEPS_PER_EPOCH), 1)
        expected = expected * (warmup_start + (1 - warmup_start) * share)
    assert rates.dtype == jnp.float32
    np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", SHAPES)
def test_float64(x64, case):
    steps = probes()
    rates = jax.jit(make(case))(steps)
    assert rates.dtype == jnp.float64
    np.testing.assert_allclose(rates, SHAPES[case][1](steps.astype(np.float64)), rtol=1e-12, atol=0)


def test_caffe_solvers():
    """bvlc_googlenet: solver.prototxt (step) and quick_solver.prototxt (poly), in Caffe's integer arithmetic."""
    step = schedules.make_schedule(
        "exponential",
        base_learning_rate=0.01,
        steps_per_epoch=40_000,
        total_steps=TOTAL,
        decay_rate=0.96,
        decay_epochs=8,
        staircase=True,
    )
    poly = schedules.make_schedule(
        "polynomial", base_learning_rate=0.01, steps_per_epoch=40_000, total_steps=2_400_000, power=0.5
    )
    step, poly = jax.jit(step), jax.jit(poly)
    for iteration in (0, 319_999, 320_000, 639_999, 640_000, 9_919_999, 9_920_000):
        assert float(step(jnp.int32(iteration))) == pytest.approx(0.01 * 0.96 ** (iteration // 320_000), rel=1e-7)
    for iteration in (0, 1, 1_200_000, 2_399_999, 2_400_000):
        assert float(poly(jnp.int32(iteration))) == pytest.approx(0.01 * (1 - iteration / 2_400_000) ** 0.5, rel=1e-6)


def test_boundaries_that_are_whole_numbers_in_exact_arithmetic():
    """50000 / 96 * 30 is 15625.000000000002 in float64; stair 30 begins at step 15,625 all the same."""
    schedule = schedules.make_schedule(
        "exponential", base_learning_rate=1.0, steps_per_epoch=50_000 / 96, total_steps=TOTAL, decay_epochs=1
    )
    assert float(schedule(15_624)) == pytest.approx(0.94**29)
    assert float(schedule(15_625)) == pytest.approx(0.94**30)


def test_a_longer_run_begins_with_the_same_stairs():
    short, long = (make("staircase", total_steps=total) for total in (100_000, TOTAL))
    steps = jnp.arange(0, 100_001, 37)
    np.testing.assert_array_equal(jax.jit(short)(steps), jax.jit(long)(steps))


def test_after_the_end():
    assert float(make("poly")(TOTAL + 5)) == 0.0
    assert float(make("cosine")(TOTAL + 5)) == pytest.approx(END)
    assert float(make("constant")(2**31 - 1)) == pytest.approx(BASE)


def test_warmup_is_linear_and_meets_the_schedule():
    schedule = schedules.make_schedule(
        "constant", base_learning_rate=0.5, steps_per_epoch=10, total_steps=100, warmup_epochs=2, warmup_start=0.0
    )
    np.testing.assert_allclose(jax.jit(schedule)(jnp.arange(30)), np.minimum(0.5 * np.arange(30) / 20, 0.5), rtol=1e-6)


def test_a_run_shorter_than_its_warmup_still_learns():
    schedule = schedules.make_schedule(
        "cosine", base_learning_rate=0.5, steps_per_epoch=100, total_steps=5, warmup_epochs=2
    )
    rates = np.asarray(jax.jit(schedule)(jnp.arange(5)))
    assert (rates > 0.0).all() and math.isclose(rates[0], 0.05, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("exponential", {"decay_epochs": 0.001}, r"config\.schedule\.decay_epochs is 0\.1 steps"),
        ("polynomial", {"end_learning_rate": 0.2}, r"config\.schedule\.end_learning_rate = 0\.2; .*\(0\.1\)"),
    ],
)
def test_mistakes_name_the_field(name, options, message):
    defaults = {"base_learning_rate": 0.1, "steps_per_epoch": 100.0, "total_steps": 1000}
    with pytest.raises(UserError, match=message):
        schedules.make_schedule(name, **{**defaults, **options})


def test_every_named_option_is_one_that_can_be_given():
    values = {"decay_rate": 0.5, "decay_epochs": 1.0, "staircase": False, "power": 2.0, "end_learning_rate": 0.01}
    for name, options in schedules.OPTIONS.items():
        given = {option: values[option] for option in options}
        schedule = schedules.make_schedule(name, base_learning_rate=0.1, steps_per_epoch=10.0, total_steps=100, **given)
        assert jax.eval_shape(schedule, jnp.int32(50)).shape == ()
