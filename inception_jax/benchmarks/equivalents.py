"""Which network of PyTorch's is which of ours, with the options that make ours the same and what still differs.

Imports neither JAX nor PyTorch: both sides of a comparison, and their parent, read it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from inception_jax.errors import UserError, nearest

# Options of ours that every network in PyTorch here follows, too; others would change one side's work alone.
SHARED_OPTIONS = ("dropout_rate", "aux_dropout_rate", "aux_heads")


@dataclasses.dataclass(frozen=True)
class Equivalent:
    """A network of PyTorch's that does the work of one of ours.

    Attributes:
      torch: its constructor, in words.
      packages: what must be importable beside PyTorch.
      options: those of `create_model` that make ours the same network.
      dropout: the rates that both sides take unless told otherwise, ours' own defaults.
      differences: what is not the same, in words.
    """

    torch: str
    packages: tuple[str, ...]
    options: Mapping[str, Any]
    dropout: Mapping[str, float]
    differences: tuple[str, ...]


EQUIVALENTS: dict[str, Equivalent] = {
    "inception_v1": Equivalent(
        torch="a plain definition of ours (inception_jax/benchmarks/torch_models.py), for torchvision and timm have no "
        "GoogLeNet with response normalisation",
        packages=(),
        options={},
        dropout={"dropout_rate": 0.4, "aux_dropout_rate": 0.7},
        differences=(
            "where the heads' 5x5/3 pool does not give 4x4, PyTorch's adaptive pool does: its windows have other sizes "
            "than ours",
        ),
    ),
    "inception_v1_bn": Equivalent(
        torch="torchvision.models.googlenet(aux_logits=True, transform_input=False)",
        packages=("torchvision",),
        options={"five_by_five": 3, "pool4_window": 2, "aux_pool": "adaptive"},
        dropout={"dropout_rate": 0.2, "aux_dropout_rate": 0.7},
        differences=("torchvision's running statistics move by 0.1 a step, ours by 0.0003",),
    ),
    "inception_v3": Equivalent(
        torch="torchvision.models.inception_v3(aux_logits=True, transform_input=False)",
        packages=("torchvision",),
        options={"count_include_pad": True},
        dropout={"dropout_rate": 0.2},
        differences=(
            "torchvision's head takes 17x17 maps alone, so it trains at 299 to 346 pixels",
            "torchvision's running statistics move by 0.1 a step, ours by 0.0003",
        ),
    ),
    "inception_v4": Equivalent(
        torch="timm.create_model('inception_v4')",
        packages=("timm",),
        options={"aux_heads": False},
        dropout={"dropout_rate": 0.2},
        differences=(
            "timm's has no auxiliary head, so ours is made without",
            "timm's running statistics move by 0.1 a step, ours by 0.0003",
        ),
    ),
    "inception_resnet_v2": Equivalent(
        torch="timm.create_model('inception_resnet_v2')",
        packages=("timm",),
        options={"aux_heads": False},
        dropout={"dropout_rate": 0.2},
        differences=(
            "timm's has no auxiliary head, so ours is made without",
            "timm's running statistics move by 0.1 a step, ours by 0.0003",
        ),
    ),
}


def get_equivalent(model: str) -> Equivalent:
    """The record of the network of PyTorch's that does the work of `model`.

    Raises:
      UserError: there is none.
    """
    if model not in EQUIVALENTS:
        hint = nearest(model, EQUIVALENTS)
        raise UserError(
            f"model = {model!r} has no equivalent in torchvision or timm that is known here{hint}; "
            f"--vs=torch compares: {', '.join(EQUIVALENTS)}"
        )
    return EQUIVALENTS[model]


def matching_options(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ours for a network that PyTorch's equals.

    Args:
      model: one of `EQUIVALENTS`.
      options: what the user asked for.

    Returns:
      Those, the ones that make the network equal, and the dropout rates of both sides.

    Raises:
      UserError: no equivalent, or an option that it cannot follow.
    """
    record = get_equivalent(model)
    for name, value in options.items():
        if record.options.get(name, value) != value:
            raise UserError(
                f"{name} = {value!r}: {record.torch} is the network with {name} = {record.options[name]!r}; "
                "leave it out with --vs=torch"
            )
        if name not in (*record.options, *SHARED_OPTIONS):
            raise UserError(
                f"{name} = {value!r}: {record.torch} does not follow it; with --vs=torch leave it out; "
                f"followed: {', '.join(SHARED_OPTIONS)}"
            )
    chosen = {**record.dropout, **record.options, **options}
    if not chosen.get("aux_heads", True):  # no heads, no dropout in them: ours refuses the rate
        if "aux_dropout_rate" in options:
            raise UserError(f"aux_dropout_rate = {options['aux_dropout_rate']!r} has no effect: there are no heads")
        chosen.pop("aux_dropout_rate", None)
    return chosen
