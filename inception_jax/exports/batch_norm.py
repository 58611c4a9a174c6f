"""Folds batch norm into the layers before it: the same network for inference, with half as many arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from inception_jax.errors import UserError
from inception_jax.models.base import BaseNetwork

# The kernel directly before a unit's batch norm: in a separable unit, the second one.
_KERNELS = ("kernel", "pointwise_kernel")
# Fields, beside those named `bn_…`, that a network accepts only where it has batch norm.
_BATCH_NORM_FIELDS = ("stem_batch_norm", "conv_bias")


def fold_batch_norm(model: BaseNetwork, variables: Mapping[str, Any]) -> tuple[BaseNetwork, dict[str, Any]]:
    """Returns the network without batch norm: its scale goes into the kernel before it, its shift into a bias.

    Normalization by running statistics is an affine map of each channel, so that only rounding changes: the arithmetic
    here is float64, rounded once. With `train=False`, logits and endpoints stay the same; training does not.

    Args:
      model: a network with batch norm; one without is returned as it is.
      variables: "params" and "batch_stats", arrays of NumPy or JAX.

    Returns:
      (the network with `batch_norm=False`, {"params": …} of NumPy arrays in the dtypes of the given ones).

    Raises:
      UserError: a unit of the variables is incomplete.
    """
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(dict(variables), sep="/").items()}
    if not model.batch_norm:
        return model, unflatten_dict(flat, sep="/")
    stats = {path.removesuffix("/bn/mean").removeprefix("batch_stats/") for path in flat if path.endswith("/bn/mean")}
    folded = {path: leaf for path, leaf in flat.items() if path.startswith("params/") and "/bn/" not in path}
    for unit in sorted(stats):
        _fold_unit(unit, flat, folded, model.bn_epsilon)
    defaults: dict[str, Any] = {
        field.name: field.default
        for field in dataclasses.fields(model)
        if field.name.startswith("bn_") or field.name in _BATCH_NORM_FIELDS
    }
    return model.clone(batch_norm=False, **defaults), unflatten_dict(folded, sep="/")


def _fold_unit(unit: str, flat: Mapping[str, np.ndarray], folded: dict[str, np.ndarray], epsilon: float) -> None:
    """Writes one unit's kernel and bias to `folded`."""
    kernel = next((f"params/{unit}/{name}" for name in _KERNELS if f"params/{unit}/{name}" in flat), None)
    missing = [path for path in (f"batch_stats/{unit}/bn/var", f"params/{unit}/bn/bias") if path not in flat]
    if kernel is None or missing:
        raise UserError(f"variables: {unit} has batch norm but no {missing[0] if missing else 'kernel'}")
    mean, var = (flat[f"batch_stats/{unit}/bn/{name}"].astype(np.float64) for name in ("mean", "var"))
    factor = flat.get(f"params/{unit}/bn/scale", np.ones(())).astype(np.float64) / np.sqrt(var + epsilon)
    bias = flat.get(f"params/{unit}/bias", np.zeros(())).astype(np.float64)
    dtype = flat[kernel].dtype
    folded[kernel] = (flat[kernel].astype(np.float64) * factor).astype(dtype)
    shift = (bias - mean) * factor + flat[f"params/{unit}/bn/bias"].astype(np.float64)
    folded[f"params/{unit}/bias"] = shift.astype(dtype)
