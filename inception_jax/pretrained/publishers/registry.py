"""Every publisher's forms by name."""

from __future__ import annotations

import functools
import importlib

from inception_jax.errors import UserError, nearest
from inception_jax.models.registry import get_spec
from inception_jax.pretrained.variants import Form

# source -> the module of its name maps; each has FORMS, {model: Form}.
_MODULES = {
    "slim": "slim", "torchvision": "torchvision", "timm": "timm", "keras": "keras", "caffe": "caffe", "onnx": "onnx",
    "cadene": "cadene", "pytorchcv": "pytorchcv", "facenet": "facenet", "facenet-pytorch": "facenet_pytorch",
    "pytorch-fid": "pytorch_fid", "inception5h": "inception5h",
}  # fmt: skip


def source_names() -> tuple[str, ...]:
    """The publishers whose weights can be imported."""
    return tuple(_MODULES)


@functools.cache
def forms_of(source: str) -> dict[str, Form]:
    """{model: form} of one publisher.

    Raises:
      UserError: there is no publisher of that name.
    """
    if source not in _MODULES:
        raise UserError(f"unknown source {source!r}{nearest(source, _MODULES)}; sources: {', '.join(_MODULES)}")
    return importlib.import_module(f"inception_jax.pretrained.publishers.{_MODULES[source]}").FORMS


def get_form(model: str, source: str) -> Form:
    """A publisher's form of a network.

    Raises:
      UserError: an unknown publisher, or one that never published the network; the message says who did.
      ModelError: an unknown network.
    """
    get_spec(model)
    forms = forms_of(source)
    if model not in forms:
        others = [name for name in _MODULES if model in forms_of(name)]
        raise UserError(
            f"{source} has no {model}; of {source}: {', '.join(forms)}; {model} of: {', '.join(others) or 'nobody'}"
        )
    return forms[model]


def all_forms() -> list[Form]:
    """Every form of every publisher."""
    return [form for source in _MODULES for form in forms_of(source).values()]
