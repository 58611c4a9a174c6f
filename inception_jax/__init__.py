"""The Inception networks in JAX and Flax: the papers' models, trained, evaluated and resumed exactly.

The names below are handed on lazily: a process that only reads data imports `inception_jax.data` and never jax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inception_jax.models.outputs import InceptionOutput as InceptionOutput
    from inception_jax.models.registry import create_model as create_model
    from inception_jax.models.registry import model_names as model_names
    from inception_jax.pretrained.importing import import_weights as import_weights

__version__ = "0.1.0"

_HOMES = {
    "InceptionOutput": "inception_jax.models.outputs",
    "create_model": "inception_jax.models.registry",
    "import_weights": "inception_jax.pretrained.importing",
    "model_names": "inception_jax.models.registry",
}

__all__ = ["InceptionOutput", "__version__", "create_model", "import_weights", "model_names"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
