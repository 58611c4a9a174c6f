"""Starts or continues a run: locks the workdir, refuses a changed config, restores the newest checkpoint."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from inception_jax import extension_files
from inception_jax.checkpoints import identity, reading
from inception_jax.checkpoints.saving import SUBDIRECTORY, Checkpoints
from inception_jax.config import Config, ConfigError, from_dict
from inception_jax.errors import UserError
from inception_jax.models import input_channels
from inception_jax.models.initialization import init_variables, trace_variables, variable_shapes
from inception_jax.multihost import processes
from inception_jax.runs import data_record, environment, goodput, lock, manifest, metric_files, remote_workdir
from inception_jax.runs.result import fingerprint
from inception_jax.training import executables, paths, run_length, warm_start
from inception_jax.training import state as states
from inception_jax.training.compilation import forget_lowered_programs
from inception_jax.training.early_stopping import BestEvaluation
from inception_jax.training.setup import Setup
from inception_jax.training.state import TrainState
from inception_jax.training.target import TargetRecord

# Fields that may differ between two starts of a run: none of them changes a number of the steps already taken.
MAY_CHANGE = (
    "checkpoint.", "data.cache_mb", "data.data_dir", "data.max_pixels", "data.prefetch", "data.threads",
    "data.workers", "evaluation.", "extensions", "faults.", "logging.", "parallel.devices", "parallel.mode",
    "parallel.steps_per_execution", "stop.",
)  # fmt: skip
LENGTH = ("num_epochs", "num_steps")
_VISIBLE_WITHIN = 60.0  # seconds; an NFS client may cache for half a minute that a file does not exist


@contextlib.contextmanager
def lock_workdir(workdir: str | os.PathLike) -> Iterator[Path]:
    """Locks the workdir on process 0; the other processes check that they see the same directory.

    Raises:
      UserError: it cannot be made or written, another run holds the lock, or a process sees another directory there.
    """
    with contextlib.ExitStack() as stack:
        with processes.fail_together():
            if processes.is_first():
                stack.enter_context(lock.lock_workdir(workdir))
        holder = processes.broadcast_from_first(lock.read_holder(workdir) if processes.is_first() else None)
        with processes.fail_together():
            deadline = time.monotonic() + _VISIBLE_WITHIN
            while not processes.is_first() and lock.read_holder(workdir) != holder:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"workdir {workdir}: process {jax.process_index()} does not see what process 0 "
                        "wrote there; all processes need one directory, on a shared file system"
                    )
                time.sleep(0.2)
        yield Path(workdir)


def refuse_unequal_settings() -> None:
    """Refuses processes of one run whose versions, settings of JAX, flags of XLA or code differ from process 0's.

    Raises:
      UserError: they would compute other numbers, or wait for each other forever.
    """
    if jax.process_count() == 1:
        return
    remedy = "start all with the same versions and the same environment variables"
    processes.check_equal("the environment", environment.decides_programs(), remedy)
    processes.check_equal("the code of inception_jax", executables.source_digest(), "all need the same revision of it")


def choose_convolution(recipe: ConfigDict, workdir: str | os.PathLike) -> ConfigDict:
    """Sets `model.convolution`, where a recipe leaves it unset, to what the run in the workdir began with.

    Args:
      recipe: of this start; it is not changed.
      workdir: of the run; it may be missing.

    Returns:
      The config to train with: "fast" for a new run.

    Raises:
      UserError: config.json is damaged.
    """
    recipe = copy.deepcopy(recipe)  # copy_and_resolve_references would fix the types of fields that may be of any
    # Anything else than a config is refused with its reason when it is checked.
    if isinstance(recipe.get("model"), ConfigDict) and recipe.model.get("convolution", "") is None:
        before = manifest.read_config(workdir) if Path(workdir, manifest.CONFIG).exists() else None
        recipe.model.convolution = (before and from_dict(before, load=False).model.convolution) or "fast"
    return recipe


def refuse_changed_config(workdir: Path, config: Config) -> None:
    """Compares the config with the one that the run in the workdir was started with.

    Raises:
      ConfigError: a field on which the numbers depend differs.
    """
    before = manifest.read_config(workdir)
    if before is None:
        return
    before = json.loads(from_dict(before, load=False).to_json_best_effort())
    for path, old, new in manifest.config_differences(before, config.to_dict()):
        dependent = run_length.what_depends_on_length(config)
        if path.startswith(MAY_CHANGE) or (path in LENGTH and not dependent):
            continue
        why = way_out = ""
        run = remote_workdir.display_name(workdir)
        if path in LENGTH:
            why = f"; {dependent} depends on its length"
            way_out = (
                f"; --config={run}/config.json --workdir=NEW --config.initialize.checkpoint={run} with the new length "
                "starts a run from its weights (the EMA's where it has one), without its optimizer state and step"
            )
        raise ConfigError(
            f"config.{path} = {new!r}: the run in {run} began with {old!r}{why}; continue it with "
            f"that, or choose another workdir{way_out}"
        )


def identify_run(workdir: Path, config: Config) -> identity.RunIdentity:
    """Returns the identity of the run in a workdir, the same on all processes.

    The id is that of the manifest; without one, that of the newest checkpoint; in a new workdir a random one.

    Raises:
      UserError: the manifest is damaged.
    """
    run_id = ""
    with processes.fail_together():
        if processes.is_first():
            run_id = manifest.read_run_id(workdir) or _newest_run_id(workdir / SUBDIRECTORY) or identity.new_run_id()
    defaults = dict(manifest.flatten(json.loads(from_dict({}, load=False).to_json_best_effort())))
    fields = {
        path: value
        for path, value in manifest.flatten(config.to_dict())
        if not path.startswith(MAY_CHANGE) and path not in LENGTH and value != defaults.get(path)
    }
    return identity.RunIdentity(processes.broadcast_from_first(run_id), fields)


def _newest_run_id(directory: Path) -> str | None:
    for step in reversed(reading.list_steps(directory)):
        with contextlib.suppress(UserError):
            return identity.recorded_run_id(reading.read_record(directory / str(step)))
    return None


def refuse_single_values(workdir: str | os.PathLike, setup: Setup) -> None:
    """Refuses a new run some of whose batch-norm layers would normalize single values, and so learn nothing.

    A run that an earlier version began continues, with a warning in its log.

    Raises:
      ConfigError: names the layers, and the values of fields that would do.
    """
    if setup.single_values and manifest.read_config(workdir) is None:
        raise ConfigError(setup.single_values)


def newest_step(workdir: Path) -> int | None:
    """The step of the newest checkpoint, as process 0 sees it; None: there is none. Its content is not looked at."""
    with processes.fail_together():
        steps = reading.list_steps(workdir / SUBDIRECTORY) if processes.is_first() else []
    return max(processes.broadcast_from_first(steps), default=None)


def refuse_fewer_steps(workdir: Path, config: Config, length: run_length.RunLength, start: int) -> None:
    """Refuses a length that the run has exceeded already: its result would not be that of its config.

    Args:
      workdir: of the run.
      config: of this start.
      length: that follows from the config.
      start: the restored step.

    Raises:
      ConfigError: `start` is beyond the last step.
    """
    if start > length.total:
        field = "num_epochs" if config.num_steps is None else "num_steps"
        given = f"config.{field} = {getattr(config, field)!r}" + (
            "" if field == "num_steps" else f" ({length.total:,} steps)"
        )
        raise ConfigError(
            f"{given}: the run in {workdir} is at step {start:,} already, and a run can only be made longer; "
            "choose another workdir for a shorter one"
        )


def write_run_files(
    setup: Setup, workdir: Path, run_id: str, step: int, spent: Mapping[str, float]
) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """Writes config.json, manifest.json, data.json, classes.json and, after a warm start, initialization.json.

    Process 0 writes them.

    With the class names in the workdir, `predict` needs no data set.

    Args:
      setup: of the run.
      workdir: of the run.
      run_id: from `identify_run`.
      step: that the run starts or continues with.
      spent: {"wall_seconds", "startup_seconds"}: of the run up to the checkpoint of that step; of this start.

    Returns:
      ({"run_id", "environment"}, which result.json has, too; the starts of the run, and notes on what has changed since
      the previous one, both of which process 0 has).

    Raises:
      UserError: a file cannot be written.
    """
    start: dict[str, Any] = {"run_id": run_id, "environment": environment.describe()}
    notes: list[str] = []
    starts: list[dict[str, Any]] = []
    with processes.fail_together():
        if processes.is_first():
            before = manifest.read(workdir) or {}
            lost = goodput.measure_lost(workdir, step, spent["wall_seconds"])
            for name in extension_files.copy_files(setup.config.extensions, workdir):
                print(f"note: {name} has changed since the run began; its copy is replaced", file=sys.stderr)
            now = manifest.write(
                workdir,
                setup.config.to_json(),
                devices=[setup.devices.describe()],
                more=extension_files.describe(setup.config.extensions),
                of_start={goodput.STARTUP: spent["startup_seconds"], goodput.BEFORE: spent["wall_seconds"]}
                | ({goodput.LOST: lost} if lost else {}),
                **start,
            )
            starts = now["starts"]
            notes = environment.format_changes(before, now)
            data_record.write(workdir, setup.data.identity)
            if setup.warm_start and setup.warm_start.report:
                text = json.dumps(setup.warm_start.to_json(), indent=2) + "\n"
                manifest.replace_text(workdir / warm_start.FILE, text)
    return start, starts, notes


def restore_or_start(
    setup: Setup, checkpoints: Checkpoints, on_shapes: Callable[[TrainState], None] | None = None
) -> tuple[TrainState, dict[str, Any]]:
    """Restores the newest intact checkpoint, or makes the state before the first step.

    Args:
      setup: of the run.
      checkpoints: of the run.
      on_shapes: called with the shapes and shardings of the state, before any array is read or made.

    Returns:
      (state, replicated over the devices; the host state that the checkpoint holds beside it, `{}` for a new run).

    Raises:
      CheckpointError: there are checkpoints, but none can be used.
      UserError: a new run cannot start from the weights that `config.initialize` names.
    """
    traced = trace_variables(setup.model, setup.input.image_size)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=setup.devices.replicated),
        jax.eval_shape(functools.partial(_create_state, setup), traced[1]),
    )
    if on_shapes:
        on_shapes(shapes)
    restored = checkpoints.restore_latest(shapes if processes.broadcast_from_first(checkpoints.steps()) else None)
    if restored is None:
        with processes.fail_together():
            key = jax.random.key(setup.objective.seed)
            variables = init_variables(setup.model, key, setup.input.image_size, traced)
            keep_ema = setup.objective.ema_decay > 0
            state = states.create_on_host(restore_weights(setup, variables), setup.optimizer, keep_ema=keep_ema)
            forget_lowered_programs()
        if setup.devices.process_count > 1:
            # Each has made its own: files of one path may differ, the source of a warm start may itself be in training,
            # a recipe's network may draw other numbers, and the last bits depend on the kind of processor.
            what = "the weights of config.initialize" if setup.warm_start else "the initial state"
            made = {"source": setup.warm_start and setup.warm_start.to_json(), "values": fingerprint(state)[:16]}
            processes.check_equal(what, made, "all processes need the same files, and processors of one kind")
        return setup.devices.replicate(state), {}
    return restored.state, restored.host


def state_shapes(setup: Setup) -> TrainState:
    """The shapes of the state, as `jax.ShapeDtypeStruct` in the place of arrays; nothing is computed or compiled."""
    return jax.eval_shape(functools.partial(_create_state, setup), variable_shapes(setup.model, setup.input.image_size))


def _create_state(setup: Setup, variables: dict[str, Any]) -> TrainState:
    return states.create(variables, setup.optimizer, keep_ema=setup.objective.ema_decay > 0)


def restore_weights(setup: Setup, variables: dict[str, Any]) -> dict[str, Any]:
    """Replaces the variables of a new run by those that `config.initialize` names; without that, returns them.

    Args:
      setup: of the run.
      variables: "params" and "batch_stats" of its initialization, or their shapes.

    Raises:
      UserError: the source is not there, does not fit, or its classifier is of other classes.
    """
    if setup.warm_start:
        find = functools.partial(input_channels.find_input_kernel, setup.model, setup.input.image_size)
        variables = setup.warm_start.restore_into(variables, find)
        _refuse_other_classes(setup.warm_start, setup)
    return variables


def restore_best(setup: Setup, workdir: Path, step: int, saved: Mapping[str, Any] | None) -> BestEvaluation:
    """Restores the best evaluation so far, on which early stopping depends.

    Args:
      setup: of the run.
      workdir: of the run; its metrics.jsonl is read where the checkpoint does not say.
      step: of the restored checkpoint.
      saved: `BestEvaluation.state` of the checkpoint; None in one of an earlier version, and for a new run.
    """
    best = setup.checkpoints.best_evaluation()
    if not step or best.restore(saved):
        return best
    for row in _evaluations(setup, workdir, step, best.metric.name):
        best.add(row["step"], row[best.metric.name])
    return best


def restore_target(setup: Setup, workdir: Path, step: int, saved: Mapping[str, Any] | None) -> TargetRecord:
    """Restores whether the run has reached its target.

    Args:
      setup: of the run.
      workdir: of the run; its metrics.jsonl is read where the checkpoint is of a start without this target.
      step: of the restored checkpoint.
      saved: `TargetRecord.state` of the checkpoint; None: it has none.
    """
    record = TargetRecord(setup.target)
    if step and setup.target and not record.restore(saved):
        record.replay(_evaluations(setup, workdir, step, setup.target.metric.name), setup.config.batch_size)
    return record


def _evaluations(setup: Setup, workdir: Path, step: int, name: str) -> list[dict[str, Any]]:
    """The evaluation rows up to a step of the weights that count, which process 0 reads: step, epoch, and a metric."""
    weights = "ema" if setup.objective.ema_decay > 0 else "raw"
    path, rows = workdir / metric_files.METRICS, []
    with processes.fail_together():
        if processes.is_first() and path.exists():
            rows = [
                {key: row[key] for key in ("step", "epoch", name)}
                for row in metric_files.read_rows(path)
                if row["step"] <= step and row.get("weights") == weights and name in row
            ]
    return processes.broadcast_from_first(rows)


def _refuse_other_classes(source: warm_start.WarmStart, setup: Setup) -> None:
    """Raises UserError where a classifier was restored that was trained on other classes, as many as the data has."""
    report = source.report
    if source.workdir and report and any(paths.HEAD in path.split("/") for path in report.restored):
        data_record.refuse_other_classes(
            source.workdir,
            setup.data.train.dataset,
            f"so its classifier in {source.workdir} does not fit; config.initialize.new = "
            '("(^|/)classifier/",) initializes it at random',
        )
