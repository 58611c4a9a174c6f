"""What is measured, as a recipe: so that the step that is timed is the step that `train` would take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from inception_jax import config as configs
from inception_jax.config import Config
from inception_jax.errors import UserError
from inception_jax.models import registry
from inception_jax.training import setup as setups
from inception_jax.training.setup import Setup

KINDS = ("train", "inference")


def recipe_of_model(name: str, num_classes: int = 1000) -> ConfigDict:
    """A recipe for timing a network that has none of its own: SGD with momentum on synthetic pictures.

    Args:
      name: of the model.
      num_classes: of every classifier.

    Raises:
      ModelError: there is no model of that name.
    """
    recipe = configs.default()
    recipe.model.name = registry.get_spec(name).name
    recipe.data.name = f"synthetic:{num_classes}"
    recipe.num_epochs = 1.0
    recipe.batch_size = 32
    return recipe


def set_fields(recipe: ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets {dotted field: value} in a recipe, where the value is not None."""
    for path, value in values.items():
        if value is not None:
            section, _, name = path.rpartition(".")
            with configs_unlocked(recipe):
                target = recipe
                for part in filter(None, section.split(".")):
                    target = target[part]
                target[name] = value


@contextlib.contextmanager
def configs_unlocked(recipe: ConfigDict) -> Iterator[None]:
    """Inside, fields may change their type (a placeholder its None)."""
    with recipe.unlocked(), recipe.ignore_type():
        yield


def recipe_of_task(task: Mapping[str, Any]) -> ConfigDict:
    """The recipe of a comparison's task (`versus.py`).

    Args:
      task: "model", "options", "batch_size", "image_size", "num_classes", "dtype", "seed", "learning_rate", "momentum",
        "aux_weights", "label_smoothing"; `options` are those of `create_model`.
    """
    recipe = recipe_of_model(task["model"], task["num_classes"])
    options = dict(task["options"])
    own = {name: options.pop(name) for name in tuple(options) if name in recipe.model and name != "options"}
    values = {
        **{f"model.{name}": value for name, value in own.items()},
        **{f"model.options.{name}": value for name, value in options.items()},
        "batch_size": task["batch_size"],
        "data.image_size": task["image_size"],
        "model.dtype": task["dtype"],
        "seed": task["seed"],
        "optimizer.learning_rate": task["learning_rate"],
        "optimizer.momentum": task["momentum"],
        "loss.label_smoothing": task["label_smoothing"],
        "loss.aux_weights": tuple(task["aux_weights"]) or None,
        "parallel.devices": 1,
    }
    set_fields(recipe, values)
    return recipe


def build(recipe: ConfigDict) -> Setup:
    """The parts of the run that a recipe describes.

    Raises:
      UserError: as `setup.build`; and a recipe whose work the accounting cannot count.
    """
    config = Config(recipe)
    setup = setups.build(config)
    config.refuse_unread()
    if setup.config.optimizer.freeze:
        raise UserError(
            "config.optimizer.freeze: the accounting knows no frozen layers; measure without it "
            "(--config.optimizer.freeze='()')"
        )
    return setup


@contextlib.contextmanager
def explained_out_of_memory(setup: Setup) -> Iterator[None]:
    """Inside, a device that runs out of memory is one clear line.

    Raises:
      OutOfMemory: it did.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
            raise
        share = setup.config.batch_size // setup.devices.count
        raise OutOfMemory(
            f"out of memory: {setup.spec.name} at {setup.image_size} pixels in {setup.config.model.dtype} does not fit "
            f"with {share} examples per device ({_first_line(error)}); --largest_batch finds the largest that does"
        ) from None


class OutOfMemory(UserError):
    """A step does not fit into the memory of its device."""


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:160]
