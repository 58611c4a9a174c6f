"""Builds everything a training run needs from its config: devices, network, data, schedule, optimizer, objective.

The config is read here, in `network_setup.py`, `run_length.py` and `warm_start.py`; nothing later in a run reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from inception_jax import extensions
from inception_jax.config import Config, ConfigError
from inception_jax.data import datasets, eval_protocols
from inception_jax.data.pipeline import EvalPipeline, TrainPipeline
from inception_jax.errors import counted
from inception_jax.metric_definitions import METRICS, Metric
from inception_jax.models import registry
from inception_jax.models.base import BaseNetwork
from inception_jax.multihost import processes
from inception_jax.runs import data_record, sinks
from inception_jax.training import (
    augmentation_setup,
    batch_norm_checks,
    class_balance,
    crop_averaging,
    memory_check,
    network_setup,
    optax_optimizers,
    optimizers,
    run_length,
    schedules,
    warm_start,
)
from inception_jax.training.batch_norm import BatchNormGroups
from inception_jax.training.early_stopping import BestEvaluation
from inception_jax.training.network_setup import NetworkInput
from inception_jax.training.parallel import Devices
from inception_jax.training.step import Objective
from inception_jax.training.target import Target, read_target


@dataclasses.dataclass(frozen=True)
class RunData:
    """The input pipelines of a run.

    Attributes:
      train: batches of the training split.
      eval: one pass over the evaluation split.
      class_names: one per class.
      identity: of the data, as it is recorded in data.json.
      prefetch: batches that are transferred to the devices ahead of the step.
    """

    train: TrainPipeline
    eval: EvalPipeline
    class_names: list[str]
    identity: dict[str, Any]
    prefetch: int


@dataclasses.dataclass(frozen=True)
class CheckpointOptions:
    """Options of checkpoints: how many latest ones are kept, and the metric of the best one; and of early stopping.

    Attributes:
      keep: number of latest checkpoints.
      best_metric: of the evaluation, by which the best checkpoint is chosen.
      patience: evaluations without a better one after which the run ends; None: it never ends early.
      min_improvement: difference from the best value that counts as better.
    """

    keep: int
    best_metric: Metric
    patience: int | None
    min_improvement: float

    def best_evaluation(self) -> BestEvaluation:
        """Starts to follow the evaluations of a run."""
        return BestEvaluation(self.best_metric, self.patience, self.min_improvement)


@dataclasses.dataclass(frozen=True)
class LoggingOptions:
    """Options of what a run writes beside metrics.jsonl and its log.

    Attributes:
      tensorboard: TensorBoard events.
      pictures: plots, at the end of the run.
      sinks: names of the services to which all of it is copied.
    """

    tensorboard: bool
    pictures: bool
    sinks: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Setup:
    """The objects of a run, built and checked; nothing has been started or written yet.

    Attributes:
      config: that they were built from.
      devices: mesh and parallel mode.
      spec: of the network: name, paper, defaults.
      model: the Flax module, with frozen parameters and batch-norm groups set.
      input: size, preprocessing and dtype of the network's input.
      batch_norm: which examples share batch-norm statistics; None for a network without batch norm.
      single_values: why some batch norm layers would normalize single values; None: there are none.
      batch_norm_images: training images from which batch-norm statistics are estimated before every evaluation; None:
        the running statistics are used.
      data: input pipelines.
      length: steps of the run, and its intervals.
      schedule: learning rate by step.
      optimizer: of the parameters that are not frozen.
      build_optimizer: (learning rate, numbers) -> `optimizer` with a schedule and numbers in the place of its own.
      optimizer_numbers: {name: value}; None: an optimizer of Optax or of a recipe, whose numbers are constants.
      objective: losses, EMA and the other options of the training step.
      warm_start: the checkpoint whose weights a new run starts from; None: random initialization.
      faults: limits of fault tolerance.
      checkpoints: options of checkpoints.
      target: of the evaluations; None: there is none.
      logging: what is written beside metrics and log.
      notice: a line for the log's header; None: none.
    """

    config: Config
    devices: Devices
    spec: registry.ModelSpec
    model: BaseNetwork
    input: NetworkInput
    batch_norm: BatchNormGroups | None
    single_values: str | None
    batch_norm_images: int | None
    data: RunData
    length: run_length.RunLength
    schedule: schedules.Schedule
    optimizer: optax.GradientTransformation
    build_optimizer: Callable[[optax.Schedule, Mapping[str, Any]], optax.GradientTransformation]
    optimizer_numbers: Mapping[str, float] | None
    objective: Objective
    warm_start: warm_start.WarmStart | None
    faults: run_length.FaultLimits
    checkpoints: CheckpointOptions
    target: Target | None
    logging: LoggingOptions
    notice: str | None = None


def build(config: Config, described: Sequence[Any] | None = None) -> Setup:
    """Builds all objects of a training run.

    Args:
      config: of the run.
      described: devices that are described and not present (`Devices`): for programs that are compiled and do not run.
        `parallel.devices` is not read, and nothing is compared with this machine's memory. None: JAX's devices.

    Raises:
      UserError: an unknown name, a value that does not fit the data or the devices, or missing data.
    """
    notice = extensions.check_named(config.extensions, _registered_names(config))
    devices = Devices(config.parallel.mode, config.parallel.devices, described=described)
    spec, network_input = registry.get_spec(config.model.name), network_setup.read_input(config)
    train_split, eval_split = load_splits(config, config.data.train_split, config.data.eval_split)
    accumulation = config.optimizer.accumulation
    micro_batch = devices.check_batch("batch_size", config.batch_size, accumulation) // accumulation
    model = network_setup.build_model(config, network_setup.count_classes(config, train_split))
    if described is None:
        memory_check.refuse_too_large(config, spec, model, network_input, devices)
    model, freezing = network_setup.freeze(config, model, network_input.image_size)
    image_size, single_values = network_input.image_size, None
    model, batch_norm = network_setup.group_batch_norm(config, model, devices.count, micro_batch)
    if batch_norm:
        batch = batch_norm_checks.Batch(config.batch_size, devices.count, accumulation, batch_norm)
        single_values = batch_norm_checks.find_single_values(model, image_size, batch)
    data = _build_data(config, train_split, eval_split, network_input, devices)
    length = run_length.compute_run_length(config, data.train.steps_per_epoch)
    model = network_setup.limit_momentum(config, model, length.total * accumulation)
    schedule = _schedule(config, length)
    build_optimizer, optimizer_numbers = _optimizer(config)
    return Setup(
        config=config,
        devices=devices,
        spec=spec,
        model=model,
        input=network_input,
        batch_norm=batch_norm,
        single_values=single_values,
        batch_norm_images=network_setup.read_batch_norm_images(config, model, freezing, image_size),
        data=data,
        length=length,
        schedule=schedule,
        optimizer=freezing.optimizer(build_optimizer(schedule, optimizer_numbers or {})),
        build_optimizer=build_optimizer,
        optimizer_numbers=optimizer_numbers,
        objective=Objective(
            normalization=network_input.normalization,
            dtype=network_input.dtype,
            aux_weights=_aux_weights(config, spec),
            label_smoothing=config.loss.label_smoothing,
            class_weights=class_balance.read_class_weights(config, train_split),
            seed=config.seed,
            accumulation=accumulation,
            ema_decay=config.ema.decay,
            ema_num_updates=config.ema.num_updates if config.ema.decay else False,
            skip_non_finite=config.faults.max_skipped_steps > 0,
            loss_limit=config.faults.loss_limit,
            freezing=freezing,
            augmentation=augmentation_setup.read_device_augmentation(config, micro_batch),
        ),
        warm_start=warm_start.read_warm_start(config),
        faults=run_length.read_fault_limits(config),
        checkpoints=CheckpointOptions(
            config.checkpoint.keep,
            METRICS[config.checkpoint.best_metric],
            patience=config.stop.patience,
            min_improvement=config.stop.min_improvement if config.stop.patience else 0.0,
        ),
        target=read_target(config),
        logging=_read_logging(config),
        notice=notice,
    )


def _registered_names(config: Config) -> list[tuple[str, str]]:
    """(kind, name) of what the config uses and a recipe may have registered."""
    return [
        ("model", config.model.name),
        ("data set", config.data.name),
        ("optimizer", config.optimizer.name),
        ("augmentation", config.augmentation.rule),
        *(("sink", name) for name in config.logging.sinks),
    ]


def _read_logging(config: Config) -> LoggingOptions:
    """Reads `config.logging`; process 0, which alone writes, checks that the sinks can be opened.

    Raises:
      UserError: one cannot.
    """
    names = tuple(config.logging.sinks)
    if processes.is_first():
        sinks.check(names)
    tensorboard = config.logging.tensorboard or extensions.TENSORBOARD in names
    return LoggingOptions(tensorboard, config.logging.pictures, names)


def build_train_data(
    config: Config, dataset: datasets.Dataset, network_input: NetworkInput, devices: Devices | None = None
) -> TrainPipeline:
    """Builds the pipeline of a training split.

    Args:
      config: of the run.
      dataset: the split.
      network_input: of the network.
      devices: of the run; for described ones this machine's memory is not checked.

    Raises:
      UserError: a value of the augmentation that does not fit, or more batches than the memory holds.
    """
    pipeline = TrainPipeline(
        dataset,
        batch_size=config.batch_size,
        image_size=network_input.image_size,
        seed=config.seed,
        augmentation=augmentation_setup.read_crop(config, network_input.eval_crop),
        policy=augmentation_setup.read_policy(config),
        sampling=config.data.sampling,
        decode=config.data.decode,
        **_reading_options(config),
    )
    if not (devices and devices.described):
        memory_check.refuse_many_batches(pipeline)
    return pipeline


def load_splits(config: Config | ConfigDict, *splits: str, data: str | None = None) -> list[datasets.Dataset]:
    """Opens splits of the config's data set, or of another one.

    Args:
      config: its section `data` is read.
      *splits: as in `datasets.load`.
      data: name of another data set.

    Raises:
      UserError: as `datasets.load`.
    """
    fields = config.data
    if data is not None and data != fields.name:
        return datasets.load_splits(data, splits, fields.data_dir)
    return datasets.load_splits(
        fields.name, splits, fields.data_dir, fields.class_names, fields.image_key, fields.label_key
    )


def build_eval_data(
    config: Config, dataset: datasets.Dataset, network_input: NetworkInput, devices: Devices
) -> EvalPipeline:
    """Builds the pipeline of an evaluation split, every example once.

    Raises:
      UserError: an unknown protocol, a batch size that does not divide over the devices, or more batches than the
        memory holds.
    """
    protocol = eval_protocols.get_protocol(config.evaluation.protocol)
    batch_size = config.evaluation.batch_size or config.batch_size
    devices.check_batch("evaluation.batch_size" if config.evaluation.batch_size else "batch_size", batch_size)
    # The batch size is that of the network: with several crops of an image a batch has fewer examples.
    per_device = max(1, batch_size // devices.count // crop_averaging.crops_per_pass(protocol.crops))
    pipeline = EvalPipeline(
        dataset,
        batch_size=per_device * devices.count,
        image_size=network_input.eval_image_size,
        crop=network_input.eval_crop,
        protocol=protocol,
        **_reading_options(config),
    )
    if not devices.described:
        memory_check.refuse_many_batches(pipeline)
    return pipeline


def _build_data(
    config: Config,
    train_split: datasets.Dataset,
    eval_split: datasets.Dataset,
    network_input: NetworkInput,
    devices: Devices,
) -> RunData:
    train = build_train_data(config, train_split, network_input, devices)
    if eval_split.class_names != train_split.class_names:
        raise ConfigError(
            f"config.data.eval_split = {eval_split.split!r}: its classes are not those of {train_split.split!r}"
        )
    evaluation = build_eval_data(config, eval_split, network_input, devices)
    identity = data_record.describe(train_split, eval_split)
    return RunData(train, evaluation, train_split.class_names, identity, config.data.prefetch)


def _reading_options(config: Config) -> dict[str, Any]:
    """The options of both pipelines: threads and workers, this process's rows of a batch, undecodable images."""
    return {
        **config.data.read("threads", "workers", "max_pixels"),
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "skip_corrupt": config.faults.max_corrupt > 0,
    }


def _schedule(config: Config, length: run_length.RunLength) -> schedules.Schedule:
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


def _optimizer(
    config: Config,
) -> tuple[Callable[[optax.Schedule, Mapping[str, Any]], optax.GradientTransformation], Mapping[str, float] | None]:
    """`Setup.build_optimizer` and `Setup.optimizer_numbers`."""
    fields = config.optimizer
    multipliers = [*fields.learning_rate_multipliers]
    if fields.bias_learning_rate != 1:
        multipliers.append((optimizers.BIASES, fields.bias_learning_rate))
    common: dict[str, Any] = {
        "weight_decay": fields.weight_decay,
        "clip_norm": fields.clip_norm,
        "learning_rate_multipliers": multipliers,
    }
    if fields.name not in optimizers.OPTIONS:
        own = dict(fields.options or ())

        def build(learning_rate: optax.Schedule, numbers: Mapping[str, Any]) -> optax.GradientTransformation:
            return optax_optimizers.make_optimizer(fields.name, learning_rate=learning_rate, options=own, **common)

        return build, None
    optimizer = optimizers.specify(fields.name, **common, **fields.read(*optimizers.OPTIONS[fields.name]))
    return optimizer.build, optimizer.numbers


def _aux_weights(config: Config, spec: registry.ModelSpec) -> tuple[float, ...]:
    if not config.model.aux_heads:
        return ()
    weights = config.loss.aux_weights
    if weights is None:
        return spec.aux_weights
    if len(weights) != len(spec.aux_weights):
        raise ConfigError(
            f"config.loss.aux_weights = {weights!r}: {spec.name} has "
            f"{counted(len(spec.aux_weights), 'auxiliary head')}, the paper's weights are {spec.aux_weights}"
        )
    return tuple(weights)
