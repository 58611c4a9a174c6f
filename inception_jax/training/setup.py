"""Builds everything a training run needs from its config: devices, network, data, schedule, optimizer, objective.

The config is read here, in `data_setup.py`, `network_setup.py`, `run_length.py` and `warm_start.py`; nothing later in a
run reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax

from inception_jax import extension_files, extensions
from inception_jax.config import Config, ConfigError
from inception_jax.errors import counted
from inception_jax.metric_definitions import METRICS, Metric
from inception_jax.models import registry
from inception_jax.models.base import BaseNetwork
from inception_jax.multihost import processes
from inception_jax.runs import sinks
from inception_jax.training import (
    augmentation_setup,
    batch_norm_checks,
    class_balance,
    gradient_transformations,
    memory_check,
    network_setup,
    optax_optimizers,
    optimizers,
    run_length,
    schedules,
    warm_start,
)
from inception_jax.training.batch_norm import BatchNormGroups
from inception_jax.training.data_setup import RunData, build_data, load_splits
from inception_jax.training.early_stopping import BestEvaluation
from inception_jax.training.network_setup import NetworkInput
from inception_jax.training.parallel import Devices
from inception_jax.training.step import Objective
from inception_jax.training.target import Target, read_target


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
      steps_per_execution: training steps that one call of the compiled program takes at most.
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
    steps_per_execution: int = 1
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
    notice = extension_files.check_named(config.extensions, _registered_names(config))
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
    data = build_data(config, train_split, eval_split, network_input, devices)
    length = run_length.compute_run_length(config, data.train.steps_per_epoch)
    per_execution = config.parallel.steps_per_execution
    if described is None:
        longest = length.longest_execution(per_execution)
        memory_check.refuse_long_executions(config, longest, network_input, devices)
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
        steps_per_execution=per_execution,
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
        multipliers.append((gradient_transformations.BIASES, fields.bias_learning_rate))
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
