"""Registry of publishers and their variants, by name."""

from __future__ import annotations

import functools
import importlib

from inception_jax.errors import UserError, nearest
from inception_jax.models.registry import get_spec
from inception_jax.pretrained.variants import Variant

# source -> its module in this package; each has VARIANTS, {model: Variant}.
_MODULES = {
    "slim": "slim", "torchvision": "torchvision", "timm": "timm", "keras": "keras", "caffe": "caffe", "onnx": "onnx",
    "cadene": "cadene", "pytorchcv": "pytorchcv", "facenet": "facenet", "facenet-pytorch": "facenet_pytorch",
    "pytorch-fid": "pytorch_fid", "inception5h": "inception5h",
}  # fmt: skip


def source_names() -> tuple[str, ...]:
    """Returns the names of the publishers whose weights can be imported."""
    return tuple(_MODULES)


@functools.cache
def variants_of(source: str) -> dict[str, Variant]:
    """Returns {model: variant} of one publisher.

    Args:
      source: a name of `source_names()`.

    Raises:
      UserError: there is no publisher of that name.
    """
    if source not in _MODULES:
        raise UserError(f"unknown source {source!r}{nearest(source, _MODULES)}; sources: {', '.join(_MODULES)}")
    return importlib.import_module(f"inception_jax.pretrained.publishers.{_MODULES[source]}").VARIANTS


def get_variant(model: str, source: str) -> Variant:
    """Returns a publisher's variant of a network.

    Args:
      model: a name of `model_names()`.
      source: a name of `source_names()`.

    Raises:
      UserError: an unknown publisher, or one that has not published the network; the message names those that have.
      ModelError: an unknown network.
    """
    get_spec(model)
    variants = variants_of(source)
    if model not in variants:
        others = [name for name in _MODULES if model in variants_of(name)]
        raise UserError(
            f"{source} has no {model}; networks of {source}: {', '.join(variants)}; "
            f"sources of {model}: {', '.join(others) or 'none'}"
        )
    return variants[model]


def all_variants() -> list[Variant]:
    """Returns every variant of every publisher."""
    return [variant for source in _MODULES for variant in variants_of(source).values()]
