"""Every publisher's variants by name."""

from __future__ import annotations

import functools
import importlib

from inception_jax.errors import UserError, nearest
from inception_jax.models.registry import get_spec
from inception_jax.pretrained.variants import Variant

# source -> the module of its name maps; each has VARIANTS, {model: Variant}.
_MODULES = {
    "slim": "slim", "torchvision": "torchvision", "timm": "timm", "keras": "keras", "caffe": "caffe", "onnx": "onnx",
    "cadene": "cadene", "pytorchcv": "pytorchcv", "facenet": "facenet", "facenet-pytorch": "facenet_pytorch",
    "pytorch-fid": "pytorch_fid", "inception5h": "inception5h",
}  # fmt: skip


def source_names() -> tuple[str, ...]:
    """The publishers whose weights can be imported."""
    return tuple(_MODULES)


@functools.cache
def variants_of(source: str) -> dict[str, Variant]:
    """{model: variant} of one publisher.

    Raises:
      UserError: there is no publisher of that name.
    """
    if source not in _MODULES:
        raise UserError(f"unknown source {source!r}{nearest(source, _MODULES)}; sources: {', '.join(_MODULES)}")
    return importlib.import_module(f"inception_jax.pretrained.publishers.{_MODULES[source]}").VARIANTS


def get_variant(model: str, source: str) -> Variant:
    """A publisher's variant of a network.

    Raises:
      UserError: an unknown publisher, or one that never published the network; the message says who did.
      ModelError: an unknown network.
    """
    get_spec(model)
    variants = variants_of(source)
    if model not in variants:
        others = [name for name in _MODULES if model in variants_of(name)]
        raise UserError(
            f"{source} has no {model}; of {source}: {', '.join(variants)}; {model} of: {', '.join(others) or 'nobody'}"
        )
    return variants[model]


def all_variants() -> list[Variant]:
    """Every variant of every publisher."""
    return [variant for source in _MODULES for variant in variants_of(source).values()]
