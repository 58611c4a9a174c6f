"""How a run begins: whether this workdir may be continued with this config, and from which state."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from inception_jax.checkpoints.saving import Checkpoints
from inception_jax.config import Config, ConfigError, from_dict
from inception_jax.errors import UserError
from inception_jax.models.initialization import init_variables
from inception_jax.multihost import processes
from inception_jax.runs import lock, manifest
from inception_jax.training import freezing, run_length, warm_start
from inception_jax.training import state as states
from inception_jax.training.setup import Setup
from inception_jax.training.state import TrainState

# What may differ between two starts of one run: none of these changes a number of the steps that are already done.
MAY_CHANGE = (
    "checkpoint.", "data.data_dir", "data.prefetch", "data.threads", "data.workers", "evaluation.", "faults.",
    "logging.", "parallel.devices", "parallel.mode",
)  # fmt: skip
LENGTH = ("num_epochs", "num_steps")
CLASSES = "classes.json"
_SEEN_WITHIN = 60.0  # seconds; NFS may remember for half a minute that a file was not there


@contextlib.contextmanager
def lock_workdir(workdir: str | Path) -> Iterator[Path]:
    """Holds the workdir for this run: process 0 locks it, and the others make sure that they see the same one.

    Raises:
      UserError: it cannot be made or written, another run holds it, or a process sees another directory there.
    """
    with contextlib.ExitStack() as stack:
        with processes.fail_together():
            if processes.is_first():
                stack.enter_context(lock.lock_workdir(workdir))
        holder = processes.broadcast_from_first(lock.read_holder(workdir) if processes.is_first() else None)
        with processes.fail_together():
            deadline = time.monotonic() + _SEEN_WITHIN
            while not processes.is_first() and lock.read_holder(workdir) != holder:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"workdir {workdir}: process {jax.process_index()} does not see what process 0 "
                        "wrote there; all processes need one directory, on a shared file system"
                    )
                time.sleep(0.2)
        yield Path(workdir)


def refuse_changed_config(workdir: Path, config: Config) -> None:
    """Compares the config with the one that the workdir's run began with.

    Raises:
      ConfigError: a field differs that the numbers depend on.
    """
    before = manifest.read_config(workdir)
    if before is None:
        return
    # A field that an earlier version did not have stood, in effect, at its default.
    before = Config(from_dict(before)).to_dict()
    for path, old, new in manifest.config_differences(before, config.to_dict()):
        if path.startswith(MAY_CHANGE) or (path in LENGTH and run_length.is_extendable(config)):
            continue
        why = "; its learning rate depends on its length" if path in LENGTH else ""
        raise ConfigError(
            f"config.{path} = {new!r}: the run in {workdir} began with {old!r}{why}; continue it with "
            "that, or choose another workdir"
        )


def write_run_files(setup: Setup, workdir: Path) -> None:
    """Writes what the run is, on process 0: config, manifest, and the classes, so that it can be asked where its data
    is not.

    Raises:
      UserError: a file that cannot be written.
    """
    names = {"dataset": setup.train_data.dataset.name, "names": setup.class_names}
    with processes.fail_together():
        if processes.is_first():
            manifest.write(workdir, setup.config.to_json(), devices=[setup.devices.describe()])
            manifest.replace_text(workdir / CLASSES, json.dumps(names, indent=2) + "\n")
            if setup.warm_start and setup.warm_start.report:
                text = json.dumps(setup.warm_start.to_json(), indent=2) + "\n"
                manifest.replace_text(workdir / warm_start.FILE, text)


def restore_or_start(setup: Setup, checkpoints: Checkpoints) -> tuple[TrainState, dict[str, Any]]:
    """The newest intact checkpoint, or the state before the first step.

    Returns:
      (state, replicated over the devices; what the checkpoint keeps beside it, `{}` for a new run).

    Raises:
      CheckpointError: there were checkpoints, and none of them can be used.
      UserError: a new run cannot begin with the weights that `config.initialize` names.
    """
    key = jax.random.key(setup.objective.seed)

    def create(source: warm_start.WarmStart | None = None) -> TrainState:
        variables = init_variables(setup.model, key, setup.image_size)
        if source:
            variables = source.restore_into(variables)
        return states.create(variables, setup.optimizer, keep_ema=setup.objective.ema_decay > 0)

    shapes = jax.eval_shape(create) if processes.broadcast_from_first(checkpoints.steps()) else None
    restored = checkpoints.restore_latest(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=setup.devices.replicated), shapes)
    )
    if restored is None:
        with processes.fail_together():
            state = create(setup.warm_start)
        if setup.warm_start:
            # A source that is still being trained may have moved on between two looks at it.
            processes.check_equal("what config.initialize takes", setup.warm_start.to_json())
        return setup.devices.replicate(state), {}
    return restored.state, restored.host


def format_header(setup: Setup, state: TrainState, start: int, devices_before: int | None = None) -> str:
    """The first lines of a log: what is trained, on what, where, from which step to which.

    Args:
      setup: of the run.
      state: that it begins with.
      start: its step.
      devices_before: on how many the run was before it was continued.
    """
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    config, length = setup.config, setup.length
    weights = "/".join(f"{weight:g}" for weight in setup.objective.aux_weights)
    heads = f", auxiliary heads weighted {weights}" if weights else ", no auxiliary heads"
    lines = [
        f"{setup.spec.name} ({setup.spec.paper})",
        f"{count:,} parameters{heads}; {format_precision(setup)}",
        f"{setup.train_data.dataset.name}: {setup.train_data.dataset.num_examples:,} training and "
        f"{setup.eval_data.dataset.num_examples:,} evaluation examples, {len(setup.class_names)} classes, "
        f"{setup.image_size} pixels",
        f"{setup.devices.describe()}, batch norm statistics {config.parallel.batch_norm}"
        if setup.model.batch_norm
        else setup.devices.describe(),
        f"{length.total:,} steps of {config.batch_size} ({length.epoch(length.total):.4g} epochs)"
        + (f", continued from step {start:,}" if start else ""),
        *_device_count_note(setup, devices_before),
        *freezing.format_lines(setup.objective.freezing, state.params, config.optimizer.learning_rate_multipliers),
        *(_format_warm_start(setup) if setup.warm_start and setup.warm_start.report else []),
    ]
    return "\n".join(lines)


def _format_warm_start(setup: Setup) -> list[str]:
    """Where the weights come from, and a warning where a classifier of as many, but other, classes came with them."""
    lines = [setup.warm_start.summary()]
    classes = manifest.read_json_object(setup.warm_start.workdir / CLASSES) if setup.warm_start.workdir else None
    if classes and classes["names"] != setup.class_names and "classifier/kernel" in setup.warm_start.report.restored:
        lines.append(
            "the classifier was taken, though its classes were others: config.initialize.new = "
            '("(^|/)classifier/",) begins with a new one'
        )
    return lines


def _device_count_note(setup: Setup, devices_before: int | None) -> list[str]:
    """A line for a run whose batch norm depends on the devices, continued on more or fewer of them."""
    mode, now = setup.config.parallel.batch_norm, setup.devices.count
    depends = setup.model.batch_norm and (mode == "local" or mode.startswith("groups:"))
    if not depends or devices_before in (None, now):
        return []
    return [
        f"note: the run was on {devices_before} device(s) before and is on {now} now; batch norm statistics "
        f"{mode!r} depend on that, and so do the numbers from here on (those of 'global' and 'examples:N' do not)"
    ]


def format_precision(setup: Setup) -> str:
    """`computes in bfloat16, keeps float32`, from the model's dtypes."""
    model: Any = setup.model
    dtype, kept = jax.numpy.dtype(model.dtype).name, jax.numpy.dtype(model.param_dtype).name
    return f"computes in {dtype}" + (f", parameters in {kept}" if kept != dtype else "")
