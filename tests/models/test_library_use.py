"""The networks in programs of other people: what models/README.md shows and says."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import inception_jax
from inception_jax.features import DeviceMoments, DeviceRows
from inception_jax.models.inception_v1 import MODULES
from inception_jax.models.initialization import variable_shapes

PAGE = Path(inception_jax.__file__).parent / "models" / "README.md"
FEW = "min_width=4, modules={name: MODULES[name] for name in ('4a', '4d')}"


def test_the_training_step_of_the_page():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    [code, on_a_mesh] = [next(block for block in blocks if part in block) for part in ("def train_step", "make_mesh")]
    assert "width_multiplier=0.25" in code
    code = code.replace("width_multiplier=0.25", f"width_multiplier=0.1, {FEW}")  # compiles in less time
    names = {}
    exec("from inception_jax.models.inception_v1 import MODULES\n" + code, names)
    assert names["weights"] == (0.3, 0.3) and len(names["weights"]) == 2
    assert np.isfinite(names["loss"])
    again = names["train_step"](
        *(names[name] for name in ("variables", "opt_state", "images", "labels")), jax.random.key(1)
    )
    assert again[2] < names["loss"]
    exec(on_a_mesh, names)
    assert names["images"].sharding.num_devices == 8
    np.testing.assert_allclose(names["loss"], again[2], rtol=1e-5)


def test_a_mesh_of_explicit_axes_is_refused():
    mesh = jax.make_mesh((8,), ("data",))
    place = NamedSharding(mesh, PartitionSpec("data"))
    for name in ("inception_v1_bn", "xception"):
        model = inception_jax.create_model(name, num_classes=3, width_multiplier=0.1, aux_heads=False)
        images = jax.ShapeDtypeStruct((8, 71, 71, 3), jnp.float32, sharding=place)
        variables = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec())),
            variable_shapes(model, 71),
        )
        with jax.set_mesh(mesh), pytest.raises(ValueError, match=r"Explicit axes of a mesh.*AxisType\.Auto"):
            jax.eval_shape(jax.grad(lambda v, x, model=model: model.apply(v, x).logits.sum()), variables, images)
    rows = jax.device_put(jnp.ones((8, 3)), place)
    for state in (DeviceMoments.zeros(3), DeviceRows.zeros(3, 8)):
        name = type(state).__name__
        with jax.set_mesh(mesh), pytest.raises(ValueError, match=rf"^{name}\.add: .*AxisType\.Auto"):
            jax.jit(type(state).add)(jax.device_put(state, NamedSharding(mesh, PartitionSpec())), rows)


def test_derivatives(x64):
    options = {"modules": {"4a": MODULES["4a"]}, "dtype": jnp.float64, "param_dtype": jnp.float64}
    model = inception_jax.create_model("inception_v1", num_classes=3, width_multiplier=0.1, aux_heads=False, **options)
    variables = inception_jax.init_variables(model, jax.random.key(0), 32)
    images, v = jax.random.normal(jax.random.key(1), (2, 1, 32, 32, 3))

    def f(images):
        return jax.nn.log_softmax(model.apply(variables, images).logits)[0, 0]

    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(f, (images,), (v,))
    gradient = jax.jit(jax.grad(f))
    product = jax.jit(jax.grad(lambda x: jnp.vdot(jax.grad(f)(x), v)))(images)
    difference = (gradient(images + 1e-6 * v) - gradient(images - 1e-6 * v)) / 2e-6
    np.testing.assert_allclose(product, difference, rtol=1e-5, atol=1e-6 * float(jnp.abs(product).max()))


def test_one_image_of_32_pixels_in_training():
    options = {
        "width_multiplier": 0.1,
        "aux_heads": False,
        "dropout_rate": 0.0,
        "modules": {name: MODULES[name] for name in ("3b", "4e", "5a")},
    }
    model = inception_jax.create_model("inception_v1_bn", num_classes=3, **options)
    variables = inception_jax.init_variables(model, jax.random.key(0), 32)
    logits = [
        model.apply(variables, jax.random.normal(jax.random.key(k), (1, 32, 32, 3)), train=True, mutable=True)[0].logits
        for k in range(2)
    ]
    np.testing.assert_array_equal(*logits)
