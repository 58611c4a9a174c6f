"""Checks batch norm before the first step: values per channel, and running statistics that will not catch up."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn

from inception_jax.errors import counted
from inception_jax.models.base import BaseNetwork
from inception_jax.models.initialization import trace_variables
from inception_jax.models.normalization import BatchNorm
from inception_jax.training.batch_norm import FIELD, BatchNormGroups

_TOO_MUCH = 0.01  # fraction of the initial running statistics that may remain after the last step without a warning


@dataclasses.dataclass(frozen=True)
class Batch:
    """The fields that decide how many examples share batch-norm statistics.

    Attributes:
      size: of the global batch.
      devices: over which it is split.
      micro_batches: per device and step.
      groups: `config.parallel.batch_norm`.
    """

    size: int
    devices: int
    micro_batches: int
    groups: BatchNormGroups

    @property
    def shared(self) -> int:
        """Number of examples that are normalized together."""
        return self.groups.shared_examples(self.devices, self.size // self.devices // self.micro_batches)


def find_single_values(model: BaseNetwork, image_size: int, batch: Batch) -> str | None:
    """Finds batch-norm layers that would normalize a single value per channel, and so give their offset for any image.

    It happens where one example is normalized by itself and its map is 1x1: at the end of a network on small images,
    and in the auxiliary heads from Inception-v3 on, whose last convolution makes 1x1 of every map.

    Args:
      model: with its frozen layers set.
      image_size: height and width of its input, in pixels.
      batch: of the run.

    Returns:
      None where there is no such layer; otherwise one line with the layers and the values of fields that would do.
    """
    if batch.shared > 1:  # two values at least on any map: nothing needs to be traced
        return None
    maps = map_sizes(model, image_size)
    layers = [path for path, size in maps.items() if size == 1]
    if not layers:
        return None
    others = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
    remedies = list(_other_batches(batch))
    if size := _larger_image(model, image_size):
        remedies.append(f"config.data.image_size = {size}")
    if all(path.startswith("aux") for path in layers):
        remedies.append("config.model.aux_heads = False")
    per_device = batch.size // batch.devices
    return (
        f"config.batch_size = {batch.size}: batch norm layer {layers[0]}{others} would normalize a single value per "
        f"channel ({FIELD} = {str(batch.groups)!r}, {counted(batch.devices, 'device')} with "
        f"{counted(per_device, 'example')} in {batch.micro_batches} micro-batch{'es' * (batch.micro_batches > 1)}, "
        f"a map of 1x1 pixels at config.data.image_size = {image_size}): its "
        f"output would be the same for every image. What would do: {'; or '.join(remedies)}"
    )


def map_sizes(model: BaseNetwork, image_size: int) -> dict[str, int]:
    """Returns {path of a batch-norm layer: pixels of its map}, without frozen layers; nothing is computed.

    Args:
      model: a network.
      image_size: height and width of its input, in pixels.
    """
    sizes: dict[str, int] = {}

    def record(call: Callable[..., Any], arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        layer = context.module
        normalizes = isinstance(layer, BatchNorm) and context.method_name == "__call__"
        if normalizes and (path := "/".join(layer.path)) not in layer.options.frozen:
            sizes[path] = math.prod(arguments[0].shape[1:-1])
        return call(*arguments, **options)

    with nn.intercept_methods(record):  # initialization runs the auxiliary heads, too
        trace_variables(model, image_size)
    return sizes


def _other_batches(batch: Batch) -> Iterator[str]:
    """Yields settings of batch and groups, each of which makes two examples at least share their statistics."""
    per_device, twice = batch.size // batch.devices, f"config.batch_size = {2 * batch.size}"
    fewer = [n for n in range(1, batch.micro_batches) if per_device % n == 0]
    changes: list[tuple[str, dict[str, Any]]] = [
        (twice, {"size": 2 * batch.size}),
        *((f"config.optimizer.accumulation = {n}", {"micro_batches": n}) for n in fewer[-1:]),
        (f"{FIELD} = 'local'", {"groups": BatchNormGroups("local")}),
        (f"{FIELD} = 'global'", {"groups": BatchNormGroups("global")}),
        (f"{twice} with {FIELD} = 'local'", {"size": 2 * batch.size, "groups": BatchNormGroups("local")}),
    ]
    texts = [text for text, change in changes if dataclasses.replace(batch, **change).shared > 1]
    yield from texts if len(texts) == 1 else texts[:-1]  # the last one where nothing else would do


def _larger_image(model: BaseNetwork, image_size: int) -> int | None:
    """The smallest multiple of 32 pixels, up to twice the size, at which no map is 1x1; None: there is none."""
    sizes = range((image_size // 32 + 1) * 32, 2 * image_size + 1, 32)
    enough = lambda size: 1 not in map_sizes(model, size).values()  # noqa: E731
    if not sizes or not enough(sizes[-1]):
        return None
    return sizes[bisect.bisect_left(sizes, True, key=enough)]


def format_momentum(momentum: float, updates: int, batch_size: int) -> list[str]:
    """Formats a warning where much of the initial running statistics remains; [] otherwise.

    Args:
      momentum: weight of the old value in an update of the running statistics.
      updates: of the running statistics: steps times micro-batches.
      batch_size: of the run.
    """
    remains = momentum**updates
    if remains <= _TOO_MUCH:
        return []
    return [
        f"batch norm: {_percent(remains)} of the initial running statistics remain after {updates:,} "
        f"updates with momentum {momentum:g}, and evaluation normalizes with them; "
        f"config.model.bn_initial_fraction = {_TOO_MUCH:g} lowers config.model.options.bn_momentum to "
        f"{_TOO_MUCH ** (1 / updates):.3g}, config.evaluation.batch_norm_images = {10 * batch_size} estimates the "
        "statistics from training images before each evaluation"
    ]


def format_ema(decay: float, updates: int) -> list[str]:
    """Formats a warning where much of the initial weights remains in the EMA; [] otherwise.

    Args:
      decay: of the EMA, the same at every step.
      updates: steps.
    """
    remains = decay**updates
    if remains <= _TOO_MUCH:
        return []
    return [
        f"EMA: {_percent(remains)} of the initial weights remain in it after {updates:,} steps with "
        f"decay {decay:g}; config.ema.num_updates = True lowers the decay of early steps, config.ema.decay = "
        f"{_TOO_MUCH ** (1 / updates):.3g} leaves {_percent(_TOO_MUCH)}"
    ]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3g} %"
