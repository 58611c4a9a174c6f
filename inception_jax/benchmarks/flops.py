"""How much work a step is: our own count of a network's layers, held against the compiler's count of its program."""

from __future__ import annotations

from collections.abc import Iterable

from inception_jax.errors import UserError
from inception_jax.models.accounting import Account, Layer

TOLERANCE = 0.10  # activations, batch norm and pools are in the compiler's count and not in ours


class FlopsDisagree(UserError):
    """Our count of a step's work and the compiler's are too far apart for a utilisation to mean anything."""


def passes(layer: Layer, kind: str) -> int:
    """How many times a layer's multiply-adds are done: forward, and in training for either gradient.

    The gradient of the pictures is wanted by nobody, so that the layer that reads them has one pass fewer.

    Args:
      layer: of `Account.layers`.
      kind: "train" or "inference".
    """
    if kind == "inference":
        return 1
    return 2 if layer.reads_pictures else 3


def layers_of(account: Account, kind: str, aux_heads: bool = True) -> list[Layer]:
    """The layers that a step runs: auxiliary heads belong to training alone."""
    return [layer for layer in account.layers if not layer.auxiliary or (kind == "train" and aux_heads)]


def model_flops(layers: Iterable[Layer], kind: str) -> int:
    """FLOPs of one picture by the papers' count: two per multiply-add, those on the padding included.

    This is what "model FLOP/s utilisation" divides by the step's time (arXiv:2204.02311, appendix B, for another kind
    of network): no recomputation, no activation, no optimizer.
    """
    return sum(2 * layer.macs * passes(layer, kind) for layer in layers)


def inside_flops(layers: Iterable[Layer], kind: str) -> int:
    """FLOPs of one picture without multiply-adds on the padding, as XLA's cost analysis counts convolutions."""
    return sum(2 * layer.inside_macs * passes(layer, kind) for layer in layers)


def check(ours: float, compilers: float, what: str) -> float:
    """The compiler's count over ours.

    Args:
      ours: `inside_flops` of a picture.
      compilers: of a picture, the first number of `Bench.count_flops`.
      what: the step, for the message.

    Raises:
      FlopsDisagree: they differ by more than 10 %.
    """
    ratio = compilers / ours
    if not abs(ratio - 1) <= TOLERANCE:
        raise FlopsDisagree(
            f"{what}: the compiler counts {compilers / 1e9:,.3f} GFLOP per picture, the accounting {ours / 1e9:,.3f}, "
            f"{100 * (ratio - 1):+.1f} % (at most {100 * TOLERANCE:.0f} % is allowed): the program does not do the "
            "work that it is timed for"
        )
    return ratio
