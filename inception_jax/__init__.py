"""The Inception networks in JAX and Flax: the papers' models, trained, evaluated and resumed exactly.

The public names are imported on first use, so that a process that only reads data (`inception_jax.data`) never imports
jax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inception_jax.evaluation.trained_network import TrainedNetwork as TrainedNetwork
    from inception_jax.evaluation.trained_network import load_run as load_run
    from inception_jax.extensions import register_augmentation as register_augmentation
    from inception_jax.extensions import register_dataset as register_dataset
    from inception_jax.extensions import register_metric as register_metric
    from inception_jax.extensions import register_model as register_model
    from inception_jax.extensions import register_optimizer as register_optimizer
    from inception_jax.extensions import register_sink as register_sink
    from inception_jax.models.initialization import init_variables as init_variables
    from inception_jax.models.outputs import InceptionOutput as InceptionOutput
    from inception_jax.models.registry import create_model as create_model
    from inception_jax.models.registry import get_spec as get_spec
    from inception_jax.models.registry import model_names as model_names
    from inception_jax.pretrained.importing import import_weights as import_weights
    from inception_jax.pretrained.importing import variant_options as variant_options
    from inception_jax.pretrained.networks import load_pretrained as load_pretrained
    from inception_jax.training.from_config import from_config as from_config
    from inception_jax.training.losses import inception_loss as inception_loss

__version__ = "0.1.0"  # the only place; pyproject.toml reads it from here without running this file

_MODULES = {
    "InceptionOutput": "inception_jax.models.outputs",
    "TrainedNetwork": "inception_jax.evaluation.trained_network",
    "create_model": "inception_jax.models.registry",
    "from_config": "inception_jax.training.from_config",
    "get_spec": "inception_jax.models.registry",
    "import_weights": "inception_jax.pretrained.importing",
    "inception_loss": "inception_jax.training.losses",
    "init_variables": "inception_jax.models.initialization",
    "load_pretrained": "inception_jax.pretrained.networks",
    "load_run": "inception_jax.evaluation.trained_network",
    "model_names": "inception_jax.models.registry",
    "register_augmentation": "inception_jax.extensions",
    "register_dataset": "inception_jax.extensions",
    "register_metric": "inception_jax.extensions",
    "register_model": "inception_jax.extensions",
    "register_optimizer": "inception_jax.extensions",
    "register_sink": "inception_jax.extensions",
    "variant_options": "inception_jax.pretrained.importing",
}

__all__ = [
    "InceptionOutput", "TrainedNetwork", "__version__", "create_model", "from_config", "get_spec", "import_weights",
    "inception_loss", "init_variables", "load_pretrained", "load_run", "model_names", "register_augmentation",
    "register_dataset", "register_metric", "register_model", "register_optimizer", "register_sink", "variant_options",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
