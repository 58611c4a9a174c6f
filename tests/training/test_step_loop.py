"""Several steps in one execution: the numbers of single steps, and the same bits however the steps are divided."""

import dataclasses
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.training import executables, parallel, state, step_loop
from inception_jax.training.executable_files import Store

from .test_step import BATCH, batch, initial
from .test_step_numbers import assert_same_bits, prepare

STEPS = 7


def with_steps(setup, count):
    return SimpleNamespace(**vars(setup) | {"steps_per_execution": count})


def train(setup, limit, counts, dtype, batches=None):
    """(state, {name: [a number per step]}) after executions of `counts` steps."""
    if not hasattr(setup, "steps_per_execution"):
        setup = with_steps(setup, limit)
    call, devices = step_loop.TrainCall(setup, limit), setup.devices
    start = state.create(initial(True, dtype), setup.optimizer, keep_ema=setup.objective.ema_decay > 0)
    current = devices.replicate(start)
    batches = [devices.put(one) for one in batches or [batch(k) for k in range(sum(counts))]]
    compiled = devices.compile_train(call.function(), *call.arguments(current, batches[0]))
    log, done = [], 0
    with parallel.no_compilation():
        for count in counts:
            current, metrics = call(compiled, current, batches[done : done + count])
            log.append({name: np.ravel(values)[:count] for name, values in jax.device_get(metrics).items()})
            done += count
    return jax.device_get(current), {name: np.concatenate([row[name] for row in log]) for name in log[0]}


@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize(("name", "devices"), [("momentum", 1), ("momentum", 4), ("rmsprop", 2), ("adamw", 8)])
def test_a_loop_takes_the_steps_of_single_calls(x64, name, devices, mode):
    setup = prepare(name, jnp.float64, devices, mode)
    single, loop = (train(setup, limit, counts, jnp.float64) for limit, counts in ((1, [1] * STEPS), (4, [4, 3])))
    assert single[0].step == loop[0].step == STEPS and single[1].keys() == loop[1].keys()
    for one, other in zip(jax.tree.leaves(single), jax.tree.leaves(loop), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)
    assert len(set(loop[1]["loss"])) == STEPS


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_the_bits_do_not_depend_on_where_executions_end(name):
    setup = prepare(name)
    one, *others = (train(setup, 5, counts, jnp.float32) for counts in ([5, 2], [1] * STEPS, [2, 4, 1]))
    for other in others:
        assert_same_bits(one, other)


def test_nor_on_how_many_steps_a_run_leaves_to_an_execution():
    """With a log row after each step the program is a loop as well, and not the program of single steps."""
    setup = with_steps(prepare("momentum"), 5)
    assert_same_bits(*(train(setup, limit, counts, jnp.float32) for limit, counts in ((5, [5, 2]), (1, [1] * STEPS))))
    call = step_loop.TrainCall(setup, 1)
    assert len(call.arguments(None, batch(0))) == 4 and call.function() is not call._step


def test_a_bad_step_is_skipped_alone(x64):
    """A loss above the limit skips its own step, and not the others of its execution."""
    setup = prepare("plain", jnp.float64)
    setup.objective = dataclasses.replace(setup.objective, loss_limit=100.0)
    losses = np.sort(train(setup, 1, [1] * STEPS, jnp.float64)[1]["loss"] / BATCH)
    setup.objective = dataclasses.replace(setup.objective, loss_limit=float(losses[-2:].mean()))
    single, loop = (train(setup, limit, counts, jnp.float64) for limit, counts in ((1, [1] * STEPS), (8, [STEPS])))
    assert 0 < loop[1]["skipped"].sum() < STEPS
    np.testing.assert_array_equal(loop[1]["skipped"], single[1]["skipped"])
    for one, other in zip(jax.tree.leaves(single), jax.tree.leaves(loop), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


def test_steps_that_are_not_taken_leave_no_trace():
    """The metrics of the places that an execution does not use are 0, whatever the last batch is."""
    setup = with_steps(prepare("momentum"), 4)
    call, devices = step_loop.TrainCall(setup, 4), setup.devices
    current = devices.replicate(state.create(initial(True, jnp.float32), setup.optimizer, keep_ema=True))
    one = devices.put(batch(0))
    compiled = devices.compile_train(call.function(), *call.arguments(current, one))
    current, metrics = call(compiled, current, [one])
    assert current.step == 1
    for name, row in metrics.items():
        assert row.shape == (4,) and row[0] != 0 and not np.any(row[1:]), name


def test_the_step_is_traced_once():
    """For the shapes of its metrics and for the loop: tracing is a second or more of a start."""
    setup, traces = with_steps(prepare("momentum"), 4), []
    call, devices = step_loop.TrainCall(setup, 4), setup.devices
    current = devices.replicate(state.create(initial(True, jnp.float32), setup.optimizer, keep_ema=True))

    def step(*arguments):
        traces.append(arguments)
        return call._step(*arguments)

    devices.compile_train(step_loop.make_loop(step), *call.arguments(current, devices.put(batch(0))))
    assert len(traces) == 1


def test_the_program_is_one_step_with_the_state_in_place():
    """One step in a loop, with its one all-reduce; every leaf of the state is donated."""
    setup = with_steps(prepare("momentum", devices=4), 4)
    call, devices = step_loop.TrainCall(setup, 4), setup.devices
    current = devices.replicate(state.create(initial(True, jnp.float32), setup.optimizer, keep_ema=True))
    program = devices.compile_train(call.function(), *call.arguments(current, devices.put(batch(0)))).call
    assert program.memory_analysis().alias_size_in_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(current))
    assert len(re.findall(r"= \S+ all-reduce(?:-start)?\(", program.as_text())) == 1


def test_a_loop_is_kept_in_a_file(tmp_path):
    setup = with_steps(prepare("momentum"), 4)
    call, devices = step_loop.TrainCall(setup, 4), setup.devices
    current = devices.replicate(state.create(initial(True, jnp.float32), setup.optimizer, keep_ema=True))
    batches = [devices.put(batch(k)) for k in range(3)]
    arguments = call.arguments(current, batches[0])
    with executables._without_compilation_cache():  # what JAX loads from there cannot be written again
        compiled = devices.compile_train(call.function(), *arguments)
    store = Store(tmp_path, executables.describe_process())
    assert store.save({"step": "loop"}, arguments, compiled.call)
    loaded = store.load({"step": "loop"}, arguments)
    copy = devices.replicate(current)
    assert_same_bits(
        *(jax.device_get(call(one, state, batches)) for one, state in ((compiled, current), (loaded, copy)))
    )
    shorter = step_loop.TrainCall(setup, 3).arguments(copy, batches[0])
    assert store.load({"step": "loop"}, shorter) is None


def test_more_batches_than_the_program_takes_are_an_error():
    for limit in (1, 2):
        call = step_loop.TrainCall(with_steps(prepare("momentum"), limit), limit)
        with pytest.raises((ValueError, IndexError)):
            call(lambda *arguments: None, None, [batch(0)] * 3)
