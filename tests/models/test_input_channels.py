"""Networks of other numbers of input channels, and the kernels of colour networks made for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax import create_model, init_variables, model_names
from inception_jax.benchmarks import synthetic_batches, workload
from inception_jax.errors import UserError
from inception_jax.models import input_channels
from inception_jax.models.checks import ModelError
from inception_jax.models.cost import count_cost
from inception_jax.models.inception_v1 import MODULES
from inception_jax.models.initialization import variable_shapes
from inception_jax.models.registry import get_spec
from inception_jax.pretrained import workdir as workdirs
from inception_jax.pretrained.exporting import export_weights
from inception_jax.pretrained.importing import import_weights, variant_options
from inception_jax.training.device_augmentation import DeviceAugmentation, Erasing, augment
from inception_jax.training.preprocess import NORMALIZATIONS, get_normalization, preprocess

SMALL = {"num_classes": 3, "width_multiplier": 0.1, "aux_heads": False}
FIRST = {
    "inception_v1": "conv1/kernel", "inception_v1_bn": "conv1/kernel", "inception_v2": None,
    "inception_v3": "conv2d_1a_3x3/kernel", "inception_v4": "conv2d_1a_3x3/kernel",
    "inception_resnet_v1": "conv2d_1a_3x3/kernel", "inception_resnet_v2": "conv2d_1a_3x3/kernel",
    "xception": "block1_conv1/kernel", "alexnet": "conv1/kernel", "vgg16": "block1/conv1/kernel",
    "network_in_network": "mlpconv1/conv/kernel",
}  # fmt: skip


@pytest.mark.parametrize("name", FIRST)
def test_the_first_layer_of_every_network(name):
    model = create_model(name, **SMALL, in_channels=2)
    assert input_channels.find_input_kernel(model, get_spec(name).min_image_size) == FIRST[name]
    assert {*FIRST} == {*model_names()}
    drawn = FIRST[name] or "conv1/depthwise_kernel"
    assert input_channels.find_image_kernel(model, get_spec(name).min_image_size) == drawn


def test_a_grey_network_and_its_errors():
    model = create_model("inception_v1_bn", **SMALL, modules={"3a": MODULES["3a"]}, in_channels=1)
    variables = init_variables(model, jax.random.key(0), 32)
    assert variables["params"]["conv1"]["kernel"].shape == (7, 7, 1, 16)
    with pytest.raises(ModelError, match=r"\[batch, height, width, 1\]: the network's in_channels is 1"):
        model.apply(variables, jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(ModelError, match="in_channels: 0 is not from 1 to 1024"):
        create_model("inception_v1", in_channels=0)
    separable = variable_shapes(create_model("inception_v2", in_channels=1), 32)["params"]["conv1"]
    assert separable["depthwise_kernel"].shape == (7, 7, 1, 8)
    assert separable["pointwise_kernel"].shape == (1, 1, 8, 64)


def test_its_cost_and_its_batches():
    cost = count_cost(create_model("inception_v1", in_channels=1), 224)
    assert cost.parameters == 6_998_552 - 2 * 7 * 7 * 64 and cost.layers[0].kernel == (7, 7, 1, 64)
    assert synthetic_batches.make_batch(0, 0, 2, 8, 3, channels=4)["image"].shape == (2, 8, 8, 4)
    config = workload.config_of_model("inception_v1", 5)
    config.model.in_channels = 4
    assert workload.name_data(config) == "synthetic:5:256:4"


def test_the_rule_by_hand():
    """`adapt_input_conv` of timm, written out."""
    kernel = np.random.default_rng(0).standard_normal((2, 2, 3, 5)).astype(np.float32)
    adapt = input_channels.adapt_input_kernel
    assert adapt(kernel, 3) is kernel
    np.testing.assert_allclose(adapt(kernel, 1)[:, :, 0], kernel[:, :, 0] + kernel[:, :, 1] + kernel[:, :, 2], 1e-5)
    for channels in (2, 4, 7):
        made = adapt(kernel, channels)
        assert made.dtype == np.float32 and made.shape == (2, 2, channels, 5)
        for channel in range(channels):
            np.testing.assert_allclose(made[:, :, channel], kernel[:, :, channel % 3] * 3 / channels, 1e-6)
    grey = kernel[:, :, :1]
    np.testing.assert_allclose(adapt(adapt(grey, 3), 1), grey, 1e-6)
    with pytest.raises(ValueError, match="of 4 input channels"):
        adapt(np.zeros((1, 1, 4, 1)), 3)


def test_a_summed_kernel_computes_the_same_of_grey_images(x64):
    """Exact where all channels are normalized alike, and not where they are not, as the page says."""
    small = {**SMALL, "modules": {"3a": MODULES["3a"]}, "dtype": jnp.float64, "param_dtype": jnp.float64}
    colour, grey = (create_model("inception_v1_bn", **small, in_channels=count) for count in (3, 1))
    variables = init_variables(colour, jax.random.key(1), 32)
    kernel = variables["params"]["conv1"]["kernel"]
    summed = {"kernel": input_channels.adapt_input_kernel(np.asarray(kernel), 1)}
    params = variables["params"] | {"conv1": variables["params"]["conv1"] | summed}
    images = np.random.default_rng(2).integers(0, 256, (2, 32, 32, 1), dtype=np.uint8)

    def logits(model, variables, pixels, normalization):
        inputs = preprocess(jnp.asarray(pixels), normalization=normalization, dtype=jnp.float64)
        return model.apply(variables, inputs, train=False).logits

    repeated = np.repeat(images, 3, axis=3)
    for name in ("inception", "zero_one", "facenet"):
        one = logits(grey, {**variables, "params": params}, images, get_normalization(name, 1))
        three = logits(colour, variables, repeated, NORMALIZATIONS[name])
        np.testing.assert_allclose(one, three, rtol=1e-12, atol=1e-12 * np.abs(three).max())
    mean, std = (0.449,), (0.226,)  # of the three
    one = logits(grey, {**variables, "params": params}, images, get_normalization("per_channel", 1, mean, std))
    three = logits(colour, variables, repeated, NORMALIZATIONS["imagenet"])
    assert np.abs(one - three).max() > 1e-4 * np.abs(three).max()


def test_normalizations_of_other_channels():
    four = get_normalization("inception", 4)
    assert four.mean == (127.5,) * 4 and four.scale == (1 / 127.5,) * 4
    own = get_normalization("per_channel", 2, (0.5, 0.25), (0.5, 1.0))
    images = np.full((1, 1, 1, 2), 255, np.uint8)
    np.testing.assert_allclose(preprocess(jnp.asarray(images), normalization=own, dtype=jnp.float32).ravel(), [1, 0.75])
    assert (
        get_normalization("per_channel", 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) == NORMALIZATIONS["imagenet"]
    )
    with pytest.raises(
        UserError, match=r"'imagenet': it differs by colour, and model.in_channels = 1; choose inception"
    ):
        get_normalization("imagenet", 1)
    with pytest.raises(UserError, match=r"config.data.std is unset: with data.normalization = 'per_channel'"):
        get_normalization("per_channel", 1, (0.5,))
    with pytest.raises(UserError, match=r"config.data.mean = \(0.5,\).*in_channels = 2 it takes 2 numbers"):
        get_normalization("per_channel", 2, (0.5,), (1.0, 1.0))


@pytest.mark.parametrize(
    "source, name, layer", [("timm", "xception", "block1_conv1"), ("torchvision", "inception_v1_bn", "conv1")]
)
def test_published_weights_for_other_channels(source, name, layer):
    options = {"width_multiplier": 0.1, "min_width": 2, "num_classes": 3, "aux_heads": False}
    shapes = variable_shapes(create_model(name, **{**variant_options(name, source), **options}), 75)
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: random.uniform(0.5, 1, leaf.shape).astype(np.float32), shapes)
    arrays = export_weights(name, variables, source=source, **options)
    grey = import_weights(name, arrays, source=source, **options, in_channels=1)
    first = lambda tree: tree["params"][layer]["kernel"]  # noqa: E731
    np.testing.assert_allclose(first(grey), first(variables).sum(2, keepdims=True), 1e-6)
    # A file of one channel, as timm's in_chans=1 has it, comes back as it is.
    written = export_weights(name, grey, source=source, **options, in_channels=1)
    again = import_weights(name, written, source=source, **options, in_channels=1)
    np.testing.assert_array_equal(first(again), first(grey))
    with pytest.raises(UserError, match=r"in_channels=1 imports it as it is \(convert: --set=in_channels=1\)"):
        import_weights(name, written, source=source, **options)


def test_normalizations_of_imported_weights():
    assert workdirs._channel_fields("inception", 1) == workdirs._channel_fields("imagenet", 3) == {}
    fields = workdirs._channel_fields("caffe_bgr", 1)
    assert fields["data.normalization"] == "per_channel"
    made = get_normalization("per_channel", 1, fields["data.mean"], fields["data.std"])
    np.testing.assert_allclose([*made.mean, *made.scale], [(104 + 117 + 123) / 3, 1], 1e-3)
    assert len(workdirs._channel_fields("imagenet", 4)["data.std"]) == 4
    with pytest.raises(UserError, match="reads blue, green, red"):
        workdirs._channel_fields("caffe_bgr", 4)


def test_erasing_of_one_channel():
    everywhere = DeviceAugmentation(erasing=Erasing(1.0))
    images, labels = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.uint8), jax.ShapeDtypeStruct((2,), jnp.int32)

    def run(images, labels):
        keys = jax.vmap(jax.random.key)(labels)
        return augment(images, labels, labels == 0, keys, everywhere, mean=(127.5,))[0]

    assert jax.eval_shape(run, images, labels).shape == (2, 8, 8, 1)
