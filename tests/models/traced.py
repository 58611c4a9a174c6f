"""What a network gives and holds, as shapes: it is traced, and nothing is computed. And the programs in a program."""

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.extend import core

from inception_jax.models import parameters
from inception_jax.models.platforms import TRACED_FOR


def shapes(model, height, width=None, dtype=jnp.float32, batch=2, **arguments):
    """(output, variables) as `jax.eval_shape` gives them of `model.init_with_output`, in half of the time.

    What takes the other half, the initializers, is not traced; test_initialization.py holds the variables against
    those of `init`. Of the forms for each platform those for TPUs are traced.
    """
    images = jax.ShapeDtypeStruct((batch, height, width or height, 3), dtype)
    with parameters.record_declarations() as declarations, TRACED_FOR("tpu"):
        output, others = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, **arguments), images)
    variables = flatten_dict(others)
    for leaf in declarations:
        variables[leaf.collection, *leaf.path, leaf.name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return output, unflatten_dict(variables)


def sub_jaxprs(value):
    """The programs that a parameter of an operation holds."""
    if isinstance(value, core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from sub_jaxprs(one)
