"""The steps that are timed: they end when the device has, take the batches in turn, and are `train`'s own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.benchmarks import steps, workload
from inception_jax.errors import UserError
from inception_jax.training.parallel import Compiled


@pytest.fixture(scope="module")
def bench(two_modules):
    recipe = workload.config_of_model(two_modules, 10)
    workload.set_fields(
        recipe,
        {
            "batch_size": 4,
            "data.image_size": 32,
            "model.width_multiplier": 0.25,
            "parallel.devices": 1,
            "optimizer.learning_rate": 0.05,
        },
    )
    return steps.Bench(workload.build_setup(recipe), batches=3, seed=5)


class Pending:
    """What a device is still working on."""

    def __init__(self):
        self.waited = False

    def block_until_ready(self):
        self.waited = True
        return self


@pytest.mark.parametrize("kind", workload.KINDS)
def test_a_block_ends_when_the_device_has_done_the_last_step(bench, kind, monkeypatch):
    outputs, seen = [], []

    def step(state, batch, *numbers):
        outputs.append(Pending())
        seen.append(batch)
        return (state, outputs[-1]) if kind == "train" else outputs[-1]

    monkeypatch.setitem(bench.compiled, kind, Compiled(step, 0.0))
    bench.run(kind, 7)
    assert len(outputs) == 7
    assert outputs[-1].waited
    assert not any(output.waited for output in outputs[:-1])  # within a block nothing is waited for
    order = [next(i for i, batch in enumerate(bench._batches) if batch is one) for one in seen]
    assert order == [0, 1, 2, 0, 1, 2, 0]
    bench._losses.clear()


def test_the_programs_of_the_initialization_are_forgotten(bench, monkeypatch):
    """As at the start of a run: the state is made before, and copied to the devices after."""
    events = []

    def record(owner, name):
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: (events.append(name), function(*a, **k))[1])

    record(steps.states, "create")
    record(steps, "forget_lowered_programs")
    record(type(bench.setup.devices), "replicate")
    steps.Bench(bench.setup, batches=1)
    forgotten = events.index("forget_lowered_programs")
    assert events[forgotten - 1 : forgotten + 2] == ["create", "forget_lowered_programs", "replicate"]


def test_inference_alone_holds_the_variables_alone(bench):
    alone = steps.Bench(bench.setup, batches=3, seed=5, trains=False)
    variables = jax.tree.leaves(alone._state.variables())
    leaves, all_leaves = len(jax.tree.leaves(alone._state)), len(jax.tree.leaves(bench._state))
    assert leaves == len(variables) + 1 < all_leaves  # and the number of the step
    outputs = []
    for one in (bench, alone):
        one.compile("inference")
        outputs.append(np.asarray(one.run("inference", 1)[1]["logits"]))
    np.testing.assert_array_equal(*outputs)


def test_compilation_is_timed_cold_and_from_the_cache(bench):
    before = {name: getattr(steps.jax.config, name) for name in ("jax_compilation_cache_dir",)}
    times = bench.time_compilation("inference")
    assert min(times.lowering, times.cold, times.cached) > 0  # that the cache was hit, an event says: the next test
    assert {name: getattr(steps.jax.config, name) for name in before} == before
    bench.run("inference", 1)


def test_a_cache_that_is_not_hit_is_noticed(bench, monkeypatch):
    monkeypatch.setattr(steps, "_HIT", "/no/such/event")
    monkeypatch.setattr(bench, "compile", lambda kind: Compiled(None, 1.0, 0.5))
    with pytest.raises(UserError, match="did not use the persistent compilation cache"):
        bench.time_compilation("inference")


def test_the_step_is_trains_and_learns(bench):
    bench.compile("train")
    bench.run("train", 12)
    losses = bench.pop_losses()
    assert len(losses) == 12 and bench.pop_losses() == []
    first, last = steps.quarter_means(losses)
    assert last < first
    assert int(bench._state.step) == 12


def test_several_steps_in_one_call_are_trains_too(two_modules):
    """As many losses as steps, the last call with fewer, and the losses of single steps."""
    losses = []
    for per_call in (1, 3):
        recipe = workload.config_of_model(two_modules, 10)
        fields = {"batch_size": 4, "data.image_size": 32, "model.width_multiplier": 0.25, "parallel.devices": 1}
        workload.set_fields(recipe, fields | {"parallel.steps_per_execution": per_call})
        bench = steps.Bench(workload.build_setup(recipe), batches=2, seed=5)
        assert bench.steps_per_call == per_call
        bench.compile("train")
        bench.run("train", 5)
        assert int(bench._state.step) == 5
        losses.append(bench.pop_losses())
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and len(set(losses[0])) == 5


def test_quarters():
    assert steps.quarter_means([8.0, 6.0, 1.0, 1.0, 1.0, 1.0, 2.0, 4.0]) == (7.0, 3.0)
    assert steps.quarter_means([2.0]) == (2.0, 2.0)


def test_the_forward_pass_gives_logits(bench):
    bench.compile("inference")
    output = bench.step("inference", [bench._batches[0]])
    assert output[1]["logits"].shape == (4, 10)
    assert bool(jnp.isfinite(output[1]["logits"]).all())
