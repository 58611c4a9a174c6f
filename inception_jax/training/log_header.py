"""Formats the first lines of a run's log: network, data, devices, length, and what is unusual about them."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from inception_jax.config import Config
from inception_jax.errors import counted
from inception_jax.models import onednn_library
from inception_jax.models.base import BaseNetwork
from inception_jax.runs import data_record
from inception_jax.runs.formatting import format_metric
from inception_jax.training import batch_norm_checks, freezing, run_length
from inception_jax.training.setup import Setup
from inception_jax.training.state import TrainState


def format_header(
    setup: Setup, state: TrainState, start: int, devices_before: int | None = None, notes: Sequence[str] = ()
) -> str:
    """Formats the first lines of a log: network, parameters, data, devices, steps, and what is unusual.

    Args:
      setup: of the run.
      state: that the run starts or continues with.
      start: its step.
      devices_before: number of devices at the previous start of the run; None for a new run.
      notes: lines about the data.
    """
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    config, length, data = setup.config, setup.length, setup.data
    weights = "/".join(f"{weight:g}" for weight in setup.objective.aux_weights)
    heads = f" with auxiliary heads, which are weighted {weights}" if weights else ", no auxiliary heads"
    statistics = f", batch norm statistics {setup.batch_norm}" if setup.batch_norm else ""
    several = ", any number of them per example" if data.train.dataset.label_kind == "multi" else ""
    lines = [
        f"{setup.spec.name} ({setup.spec.paper})",
        f"{count:,} parameters{heads}; {format_precision(setup.model)}",
        f"{data.train.dataset.name}: {data.train.dataset.num_examples:,} training and "
        f"{data.eval.dataset.num_examples:,} evaluation examples, {len(data.class_names)} classes{several}, "
        f"{setup.input.image_size} pixels{_format_channels(setup)}",
        *data.train.dataset.account,
        *notes,
        *(f"warning: {line}" for line in data.problems),
        setup.devices.describe() + statistics,
        *([] if start else _format_convolution(setup)),
        f"{length.total:,} steps of {config.batch_size} ({length.epoch(length.total):.4g} epochs)"
        + _format_executions(setup)
        + (f", continued from step {start:,}" if start else ""),
        *_format_warmup(config, length),
        *_device_count_note(setup, devices_before),
        *_format_batch_norm_images(setup),
        *(f"warning: {line}" for line in find_statistics_problems(setup, state, length.total)),
        *freezing.format_lines(setup.objective.freezing, state.params, config.optimizer.learning_rate_multipliers),
        *_format_balance(setup),
        *([f"warning: {setup.notice}"] if setup.notice else []),
        *_format_warm_start(setup),
    ]
    return "\n".join(lines)


def _format_channels(setup: Setup) -> str:
    return "" if setup.input.channels == 3 else f" of {counted(setup.input.channels, 'channel')}"


def _format_executions(setup: Setup) -> str:
    """How many steps a call of the program takes, and what ends one earlier than the config says."""
    wanted, length = setup.steps_per_execution, setup.length
    if wanted == 1:
        return ""
    most = length.longest_execution(wanted)
    reason = "; more would not fit between log rows, evaluations and checkpoints" if most < wanted else ""
    return f", up to {most:,} in one execution{reason}"


def _format_convolution(setup: Setup) -> list[str]:
    """On a CPU that the extra "onednn" is for: what trains in less time than the default."""
    by_default = setup.model.convolution == "fast" and setup.model.dtype in (jnp.float32, jnp.bfloat16)
    here = setup.devices.first_device.platform, sys.platform, platform.machine()
    if not by_default or here != ("cpu", "linux", "x86_64"):
        return []
    needed = "" if onednn_library.is_installed() else "pip install 'inception_jax[onednn]' and "
    return [
        "note: config.model.convolution = 'onednn_winograd' takes less time on CPUs with AVX2; it needs "
        f"{needed}a C++ compiler"
    ]


def _format_warmup(config: Config, length: run_length.RunLength) -> list[str]:
    """A warning where the run ends before its warm-up does."""
    epochs, rate = config.schedule.warmup_epochs, config.optimizer.learning_rate
    if epochs * length.steps_per_epoch <= length.total:
        return []
    unit = "epoch" if epochs == 1 else "epochs"
    return [
        f"warning: the warm-up of {epochs:.4g} {unit} is longer than the run of {length.epoch(length.total):.4g}: the "
        f"learning rate never reaches that of the schedule, which begins at {rate:.4g} (config.schedule.warmup_epochs)"
    ]


def _format_balance(setup: Setup) -> list[str]:
    """A line each for class weights, balanced sampling, early stopping and the target, where the config sets them.

    And one on the first two where the config sets none, and some class has twice the examples of another.
    """
    lines, options = [], setup.checkpoints
    if weights := setup.objective.class_weights:
        low, high = (weights.index(pick(weights)) for pick in (min, max))
        names = setup.data.class_names
        lines.append(f"class weights from {weights[low]:.4g} ({names[low]}) to {weights[high]:.4g} ({names[high]})")
    if setup.config.data.sampling != "uniform":
        lines.append("every class is sampled equally often")
    elif not weights and setup.data.train.dataset.label_kind == "single":
        counts = [count for count in setup.data.identity["train_split"]["class_counts"] or () if count]
        if counts and max(counts) >= 2 * min(counts):
            lines.append(
                "note: the classes are unbalanced: config.data.sampling = 'balanced' samples each equally often, "
                "config.loss.class_weights = 'balanced' weights its loss"
            )
    if options.patience:
        lines.append(
            f"ends early after {counted(options.patience, 'evaluation')} without a better {options.best_metric.title}"
        )
    if target := setup.target:
        sign = "at least" if target.metric.better == "higher" else "at most"
        end = "the run ends there" if target.ends_run else "the run goes on after it"
        lines.append(f"target: {target.metric.title} of {sign} {format_metric(target.metric, target.value)}; {end}")
    return lines


def find_statistics_problems(setup: Setup, state: TrainState, steps: int) -> list[str]:
    """Says where batch-norm statistics or the EMA have not caught up.

    Args:
      setup: of the run.
      state: of the run, or its shapes.
      steps: of the run, at its end.

    Returns:
      A line for each; [] where they have.
    """
    objective = setup.objective
    lines = [setup.single_values] if setup.single_values else []
    trained = setup.batch_norm and objective.freezing.split_statistics(state.batch_stats)[0]
    if trained and not setup.batch_norm_images:
        updates = steps * objective.accumulation
        lines += batch_norm_checks.format_momentum(setup.model.bn_momentum, updates, setup.config.batch_size)
    if state.ema is not None and not objective.ema_num_updates:
        lines += batch_norm_checks.format_ema(objective.ema_decay, steps)
    return lines


def _format_batch_norm_images(setup: Setup) -> list[str]:
    """What estimates the batch-norm statistics anew."""
    if not setup.batch_norm_images:
        return []
    batches = -(-setup.batch_norm_images // setup.config.batch_size)
    return [
        f"each evaluation first estimates the batch norm statistics from {batches * setup.config.batch_size:,} "
        f"training images ({batches:,} batches)"
    ]


def _format_warm_start(setup: Setup) -> list[str]:
    """The source of the weights, with a warning if the names of the classes of a restored classifier are not known."""
    source = setup.warm_start
    if not (source and source.report):
        return []
    lines = [source.summary(), *filter(None, [source.warning])]
    known = source.workdir and data_record.read_class_names(source.workdir)
    if not known and "classifier/kernel" in source.report.restored:
        lines.append(
            "warning: the classifier was restored, but the names of its classes are not known; if they are others, "
            'config.initialize.new = ("(^|/)classifier/",) initializes it at random'
        )
    return lines


def _device_count_note(setup: Setup, devices_before: int | None) -> list[str]:
    """A line for a run that continues on another number of devices, if its batch-norm statistics depend on that."""
    now = setup.devices.count
    if not (setup.batch_norm and setup.batch_norm.depends_on_devices) or devices_before in (None, now):
        return []
    return [
        f"note: the run was on {counted(devices_before, 'device')} before and is on {now} now; batch norm statistics "
        f"{str(setup.batch_norm)!r} depend on that, and so do the numbers from here on (those of 'global' and "
        "'examples:N' do not)"
    ]


def format_precision(model: BaseNetwork) -> str:
    """Formats the dtypes of a model: `computes in bfloat16, parameters in float32`."""
    dtype, param_dtype = jax.numpy.dtype(model.dtype).name, jax.numpy.dtype(model.param_dtype).name
    return f"computes in {dtype}" + (f", parameters in {param_dtype}" if param_dtype != dtype else "")
