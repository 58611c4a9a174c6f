"""Adds to predictions what in the image they depend on: the saliency map of the most probable class."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from inception_jax.evaluation.prediction import Prediction
from inception_jax.evaluation.trained_network import TrainedNetwork
from inception_jax.features.saliency import class_saliency
from inception_jax.training import preprocess

# Of the values of a map, so many are drawn as 1: single pixels with a large gradient would leave the others black.
_BRIGHTEST = 0.01


def explain(
    network: TrainedNetwork, predictions: Iterable[Prediction], *, batch_size: int = 32
) -> Iterator[Prediction]:
    """Computes the saliency map of every prediction's most probable class, batch by batch.

    Args:
      network: that made the predictions.
      predictions: from `network.predict_files(…, keep_images=True)`.
      batch_size: images per step; rounded up to a multiple of the devices. Fewer predictions make it smaller: the next
        power of two.

    Yields:
      The predictions in their order, with `saliency`: the map of `saliency.class_saliency`, scaled so that its 99th
      percentile is 1, and cut there. Those without an image are left as they are.
    """
    waiting = iter(predictions)
    group = list(itertools.islice(waiting, batch_size))
    step = None
    while group:
        shown = [one for one in group if one.image is not None]
        if shown and step is None:
            batch_size = network.devices.choose_rows(len(group), batch_size)
            step = network.programs.get(("saliency", batch_size), functools.partial(_compile, network, batch_size))
        maps = iter(_maps(network, step, shown, batch_size) if shown else ())
        for one in group:
            yield one if one.image is None else dataclasses.replace(one, saliency=next(maps))
        group = list(itertools.islice(waiting, batch_size))


def _compile(network: TrainedNetwork, batch_size: int) -> Any:
    def step(variables: Any, batch: dict[str, jax.Array]) -> tuple[dict, jax.Array]:
        inputs = preprocess.preprocess(
            batch["image"], normalization=network.input.normalization, dtype=network.input.dtype
        )
        return {}, class_saliency(network.model, variables, inputs, batch["label"]).astype(np.float32)

    batch = network.devices.abstract_batch(batch_size, network.image_size, channels=network.input.channels)
    return network.devices.compile_eval(step, network.variables, batch)


def _maps(network: TrainedNetwork, step: Any, shown: list[Prediction], batch_size: int) -> list[np.ndarray]:
    size, count = network.image_size, len(shown)
    batch: dict[str, np.ndarray] = {
        "image": np.zeros((batch_size, size, size, network.input.channels), np.uint8),
        "label": np.zeros(batch_size, np.int32),
        "mask": np.arange(batch_size) < count,
    }
    batch["image"][:count] = [one.image for one in shown]
    batch["label"][:count] = [one.classes[0] for one in shown]
    _, found = step(network.variables, network.devices.put(batch))
    return [_scale(values) for values in network.devices.get(found)[:count]]


def _scale(values: np.ndarray) -> np.ndarray:
    """Scales a map to 0 … 1."""
    most = np.quantile(values, 1 - _BRIGHTEST) or values.max()
    return np.clip(values / most, 0, 1) if most else values
