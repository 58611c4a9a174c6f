"""Makes all checks, in the order in which a run would meet what they look at."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from inception_jax.data import storage
from inception_jax.diagnostics import environment
from inception_jax.diagnostics.findings import Finding, Status, ok, run_check, warn

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from inception_jax.training.setup import Setup

_AGAIN = "correct that; `train` ends with the same words"


def examine(flags: argparse.Namespace, load_recipe: Callable[[], ConfigDict] | None) -> Iterator[Finding]:
    """Yields the findings of all checks that can be made.

    Args:
      flags: with `workdir`, and those of `command_line.add_processes`.
      load_recipe: loads the recipe; None: only installation, machine and workdir are looked at.
    """
    yield run_check("versions", environment.check_versions, remedy=_AGAIN)
    devices = run_check("devices", environment.check_devices, remedy=_AGAIN)
    yield devices
    yield run_check("host", environment.check_host, remedy=_AGAIN)
    yield run_check("processes", lambda: environment.check_processes(flags), remedy=_AGAIN)
    yield run_check("extras", environment.check_extras, remedy=_AGAIN)
    workdir = Path(flags.workdir) if flags.workdir and not storage.is_remote(flags.workdir) else None
    if workdir is not None:
        yield run_check("workdir", lambda: _check_workdir(workdir), remedy="give another --workdir, or repair this one")
    elif flags.workdir:
        remedy = "look whether this machine may write there; `train` says so at its start"
        yield warn("workdir", f"{flags.workdir}: an address, whose storage and run are not looked at", remedy)
    if load_recipe is None or devices.status == Status.FAIL:
        return
    imported = run_check("recipe", _import_training, remedy=_AGAIN)
    if imported.status == Status.FAIL:
        yield imported
    else:
        yield from _examine_recipe(flags.num_processes or 1, load_recipe, workdir)


def _import_training() -> Finding:
    from inception_jax.diagnostics import recipe, workdir

    return ok("recipe", f"{recipe.__name__} and {workdir.__name__} can be imported")


def _check_workdir(workdir: Path) -> Finding:
    from inception_jax.diagnostics import workdir as workdirs  # late, as below: what cannot be imported is a finding

    return workdirs.check_workdir(workdir)


def _examine_recipe(processes: int, load_recipe: Callable[[], ConfigDict], workdir: Path | None) -> Iterator[Finding]:
    """Yields the findings about a recipe, its data, and the run in the workdir."""
    from inception_jax.diagnostics import image_files
    from inception_jax.diagnostics import recipe as recipes
    from inception_jax.diagnostics import workdir as workdirs
    from inception_jax.runs import run_state
    from inception_jax.training import restore

    recipe: list[ConfigDict] = []
    built: list[Setup] = []

    def build() -> Finding:
        recipe.append(load_recipe())
        built.append(recipes.build(recipe[0], workdir))
        return recipes.check_recipe(built[0], processes)

    found = run_check("recipe", build, remedy=_AGAIN)
    if not built:
        if recipe:  # is its data the reason?
            data = run_check("data", lambda: recipes.check_data(*recipes.open_data(recipe[0])), remedy=_AGAIN)
            yield data
            if data.text == found.text:
                return
        yield found
        return
    yield found
    setup = built[0]
    state = functools.cache(lambda: restore.state_shapes(setup))
    splits = setup.data.train.dataset, setup.data.eval.dataset
    yield run_check("data", lambda: recipes.check_data(*splits), remedy=_AGAIN)
    yield run_check("decoding", lambda: recipes.check_decoding(setup), remedy=_AGAIN)
    training, evaluation = map(image_files.find_files, splits)
    if training or evaluation:
        yield run_check("files", lambda: image_files.check_headers(training, evaluation, setup), remedy=_AGAIN)
    yield run_check("statistics", lambda: recipes.check_statistics(setup, state()), remedy=_AGAIN)
    if setup.warm_start and (workdir is None or not run_state.is_run(workdir)):
        yield run_check("weights", lambda: recipes.check_initialization(setup), remedy=_AGAIN)
    yield run_check("memory", lambda: recipes.check_memory(setup, state()), remedy=_AGAIN)
    if workdir is not None:
        other = "continue that run with its own recipe and data, or give another --workdir"
        yield run_check("run", lambda: workdirs.check_run(workdir, setup, state()), remedy=other)
        yield run_check("disk", lambda: workdirs.check_disk(workdir, setup, state()), remedy=_AGAIN)
