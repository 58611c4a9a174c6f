"""Refuses what cannot be trained or continued, before the first step: `train` and `doctor` make the same checks."""

from __future__ import annotations

import os
from pathlib import Path

from inception_jax.config import Config
from inception_jax.runs import data_record, environment
from inception_jax.training import restore
from inception_jax.training import setup as setups
from inception_jax.training.setup import Setup


def build_setup(config: Config, workdir: str | os.PathLike) -> Setup:
    """Builds and checks everything that a run needs; reads the data's files, and writes nothing.

    Args:
      config: of the run.
      workdir: of the run; it may be missing.

    Raises:
      UserError: the config or the data cannot be used, a field has no effect, or a new run's batch norm would normalize
        single values.
    """
    setup = setups.build(config)
    config.refuse_unread()
    restore.refuse_single_values(workdir, setup)
    return setup


def refuse_other_run(workdir: Path, setup: Setup) -> list[str]:
    """Compares config, JAX's settings and data with those that the run in a workdir began with.

    Args:
      workdir: of the run; it may be missing.
      setup: of this start.

    Returns:
      Lines for the log.

    Raises:
      UserError: they are of another run.
    """
    restore.refuse_changed_config(workdir, setup.config)
    environment.refuse_changed_settings(workdir)
    return data_record.refuse_changed(workdir, setup.data.identity)
