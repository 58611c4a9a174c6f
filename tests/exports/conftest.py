"""Small networks with numbers of a size that keeps every map alive, for all exports."""

import jax
import numpy as np
import pytest

from inception_jax.models.initialization import variable_shapes
from inception_jax.models.registry import create_model, get_spec


@pytest.fixture(scope="session")
def network_of():
    """(model, variables) of a network with few filters per layer, and statistics that are not 0 and 1."""

    def make(name, weights=np.float32, **options):
        model = create_model(name, **{"num_classes": 7, "width_multiplier": 0.1, "aux_heads": False, **options})
        return model, filled(variable_shapes(model, get_spec(name).min_image_size), weights)

    return make


def filled(shapes, dtype=np.float32):
    """Arrays in the place of shapes."""
    random = np.random.RandomState(7)

    def leaf(path, shape):
        name = path[-1].key
        if name.endswith("kernel"):
            fan_in = np.prod(shape.shape[:2] if name == "depthwise_kernel" else shape.shape[:-1])
            values = random.standard_normal(shape.shape) * np.sqrt(2 / fan_in)
        elif name in ("scale", "var"):
            values = random.uniform(0.5, 1.5, shape.shape)
        else:
            values = random.standard_normal(shape.shape) * 0.1
        return values.astype(dtype)

    return jax.tree.map_with_path(leaf, shapes)


@pytest.fixture(scope="session")
def make_images():
    """Images in [-1, 1], a function of their shape."""

    def make(batch, height, width, dtype=np.float32):
        return np.random.RandomState(height).uniform(-1, 1, (batch, height, width, 3)).astype(dtype)

    return make


@pytest.fixture(scope="session")
def difference():
    """Root mean square of a difference, relative to the second array's."""

    def measure(a, b):
        assert a.shape == b.shape
        assert np.std(b) > 0
        wide = np.asarray(b, np.float64)
        return np.sqrt(np.mean((np.asarray(a, np.float64) - wide) ** 2) / np.mean(wide**2))

    return measure


@pytest.fixture(scope="session")
def outputs():
    """A network's outputs by name: `outputs(model, variables, images, *names)`; `outputs.exact`: in float64."""

    def compute(model, variables, images, *names):
        def values(images):
            output = model.apply(variables, images)
            return [output.logits if name == "logits" else output.endpoint(name) for name in names]

        return [np.asarray(value) for value in jax.jit(values)(images)]

    def exact(model, variables, images, *names):
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), (variables, images))
            return compute(model.clone(dtype="float64", param_dtype="float64"), *wide, *names)

    compute.exact = exact
    return compute
