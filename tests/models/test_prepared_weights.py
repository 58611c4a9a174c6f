"""A computation in two parts, one of which depends on its weights alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from inception_jax.models.prepared_weights import PreparedFunction

W, X = {"a": jnp.arange(1.0, 5), "b": jnp.full(4, 3.0)}, jnp.arange(8.0).reshape(2, 4)


def divide(function, weights=W, batch=X):
    """(what is prepared, operations of the second part); the result is that of the function."""
    parts = PreparedFunction(function, batch)
    prepared = jax.jit(parts.prepare)(weights)
    selected = parts.select(weights)
    got = jax.jit(parts.compute)(selected, prepared, batch)
    jax.tree.map(np.testing.assert_array_equal, got, jax.jit(function)(weights, batch))
    program = jax.make_jaxpr(parts.compute)(selected, prepared, batch)
    used = {id(atom) for equation in program.eqns for atom in equation.invars} | {*map(id, program.jaxpr.outvars)}
    assert all(id(one) in used for one in program.jaxpr.invars[: len(selected)])
    return prepared, [equation.primitive.name for equation in program.eqns]


def test_what_depends_on_weights_alone_is_prepared():
    prepared, left = divide(lambda w, x: x.sum(0) * lax.rsqrt(w["a"] + w["b"]) - w["a"])
    assert len(prepared) == 1 and "rsqrt" not in left
    np.testing.assert_array_equal(prepared[0], lax.rsqrt(W["a"] + W["b"]))


def test_a_value_is_prepared_once_and_a_weight_never():
    prepared, left = divide(lambda w, x: (y := jnp.exp(w["a"])) * x[0] + y * w["b"] * x[1] + w["a"] + y)
    assert len(prepared) == 2 and "exp" not in left  # y, and y times b


def test_a_constant_is_no_weight():
    prepared, _ = divide(lambda w, x: x + jnp.zeros(4) * 2 + jnp.asarray(np.arange(4.0)))
    assert prepared == []


def test_what_is_larger_than_its_weights_stays_with_the_batch():
    prepared, left = divide(lambda w, x: x + jnp.broadcast_to(jnp.exp(w["a"]), (2, 4)))
    assert [leaf.shape for leaf in prepared] == [(4,)] and "broadcast_in_dim" in left


def test_results_without_the_batch_and_results_that_are_arguments():
    prepared, _ = divide(lambda w, x: (jnp.exp(w["a"]), w["b"], x, 3.0, jnp.exp(x)))
    assert len(prepared) == 1


@jax.custom_vjp
def scaled(x, kernel):
    return x * jnp.exp(kernel)


scaled.defvjp(lambda x, kernel: (scaled(x, kernel), None), lambda _, g: (g, g))


@jax.custom_jvp
def shifted(x, kernel):
    return x + jnp.exp(kernel)


shifted.defjvp(lambda primals, tangents: (shifted(*primals), tangents[0]))


@pytest.mark.parametrize(
    "call",
    [
        jax.jit(lambda x, kernel: x * jnp.exp(kernel)),
        jax.jit(lambda x, kernel: x * jnp.exp(kernel), inline=True),
        scaled,
        jax.jit(scaled),
        shifted,
        jax.checkpoint(lambda x, kernel: x * jnp.exp(kernel)),
    ],
)
def test_calls_are_divided(call):
    prepared, left = divide(lambda w, x: call(call(x, w["a"]), w["b"] * 2))
    assert len(prepared) == 2 and set(left) <= {"mul", "add"}


def test_loops_and_branches_are_not_divided():
    def run(w, x):
        y, _ = lax.scan(lambda carry, row: (carry + row * jnp.exp(w["a"]), None), jnp.zeros(4), x)
        y = lax.fori_loop(0, 3, lambda _, z: z * lax.rsqrt(w["b"]), y)
        return lax.cond(y[0] > 1, lambda z: z + jnp.exp(w["b"]), lambda z: z, y), lax.cond(
            w["a"][0] > 0, jnp.exp, jnp.log, w["a"]
        ) * x

    prepared, left = divide(run)
    assert len(prepared) == 1  # the branch on weights alone
    assert {"scan", "cond"} <= set(left) and "rsqrt" not in left


def test_of_a_program_with_side_effects_nothing_is_prepared(capsys):
    """Its parts would write to different references, and print twice."""

    def run(w, x):
        reference = jax.new_ref(jnp.zeros_like(w["a"]))
        reference[...] = jnp.exp(w["a"])
        jax.debug.print("once")
        return x * reference[...]

    parts = PreparedFunction(run, X)
    assert jax.jit(parts.prepare)(W) == []
    assert parts.read == (0,)
    np.testing.assert_array_equal(jax.jit(parts.compute)([W["a"]], [], X), X * jnp.exp(W["a"]))
    jax.effects_barrier()
    assert capsys.readouterr().out == "once\n"


def test_names_of_layers_are_kept_for_profiles():
    def run(w, x):
        with jax.named_scope("inception_3a"):
            return jnp.exp(x) * w["a"]

    parts = PreparedFunction(run, X)
    prepared = parts.prepare(W)
    text = jax.jit(parts.compute).lower(parts.select(W), prepared, X).compile().as_text()
    assert "inception_3a/exp" in text


def test_under_other_transforms_of_the_caller():
    """Inside a map over devices, where a sum over them is of the batch."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    specs = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    function = lambda w, x: lax.psum(x * jnp.exp(w["a"]), "data")  # noqa: E731
    parts = PreparedFunction(function, jax.ShapeDtypeStruct((1, 4), jnp.float32))
    shard = functools.partial(jax.shard_map, mesh=mesh, out_specs=specs[1], check_vma=False)
    prepared = jax.jit(shard(parts.prepare, in_specs=specs[1]))(W)
    got = jax.jit(shard(parts.compute, in_specs=(specs[1], specs[1], specs[0])))(parts.select(W), prepared, X)
    assert len(prepared) == 1
    np.testing.assert_array_equal(got, (X * jnp.exp(W["a"])).sum(0, keepdims=True))
