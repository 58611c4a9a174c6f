"""Classifies several crops of each image in the evaluation step, and averages their probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

_MOST_PER_PASS = 12


def crops_per_pass(crops: int) -> int:
    """How many crops of an image go through the network at a time: all, of many the largest divisor up to 12.

    It is a function of the shapes alone, as everything that decides a program.
    """
    return crops if crops <= _MOST_PER_PASS else max(n for n in range(1, _MOST_PER_PASS + 1) if crops % n == 0)


def classify_crops(
    classify: Callable[[jax.Array], jax.Array], images: jax.Array, multi_label: bool = False
) -> jax.Array:
    """Log of the mean of the crops' softmax probabilities, for each image.

    The mean is taken of logarithms, so that a probability below the smallest float32 stays a number.

    Args:
      classify: maps images [n, H, W, C] to logits [n, num_classes] in at least float32.
      images: [B, crops, H, W, C].
      multi_label: whether the probabilities are those of sigmoid, each class by itself; the result is then the logit
        of their mean.

    Returns:
      [B, num_classes], in the dtype of the logits; their softmax (or sigmoid) is the mean.
    """
    examples, crops, *shape = images.shape
    each = crops_per_pass(crops)
    if each == crops:
        logits = classify(images.reshape(-1, *shape)).reshape(examples, crops, -1)
    else:
        passes = jnp.moveaxis(images.reshape(examples, crops // each, each, *shape), 1, 0)
        logits = lax.map(classify, passes.reshape(crops // each, -1, *shape))
        logits = jnp.moveaxis(logits.reshape(crops // each, examples, each, -1), 0, 1).reshape(examples, crops, -1)
    if multi_label:  # log(p / (1 - p)) of the mean p; the number of crops cancels
        present, absent = (jax.nn.logsumexp(jax.nn.log_sigmoid(sign * logits), axis=1) for sign in (1.0, -1.0))
        return present - absent
    return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=1) - math.log(crops)
