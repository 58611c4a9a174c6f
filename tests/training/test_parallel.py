"""Devices, per-device batches and batch-norm groups: what is refused, and with which message."""

import contextlib
import dataclasses
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from inception_jax.benchmarks.memory import program_memory
from inception_jax.errors import UserError
from inception_jax.models.platforms import TRACED_FOR, traced_for_device
from inception_jax.training import compilation, parallel
from inception_jax.training.batch_norm import BatchNormGroups
from inception_jax.training.step import AXIS


def test_a_batch_that_does_not_divide_names_the_sizes_that_do():
    mesh = parallel.Devices("jit", 4)
    assert mesh.check_batch("batch_size", 12) == 3
    with pytest.raises(
        UserError, match=r"config.batch_size = 30 .* 4 devices with 2 micro-batches each: 24 or 32 would"
    ):
        mesh.check_batch("batch_size", 30, micro_batches=2)
    with pytest.raises(UserError, match=r": 4 would"):
        mesh.check_batch("batch_size", 3)


def test_more_devices_than_there_are():
    with pytest.raises(UserError, match=r"config.parallel.devices = 99: there are 8 \(cpu\)"):
        parallel.Devices("jit", 99)


def test_programs_are_traced_for_the_platform_of_their_devices():
    seen = []

    def program(x):
        seen.append(TRACED_FOR.value)
        return x

    with TRACED_FOR(None):
        parallel.Devices("jit", 1).compile_plain(program, jnp.zeros(1))
        assert seen == ["cpu"] and TRACED_FOR.value is None
        for platform, expected in (("tpu", "tpu"), ("gpu", None)):
            with traced_for_device(types.SimpleNamespace(platform=platform)):
                assert TRACED_FOR.value == expected


def test_batch_norm_groups():
    assert BatchNormGroups.parse("local").model_options(4, 1) == {}
    assert BatchNormGroups.parse("global").model_options(4, 1) == {"bn_axis_name": "data"}
    assert BatchNormGroups.parse("groups:2").model_options(4, 1)["bn_axis_index_groups"] == ((0, 1), (2, 3))
    with pytest.raises(UserError, match="4 devices do not divide into groups of 3"):
        BatchNormGroups.parse("groups:3").model_options(4, 1)


def devices_of(*counts):
    """Devices of several processes, in the order of nothing."""
    found = [
        types.SimpleNamespace(process_index=process, id=10 * process + place, platform="cpu")
        for process, count in enumerate(counts)
        for place in range(count)
    ]
    return found[1::2] + found[::2]


def test_each_process_owns_one_block_of_as_many_devices():
    def ids(count, *counts):
        return [device.id for device in parallel.choose_devices(devices_of(*counts), count)]

    assert ids(None, 3, 3) == [0, 1, 2, 10, 11, 12]
    assert ids(4, 3, 3) == [0, 1, 10, 11]
    assert ids(2, 3, 2) == [0, 10]
    for count, counts in ((3, (3, 3)), (None, (3, 2)), (6, (4, 2))):
        with pytest.raises(
            UserError, match=r"config.parallel.devices = .* does not divide over \d processes .*: 2, 4(, 6)? would"
        ):
            ids(count, *counts)


def test_one_process_describes_itself():
    mesh = parallel.Devices("jit", 4)
    assert (mesh.count, mesh.local_count, mesh.process_count) == (4, 4, 1)
    assert mesh.describe() == "4 cpu devices (cpu), mode jit"


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_a_flag_is_a_leaf_of_the_batch_that_was_compiled_for(mode):
    mesh = parallel.Devices(mode, 4)
    expected = mesh.abstract_batch(8, 32, flag=True)
    assert "stop" not in mesh.abstract_batch(8, 32)
    given = mesh.put(
        {"image": np.zeros((8, 32, 32, 3), np.uint8), "label": np.zeros(8, np.int32), "mask": np.ones(8, bool)}
    ) | {"stop": mesh.flag(True)}
    assert {name: (x.shape, x.dtype, x.sharding) for name, x in given.items()} == {
        name: (x.shape, x.dtype, x.sharding) for name, x in expected.items()
    }
    assert np.asarray(given["stop"]).all()
    assert mesh.flag(True) is given["stop"]
    assert not np.asarray(mesh.flag(False)).any()


def test_a_real_retrace_is_refused_and_named():
    def half_size(x):
        return x / 2

    halve = jax.jit(half_size)
    two, three = jnp.ones(2), jnp.ones(3)
    with contextlib.suppress(compilation.Recompiled), parallel.no_compilation():
        halve(two)
    with parallel.no_compilation():
        halve(two)
    with (
        pytest.raises(compilation.Recompiled, match=r"half_size.* \(test_parallel.py:\d+, "),
        parallel.no_compilation(),
    ):
        halve(three)


def test_other_threads_may_compile_and_errors_come_first():
    def in_thread():
        thread = threading.Thread(target=lambda: jax.jit(lambda x: x + 3)(np.float32(1)))
        thread.start()
        thread.join()

    with parallel.no_compilation():
        in_thread()
    with pytest.raises(KeyError), parallel.no_compilation():
        jax.jit(lambda x: x + 4)(np.float32(1))
        raise KeyError
    with parallel.no_compilation():  # what was seen in one place is forgotten in the next
        pass


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("offset", [0, 16])
def test_replicated_arrays_are_copies_that_a_program_may_write_over(count, offset):
    """Also of arrays that begin at a multiple of 64 bytes, which `device_put` does not copy on a CPU."""

    def place(dtype):
        buffer = np.zeros(8_192 + 128, np.uint8)
        return buffer[-buffer.ctypes.data % 64 + offset :][:8_192].view(dtype).reshape(32, -1)

    aligned, half, strided = place(np.float32), place(jnp.bfloat16), place(np.float32).T
    devices = parallel.Devices("jit", count)
    tree = {"numpy": aligned, "half": half, "strided": strided, "flag": place(bool), "scalar": np.float32(3)}
    state = devices.replicate(tree | {"jax": jnp.ones(5), "none": np.zeros((0, 2))})
    for array in (aligned, half, strided):
        array[...] = 7
    for name in ("numpy", "half", "strided", "flag"):
        assert state[name].dtype == tree[name].dtype and state[name].shape == tree[name].shape
        assert not any(np.asarray(shard.data, np.float32).any() for shard in state[name].addressable_shards)
    assert float(state["scalar"]) == 3.0 and state["none"].shape == (0, 2)
    if count > 1:
        return
    step = devices.compile_train(lambda state, batch: (state, batch), state["numpy"], jnp.zeros(1)).call
    before = state["numpy"].unsafe_buffer_pointer()
    assert step(state["numpy"], jnp.zeros(1))[0].unsafe_buffer_pointer() == before


def test_cpu_devices_share_one_copy_that_is_not_the_callers():
    devices = parallel.Devices("jit", 4)
    ours = {"numpy": np.arange(99.0, dtype=np.float32), "device": jnp.arange(7), "number": np.float32(3)}
    shared = devices.share(ours)
    for one, other in zip(jax.tree.leaves(shared), jax.tree.leaves(devices.replicate(ours)), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.sharding == other.sharding and one.dtype == other.dtype
        assert {shard.device for shard in one.addressable_shards} == set(devices.mesh.local_devices)
        assert len({shard.data.unsafe_buffer_pointer() for shard in one.addressable_shards}) == 1
    ours["numpy"][:] = -1
    np.testing.assert_array_equal(shared["numpy"], np.arange(99.0))
    assert shared["device"].addressable_data(0).unsafe_buffer_pointer() != ours["device"].unsafe_buffer_pointer()


@pytest.mark.parametrize("place", ["share", "replicate"])
@pytest.mark.parametrize("count", [1, 2])
def test_the_callers_array_may_change_at_once(place, count):
    ours = np.ones(1 << 24, np.float32)
    placed = getattr(parallel.Devices("jit", count), place)(ours)
    ours[:] = -1
    assert np.asarray(placed).min() == 1


def test_memory_goes_back_to_the_system_after_a_compilation(monkeypatch):
    events = []
    monkeypatch.setattr(parallel, "return_freed_memory", lambda: events.append("returned"))

    def compile_program(lowered):
        events.append("compiled")
        return lowered.compile()

    devices = parallel.Devices("jit", 1)
    compiled = devices.compile_plain(lambda x: x + 1, np.float32(1), compile_program=compile_program)
    assert float(compiled.call(np.float32(1))) == 2.0
    assert events == ["compiled", "returned"]


@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize("count", [1, 4])
def test_weights_are_prepared_once_for_the_calls_that_have_the_same(mode, count):
    def step(variables, batch):
        rows = batch["x"] * jnp.exp(variables["w"])
        return {"sum": lax.psum(rows.sum(), AXIS)}, {"rows": rows}

    devices = parallel.Devices(mode, count)
    batch = devices.put({"x": np.arange(24.0, dtype=np.float32).reshape(8, 3)})
    first, second = (devices.replicate({"w": np.full(3, value, np.float32)}) for value in (1, 2))
    plain, prepared = (devices.compile_eval(step, first, batch, prepares=prepares) for prepares in (False, True))
    assert "exponential" in plain.call.as_text() and "exponential" not in prepared.call.as_text()
    taken = []
    spied = dataclasses.replace(prepared, prepare=lambda variables: taken.append(1) or prepared.prepare(variables))
    (made,) = prepared.share(prepared.prepare(prepared.take(first)))
    assert len(made.addressable_shards) == count
    assert len({shard.data.unsafe_buffer_pointer() for shard in made.addressable_shards}) == 1
    for variables, preparations in ((first, 1), (first, 1), (dict(first), 1), (second, 2), (first, 3)):
        got, want = (jax.device_get(compiled(variables, batch)) for compiled in (spied, plain))
        jax.tree.map(np.testing.assert_array_equal, got, want)
        assert len(taken) == preparations


def divided_sum(w, x):
    return lax.psum(jnp.exp(w).sum(), AXIS) + 0 * x


def divided_by_axis_size(w, x):
    return x * (w / lax.axis_size(AXIS)).sum()


def times_index(w, x):
    return x * (w * lax.axis_index(AXIS).astype(jnp.float32)).sum()


def chosen_by_axis_size(w, x):
    return x * (jnp.sin(w) if lax.axis_size(AXIS) > 1 else jnp.cos(w)).sum()


def gathered(w, x):
    return x + lax.all_gather(jnp.exp(w), AXIS).sum()


@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize("compute", [divided_sum, divided_by_axis_size, times_index, chosen_by_axis_size, gathered])
def test_weights_are_prepared_in_steps_that_use_the_devices_axis(compute, mode):
    devices = parallel.Devices(mode, 4)
    batch = devices.put({"x": np.arange(1.0, 9.0, dtype=np.float32)})
    variables = devices.share({"w": np.arange(3, dtype=np.float32)})
    step = lambda variables, batch: ({}, {"rows": compute(variables["w"], batch["x"])})  # noqa: E731
    plain, prepared = (devices.compile_eval(step, variables, batch, prepares=prepares) for prepares in (False, True))
    want, got = (jax.device_get(one(variables, batch)) for one in (plain, prepared))
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_step_is_prepared_of_shapes_and_of_numpy_arrays():
    devices = parallel.Devices("jit", 4)
    batch = devices.put({"x": np.arange(8.0, dtype=np.float32)})
    step = lambda variables, batch: ({}, {"rows": batch["x"] * jnp.exp(variables["w"])})  # noqa: E731
    host = {"w": np.ones((), np.float32)}
    shapes = {"w": jax.ShapeDtypeStruct((), np.float32, sharding=devices.replicated)}
    for variables in (host, shapes):
        compiled = devices.compile_eval(step, variables, batch, prepares=True)
        for called in (host, devices.share(host)):
            got = compiled(called, batch)[1]["rows"]
            np.testing.assert_allclose(got, np.arange(8.0) * np.exp(1), rtol=1e-6)


def test_a_step_is_prepared_of_what_a_step_on_one_device_returned():
    """A part of such an array is on the mesh, and the literal's type is of another kind of its axis."""
    devices = parallel.Devices("jit", 1)
    batch, variables = devices.put({"x": np.ones(3, np.float32)}), devices.replicate({"w": np.ones(3, np.float32)})
    variables = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=devices.replicated)(variables)
    step = lambda variables, batch: ({}, {"rows": batch["x"] * lax.rsqrt(variables["w"] + 0.5)})  # noqa: E731
    made = devices.compile_eval(step, variables, batch, prepares=True)(variables, batch)[1]["rows"]
    np.testing.assert_allclose(made, np.full(3, 1.5**-0.5), rtol=1e-6)


def test_a_prepared_step_without_variables_and_its_memory():
    devices = parallel.Devices("jit", 2)
    batch = devices.put({"x": np.ones((2, 3), np.float32)})
    step = lambda variables, batch: ({}, {"rows": batch["x"] * sum(map(jnp.exp, variables), 1.0)})  # noqa: E731
    alone = devices.compile_eval(step, [], batch, prepares=True)
    np.testing.assert_array_equal(alone([], batch)[1]["rows"], np.ones((2, 3)))
    assert {alone: 1}[alone] == 1
    variables = devices.replicate([np.zeros(3, np.float32)])
    prepared = devices.compile_eval(step, variables, batch, prepares=True)
    # The variables, what was prepared of them, and a row of the batch: 3 numbers each.
    assert program_memory(prepared)["arguments"] == 3 * 3 * 4


def test_disabled_compilation_is_refused():
    with jax.disable_jit(), pytest.raises(UserError, match=r"jax_disable_jit is on.*leave jax\.disable_jit\(\)"):
        parallel.Devices("jit", 1).compile_plain(lambda x: x, jnp.zeros(2))
