"""Trains from a script or a notebook: `from_config` loads a recipe and overrides fields, `TrainingRun.train` trains."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from inception_jax import recipe_files
from inception_jax.config import Config
from inception_jax.errors import UserError, nearest, shorten, signal_exit_code
from inception_jax.training import parallel
from inception_jax.training.loop import train


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """A config that is ready to train.

    Attributes:
      config: of the run; its fields may still be changed.
    """

    config: ConfigDict

    def train(self, workdir: str | os.PathLike) -> dict[str, Any]:
        """Trains the network, or continues the run in the workdir: what `python -m inception_jax.train` does.

        The progress is a bar in a terminal and in a notebook, otherwise lines on stderr. An interrupt (Ctrl-C, or the
        button of a notebook) saves a checkpoint; the same call continues the run.

        Args:
          workdir: of the run; made if it does not exist. `inception_jax.load_run` loads the network from it.

        Returns:
          The content of `result.json`: status, metrics, seconds.

        Raises:
          UserError: a mistake in the config, the data or the workdir, or a run that cannot go on; one line says what.
          KeyboardInterrupt: the run was interrupted, after its checkpoint is saved.
          SystemExit: it was stopped by SIGTERM or SIGHUP, after its checkpoint is saved.
        """
        parallel.enable_compilation_cache()
        result, code = train(self.config, os.fspath(workdir))
        if code == signal_exit_code("SIGINT"):
            raise KeyboardInterrupt(f"the run is saved in {os.fspath(workdir)}; the same call continues it")
        if code:
            sys.exit(code)
        return result


def from_config(config: str | os.PathLike | ConfigDict, overrides: Mapping[str, Any] | None = None) -> TrainingRun:
    """Loads a config to train with.

    Args:
      config: a recipe as `--config` takes it: a Python file, or the name of one that is installed, such as "digits"; or
        a config, such as `inception_jax.config.default()`, which is copied.
      overrides: {field: value}, such as {"optimizer.learning_rate": 0.1}.

    Returns:
      The run; its method `train` trains.

    Raises:
      UserError: there is no such recipe, or it has no such field, or a value has another type than the field.

    Example:
      >>> from inception_jax import from_config
      >>> run = from_config("digits", {"num_epochs": 1.0, "optimizer.learning_rate": 0.02})
      >>> run.config.model.name, run.config.optimizer.learning_rate
      ('inception_v1', 0.02)
      >>> result = run.train("runs/short")  # doctest: +SKIP
    """
    if isinstance(config, ConfigDict):
        loaded = config.copy_and_resolve_references()
    else:
        loaded, _ = recipe_files.load_config([f"--config={os.fspath(config)}"])
    for path, value in (overrides or {}).items():
        _override(loaded, path, value)
    Config(loaded)
    return TrainingRun(loaded)


def _override(config: ConfigDict, path: str, value: Any) -> None:
    """Sets the field at a dotted path."""
    *sections, name = path.split(".")
    place: Any = config
    for depth, section in enumerate([*sections, name]):
        if not isinstance(place, ConfigDict) or section not in place:
            known = place if isinstance(place, ConfigDict) else ()
            where = ".".join(path.split(".")[:depth]) or "the config"
            raise UserError(f"config.{path}: {where} has no field {section!r}{nearest(section, known)}")
        if depth < len(sections):
            place = place[section]
    try:
        place[name] = value
    except (TypeError, OverflowError) as error:
        raise UserError(f"config.{path} = {shorten(repr(value))}: {error}") from None
