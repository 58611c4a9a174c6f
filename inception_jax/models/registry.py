"""The registry of networks: names, constructors, image sizes, loss weights, expected parameter and MAC counts."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

from flax import traverse_util

from inception_jax.models.base import BaseNetwork
from inception_jax.models.baselines import VGG16, AlexNet, NetworkInNetwork
from inception_jax.models.checks import ModelError, nearest
from inception_jax.models.inception_resnet_v1 import InceptionResnetV1
from inception_jax.models.inception_resnet_v2 import InceptionResnetV2
from inception_jax.models.inception_v1 import InceptionV1
from inception_jax.models.inception_v2 import InceptionV2
from inception_jax.models.inception_v3 import InceptionV3
from inception_jax.models.inception_v4 import InceptionV4
from inception_jax.models.initialization import variable_shapes
from inception_jax.models.xception import Xception

__all__ = ["ModelError", "ModelSpec", "create_model", "get_spec", "model_names", "model_options"]


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """The static facts about a network.

    Attributes:
      name: the name that `create_model` takes.
      constructor: takes the options of `create_model`.
      image_size: height and width in pixels that the network was designed for.
      min_image_size: the smallest height and width in pixels that it accepts.
      aux_weights: the loss weight of each auxiliary head, first head first; the main loss has weight 1.
      paper: the source of the network.
      parameters, parameters_with_aux: trainable parameters at 1000 classes, without and with the auxiliary heads; 0 of
        a network that was added.
      macs: multiply-adds of convolutions and fully connected layers for one image of `image_size`, without heads; 0 of
        a network that was added.
    """

    name: str
    constructor: Callable[..., BaseNetwork]
    image_size: int
    min_image_size: int
    aux_weights: tuple[float, ...]
    paper: str
    parameters: int
    parameters_with_aux: int
    macs: int


_SPECS = {
    spec.name: spec
    for spec in (
        ModelSpec(
            name="inception_v1",
            constructor=InceptionV1,
            image_size=224,
            min_image_size=InceptionV1.MIN_IMAGE_SIZE,
            aux_weights=(0.3, 0.3),  # section 5 of the paper; loss_weight in bvlc_googlenet
            paper="arXiv:1409.4842, Table 1, as BVLC's bvlc_googlenet has it",
            parameters=6_998_552,
            parameters_with_aux=13_378_280,
            macs=1_582_671_872,
        ),
        ModelSpec(
            name="inception_v1_bn",
            # Dropout 0.2 as slim (keep 0.8) and torchvision have it in their batch-normalized GoogLeNets.
            constructor=functools.partial(InceptionV1, batch_norm=True, lrn=False, dropout_rate=0.2),
            image_size=224,
            min_image_size=InceptionV1.MIN_IMAGE_SIZE,
            aux_weights=(0.3, 0.3),
            paper="arXiv:1409.4842, Table 1, with batch norm (arXiv:1502.03167) for biases and response normalization",
            parameters=7_005_832,
            parameters_with_aux=13_385_816,
            macs=1_582_671_872,
        ),
        ModelSpec(
            name="inception_v2",
            constructor=InceptionV2,
            image_size=224,
            min_image_size=InceptionV2.MIN_IMAGE_SIZE,
            aux_weights=(0.3, 0.3),  # loss_weight in caffe-googlenet-bn
            paper="arXiv:1502.03167, Figure 5, as slim's inception_v2.py has it",
            parameters=11_188_288,
            parameters_with_aux=16_069_136,
            macs=1_934_857_216,
        ),
        ModelSpec(
            name="inception_v3",
            constructor=InceptionV3,
            image_size=299,
            min_image_size=InceptionV3.MIN_IMAGE_SIZE,
            aux_weights=(0.4,),  # slim's train_image_classifier.py
            paper="arXiv:1512.00567, as slim's inception_v3.py has it",
            parameters=23_834_568,
            parameters_with_aux=27_161_264,
            macs=5_713_216_096,
        ),
        ModelSpec(
            name="inception_v4",
            constructor=InceptionV4,
            image_size=299,
            min_image_size=InceptionV4.MIN_IMAGE_SIZE,
            aux_weights=(0.4,),  # slim's train_image_classifier.py
            paper="arXiv:1602.07261, as slim's inception_v4.py has it",
            parameters=42_679_816,
            parameters_with_aux=46_039_280,
            macs=12_253_974_624,
        ),
        ModelSpec(
            name="inception_resnet_v1",
            constructor=InceptionResnetV1,
            image_size=299,
            min_image_size=InceptionResnetV1.MIN_IMAGE_SIZE,
            aux_weights=(0.4,),  # as of inception_resnet_v2: the paper has no head
            paper="arXiv:1602.07261, Figure 15, with the auxiliary head of inception_resnet_v2",
            parameters=22_756_328,
            parameters_with_aux=26_099_408,
            macs=6_206_361_696,
        ),
        ModelSpec(
            name="inception_resnet_v2",
            constructor=InceptionResnetV2,
            image_size=299,
            min_image_size=InceptionResnetV2.MIN_IMAGE_SIZE,
            aux_weights=(0.4,),  # slim's train_image_classifier.py
            paper="arXiv:1602.07261, as slim's inception_resnet_v2.py has it",
            parameters=55_843_464,
            parameters_with_aux=59_211_120,
            macs=13_155_794_016,
        ),
        ModelSpec(
            name="xception",
            constructor=Xception,
            image_size=299,
            min_image_size=Xception.MIN_IMAGE_SIZE,
            aux_weights=(),
            paper="arXiv:1610.02357, Figure 5, as Keras's xception.py has it",
            parameters=22_855_952,
            parameters_with_aux=22_855_952,
            macs=8_357_403_496,
        ),
        ModelSpec(
            name="alexnet",
            constructor=AlexNet,
            image_size=227,
            min_image_size=AlexNet.MIN_IMAGE_SIZE,
            aux_weights=(),
            paper="Krizhevsky et al., NIPS 2012, as BVLC's bvlc_alexnet has it",
            parameters=60_965_224,
            parameters_with_aux=60_965_224,
            macs=724_406_816,
        ),
        ModelSpec(
            name="vgg16",
            constructor=VGG16,
            image_size=224,
            min_image_size=VGG16.MIN_IMAGE_SIZE,
            aux_weights=(),
            paper="arXiv:1409.1556, Table 1, configuration D",
            parameters=138_357_544,
            parameters_with_aux=138_357_544,
            macs=15_470_264_320,
        ),
        ModelSpec(
            name="network_in_network",
            constructor=NetworkInNetwork,
            image_size=224,
            min_image_size=NetworkInNetwork.MIN_IMAGE_SIZE,
            aux_weights=(),
            paper="arXiv:1312.4400, as Caffe's nin_imagenet has it",
            parameters=7_595_176,
            parameters_with_aux=7_595_176,
            macs=1_100_188_800,
        ),
    )
}


BUILT_IN = frozenset(_SPECS)
"""The names of this package's networks."""


def add(spec: ModelSpec) -> None:
    """Adds a network, or replaces one that was added under its name (`inception_jax.register_model`)."""
    _SPECS[spec.name] = spec


def model_names() -> tuple[str, ...]:
    """Returns the names that `create_model` takes.

    Example:
      >>> from inception_jax import model_names
      >>> model_names()[:4]
      ('inception_v1', 'inception_v1_bn', 'inception_v2', 'inception_v3')
    """
    return tuple(_SPECS)


def get_spec(name: str) -> ModelSpec:
    """Returns the facts about a network.

    Raises:
      ModelError: there is no network of that name.

    Example:
      >>> from inception_jax import get_spec
      >>> spec = get_spec("inception_v3")
      >>> spec.image_size, spec.min_image_size, spec.aux_weights
      (299, 75, (0.4,))
    """
    if name not in _SPECS:
        squeezed = _squeeze(name)
        known = _OTHER_NAMES.get(squeezed) or next((one for one in _SPECS if _squeeze(one) == squeezed), None)
        hint = f"; did you mean {known!r}?" if known else nearest(name, _SPECS)
        raise ModelError(f"unknown model {name!r}{hint}; models: {', '.join(_SPECS)}")
    return _SPECS[name]


def _squeeze(name: str) -> str:
    """A name without what its spellings differ in: case, `_`, `-`, and the prefixes of publishers' weights."""
    squeezed = re.sub(r"[^a-z0-9]", "", str(name).lower())
    return re.sub(r"^(tf|gluon|adv|ensadv|legacy|bvlc|caffe|slim|timm|torchvision|keras)+(?=[a-z])", "", squeezed)


# Names by which other programs and the papers' readers call these networks, as `_squeeze` gives them.
_OTHER_NAMES = {
    "inception": "inception_v1", "googlenet": "inception_v1", "inception1": "inception_v1",
    "inception5h": "inception_v1", "googlenetbn": "inception_v1_bn", "bngooglenet": "inception_v1_bn",
    "bninception": "inception_v2", "inceptionbn": "inception_v2", "inception2": "inception_v2",
    "inception3": "inception_v3", "inception4": "inception_v4", "inceptionresnet": "inception_resnet_v2",
    "facenet": "inception_resnet_v1", "vgg": "vgg16", "vgg16d": "vgg16", "nin": "network_in_network",
}  # fmt: skip


def model_options(name: str) -> dict[str, Any]:
    """Returns the options that `create_model(name, ...)` takes, with their defaults for this network.

    Raises:
      ModelError: there is no network of that name.
    """
    # Without parent=None Flax would make it a submodule of the module whose method calls this.
    model = get_spec(name).constructor(parent=None)
    return {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in _FLAX_FIELDS}


def create_model(name: str, /, **options: Any) -> BaseNetwork:
    """Creates a network, at the top or as a submodule in a method of a Flax module.

    Args:
      name: one of `model_names()`; by position, since `name=` is that of Flax.
      **options: fields of the network's class, such as num_classes, in_channels, dtype, width_multiplier, aux_heads;
        see `model_options(name)`. And Flax's own, `name` (of a submodule) and `parent`.

    Returns:
      A Flax module; `model.init(key, images)` creates its variables, `model.apply(variables, images)` runs it.

    Raises:
      ModelError: the name, an option or an option's value is unknown.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from inception_jax import create_model, init_variables
      >>> model = create_model("inception_v1", num_classes=10, width_multiplier=0.1)
      >>> variables = init_variables(model, jax.random.key(0), image_size=32)
      >>> output = jax.jit(model.apply)(variables, jnp.zeros((2, 32, 32, 3)))
      >>> output.logits.shape
      (2, 10)
      >>> output.endpoint("Mixed_5c").shape
      (2, 1, 1, 108)
    """
    spec = get_spec(name)
    allowed = model_options(name)
    for option in options:
        if option in ("weights", "pretrained") and option not in allowed:
            raise ModelError(
                f"{option}: create_model makes a module without weights; inception_jax.load_pretrained(NAME) of "
                "a published file, such as 'timm/inception_v4.tf_in1k', or of a path gives a network with them"
            )
        if option not in allowed and option not in _FLAX_FIELDS:
            hint = nearest(option, allowed)
            raise ModelError(f"unknown option {option!r} of {name}{hint}; options: {', '.join(allowed)}")
    model = spec.constructor(**options)
    if model.bn_frozen:
        _check_frozen_layers(model, spec.min_image_size)
    return model


def _check_frozen_layers(model: BaseNetwork, image_size: int) -> None:
    """Raises ModelError unless each path of `bn_frozen` is one of the network's batch norm layers."""
    if isinstance(model.bn_frozen, str):
        raise ModelError(f"bn_frozen: {model.bn_frozen!r} is a string; give a tuple of paths: ({model.bn_frozen!r},)")
    shapes = variable_shapes(model.clone(parent=None), image_size)["batch_stats"]
    layers = {path.rpartition("/")[0] for path in traverse_util.flatten_dict(shapes, sep="/")}
    for path in model.bn_frozen:
        if path not in layers:
            raise ModelError(
                f"bn_frozen: {path!r} is not a batch norm layer of this network{nearest(path, layers)}; an example: "
                f"{sorted(layers)[0]!r}"
            )


_FLAX_FIELDS = ("parent", "name")
