"""Readers of the files in which weights are published: `read_weights(path)`, for every publisher's format.

One module per format, each a function from bytes to arrays; `detect_format` says which one a file needs.
Nothing here knows a network: the names are the publishers', and `pretrained.publishers` maps them.
"""

from inception_jax.weight_files.detect import FORMATS
from inception_jax.weight_files.read import read_weights
from inception_jax.weight_files.types import DEFAULT_LIMIT, Weights

__all__ = ["DEFAULT_LIMIT", "FORMATS", "Weights", "read_weights"]
