"""Refuses before the first step what the machine's memory cannot hold: batches, resized images, parameters.

The estimates are lower bounds, so that nothing is refused that could run: the batches that the data loader makes ahead
(uint8), one batch in the network's dtype, the images that its threads resize, the parameters with their gradients, and
the endpoints of the forward pass. Shapes are traced only where a product of the config's numbers comes near the limit.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from inception_jax.config import Config, ConfigError
from inception_jax.data.image_cache import MEGABYTE
from inception_jax.data.pipeline import EvalPipeline, TrainPipeline
from inception_jax.models.base import BaseNetwork
from inception_jax.models.initialization import trace_variables
from inception_jax.models.platforms import traced_for_shapes
from inception_jax.models.registry import ModelSpec
from inception_jax.ranges import format_number
from inception_jax.training.network_setup import NetworkInput
from inception_jax.training.parallel import Devices

_CGROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_NEAR = 1 / 16  # of the limit: above it, a cheap estimate is replaced by traced shapes


class TooLarge(ConfigError):
    """The sizes in a config need more memory than there is."""


def machine_memory() -> int:
    """Bytes of memory of this machine, or of the container that the process runs in."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in _CGROUP:
        try:
            sizes.append(int(Path(file).read_text(encoding="ascii")))
        except (OSError, ValueError):  # there is no such file, or no limit ("max")
            continue
    return min(size for size in sizes if size > 0)


def refuse_too_large(
    config: Config, spec: ModelSpec, model: BaseNetwork, network_input: NetworkInput, devices: Devices
) -> None:
    """Refuses sizes that cannot fit, from the config's numbers alone; call it before pipelines are built.

    Args:
      config: of the run.
      spec: of the network.
      model: the network.
      network_input: its input.
      devices: of the run.

    Raises:
      TooLarge: names the fields, the bytes that they need at least, and the bytes that there are.
    """
    side, channels, limit = network_input.image_size, network_input.channels, machine_memory()
    sizes = f"config.data.image_size = {side:,}"
    threads = config.data.threads or 1
    eval_side, crop = network_input.eval_image_size, network_input.eval_crop
    resized = crop.side(eval_side) if crop.rule != "central_fraction" else eval_side
    _refuse(threads * channels * resized**2, limit, f"{sizes} and config.data.threads = {threads:,}", "images to crop")
    on_device = _device_memory(devices) or limit // devices.local_count
    for field, batch, side in (
        ("batch_size", config.batch_size, network_input.image_size),
        ("evaluation.batch_size", config.evaluation.batch_size or config.batch_size, eval_side),
    ):
        local = batch // devices.process_count
        own = side != network_input.image_size
        fields = f"config.{field} = {batch:,} and " + (f"config.evaluation.image_size = {side:,}" if own else sizes)
        _refuse_batches(_batches_ahead(config), local * channels * side**2, fields)
        rows = max(1, batch // devices.count // (config.optimizer.accumulation if field == "batch_size" else 1))
        images = rows * channels * side**2 * network_input.dtype.itemsize
        _refuse(images, on_device, fields, f"a batch in {network_input.dtype.name}, per device")
        if images > _NEAR * on_device:
            need = images + _endpoint_bytes(model, side, rows)
            _refuse(need, on_device, fields, "the batch and the network's endpoints, per device")
    _refuse_parameters(config, spec, model, network_input.image_size, on_device)


def refuse_long_executions(config: Config, steps: int, network_input: NetworkInput, devices: Devices) -> None:
    """Refuses more steps in one execution than the memory holds batches of.

    Args:
      config: of the run.
      steps: the most steps of an execution in this run (`RunLength.longest_execution`).
      network_input: the network's input.
      devices: of the run.

    Raises:
      TooLarge: as `refuse_too_large`.
    """
    ahead = _batches_ahead(config) + 2 * (steps - 1)  # those of a call, and the array that it makes of them
    fields = f"config.batch_size = {config.batch_size:,} and config.parallel.steps_per_execution = "
    fields += f"{config.parallel.steps_per_execution:,} (at most {steps:,} in this run)"
    local = config.batch_size // devices.process_count
    _refuse_batches(ahead, local * network_input.channels * network_input.image_size**2, fields)


def _batches_ahead(config: Config) -> int:
    """Batches that the data loader's threads and the transfers hold beside that of a step."""
    return (config.data.threads or 1) + max(2, config.data.prefetch)


def _refuse_batches(count: int, size: int, fields: str) -> None:
    _refuse(count * size, machine_memory(), fields, f"{count:,} batches of uint8")


def _refuse_parameters(config: Config, spec: ModelSpec, model: BaseNetwork, side: int, limit: int) -> None:
    copies = 2 + (config.ema.decay > 0)  # with their gradients
    width, dtype = config.model.width_multiplier, jnp.dtype(config.model.param_dtype)
    estimate = max(spec.parameters_with_aux, 1) * max(width, 1.0) ** 2 + 1000 * model.num_classes
    if copies * estimate * dtype.itemsize <= _NEAR * limit:
        return
    shapes = trace_variables(model, max(spec.min_image_size, min(side, spec.image_size)))[1]["params"]
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    fields = f"config.model.width_multiplier = {width:g}" if width > 1 else f"config.model.name = {spec.name!r}"
    what = f"{copies} copies of {count:,} parameters (of {model.num_classes:,} classes)"
    _refuse(copies * count * dtype.itemsize, limit, fields, what)


def _endpoint_bytes(model: BaseNetwork, side: int, rows: int) -> int:
    images = jax.ShapeDtypeStruct((rows, side, side, model.in_channels), model.dtype)
    with traced_for_shapes():
        output = jax.eval_shape(lambda images: model.init_with_output(jax.random.key(0), images)[0], images)
    shapes = output.endpoints
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(shapes))


def refuse_batch(field: str, batch_size: int, image_size: int) -> None:
    """Refuses a batch of uint8 images and its float32 that the machine's memory cannot hold.

    Args:
      field: the flag of the batch size, for the message.
      batch_size: images.
      image_size: height and width, in pixels.

    Raises:
      TooLarge: it needs more memory than there is.
    """
    need = batch_size * 3 * image_size**2 * (1 + 4)
    _refuse(need, machine_memory(), f"{field}={batch_size:,}", f"images of {image_size:,} pixels in uint8 and float32")


def refuse_many_batches(pipeline: TrainPipeline | EvalPipeline) -> None:
    """As `refuse_too_large`, with the numbers of threads and workers that a pipeline chose itself."""
    crops = pipeline.protocol.crops if isinstance(pipeline, EvalPipeline) else 1
    batch = 3 * pipeline.local_batch_size * crops * pipeline.image_size**2
    ahead = max(1, pipeline.workers) * pipeline.threads + pipeline.prefetch
    fields = (
        f"config.data.threads = {pipeline.threads:,}, config.data.workers = {pipeline.workers:,} and a batch of "
        f"{pipeline.local_batch_size * crops:,} images of {pipeline.image_size:,} pixels"
    )
    _refuse_batches(ahead, batch, fields)


def refuse_cache(megabytes: int) -> None:
    """Refuses a cache of decoded images (`data.cache_mb`) that is larger than the machine's memory.

    Raises:
      TooLarge: it is.
    """
    limit = machine_memory() // MEGABYTE
    if megabytes > limit:
        raise TooLarge(
            f"config.data.cache_mb = {megabytes:,}: the memory has {limit:,} MB; lower it: images that do not fit are "
            "decoded in every epoch"
        )


def _device_memory(devices: Devices) -> int | None:
    """Bytes of an accelerator's memory; None: the devices are this machine's processor, or do not say."""
    stats = devices.mesh.local_devices[0].memory_stats()
    return stats.get("bytes_limit") if stats else None


def _refuse(need: float, limit: float, fields: str, what: str) -> None:
    if need > limit:
        raise TooLarge(
            f"{fields}: {what} need at least {format_number(math.ceil(need / 1e6))} MB of memory, and there are "
            f"{format_number(math.floor(limit / 1e6))} MB; lower one of them"
        )
