"""Where a 16-bit training step adds many numbers, it adds them in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from inception_jax.models import registry
from inception_jax.models.inception_v1 import MODULES
from inception_jax.models.initialization import init_variables
from inception_jax.models.layers import add_bias
from inception_jax.training import optimizers, parallel, preprocess, state, step

from ..models.traced import sub_jaxprs

BATCH, DEVICES = 16, 2
HEADS = {name: MODULES[name] for name in ("4a", "4d")}  # the modules that have heads: every kind of layer
LIMIT = 64  # values that may be added in 16 bits: the windows of pools, the branches of a module

SUMS = {"reduce_sum", "reduce_prod", "reduce_window_sum", "cumsum", "cumprod", "scatter-add", "psum", "reduce"}


def is_half(variable):
    dtype = getattr(variable.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits == 16


def summands(equation):
    """How many values an equation adds to one: all of them, where it is not known."""
    operand, result = equation.invars[0].aval, equation.outvars[0].aval
    if equation.primitive.name == "reduce_window_sum":
        return int(np.prod(equation.params["window_dimensions"]))
    if equation.primitive.name in ("reduce_sum", "reduce_prod", "reduce"):
        return operand.size // max(1, result.size)
    return max(operand.size, LIMIT + 1)


def line_of(equation):
    return jax._src.source_info_util.summarize(equation.source_info)


def carry_of(scan):
    """The first operand that a scan carries, and how many it does."""
    if "num_carry" in scan:
        return scan["num_consts"], scan["num_carry"]
    constants, carry, _ = scan["ft_in"].unpack()  # jax 0.12
    return len([*constants]), len([*carry])


def sums_in_half_precision(jaxpr):
    """Yields (primitive, summands, line) of every sum of more than `LIMIT` values whose accumulator has 16 bits.

    Checked in all sub-jaxprs (both branches of `platform_dependent`, scans, rematerialized and custom gradients):
    reductions and cumulative sums, sums over devices, and loops that carry a 16-bit array from pass to pass.
    Not checked: convolutions and matrix products. Their accumulators are the hardware's, float32 on GPUs and TPUs for
    16-bit operands; on CPUs this package computes them in float32 (`convolution.select_by_platform`). Not counted:
    the addition of two arrays.
    """
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in SUMS and any(map(is_half, equation.outvars)) and summands(equation) > LIMIT:
            yield name, summands(equation), line_of(equation)
        if name == "scan":
            first, count = carry_of(equation.params)
            carry = equation.invars[first : first + count]
            yield from (("scan", equation.params["length"], line_of(equation)) for one in carry if is_half(one))
        for value in equation.params.values():
            for inner in sub_jaxprs(value):
                yield from sums_in_half_precision(inner)


def training_step(network, dtype, param_dtype="float32", accumulation=1, **options):
    """The jaxpr of the whole training step on `DEVICES` devices, at a small width, with heads and EMA."""
    model = registry.create_model(
        network,
        num_classes=10,
        width_multiplier=0.1,
        dtype=jnp.dtype(dtype),
        param_dtype=jnp.dtype(param_dtype),
        **options,
    )
    spec = registry.get_spec(network)
    size = spec.min_image_size
    optimizer = optimizers.specify("sgd", weight_decay=1e-4, clip_norm=1.0).build(0.1)
    objective = step.Objective(
        preprocess.get_normalization("inception"),
        model.dtype,
        spec.aux_weights,
        label_smoothing=0.1,
        accumulation=accumulation,
        ema_decay=0.9,
        skip_non_finite=True,
    )
    mesh = parallel.Devices("jit", DEVICES)
    train_step = jax.shard_map(
        step.make_train_step(model, optimizer, objective, devices=DEVICES),
        mesh=mesh.mesh,
        in_specs=(PartitionSpec(), PartitionSpec(step.AXIS)),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    start = jax.eval_shape(
        lambda key: state.create(init_variables(model, key, size), optimizer, keep_ema=True), jax.random.key(0)
    )
    return jax.make_jaxpr(train_step)(start, mesh.abstract_batch(BATCH, size)).jaxpr


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("inception_v1", {"modules": HEADS, "dtype": "bfloat16"}),
        ("inception_v1_bn", {"modules": HEADS, "dtype": "bfloat16", "param_dtype": "bfloat16", "accumulation": 2}),
        ("inception_v1", {"dtype": "bfloat16"}),
        ("inception_v1_bn", {"dtype": "bfloat16", "param_dtype": "bfloat16", "accumulation": 2}),
        ("inception_v1", {"dtype": "float16", "param_dtype": "float16", "accumulation": 2, "remat": True}),
        ("inception_v2", {"dtype": "bfloat16", "conv_bias": True}),
        *(
            (network, {"dtype": "bfloat16"})
            for network in registry.model_names()
            if network not in ("inception_v1", "inception_v1_bn", "inception_v2")
        ),
    ],
    ids=lambda value: (
        value
        if isinstance(value, str)
        else "-".join("two modules" if name == "modules" else str(one) for name, one in value.items())
    ),
)
def test_a_step_adds_many_values_in_float32_only(network, options):
    found = list(sums_in_half_precision(training_step(network, **options)))
    assert not found, found


def test_the_walk_finds_what_it_looks_for():
    """A bias as it was before: broadcast in bfloat16."""

    def inner(x, bias):
        return jnp.sum(jax.checkpoint(lambda x, bias: x + bias.astype(x.dtype))(x, bias).astype(jnp.float32))

    x, bias = jnp.zeros((4, 8, 8, 2), jnp.bfloat16), jnp.zeros(2)
    looped = jax.make_jaxpr(lambda x, bias: jax.lax.map(lambda one: jax.grad(inner, 1)(one, bias), x[None]))(x, bias)
    assert [found[:2] for found in sums_in_half_precision(looped.jaxpr)] == [("reduce_sum", 256)]
    carried = jax.make_jaxpr(lambda x: jax.lax.scan(lambda total, one: (total + one, None), x[0], x)[0])(x)
    assert [found[:2] for found in sums_in_half_precision(carried.jaxpr)] == [("scan", 4)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_gradient_of_a_bias_is_that_of_float64(dtype):
    """32 maps of 56x56, where the sum in bfloat16 was off by 60 %; the output is that of the sum in the map's dtype."""
    values = np.random.RandomState(0)
    x, cotangent = (jnp.asarray(values.standard_normal((32, 56, 56, 8)), dtype) for _ in range(2))
    cotangent = (cotangent + 0.25).astype(dtype)
    bias = jnp.asarray(values.standard_normal(8), jnp.float32)
    out, transpose = jax.vjp(add_bias, x, bias)
    np.testing.assert_array_equal(out, x + bias.astype(dtype))
    x_gradient, bias_gradient = transpose(cotangent)
    assert bias_gradient.dtype == jnp.float32
    np.testing.assert_array_equal(x_gradient, cotangent)
    np.testing.assert_allclose(bias_gradient, np.asarray(cotangent, np.float64).sum((0, 1, 2)), rtol=1e-5)


def test_in_float32_a_bias_is_added_as_ever():
    x, bias = jnp.zeros((2, 3, 3, 4)), jnp.zeros(4)
    plain = jax.make_jaxpr(lambda x, bias: jax.vjp(lambda x, b: x + b, x, bias)[1](x))(x, bias)
    assert str(jax.make_jaxpr(lambda x, bias: jax.vjp(add_bias, x, bias)[1](x))(x, bias)) == str(plain)
