"""The networks in programs of other people: what models/README.md shows and says."""

import contextlib
import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import inception_jax
from inception_jax.features import DeviceMoments, DeviceRows
from inception_jax.models.inception_v1 import MODULES
from inception_jax.models.initialization import variable_shapes
from inception_jax.models.platforms import TRACED_FOR

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


def on_mesh(variables, *batch):
    """On eight devices: explicit axes, which `jax.make_mesh` makes by default."""
    mesh = jax.make_mesh((8,), ("data",))
    assert mesh.axis_types == (AxisType.Explicit,)
    places = [NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",))]
    return jax.device_put(variables, places[0]), *jax.device_put(batch, places[1])


def loss_and_gradient(model, context):
    def loss_fn(variables, images, labels):
        output, updates = model.apply(
            variables, images, train=True, rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"]
        )
        loss, _ = inception_jax.inception_loss(output, labels, (0.3,) * len(output.aux_logits), 0.1)
        return loss.mean(), updates

    def step(*operands):
        with context():
            return jax.value_and_grad(loss_fn, has_aux=True)(*operands)

    return step


def test_a_mesh_of_explicit_axes(x64):
    modules = {name: MODULES[name] for name in ("4a", "4d")}
    options = {"modules": modules, "min_width": 4, "dtype": jnp.float64, "param_dtype": jnp.float64}
    model = inception_jax.create_model("inception_v1", num_classes=3, width_multiplier=0.1, batch_norm=True, **options)
    variables = inception_jax.init_variables(model, jax.random.key(0), 64)
    batch = jax.random.normal(jax.random.key(1), (8, 64, 64, 3)), jnp.arange(8) % 3
    step = jax.jit(loss_and_gradient(model, contextlib.nullcontext))
    alone, sharded = step(variables, *batch), step(*on_mesh(variables, *batch))
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(sharded), strict=True):
        assert not any(jax.typeof(other).sharding.spec)
        np.testing.assert_allclose(other, one, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "options", "platform"),
    [
        ("inception_v1", {"aux_pool": "adaptive", "pool_rounding": "pad1", "dtype": jnp.bfloat16}, "cuda"),
        ("inception_v1", {"module": "naive"}, "tpu"),
        ("inception_v2", {"bn_group_size": 2}, "cpu"),
        ("inception_v3", {"fuse_siblings": True}, "cpu"),
        ("inception_v4", {"remat": True}, "tpu"),
        ("inception_resnet_v2", {}, "tpu"),
        ("xception", {}, "cpu"),
    ],
)
def test_every_layer_takes_explicit_axes(name, options, platform):
    """Shapes and shardings alone."""
    model = inception_jax.create_model(name, num_classes=3, width_multiplier=0.1, **options)
    mesh = jax.make_mesh((8,), ("data",))
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    variables = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), variable_shapes(model, 96)
    )
    images, labels = (
        jax.ShapeDtypeStruct(shape, dtype, sharding=split)
        for shape, dtype in (((8, 96, 96, 3), model.dtype), ((8,), jnp.int32))
    )
    step = loss_and_gradient(model, lambda: TRACED_FOR(platform))
    with jax.set_mesh(mesh):  # then what is made inside the step is on the mesh, too
        (loss, _), gradients = jax.eval_shape(step, variables, images, labels)
    assert loss.shape == () and not any(any(leaf.sharding.spec) for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("zeros", [DeviceMoments.zeros, functools.partial(DeviceRows.zeros, capacity=32)])
def test_features_over_explicit_axes(zeros):
    rows = np.random.RandomState(0).standard_normal((16, 3)).astype(np.float32)
    found = []
    for state, batch in ((zeros(3), rows), on_mesh(zeros(3), rows)):
        for _ in range(2):
            state = jax.jit(type(state).add)(state, batch)
        found.append(state.finish())
    if isinstance(found[0], np.ndarray):
        np.testing.assert_array_equal(*found)
    else:
        np.testing.assert_allclose(found[0].covariance(), found[1].covariance(), rtol=1e-6, atol=1e-6)


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
