"""Checks of a recipe and its data, by the code that `train` builds a run with."""

from __future__ import annotations

import re
import time
from pathlib import Path

from ml_collections import ConfigDict

from inception_jax.benchmarks.memory import device_memory, format_bytes
from inception_jax.config import Config
from inception_jax.data.datasets import Dataset
from inception_jax.data.pipeline import TrainPipeline
from inception_jax.diagnostics import environment, memory_estimate
from inception_jax.diagnostics.findings import Finding, fail, ok, warn
from inception_jax.errors import UserError, counted
from inception_jax.models.initialization import variable_shapes
from inception_jax.training import data_setup, log_header, preflight, restore, split_checks, warm_start
from inception_jax.training.setup import Setup
from inception_jax.training.state import TrainState

_DECODE_SECONDS = 0.15  # of measurement, at least one image
_MOST_IMAGES = 64
_DARK = 32  # of 255: values of 10 or 12 bits become at most 3 and 15 of 8 bits
_TIGHT = 0.8  # of the memory of a device


def build(recipe: ConfigDict, workdir: Path | None) -> Setup:
    """Builds the run as `train` does; without a workdir, as for a new run.

    Raises:
      UserError: as `preflight.build_setup`.
    """
    workdir = workdir or Path("/nonexistent")
    return preflight.build_setup(Config(restore.choose_convolution(recipe, workdir)), workdir)


def check_recipe(setup: Setup, processes: int) -> Finding:
    """Says what would be trained, for how long and on what.

    Args:
      setup: of the run.
      processes: of the run; this one was built as if it were alone.
    """
    config, devices, length = setup.config, setup.devices, setup.length
    each = config.batch_size // devices.count
    text = (
        f"{setup.spec.name} at {setup.input.image_size} pixels, {log_header.format_precision(setup.model)}; "
        f"{length.total:,} steps ({length.epoch(length.total):.4g} epochs) of {config.batch_size}, {each} per device"
    )
    if config.batch_size % (devices.count * processes * setup.objective.accumulation):
        unit = devices.count * processes * setup.objective.accumulation
        size = -(-config.batch_size // unit) * unit
        text += f"; {processes} processes with {devices.count} devices each do not divide {config.batch_size}"
        return fail("recipe", text, f"--config.batch_size={size} would do")
    return ok("recipe", text)


def open_data(recipe: ConfigDict) -> list[Dataset]:
    """Opens both splits; for a recipe that cannot be built, to tell whether its data is the reason.

    Raises:
      UserError: they cannot be opened.
    """
    return data_setup.load_splits(recipe, recipe.data.train_split, recipe.data.eval_split)


def check_data(train: Dataset, evaluation: Dataset) -> Finding:
    """Says what the data set has, and what a scan of class folders or a list found wrong."""
    text = (
        f"{train.name}: {train.num_examples:,} examples in {train.split}, {evaluation.num_examples:,} in "
        f"{evaluation.split}, {train.num_classes:,} classes"
        + (", any number of them per example" if train.label_kind == "multi" else "")
    )
    notes = [
        line
        for line in train.account
        if re.search("left out|imbalanced|cannot be used|has no images|is near to|look the same|columns not used", line)
    ]
    text = "; ".join([text, *notes])
    problems = split_checks.compare_splits(train, evaluation)
    return warn("data", text, "; ".join(problems)) if problems else ok("data", text)


def check_decoding(setup: Setup) -> Finding:
    """Decodes images of both splits as the run does, and measures how fast one thread makes training images.

    Raises:
      UserError: an image cannot be read or decoded.
    """
    pipeline = setup.data.train
    pipeline.check_shared_memory()
    setup.data.eval.check_shared_memory()
    single = TrainPipeline(
        pipeline.dataset,
        batch_size=1,
        image_size=pipeline.image_size,
        seed=pipeline.seed,
        augmentation=pipeline.augmentation,
        threads=1,
        workers=0,
        max_pixels=pipeline.max_pixels,
        channels=pipeline.channels,
    )
    try:
        setup.data.eval.decode_record(0)
        brightest = single.batch(0)["image"].max()  # the first one opens files
        started, count = time.perf_counter(), 0
        while count < _MOST_IMAGES and (count == 0 or time.perf_counter() - started < _DECODE_SECONDS):
            count += 1
            brightest = max(brightest, single.batch(count)["image"].max())
        speed = count / (time.perf_counter() - started)
    except UserError as error:
        if not pipeline.skip_corrupt:
            raise
        remedy = f"replace the file; a run leaves out up to {setup.faults.max_corrupt} (config.faults.max_corrupt)"
        return warn("decoding", str(error), remedy)
    if brightest < _DARK:
        text = f"the largest value of {counted(count + 1, 'training crop')} is {brightest} of 255"
        remedy = "16 bits are cut to 8: are the values of 10 or 12 bits? Scale them to 0 to 65535 in the files"
        return warn("decoding", text, remedy)
    where = f"{pipeline.workers} workers of " * bool(pipeline.workers) + f"{pipeline.threads} threads"
    return ok("decoding", f"{speed:,.0f} images/s by one thread; the run decodes in {where}")


def check_statistics(setup: Setup, state: TrainState) -> Finding:
    """Looks at batch norm and the EMA: single values per channel, and statistics that will not have caught up."""
    if found := log_header.find_statistics_problems(setup, state, setup.length.total):
        return warn("statistics", "; ".join(found), "set one of the fields named, or make the run longer")
    groups = f"batch norm of {setup.batch_norm} batches" if setup.batch_norm else "no batch norm"
    average = f", EMA with decay {setup.objective.ema_decay:g}" if state.ema is not None else ", no EMA"
    return ok("statistics", groups + average)


def check_memory(setup: Setup, state: TrainState) -> Finding:
    """Compares an estimate of a step's memory with the memory of a device."""
    found = memory_estimate.estimate(setup, state)
    device = setup.devices.mesh.local_devices[0]
    shared = setup.devices.local_count if device.platform == "cpu" else 1
    if device.platform == "cpu":
        limit = environment.available_memory()
    else:
        limit = (device_memory(device) or {}).get("limit")
    text = (
        f"estimate for a step: {format_bytes(shared * found.total)} (state {format_bytes(found.state)}, gradients "
        f"{format_bytes(found.gradients)}, activations {format_bytes(found.activations)}"
        + (f", on each of {shared} devices)" if shared > 1 else ")")
    )
    if limit is None:
        return ok("memory", f"{text}; the device does not say what it has")
    text += f", of {format_bytes(limit)}"
    half = _half_batch(setup)
    if shared * (found.state + found.gradients) > limit:
        return fail("memory", text, "state and gradients alone do not fit: choose a smaller network, or another device")
    if shared * found.total > _TIGHT * limit:
        remedy = f"{half}, --config.model.options.remat=True or --config.model.dtype=bfloat16 needs less; "
        return warn("memory", text, remedy + "python -m inception_jax.benchmark measures it")
    return ok("memory", text)


def _half_batch(setup: Setup) -> str:
    per_device = setup.config.batch_size // setup.devices.count // setup.objective.accumulation
    if per_device % 2 == 0:
        return f"--config.optimizer.accumulation={2 * setup.objective.accumulation}"
    return f"--config.batch_size={setup.devices.count * max(1, per_device // 2) * setup.objective.accumulation}"


def check_initialization(setup: Setup) -> Finding:
    """Looks whether the weights of `config.initialize` fit.

    Raises:
      UserError: they are not there, or do not fit.
    """
    restore.restore_weights(setup, variable_shapes(setup.model, setup.input.image_size))
    assert setup.warm_start is not None
    if setup.warm_start.warning:
        text = f"{setup.warm_start.summary()}; {setup.warm_start.warning.removeprefix('warning: ')}"
        return warn("weights", text, warm_start.SAME_NORMALIZATION)
    return ok("weights", setup.warm_start.summary())
