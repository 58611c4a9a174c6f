"""Builds a config's network: its input format, the model, its frozen parameters and its batch-norm groups."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax.numpy as jnp

from inception_jax import schema
from inception_jax.config import Config, ConfigError
from inception_jax.data import datasets, images
from inception_jax.errors import UserError
from inception_jax.models import registry
from inception_jax.models.base import BaseNetwork
from inception_jax.models.initialization import variable_shapes
from inception_jax.training import freezing, preprocess
from inception_jax.training.batch_norm import FIELD, BatchNormGroups


@dataclasses.dataclass(frozen=True)
class NetworkInput:
    """Size, preprocessing and dtype of the network's input.

    Attributes:
      image_size: height and width in training, in pixels.
      eval_image_size: height and width in evaluations and predictions.
      normalization: of uint8 pixels, on the device.
      dtype: the network's compute dtype.
      eval_crop: the crop and resize of an evaluation image, on the host.
      channels: of an image.
    """

    image_size: int
    eval_image_size: int
    normalization: preprocess.Normalization
    dtype: Any
    eval_crop: images.EvalCrop
    channels: int = 3


def read_input(config: Config) -> NetworkInput:
    """Reads the input format from a config.

    Raises:
      UserError: an unknown model or normalization, an image size below the model's minimum, or an evaluation crop that
        does not fit.
    """
    spec = registry.get_spec(config.model.name)
    image_size = config.data.image_size or spec.image_size
    if image_size < spec.min_image_size:
        raise UserError(f"config.data.image_size = {image_size}: {spec.name} needs at least {spec.min_image_size}")
    eval_image_size = config.evaluation.image_size or image_size
    if eval_image_size < spec.min_image_size:
        raise UserError(
            f"config.evaluation.image_size = {eval_image_size}: {spec.name} needs at least {spec.min_image_size}"
        )
    channels = config.model.in_channels
    return NetworkInput(
        image_size=image_size,
        eval_image_size=eval_image_size,
        normalization=_normalization(config, channels),
        dtype=jnp.dtype(config.model.dtype),
        eval_crop=_eval_crop(config, eval_image_size),
        channels=channels,
    )


def _normalization(config: Config, channels: int) -> preprocess.Normalization:
    name = config.data.normalization
    numbers = config.data.read("mean", "std") if name == preprocess.PER_CHANNEL else {}
    return preprocess.get_normalization(name, channels, **numbers)


def _eval_crop(config: Config, image_size: int) -> images.EvalCrop:
    fields = config.evaluation
    size = {"fraction": fields.crop_fraction} if fields.resize is None else {"resize": fields.resize}
    if fields.resize is not None and fields.crop == "central_fraction":
        raise ConfigError(f"config.evaluation.resize = {fields.resize}: it has no meaning with crop 'central_fraction'")
    crop = images.EvalCrop(fields.crop, interpolation=fields.interpolation, **size)
    if crop.resize is not None and crop.resize < image_size:
        raise ConfigError(
            f"config.evaluation.resize = {crop.resize}: it must be at least the network's image size, {image_size}"
        )
    if crop.rule != "central_fraction":
        try:
            crop.side(image_size)
        except UserError as error:
            raise ConfigError(f"config.evaluation.crop_fraction = {fields.crop_fraction!r}: {error}") from None
    return crop


def count_classes(config: Config, dataset: datasets.Dataset) -> int:
    """The number of classes of the network to train: that of the data set.

    Raises:
      ConfigError: the config gives another number.
    """
    num_classes = config.model.num_classes
    if num_classes == 0:
        raise ConfigError(
            "config.model.num_classes = 0: there is no classifier to train; leave the field unset "
            "(config.initialize.checkpoint may name weights without a classifier)"
        )
    if dataset.num_classes < (1 if dataset.label_kind == "multi" else 2):
        raise ConfigError(
            f"config.data.name = {dataset.name!r}: a single class, {dataset.class_names[0]!r}; two or more are needed"
            f"{dataset.class_hint}"
        )
    if num_classes is None:
        return dataset.num_classes
    if num_classes != dataset.num_classes:
        raise ConfigError(
            f"config.model.num_classes = {num_classes}: the data set {dataset.name!r} has "
            f"{dataset.num_classes} classes; leave the field unset to take that"
        )
    return num_classes


def build_model(config: Config, num_classes: int) -> BaseNetwork:
    """Builds the config's model, without freezing and batch-norm groups.

    Args:
      config: its `model` section is read.
      num_classes: outputs of every classifier.

    Raises:
      ModelError: an unknown model or option; names the config's field.
    """
    model = config.model
    options = model.read("width_multiplier", "aux_heads")
    unset = model.read("dropout_rate", "aux_dropout_rate", "convolution")
    options |= {name: value for name, value in unset.items() if value is not None}
    options |= {"in_channels": model.in_channels}
    try:
        return registry.create_model(
            model.name,
            num_classes=num_classes,
            dtype=jnp.dtype(model.dtype),
            param_dtype=jnp.dtype(model.param_dtype),
            **options,
            **model.options.read_specified(),
        )
    except registry.ModelError as error:
        raise registry.ModelError(_with_field(config, str(error))) from None


def _with_field(config: Config, message: str) -> str:
    """A message about an option of the model, with the config's field for the option's name that it begins with."""
    if message.startswith("unknown option"):
        return f"config.model.options: {message}"
    option = re.split(r"\W", message, maxsplit=1)[0]
    if option not in registry.model_options(config.model.name):
        return message
    return f"config.model.{'' if option in schema.SCHEMA['model'] else 'options.'}{message}"


def freeze(config: Config, model: BaseNetwork, image_size: int) -> tuple[BaseNetwork, freezing.Freezing]:
    """Freezes the parameters that the config's patterns name.

    Args:
      config: `optimizer.freeze` and, where that freezes something, `optimizer.frozen_batch_norm` are read.
      model: from `build_model`.
      image_size: height and width, in pixels.

    Returns:
      (the model, with `bn_frozen` set; what is frozen).

    Raises:
      UserError: a pattern matches no path, or nothing is left to train.
    """
    patterns = config.optimizer.freeze
    if not patterns:
        return model, freezing.Freezing()
    variables = variable_shapes(model, image_size)
    rule = config.optimizer.frozen_batch_norm if model.batch_norm else "running"
    frozen = freezing.find_frozen(patterns, variables, rule)
    return (model.clone(bn_frozen=frozen.frozen_statistics) if frozen.frozen_statistics else model), frozen


def group_batch_norm(
    config: Config, model: BaseNetwork, devices: int, micro_batch: int
) -> tuple[BaseNetwork, BatchNormGroups | None]:
    """Sets which examples share batch-norm statistics.

    Args:
      config: `parallel.batch_norm` is read.
      model: from `build_model`.
      devices: over which the batch is split.
      micro_batch: examples that one device takes at once.

    Returns:
      (the model, with its batch-norm options set; the groups, None for a network without batch norm).

    Raises:
      UserError: the network has no batch norm, or the batch does not divide into such groups.
    """
    groups = BatchNormGroups.parse(config.parallel.batch_norm)
    accumulation = config.optimizer.accumulation
    if not model.batch_norm:
        if groups != BatchNormGroups("local"):
            raise ConfigError(f"{FIELD}: {config.model.name} has no batch norm; leave it 'local'")
        return model, None
    if groups.kind == "examples" and groups.size > micro_batch and accumulation > 1:
        raise ConfigError(
            f"{FIELD} = {str(groups)!r}: with config.optimizer.accumulation = {accumulation} a micro-batch has "
            f"{micro_batch} examples per device; a group must not be larger"
        )
    options = groups.model_options(devices, micro_batch)
    return (model.clone(**options) if options else model), groups


def limit_momentum(config: Config, model: BaseNetwork, updates: int) -> BaseNetwork:
    """Lowers the momentum of batch norm where the run is too short for it, as `model.bn_initial_fraction` says.

    Args:
      config: `model.bn_initial_fraction` is read, if the network has batch norm.
      model: from `build_model`.
      updates: of the running statistics, over the whole run.
    """
    fraction = config.model.bn_initial_fraction if model.batch_norm else None
    if fraction is None:
        return model
    momentum = math.floor(1e6 * fraction ** (1 / updates)) / 1e6
    return model.clone(bn_momentum=min(model.bn_momentum, momentum))


def read_batch_norm_images(
    config: Config, model: BaseNetwork, frozen: freezing.Freezing, image_size: int
) -> int | None:
    """Reads `evaluation.batch_norm_images`.

    Args:
      config: of the run.
      model: from `build_model`.
      frozen: what is frozen.
      image_size: height and width, in pixels.

    Returns:
      The number of images; None: evaluation uses the running statistics.

    Raises:
      ConfigError: the field is set, but there are no batch-norm statistics, or all of them are frozen.
    """
    images = config.evaluation.batch_norm_images
    if images is None:
        return None
    statistics = variable_shapes(model, image_size).get("batch_stats", {})
    if not frozen.split_statistics(statistics)[0]:
        raise ConfigError(
            f"config.evaluation.batch_norm_images = {images}: {config.model.name} has no batch norm whose statistics "
            "are not frozen; leave the field unset"
        )
    return images
