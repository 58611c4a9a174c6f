"""A traced layer is copied: the program, its gradient and the names in it are those of a layer that is traced anew."""

import re

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from inception_jax.models.initialization import variable_shapes
from inception_jax.models.registry import create_model
from inception_jax.models.tracing import trace_once


def test_one_trace_serves_all_calls_and_leaves_none_of_its_own():
    calls = []

    @trace_once("power")
    def layer(x, power):
        calls.append(power)
        return jnp.sin(x) ** power

    def program(x):
        return layer(layer(x, 2), 2) + layer(x, power=3)

    def plain(x):
        return jnp.sin(jnp.sin(x) ** 2) ** 2 + jnp.sin(x) ** 3

    x = jnp.arange(3.0)
    for ours, theirs in ((program, plain), (jax.grad(lambda x: program(x).sum()), jax.grad(lambda x: plain(x).sum()))):
        first, second = (re.findall(r"(?:stablehlo|func)\.\w+", jax.jit(f).lower(x).as_text()) for f in (ours, theirs))
        assert first == second
        assert (ours(x) == theirs(x)).all()
    assert calls == [2, 3]


def test_operations_bear_the_names_of_their_layers():
    """Profilers show these names: each copy has that of its own layer, not of the layer that was traced."""
    model = create_model("inception_v4", width_multiplier=0.1, num_classes=3, aux_heads=False)
    images = jax.ShapeDtypeStruct((1, 75, 75, 3), jnp.float32)
    variables = variable_shapes(model, 75)
    text = jax.jit(model.apply).lower(variables, images).as_text(debug_info=True)
    names = re.findall(r'/InceptionV4/(\S+)/cond/branch_0_fun/(?:conv_general_dilated|dot_general)"', text)
    # Without methods, and since jax 0.11 without the functions that were traced once.
    named = {"/".join(part for part in name.split("/") if not re.search(r"\.|jit\(", part)) for name in names}
    kernels = [layer for *layer, name in flatten_dict(variables["params"]) if name == "kernel"]
    assert named == {"/".join(layer) for layer in kernels if layer != ["classifier"]}
