"""How layers declare their parameters: each once, and of the shape that the module has."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax.errors import NameInUseError, ScopeParamNotFoundError, ScopeParamShapeError

from inception_jax.models import registry
from inception_jax.models.parameters import parameter


class Scaled(nn.Module):
    """x · scale, with as many names for the scale as given."""

    names: tuple[str, ...] = ("scale",)
    initializer: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x):
        for name in self.names:
            x = x * parameter(self, name, self.initializer, x.shape[-1:], jnp.float32)
        return x


def test_parameters_of_another_shape_are_refused():
    variables = Scaled().init(jax.random.key(0), jnp.ones((2, 3)))
    with pytest.raises(ScopeParamShapeError, match=r'parameter "scale" in "/".*\(3,\).*\(4,\)'):
        Scaled().apply({"params": {"scale": jnp.ones(4)}}, jnp.ones((2, 3)))
    model = registry.create_model("inception_v1", num_classes=3, width_multiplier=0.1, aux_heads=False)
    other = registry.create_model("inception_v1", num_classes=4, width_multiplier=0.1, aux_heads=False)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    tree = jax.eval_shape(other.init, jax.random.key(0), x)
    with pytest.raises(ScopeParamShapeError, match='"kernel" in "/classifier"'):
        jax.eval_shape(model.apply, tree, x)
    assert variables["params"]["scale"].shape == (3,)


def test_a_missing_parameter_and_a_name_used_twice_are_refused():
    with pytest.raises(ScopeParamNotFoundError):
        Scaled(("scale", "other")).apply({"params": {"scale": jnp.ones(3)}}, jnp.ones((2, 3)))
    with pytest.raises(NameInUseError):
        Scaled(("scale", "scale")).init(jax.random.key(0), jnp.ones((2, 3)))


def test_apply_does_not_trace_initializers():
    def fail(*arguments):
        raise AssertionError("an initializer was called")

    given = {"params": {"scale": jnp.full(3, 2.0)}}
    assert (Scaled(initializer=fail).apply(given, jnp.ones((2, 3))) == 2).all()
