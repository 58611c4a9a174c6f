"""The digest by which files of features and statistics know the network that they are of."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING

import jax
import numpy as np

from inception_jax.models.base import BaseNetwork

if TYPE_CHECKING:
    from inception_jax.evaluation import extraction

_FIELDS_OF_ALL = frozenset(field.name for field in dataclasses.fields(BaseNetwork))
_FIRST_FIELDS = frozenset(
    (
        "align_feature_maps aux_dropout_rate aux_heads aux_pool batch_norm block17_count block17_scale block35_count "
        "block35_scale block8_count block8_scale bn_axis_name bn_epsilon bn_group_size bn_momentum bn_scale "
        "bn_unbiased_variance bottleneck conv1_padding conv2_reduce conv_bias convolution count_include_pad "
        "dropout_rate extra_block8 five_by_five form fuse_siblings in_channels last_pool lrn lrn_alpha lrn_beta lrn_k "
        "lrn_size min_width module name num_classes order output_stride pool4_window pool_padding pool_rounding "
        "reduction_padding remat stem stem_batch_norm table width_multiplier"
    ).split()
)
"""Fields of the networks that every digest holds. Files of statistics keep digests, so this set stays as it is."""


def digest(network: extraction.FeatureExtractor, rule: object | None, endpoint: str) -> str:
    """A hash of the weights, the endpoint and the input rule: features with the same digest can be compared.

    A field that the networks have got since the first digests counts only where it differs from its default: what was
    computed before it came stays comparable.

    Args:
      network: the network.
      rule: an `InputRule`; None: the evaluation crop of its run.
      endpoint: whose features they are.
    """
    model, given = network.model, network.input
    package = type(model).__module__.startswith("inception_jax.")
    plain = {}
    for field in dataclasses.fields(model):
        value = getattr(model, field.name, None)
        is_later = field.name not in _FIRST_FIELDS and (package or field.name in _FIELDS_OF_ALL)
        if isinstance(value, str | int | float) and not (is_later and value == field.default):
            plain[field.name] = str(value)
    used = rule or (given.normalization, given.eval_crop)
    named = type(model).__name__, plain, used, str(np.dtype(given.dtype)), endpoint, given.eval_image_size
    found = hashlib.sha256(repr(named).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(network.variables):
        found.update(jax.tree_util.keystr(path).encode())
        found.update(np.ascontiguousarray(leaf.addressable_data(0)).data)  # one of the devices' copies
    return found.hexdigest()[:16]
