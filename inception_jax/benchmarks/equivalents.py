"""Equivalent networks in PyTorch and Keras: their constructors, the options that make ours equal, known differences.

Imports neither JAX nor PyTorch, because both sides of a comparison and their parent import it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from inception_jax.errors import UserError, nearest

# Options of `create_model` that every PyTorch network here has, too; any other would change one side's work only.
SHARED_OPTIONS = ("dropout_rate", "aux_dropout_rate", "aux_heads")
OWN_OPTIONS = ("convolution", "fuse_siblings", "remat")
"""Options that say how our network computes what it computes."""


@dataclasses.dataclass(frozen=True)
class Equivalent:
    """A PyTorch network that does the same work as one of ours.

    Attributes:
      torch: its constructor, as text.
      packages: packages that must be importable beside PyTorch.
      options: options of `create_model` that make our network the same.
      dropout: default dropout rates on both sides; they are the defaults of our network.
      differences: what still differs, as text.
    """

    torch: str
    packages: tuple[str, ...]
    options: Mapping[str, Any]
    dropout: Mapping[str, float]
    differences: tuple[str, ...]


_TIMM_HEADS = "timm's network has no auxiliary head, so ours is created without one"
_TIMM_STATISTICS = "timm updates its running batch statistics by 0.1 per step, ours by 0.0003"
_TORCHVISION_STATISTICS = "torchvision updates its running batch statistics by 0.1 per step, ours by 0.0003"
EQUIVALENTS: dict[str, Equivalent] = {
    "inception_v1": Equivalent(
        torch="a plain definition in inception_jax/benchmarks/torch_models.py, because torchvision and timm have no "
        "GoogLeNet with local response normalization",
        packages=(),
        options={},
        dropout={"dropout_rate": 0.4, "aux_dropout_rate": 0.7},
        differences=(
            "where the 5x5/3 average pool of the auxiliary heads does not give 4x4, PyTorch uses an adaptive pool, "
            "whose windows have other sizes than ours",
        ),
    ),
    "inception_v1_bn": Equivalent(
        torch="torchvision.models.googlenet(aux_logits=True, transform_input=False)",
        packages=("torchvision",),
        options={"five_by_five": 3, "pool4_window": 2, "aux_pool": "adaptive"},
        dropout={"dropout_rate": 0.2, "aux_dropout_rate": 0.7},
        differences=(_TORCHVISION_STATISTICS,),
    ),
    "inception_v3": Equivalent(
        torch="torchvision.models.inception_v3(aux_logits=True, transform_input=False)",
        packages=("torchvision",),
        options={"count_include_pad": True},
        dropout={"dropout_rate": 0.2},
        differences=(
            "torchvision's auxiliary head accepts only 17x17 feature maps, so it trains at 299 to 346 pixels",
            _TORCHVISION_STATISTICS,
        ),
    ),
    "inception_v4": Equivalent(
        torch="timm.create_model('inception_v4')",
        packages=("timm",),
        options={"aux_heads": False},
        dropout={"dropout_rate": 0.2},
        differences=(_TIMM_HEADS, _TIMM_STATISTICS),
    ),
    "inception_resnet_v2": Equivalent(
        torch="timm.create_model('inception_resnet_v2')",
        packages=("timm",),
        options={"aux_heads": False},
        dropout={"dropout_rate": 0.2},
        differences=(_TIMM_HEADS, _TIMM_STATISTICS),
    ),
    "xception": Equivalent(
        torch="timm.create_model('legacy_xception')",
        packages=("timm",),
        options={"pool_padding": "torch"},
        dropout={"dropout_rate": 0.5},
        differences=(_TIMM_STATISTICS,),
    ),
}


@dataclasses.dataclass(frozen=True)
class KerasEquivalent:
    """A network of `keras.applications` that does the same work as one of ours.

    Attributes:
      name: its constructor.
      options: options of `create_model` that make our network the same; Keras has neither dropout nor heads.
    """

    name: str
    options: Mapping[str, Any]


KERAS = {
    "inception_v3": KerasEquivalent("InceptionV3", {"aux_heads": False, "bn_scale": False, "dropout_rate": 0.0}),
    "inception_resnet_v2": KerasEquivalent(
        "InceptionResNetV2", {"aux_heads": False, "bn_scale": False, "dropout_rate": 0.0}
    ),
    "xception": KerasEquivalent("Xception", {"dropout_rate": 0.0}),
}


def keras_options(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `create_model` with which our network equals Keras's.

    Raises:
      UserError: Keras has no such network, or the user gives an option that is not of how ours is computed.
    """
    if model not in KERAS:
        raise UserError(f"--model={model!r}: --vs=keras compares: {', '.join(KERAS)}{nearest(model, KERAS)}")
    for name in options:
        if name not in OWN_OPTIONS:
            raise UserError(
                f"--set {name}: keras.applications has no such option; leave it out with --vs=keras; allowed: "
                + ", ".join(OWN_OPTIONS)
            )
    return {**KERAS[model].options, **options}


def get_equivalent(model: str) -> Equivalent:
    """The equivalent of a model of ours in PyTorch.

    Raises:
      UserError: the model has none.
    """
    if model not in EQUIVALENTS:
        hint = nearest(model, EQUIVALENTS)
        raise UserError(
            f"--model={model!r}: no equivalent network in PyTorch is known{hint}; "
            f"--vs=torch compares: {', '.join(EQUIVALENTS)}"
        )
    return EQUIVALENTS[model]


def matching_options(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `create_model` with which our network equals PyTorch's.

    Args:
      model: one of `EQUIVALENTS`.
      options: the user's options.

    Returns:
      The user's options, those that make the networks equal, and the dropout rates of both sides.

    Raises:
      UserError: the model has no equivalent, or PyTorch's network does not have an option.
    """
    equivalent = get_equivalent(model)
    for name, value in options.items():
        if equivalent.options.get(name, value) != value:
            raise UserError(
                f"--set {name}={value!r}: {equivalent.torch} is the network with {name}={equivalent.options[name]!r}; "
                "leave the option out with --vs=torch"
            )
        if name not in (*equivalent.options, *SHARED_OPTIONS, *OWN_OPTIONS):
            raise UserError(
                f"--set {name}={value!r}: {equivalent.torch} has no such option; leave it out with --vs=torch; "
                f"allowed: {', '.join(SHARED_OPTIONS + OWN_OPTIONS)}"
            )
    chosen = {**equivalent.dropout, **equivalent.options, **options}
    if not chosen.get("aux_heads", True):  # our network refuses a dropout rate for heads that it does not have
        if "aux_dropout_rate" in options:
            rate = options["aux_dropout_rate"]
            raise UserError(f"--set aux_dropout_rate={rate!r}: has no effect, because there are no auxiliary heads")
        chosen.pop("aux_dropout_rate", None)
    return chosen
