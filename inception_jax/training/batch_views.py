"""The images of a batch as the network sees them, as bytes again, and their labels as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inception_jax.runs.batch_sheet import format_label, format_labels
from inception_jax.training.device_augmentation import DeviceAugmentation, Labels
from inception_jax.training.network_setup import NetworkInput
from inception_jax.training.preprocess import Normalization
from inception_jax.training.step import example_keys, make_input


def view_training_batch(
    batch: Mapping[str, Any],
    step: int,
    seed: int,
    augmentation: DeviceAugmentation,
    network_input: NetworkInput,
    class_names: Sequence[str],
) -> tuple[np.ndarray, list[str]]:
    """Augments the first rows of a training batch as the step does.

    Args:
      batch: "image", "label" and "mask" of the first rows of the global batch; an even number where images are mixed.
      step: that trains on it, counted from 0.
      seed: of the run.
      augmentation: of the run, on the device.
      network_input: of the network.
      class_names: of the data.

    Returns:
      The network's input, with the normalization undone and rounded to uint8 [n, H, W, C]; n labels.
    """
    if not augmentation:
        return np.asarray(batch["image"]), view_labels(batch, class_names)

    @jax.jit
    def make(batch: dict[str, jax.Array], step: jax.Array) -> tuple[jax.Array, jax.Array | Labels]:
        keys = example_keys(seed, step, jnp.arange(len(batch["label"]), dtype=jnp.int32))
        return make_input(batch, keys, augmentation, network_input.normalization, network_input.dtype)

    rows = {name: np.asarray(batch[name]) for name in ("image", "label", "mask")}
    images, labels = jax.device_get(make(rows, np.int32(step)))
    return undo_normalization(images, network_input.normalization), view_labels(rows, class_names, labels)


def view_labels(batch: Mapping[str, Any], class_names: Sequence[str], mixed: Any = None) -> list[str]:
    """Formats the labels of a batch; `mixed` are the labels of mixed images, as `make_input` gives them."""
    labels = np.asarray(batch["label"])
    if labels.ndim == 2:
        found = zip(labels if mixed is None else np.asarray(mixed), np.asarray(batch["mask"]), strict=True)
        return [format_labels(class_names, row) if valid else "(left out)" for row, valid in found]
    first, second, weights = mixed if isinstance(mixed, Labels) else (labels, labels, np.ones(len(labels)))
    rows = zip(first, second, weights, np.asarray(batch["mask"]), strict=True)
    return [
        format_label(class_names, int(label), int(partner), float(weight)) if valid else "(left out)"
        for label, partner, weight, valid in rows
    ]


def undo_normalization(images: np.ndarray, normalization: Normalization) -> np.ndarray:
    """The pixels of the network's input [n, H, W, C] as uint8; what is outside 0 to 255 is clipped."""
    scale, mean = (np.asarray(channels, np.float64) for channels in (normalization.scale, normalization.mean))
    pixels = np.asarray(images).astype(np.float64) / scale + mean
    if normalization.channel_order == "BGR":
        pixels = pixels[..., ::-1]
    return np.rint(pixels.clip(0, 255)).astype(np.uint8)
