"""A training run, from the first line of its log to its result."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from inception_jax.checkpoints.saving import SUBDIRECTORY, Checkpoints
from inception_jax.config import Config
from inception_jax.errors import signal_exit_code
from inception_jax.metrics import Accumulator
from inception_jax.multihost import processes
from inception_jax.runs import metric_files
from inception_jax.runs.progress import Progress
from inception_jax.training import restore, results
from inception_jax.training import setup as setups
from inception_jax.training.clock import Clock
from inception_jax.training.device_prefetch import DevicePrefetcher, InputStalled
from inception_jax.training.interrupts import Interrupts
from inception_jax.training.parallel import Compiled, no_compilation
from inception_jax.training.state import TrainState
from inception_jax.training.step import make_eval_step, make_train_step
from inception_jax.training.train_metrics import TrainMetrics

Evaluations = dict[str, Accumulator]  # by weights: "raw", "ema"


def train(recipe: ConfigDict, workdir: str | Path) -> tuple[dict[str, Any], int]:
    """Trains, or goes on training, and leaves everything in the workdir.

    The same call on the same workdir continues from the newest checkpoint as if it had never stopped: the next batch,
    its augmentation and its dropout masks follow from the step alone.

    Args:
      recipe: a config, as `inception_jax.config.default()` makes it.
      workdir: holds the run; made if it is not there.

    Returns:
      The content of `result.json`, and the exit code: 0, or 128 + the signal that stopped the run.

    Raises:
      UserError: a mistake in the config, the data or the workdir; nothing was trained.
      NonFiniteLoss: the loss became NaN or infinite, or above its limit; the last checkpoint is from before.
      CorruptImages, InputStalled, DiskFull, PeerLost: as `config.faults` and the exit codes say (`interrupts.py`).
    """
    # Everything that a mistake can be in is built and checked before anything is written.
    config = Config(recipe)
    processes.check_equal("the config", config.to_dict())
    with processes.fail_together():
        setup = setups.build(config)
        config.refuse_unread()
    devices, length, faults, first = setup.devices, setup.length, setup.faults, processes.is_first()

    with contextlib.ExitStack() as stack:
        workdir = stack.enter_context(restore.lock_workdir(workdir))
        interrupts = stack.enter_context(Interrupts())
        with processes.fail_together():
            restore.refuse_changed_config(workdir, config)
        checkpoints = stack.enter_context(
            Checkpoints(
                workdir / SUBDIRECTORY,
                keep_latest=setup.keep,
                best_metric=setup.best_metric,
                best_mode="min" if setup.best_metric == "loss" else "max",
                warn=lambda text: print(text, file=sys.stderr),
            )
        )
        state, kept = restore.restore_or_start(setup, checkpoints)
        start = int(state.step)
        if start == length.total and (result := results.read_finished(workdir, start)):
            return result, 0
        clock = Clock(kept.get("clock"))
        window = TrainMetrics(
            kept.get("window"),
            max_skipped=faults.max_skipped_steps,
            loss_limit=faults.loss_limit,
            batch_size=config.batch_size,
            max_corrupt=faults.max_corrupt,
        )

        restore.write_run_files(setup, workdir)
        stack.enter_context(results.failure_recorded(setup, workdir))
        with processes.fail_together():
            if first:
                metric_files.truncate(workdir, start)
            writer = stack.enter_context(
                metric_files.MetricWriter(workdir, setup.tensorboard, purge_step=start + 1, quiet=not first)
            )
            progress = stack.enter_context(
                Progress(
                    length.total,
                    start,
                    length.steps_per_epoch,
                    workdir / "train.log",
                    title=setup.spec.name,
                    quiet=not first,
                )
            )
        progress.message(restore.format_header(setup, state, start, kept.get("devices")))

        # The pipeline begins to decode while the steps compile.
        batches = DevicePrefetcher(
            setup.train_data.batches(start),
            devices.put,
            setup.prefetch,
            warn_after=faults.stall_warning_seconds,
            give_up_after=faults.stall_limit_seconds,
            report=progress.message if first else None,
            should_stop=interrupts.requested if devices.process_count == 1 else None,
        )
        stack.enter_context(contextlib.closing(batches))
        with clock.phase("compile"), progress.phase("compiling the training and evaluation steps"):
            train_step, eval_step = _compile(setup, state)

        run = _Run(setup, batches, train_step, eval_step, window, clock, writer, progress, checkpoints, interrupts)
        state, evaluations, signal = _take_steps(run, state, start)
        with clock.phase("checkpoint"):
            checkpoints.wait()
        if signal:
            progress.message(f"stopped by {signal} after step {int(state.step)}; the same command continues")
            return results.write_interrupted(setup, workdir, state, clock, signal), signal_exit_code(signal)
        if not evaluations:  # an earlier start reached the last step, and was stopped between that and its result
            evaluations = _evaluate(run, state)
        return results.write_finished(setup, workdir, state, evaluations, clock, progress, writer), 0


def _compile(setup: setups.Setup, state: TrainState) -> tuple[Compiled, Compiled]:
    """The training step and the evaluation step."""
    devices, objective = setup.devices, setup.objective
    train_step = devices.compile_train(
        make_train_step(setup.model, setup.optimizer, objective, devices=devices.count),
        state,
        devices.abstract_batch(setup.config.batch_size, setup.image_size, flag=devices.process_count > 1),
    )
    eval_step = devices.compile_eval(
        make_eval_step(setup.model, setup.normalization, setup.dtype, devices=devices.count),
        state.variables(),
        devices.abstract_batch(setup.eval_data.batch_size, setup.image_size),
    )
    return train_step, eval_step


@dataclasses.dataclass(frozen=True)
class _Run:
    """What is open while a run takes its steps."""

    setup: setups.Setup
    batches: DevicePrefetcher
    train_step: Compiled
    eval_step: Compiled
    window: TrainMetrics
    clock: Clock
    writer: metric_files.MetricWriter
    progress: Progress
    checkpoints: Checkpoints
    interrupts: Interrupts


def _take_steps(run: _Run, state: TrainState, start: int) -> tuple[TrainState, Evaluations, str | None]:
    """The steps after `start`, to the last one or to a signal.

    Each draws a batch, takes the step, and then, where it is due: a row of the log, an evaluation, a checkpoint, in
    this order and before the next batch is drawn. So a checkpoint of a step comes after all that is said of that step.

    Returns:
      (state, the evaluations of the last step, the name of the signal that stopped the run).
    """
    config, length, devices = run.setup.config, run.setup.length, run.setup.devices
    evaluations: Evaluations = {}
    run.clock.start_lap()
    logged = start
    for step in range(start + 1, length.total + 1):
        try:
            with no_compilation() if step > start + 1 else contextlib.nullcontext():
                batch = run.batches.next_batch()
                if batch is not None:
                    state = _step(run, step, state, batch)
        except InputStalled:
            if devices.process_count == 1:  # the others, if there are any, are waiting in the step and cannot save
                _save(run, step - 1, state, evaluations)
            raise
        if batch is None:  # a signal came while the input kept silent
            _save(run, step - 1, state, evaluations)
            return state, {}, run.interrupts.requested()
        run.progress.advance(step)

        if length.is_due(step, length.log_every):
            row = {
                "kind": "train",
                "step": step,
                "epoch": length.epoch(step),
                "learning_rate": float(run.setup.schedule(step - 1)),
                **run.window.pop_row(),
            }
            timing = run.clock.lap(step - logged, config.batch_size)
            logged = step
            run.writer.write(row)
            run.writer.write_timing({"step": step, **timing})
            run.progress.update(step, row | timing)

        evaluations = {}
        if length.is_due(step, length.evaluate_every):
            evaluations = _evaluate(run, state)
            for row in results.metric_rows(run.setup, evaluations, step):
                run.writer.write(row)

        signal = _signal(run)
        if length.is_due(step, length.save_every) or signal:
            _save(run, step, state, evaluations)
        if signal:
            return state, evaluations, signal
    return state, evaluations, None


def _step(run: _Run, step: int, state: TrainState, batch: dict[str, Any]) -> TrainState:
    run.clock.add("data_wait", run.batches.pop_wait_seconds())
    if run.setup.devices.process_count > 1:
        batch["stop"] = run.setup.devices.flag(run.interrupts.requested() is not None)
    state, metrics = run.train_step(state, batch)
    run.window.add(step, metrics)
    return state


def _signal(run: _Run) -> str | None:
    """The name of the signal that ends the run after this step; all processes come to the same answer.

    Each tells its own wish with its next batch. The sum comes back with that step's metrics, and they read these after
    the same step.
    """
    requested = run.interrupts.requested()
    if run.setup.devices.process_count == 1:
        return requested
    return (requested or "SIGTERM") if run.window.stop_requested else None


def _save(run: _Run, step: int, state: TrainState, evaluations: Evaluations) -> None:
    # The window is read out first: a state whose loss or gradient is not finite is never saved.
    kept = {"window": run.window.state(), "clock": run.clock.totals(), "devices": run.setup.devices.count}
    with run.clock.phase("checkpoint"):
        run.checkpoints.save(step, state, kept, results.checkpoint_metrics(evaluations))


def _evaluate(run: _Run, state: TrainState) -> Evaluations:
    with run.clock.phase("evaluation"), run.progress.phase("evaluating", recurs=True) as phase:
        evaluations = results.evaluate_weights(run.setup, run.eval_step, state)
        phase.note = results.format_evaluations(evaluations)
    return evaluations
