"""From a config to the parts of a run: data, devices, network, optimizer. What reads the config is here and in
`fine_tuning.py`."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from inception_jax.config import Config, ConfigError
from inception_jax.data import datasets, eval_protocols, images
from inception_jax.data.pipeline import EvalPipeline, TrainPipeline
from inception_jax.errors import UserError
from inception_jax.models import registry
from inception_jax.training import optimizers, preprocess, run_length, schedules, warm_start
from inception_jax.training.parallel import Devices
from inception_jax.training.step import Objective
from inception_jax.training.warm_start import WarmStart


@dataclasses.dataclass(frozen=True)
class Setup:
    """The parts of a run, built and checked, with nothing started yet."""

    config: Config
    devices: Devices
    model: nn.Module
    spec: registry.ModelSpec
    image_size: int
    normalization: preprocess.Normalization
    dtype: Any
    train_data: TrainPipeline
    eval_data: EvalPipeline
    class_names: list[str]
    length: run_length.RunLength
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    objective: Objective
    warm_start: WarmStart | None
    prefetch: int
    faults: run_length.FaultLimits
    keep: int
    best_metric: str
    tensorboard: bool
    pictures: bool


def build(config: Config) -> Setup:
    """Builds every part of a training run.

    Raises:
      UserError: an unknown name, a value that does not fit the data or the devices, or data that is not there.
    """
    devices = Devices(config.parallel.mode, config.parallel.devices)
    spec, image_size = spec_and_image_size(config)
    train_split = datasets.load(config.data.name, config.data.train_split, config.data.data_dir)
    accumulation = config.optimizer.accumulation
    share = devices.check_batch("batch_size", config.batch_size, accumulation) // accumulation
    model = build_model(config, count_classes(config, train_split))
    model, freezing = warm_start.freeze(config, model, image_size)
    model = warm_start.share_batch_norm(config, model, devices.count, share)
    train_data = TrainPipeline(
        train_split,
        batch_size=config.batch_size,
        image_size=image_size,
        seed=config.seed,
        augmentation=augmentation(config),
        **_reading(config),
    )
    length = run_length.compute_run_length(config, train_data.steps_per_epoch)
    schedule = _schedule(config, length)
    normalization, dtype = input_format(config)
    return Setup(
        config=config,
        devices=devices,
        model=model,
        spec=spec,
        image_size=image_size,
        normalization=normalization,
        dtype=dtype,
        train_data=train_data,
        eval_data=build_eval_data(config, _eval_split(config, train_split), devices),
        class_names=train_split.class_names,
        length=length,
        schedule=schedule,
        optimizer=freezing.optimizer(_optimizer(config, schedule)),
        objective=Objective(
            normalization=normalization,
            dtype=dtype,
            aux_weights=_aux_weights(config, spec),
            label_smoothing=config.loss.label_smoothing,
            seed=config.seed,
            accumulation=accumulation,
            ema_decay=config.ema.decay,
            ema_num_updates=config.ema.num_updates if config.ema.decay else False,
            skip_non_finite=config.faults.max_skipped_steps > 0,
            loss_limit=config.faults.loss_limit,
            freezing=freezing,
        ),
        warm_start=warm_start.read_warm_start(config),
        prefetch=config.data.prefetch,
        faults=run_length.read_fault_limits(config),
        **config.checkpoint.read("keep", "best_metric"),
        **config.logging.read("tensorboard", "pictures"),
    )


def _eval_split(config: Config, train_split: datasets.Dataset) -> datasets.Dataset:
    dataset = datasets.load(config.data.name, config.data.eval_split, config.data.data_dir)
    if dataset.class_names != train_split.class_names:
        raise ConfigError(
            f"config.data.eval_split = {dataset.split!r}: its classes are not those of {train_split.split!r}"
        )
    return dataset


def spec_and_image_size(config: Config) -> tuple[registry.ModelSpec, int]:
    """The record of the config's model, and the picture size in pixels.

    Raises:
      UserError: an unknown model, or a size below its minimum.
    """
    spec = registry.get_spec(config.model.name)
    image_size = config.data.image_size or spec.image_size
    if image_size < spec.min_image_size:
        raise UserError(f"config.data.image_size = {image_size}: {spec.name} needs at least {spec.min_image_size}")
    return spec, image_size


def count_classes(config: Config, dataset: datasets.Dataset) -> int:
    """How many classes the network tells apart: as many as the data set has.

    Raises:
      UserError: the config gives another number.
    """
    num_classes = config.model.num_classes
    if num_classes == 0:
        raise ConfigError(
            "config.model.num_classes = 0: there is no classifier to train; leave the field unset, and "
            "config.initialize.checkpoint begins with weights that have none"
        )
    if num_classes is None:
        return dataset.num_classes
    if num_classes != dataset.num_classes:
        raise ConfigError(
            f"config.model.num_classes = {num_classes}: the data set {dataset.name!r} has "
            f"{dataset.num_classes} classes; leave the field unset to take that"
        )
    return num_classes


def build_model(config: Config, num_classes: int) -> nn.Module:
    """The config's network.

    Args:
      config: its `model` section is read.
      num_classes: outputs of every classifier.

    Raises:
      ModelError: an unknown model or switch.
    """
    model = config.model
    options = model.read("width_multiplier", "aux_heads")
    options |= {name: rate for name, rate in model.read("dropout_rate", "aux_dropout_rate").items() if rate is not None}
    switches = model.options.given()
    return registry.create_model(
        model.name,
        num_classes=num_classes,
        dtype=jnp.dtype(model.dtype),
        param_dtype=jnp.dtype(model.param_dtype),
        **options,
        **switches,
    )


def input_format(config: Config) -> tuple[preprocess.Normalization, Any]:
    """How pixels become the network's input: (normalisation, dtype)."""
    return preprocess.get_normalization(config.data.normalization), jnp.dtype(config.model.dtype)


def build_eval_data(config: Config, dataset: datasets.Dataset, devices: Devices) -> EvalPipeline:
    """The pipeline of an evaluation split, every example once.

    Raises:
      UserError: an unknown protocol, or a batch that does not divide over the devices.
    """
    (view,) = eval_protocols.get_protocol(config.evaluation.protocol).crops(crop(config))
    batch_size = config.evaluation.batch_size or config.batch_size
    devices.check_batch("evaluation.batch_size" if config.evaluation.batch_size else "batch_size", batch_size)
    return EvalPipeline(
        dataset,
        batch_size=batch_size,
        image_size=spec_and_image_size(config)[1],
        crop=view,
        **_reading(config),
    )


def _reading(config: Config) -> dict[str, Any]:
    """What both pipelines are told about how to read: threads, this process's share, corrupt pictures."""
    return {
        **config.data.read("threads", "workers"),
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "skip_corrupt": config.faults.max_corrupt > 0,
    }


def crop(config: Config) -> images.EvalCrop:
    """The evaluation crop.

    Raises:
      UserError: it is smaller than the network's picture.
    """
    fields = config.evaluation
    size = {"fraction": fields.crop_fraction} if fields.resize is None else {"resize": fields.resize}
    if fields.resize is not None and fields.crop == "central_fraction":
        raise ConfigError(f"config.evaluation.resize = {fields.resize}: it has no meaning with crop 'central_fraction'")
    chosen = images.EvalCrop(fields.crop, interpolation=fields.interpolation, **size)
    image_size = spec_and_image_size(config)[1]
    if chosen.resize is not None and chosen.resize < image_size:
        raise ConfigError(
            f"config.evaluation.resize = {chosen.resize}: at least the picture's {image_size} pixels are needed"
        )
    return chosen


def augmentation(config: Config) -> images.Augmentation | images.EvalCrop:
    """The training crop and flip."""
    fields = config.augmentation
    if fields.rule == "none":
        return crop(config)
    chosen = ("area", "aspect") if fields.rule == "area_aspect" else ("resize",)
    return images.Augmentation(**fields.read("rule", "flip", "interpolation", *chosen))


def _schedule(config: Config, length: run_length.RunLength) -> optax.Schedule:
    fields = config.schedule
    warmup = {"warmup_start": fields.warmup_start} if fields.warmup_epochs else {}
    return schedules.make_schedule(
        fields.name,
        base_learning_rate=config.optimizer.learning_rate,
        steps_per_epoch=length.steps_per_epoch,
        total_steps=length.total,
        warmup_epochs=fields.warmup_epochs,
        **warmup,
        **fields.read(*schedules.OPTIONS[fields.name]),
    )


def _optimizer(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    fields = config.optimizer
    options = fields.read(*optimizers.OPTIONS[fields.name])
    multipliers = [*fields.learning_rate_multipliers]
    if fields.bias_learning_rate != 1:
        multipliers.append((r"(^|/)bias$", fields.bias_learning_rate))
    return optimizers.make_optimizer(
        fields.name,
        learning_rate=schedule,
        weight_decay=fields.weight_decay,
        clip_norm=fields.clip_norm,
        learning_rate_multipliers=multipliers,
        **{name: value for name, value in options.items() if value is not None},
    )


def _aux_weights(config: Config, spec: registry.ModelSpec) -> tuple[float, ...]:
    if not config.model.aux_heads:
        return ()
    weights = config.loss.aux_weights
    if weights is None:
        return spec.aux_weights
    if len(weights) != len(spec.aux_weights):
        raise ConfigError(
            f"config.loss.aux_weights = {weights!r}: {spec.name} has {len(spec.aux_weights)} auxiliary "
            f"head(s), the paper's weights are {spec.aux_weights}"
        )
    return tuple(weights)
