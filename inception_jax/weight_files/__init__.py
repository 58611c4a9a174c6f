"""Readers and writers of weight files: `read_weights(path)` reads every publisher's format.

Each format has one module, with a function from bytes to arrays; `detect.detect_format` chooses it by the content.
Nothing here knows a network: array names stay the publisher's, and `pretrained.publishers` maps them to ours.
README.md beside this file describes the formats, the limits and the security model.
"""

from inception_jax.weight_files.detect import FORMATS
from inception_jax.weight_files.read import read_weights
from inception_jax.weight_files.types import DEFAULT_LIMIT, Weights

__all__ = ["DEFAULT_LIMIT", "FORMATS", "Weights", "read_weights"]
