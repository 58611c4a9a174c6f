"""Builds the config and the setup of a measurement, so that the timed step is the one that `train` takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from inception_jax import config as configs
from inception_jax.config import Config
from inception_jax.errors import UserError, compiler_disk_full, is_disk_full
from inception_jax.models import registry
from inception_jax.training import setup as setups
from inception_jax.training.setup import Setup

KINDS = ("train", "inference")


def config_of_model(name: str, num_classes: int = 1000) -> ConfigDict:
    """A config for timing a network without a recipe: SGD with momentum on synthetic images.

    Args:
      name: name of the model.
      num_classes: outputs of every classifier.

    Raises:
      ModelError: no model has that name.
    """
    config = configs.default()
    config.model.name = registry.get_spec(name).name
    config.data.name = f"synthetic:{num_classes}"
    config.num_epochs = 1.0
    config.batch_size = 32
    return config


def name_data(config: ConfigDict) -> str:
    """The synthetic data set of `config_of_model`'s config, with the channels that its network reads."""
    channels = config.model.in_channels
    return config.data.name if channels == 3 else f"{config.data.name}:256:{channels}"


def set_fields(config: ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets fields of a config, given as {dotted name: value}; a value of None leaves its field unchanged."""
    for path, value in values.items():
        if value is not None:
            section, _, name = path.rpartition(".")
            with _unlocked(config):
                target = config
                for key in filter(None, section.split(".")):
                    target = target[key]
                target[name] = value


@contextlib.contextmanager
def _unlocked(config: ConfigDict) -> Iterator[None]:
    """Within the context, fields may change their type (a placeholder holds None at first)."""
    with config.unlocked(), config.ignore_type():
        yield


def config_of_workload(workload: Mapping[str, Any]) -> ConfigDict:
    """The config of a workload of a comparison (`versus.make_workload`).

    Args:
      workload: "model", "options", "batch_size", "image_size", "num_classes", "dtype", "seed", "learning_rate",
        "momentum", "aux_weights", "label_smoothing" and, where they are not 1, "devices" and "steps_per_execution";
        `options` are those of `create_model`.
    """
    config = config_of_model(workload["model"], workload["num_classes"])
    options = dict(workload["options"])
    model_fields = {name: options.pop(name) for name in tuple(options) if name in config.model and name != "options"}
    values = {
        **{f"model.{name}": value for name, value in model_fields.items()},
        **{f"model.options.{name}": value for name, value in options.items()},
        "batch_size": workload["batch_size"],
        "data.image_size": workload["image_size"],
        "model.dtype": workload["dtype"],
        "seed": workload["seed"],
        "optimizer.learning_rate": workload["learning_rate"],
        "optimizer.momentum": workload["momentum"],
        "loss.label_smoothing": workload["label_smoothing"],
        "loss.aux_weights": tuple(workload["aux_weights"]) or None,
        "parallel.devices": workload.get("devices", 1),
        "parallel.steps_per_execution": workload.get("steps_per_execution", 1),
    }
    set_fields(config, values)
    config.data.name = name_data(config)
    return config


def build_setup(config: ConfigDict, described: Sequence[Any] | None = None) -> Setup:
    """Builds the setup that a config describes.

    Args:
      config: of the run.
      described: devices of a described topology, in place of JAX's; see `setup.build`.

    Raises:
      UserError: as `setup.build`; a field has no effect (`Config.refuse_unread`); or layers are frozen.
    """
    checked = Config(config)
    setup = setups.build(checked, described)
    checked.refuse_unread()
    if setup.config.optimizer.freeze:
        raise UserError(
            "config.optimizer.freeze: the FLOPs of a step with frozen layers cannot be counted; measure without it: "
            "--config.optimizer.freeze='()'"
        )
    return setup


@contextlib.contextmanager
def translate_out_of_memory(setup: Setup) -> Iterator[None]:
    """Within the context, JAX's error for a device without free memory becomes one line for the user.

    Raises:
      OutOfMemory: the device ran out of memory.
      DiskFull: the compiler cannot write its temporary files.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if is_disk_full(error):
            raise compiler_disk_full(error) from None
        if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
            raise
        per_device = setup.config.batch_size // setup.devices.count
        raise OutOfMemory(
            f"out of memory: {setup.spec.name} at {setup.input.image_size} pixels in {setup.config.model.dtype} does "
            f"not fit with {per_device} examples per device ({_first_line(error)}); find the largest batch that fits "
            "with --largest_batch"
        ) from None


class OutOfMemory(UserError):
    """A step does not fit into the memory of its device."""


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:160]
