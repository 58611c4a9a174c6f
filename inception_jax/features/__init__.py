"""Features of a network's endpoints, metrics of generators (FID, KID, …), and saliency maps.

The public names are imported on first use: the metrics are NumPy alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inception_jax.features.accumulators import DeviceMoments as DeviceMoments
    from inception_jax.features.accumulators import DeviceRows as DeviceRows
    from inception_jax.features.fid_network import FeatureNetwork as FeatureNetwork
    from inception_jax.features.fid_network import feature_network as feature_network
    from inception_jax.features.frechet_estimates import bootstrap as bootstrap
    from inception_jax.features.frechet_estimates import distance_of_rows as distance_of_rows
    from inception_jax.features.frechet_estimates import fid_infinity as fid_infinity
    from inception_jax.features.manifolds import density_coverage as density_coverage
    from inception_jax.features.manifolds import precision_recall as precision_recall
    from inception_jax.features.maximum_mean_discrepancy import kernel_distance as kernel_distance
    from inception_jax.features.prediction_divergence import inception_score as inception_score
    from inception_jax.features.resizing import quantize as quantize
    from inception_jax.features.resizing import quantize_on_device as quantize_on_device
    from inception_jax.features.resizing import resize as resize
    from inception_jax.features.resizing import resize_on_device as resize_on_device
    from inception_jax.features.statistics import Moments as Moments
    from inception_jax.features.statistics import frechet_distance as frechet_distance
    from inception_jax.features.statistics import read_statistics as read_statistics

_MODULES = {
    "DeviceMoments": "accumulators",
    "DeviceRows": "accumulators",
    "FeatureNetwork": "fid_network",
    "Moments": "statistics",
    "bootstrap": "frechet_estimates",
    "density_coverage": "manifolds",
    "distance_of_rows": "frechet_estimates",
    "feature_network": "fid_network",
    "fid_infinity": "frechet_estimates",
    "inception_score": "prediction_divergence",
    "kernel_distance": "maximum_mean_discrepancy",
    "frechet_distance": "statistics",
    "precision_recall": "manifolds",
    "quantize": "resizing",
    "quantize_on_device": "resizing",
    "read_statistics": "statistics",
    "resize": "resizing",
    "resize_on_device": "resizing",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
