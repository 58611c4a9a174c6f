"""The training loop: restore or start, take steps, log, evaluate, save checkpoints, write the result."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from inception_jax import extension_files
from inception_jax.checkpoints.saving import SUBDIRECTORY, Checkpoints
from inception_jax.config import Config
from inception_jax.data import storage
from inception_jax.errors import UserError, signal_exit_code
from inception_jax.metrics import Accumulator
from inception_jax.multihost import processes
from inception_jax.runs import goodput, metric_files, remote_workdir
from inception_jax.runs.progress import Progress
from inception_jax.runs.sinks import Sinks
from inception_jax.training import log_header, preflight, restore, results
from inception_jax.training import setup as setups
from inception_jax.training.clock import Clock
from inception_jax.training.compilation import quiet_compiler
from inception_jax.training.compiled_steps import CompiledSteps
from inception_jax.training.device_prefetch import DevicePrefetcher, InputStalled
from inception_jax.training.early_stopping import BestEvaluation
from inception_jax.training.eval_loop import evaluate
from inception_jax.training.interrupts import Interrupts
from inception_jax.training.parallel import no_compilation
from inception_jax.training.state import TrainState
from inception_jax.training.step import Batch
from inception_jax.training.target import TargetRecord, describe_progress
from inception_jax.training.train_metrics import TrainMetrics, explain_left_out

Evaluations = dict[str, Accumulator]  # by kind of weights: "raw", "ema"


def train(recipe: ConfigDict, workdir: str | Path) -> tuple[dict[str, Any], int]:
    """Trains a network, or continues a run, and writes everything to the workdir.

    The same call on the same workdir resumes from the newest checkpoint, with the same bits as a run that was never
    interrupted: the next batch, its augmentation and its dropout masks are functions of the seed and the step.

    Args:
      recipe: a config, from a recipe or `inception_jax.config.default()`.
      workdir: of the run; made if it does not exist. Also an address, such as "gs://bucket/runs/a".

    Returns:
      The content of `result.json`, and the exit code: 0, or 128 + the number of the signal that stopped the run.

    Raises:
      UserError: a mistake in the config, the data or the workdir; nothing was trained.
      NonFiniteLoss: the loss became NaN or infinite, or exceeded its limit; the last checkpoint is from before that.
      CorruptImages, InputStalled, DiskFull, PeerLost: see `config.faults` and the exit codes in `errors.py`.
    """
    if storage.is_remote(workdir) and jax.process_count() > 1:
        raise UserError(
            f"workdir {workdir}: {jax.process_count()} processes need a directory of a file system that all of them "
            "see; mount the storage as one"
        )
    with remote_workdir.opened(workdir) as folder:
        return _train(recipe, folder)


def _train(recipe: ConfigDict, workdir: str | os.PathLike) -> tuple[dict[str, Any], int]:
    """`train`, in a local workdir."""
    began = time.perf_counter()
    # Everything that a wrong config or wrong data can break is built and checked before anything is written.
    restore.refuse_unequal_settings()
    config = Config(restore.choose_convolution(recipe, workdir))
    processes.check_equal("the config", config.to_dict())
    processes.check_equal("the files of config.extensions", extension_files.digests(config.extensions))
    with processes.fail_together():
        setup = preflight.build_setup(config, workdir)
    processes.check_equal("the data", setup.data.identity, "all processes need the same files")
    devices, length, faults, first = setup.devices, setup.length, setup.faults, processes.is_first()

    with contextlib.ExitStack() as stack:
        workdir = stack.enter_context(restore.lock_workdir(workdir))
        interrupts = stack.enter_context(Interrupts())
        with processes.fail_together():
            notes = preflight.refuse_other_run(workdir, setup)
        # A run that has taken all its steps needs no state: tracing and restoring one takes most of such a start.
        if restore.newest_step(workdir) == length.total and (
            result := results.read_finished(workdir, length.total, setup.target)
        ):
            return result, 0
        identity = restore.identify_run(workdir, config)
        checkpoints = stack.enter_context(
            Checkpoints(
                workdir / SUBDIRECTORY,
                keep_latest=setup.checkpoints.keep,
                best_metric=setup.checkpoints.best_metric.name,
                best_mode=setup.checkpoints.best_metric.mode,
                run=identity,
                warn=lambda text: print(text, file=sys.stderr),
            )
        )
        steps = CompiledSteps(setup)
        state, host_state = restore.restore_or_start(setup, checkpoints, steps.begin_loading)
        start = int(state.step)
        restore.refuse_fewer_steps(workdir, config, length, start)
        best = restore.restore_best(setup, workdir, start, host_state.get("best"))
        target = restore.restore_target(setup, workdir, start, host_state.get("target"))
        if (start == length.total or best.is_exhausted or target.ends_run) and (
            result := results.read_finished(workdir, start, setup.target)
        ):
            return result, 0
        before = (host_state.get("clock") or {}).get("wall_seconds", 0.0)
        clock = Clock(host_state.get("clock"), began)
        metrics = TrainMetrics(
            host_state.get("window"),
            max_skipped=faults.max_skipped_steps,
            loss_limit=faults.loss_limit,
            batch_size=config.batch_size,
            max_corrupt=faults.max_corrupt,
            explain_corrupt=lambda: explain_left_out(processes.gather_names(setup.data.train.left_out)),
        )

        spent = {"wall_seconds": before, "startup_seconds": clock.totals()["wall_seconds"] - before}
        recorded, starts, changes = restore.write_run_files(setup, workdir, identity.id, start, spent)
        sinks = stack.enter_context(Sinks(setup.logging.sinks if first else (), workdir, config.to_dict()))
        stack.enter_context(results.failure_recorded(setup, workdir, recorded, sinks, target))
        with processes.fail_together():
            if first:
                metric_files.truncate(workdir, start)
                notes += metric_files.note_missing_rows(workdir, host_state.get("metrics_jsonl"))
            writer = stack.enter_context(
                metric_files.MetricWriter(
                    workdir, setup.logging.tensorboard, purge_step=start + 1, quiet=not first, notify=sinks.notify
                )
            )
            sinks.start()
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
        output = results.RunOutput(workdir, recorded, starts, writer, sinks, progress, clock)
        progress.message(log_header.format_header(setup, state, start, host_state.get("devices"), [*notes, *changes]))

        # The pipeline begins to decode while the steps compile.
        batches = DevicePrefetcher(
            setup.data.train.batches(start),
            devices.put,
            setup.data.prefetch,
            warn_after=faults.stall_warning_seconds,
            give_up_after=faults.stall_limit_seconds,
            report=progress.message if first else None,
            should_stop=interrupts.requested if devices.process_count == 1 else None,
        )
        stack.enter_context(contextlib.closing(batches))
        with clock.phase("compile"), progress.phase("compiling the training step"):
            with quiet_compiler(progress.on_terminal):
                steps.compile_train(state)

        run = _Run(setup, steps, batches, metrics, best, target, checkpoints, interrupts, output)
        state, evaluations, signal = _take_steps(run, state, start)

        def finish_checkpoint() -> None:
            with clock.phase("checkpoint"):
                checkpoints.wait()

        alone = devices.process_count == 1
        if signal or not alone:  # a barrier: the other processes would wait for the plots there
            finish_checkpoint()
        if signal:
            progress.message(f"stopped by {signal} after step {int(state.step)}; the same command continues the run")
            return results.write_interrupted(setup, output, state, target, signal), signal_exit_code(signal)
        if not evaluations:  # an earlier start of this run saved the last step, but ended before it wrote the result
            evaluations = _evaluate(run, state)
        finish = finish_checkpoint if alone else None
        return results.write_finished(setup, output, state, evaluations, best, target, finish, steps.store), 0


@dataclasses.dataclass(frozen=True)
class _Run:
    """The objects that a run uses while it takes its steps."""

    setup: setups.Setup
    steps: CompiledSteps
    batches: DevicePrefetcher
    metrics: TrainMetrics
    best: BestEvaluation
    target: TargetRecord
    checkpoints: Checkpoints
    interrupts: Interrupts
    output: results.RunOutput

    @property
    def ends_early(self) -> bool:
        """Whether the run is to end now, by early stopping or at its target."""
        return self.best.is_exhausted or self.target.ends_run


def _take_steps(run: _Run, state: TrainState, start: int) -> tuple[TrainState, Evaluations, str | None]:
    """Takes the steps after `start`, to the last one, until early stopping, the target or a signal.

    Each iteration draws a batch, takes the step (up to `parallel.steps_per_execution` of them, where nothing is due
    before the last), and then, where it is due: logs a row, evaluates, saves a checkpoint, in this order and before the
    next batch is drawn. So all rows of a step are written before its checkpoint.

    Returns:
      (state, the evaluations of the last step, the name of the signal that stopped the run).
    """
    length, devices, output = run.setup.length, run.setup.devices, run.output
    evaluations: Evaluations = {}
    output.clock.start_lap()
    logged = start
    if run.ends_early:  # an earlier start of this run saved its last step
        return state, evaluations, None
    step = start
    while step < length.total:
        before = step
        with no_compilation() if before > start else contextlib.nullcontext():
            batches, stalled = _next_batches(run, length.steps_until_due(before, run.setup.steps_per_execution))
            if batches:
                state = _dispatch_steps(run, before, state, batches)
                step += len(batches)
        if stalled:
            if devices.process_count == 1:  # several: the others may be waiting inside the step, and cannot save
                _save(run, step, state, {} if batches else evaluations)
            raise stalled
        if not batches:  # a signal came while no batch did
            _save(run, before, state, evaluations)
            return state, {}, run.interrupts.requested()
        output.progress.advance(step)
        if before == 0 and run.setup.logging.pictures and processes.is_first():
            results.draw_training_batch(run.setup, output, batches[0])

        if length.is_due(step, length.log_every):
            _log(run, step, logged)
            logged = step

        evaluations, reached = {}, False
        if length.is_due(step, length.evaluate_every):
            evaluations = _evaluate(run, state)
            for row in results.metric_rows(run.setup, evaluations, step):
                output.writer.write(row)
            values = results.counted_metrics(evaluations)
            run.best.add(step, values[run.best.metric.name])
            if reached := run.target.add(values, functools.partial(_measure, run, step)):
                output.progress.message(run.target.summary())
            if run.ends_early and logged < step:
                _log(run, step, logged)

        signal = _requested_signal(run)
        # A target that was reached is saved at once: a killed run would have to reach it again, later.
        if length.is_due(step, length.save_every) or run.ends_early or reached or signal:
            _save(run, step, state, evaluations)
        if signal:
            return state, evaluations, signal
        if run.ends_early:
            if not run.target.ends_run:
                output.progress.message(f"{run.best.summary()}; the run ends")
            return state, evaluations, None
    return state, evaluations, None


def _measure(run: _Run, step: int) -> dict[str, Any]:
    """What the run has needed up to a step, for the record of its target."""
    totals, lost = run.output.clock.totals(), goodput.lost_seconds(run.output.starts)
    return {
        **describe_progress(step, run.setup.length.epoch(step), run.setup.config.batch_size),
        "wall_seconds": totals["wall_seconds"] + lost,
        "training_seconds": goodput.training_seconds(totals),
        "starts": len(run.output.starts),
    }


def _log(run: _Run, step: int, logged: int) -> None:
    """Writes the row of the steps after `logged`."""
    setup, output = run.setup, run.output
    row = {
        "kind": "train",
        "step": step,
        "epoch": setup.length.epoch(step),
        "learning_rate": float(setup.schedule(step - 1)),
        **run.metrics.pop_row(),
    }
    timing = output.clock.lap(step - logged, setup.config.batch_size)
    output.writer.write(row)
    output.writer.write_timing({"step": step, **timing})
    output.progress.update(step, row | timing)
    output.log_news()


def _next_batches(run: _Run, count: int) -> tuple[list[Batch], InputStalled | None]:
    """The next batches; in one process fewer than `count` where a signal came, or the input stalled, before the last.

    Returns:
      (the batches; none: a signal came, or the input stalled, while no batch did; the error of a stalled input). The
      steps of the batches that came before either are taken and saved. Several processes must take the same steps:
      each waits for all of its batches, and one whose input stalled takes none.
    """
    batches: list[Batch] = []
    alone = run.setup.devices.process_count == 1
    while len(batches) < count and not (batches and alone and run.interrupts.requested()):
        try:
            batch = run.batches.next_batch()
        except InputStalled as error:
            return batches if alone else [], error
        if batch is None:
            break
        batches.append(batch)
    return batches, None


def _dispatch_steps(run: _Run, before: int, state: TrainState, batches: list[Batch]) -> TrainState:
    """Dispatches the steps of the batches, which follow step `before`."""
    run.output.clock.add("data_wait", run.batches.pop_wait_seconds())
    if run.setup.devices.process_count > 1:
        flag = run.setup.devices.flag(run.interrupts.requested() is not None)
        batches = [batch | {"stop": flag} for batch in batches]
    state, metrics = run.steps.train(state, batches)
    run.metrics.add(before + 1, metrics, len(batches))
    return state


def _requested_signal(run: _Run) -> str | None:
    """The name of the signal that ends the run after this step; the same on all processes.

    Each process sends whether it got a signal with its next batch. The step sums that over all processes, and each
    reads the sum after the same step.
    """
    requested = run.interrupts.requested()
    if run.setup.devices.process_count == 1:
        return requested
    return (requested or "SIGTERM") if run.metrics.stop_requested else None


def _save(run: _Run, step: int, state: TrainState, evaluations: Evaluations) -> None:
    # `metrics.state()` reads all steps first: a state whose loss or gradient is not finite is never saved.
    host_state = {
        "window": run.metrics.state(),
        "clock": run.output.clock.totals(),
        "devices": run.setup.devices.count,
        "best": run.best.state(),
        "target": run.target.state(),
        "metrics_jsonl": run.output.writer.written,
    }
    with run.output.clock.phase("checkpoint"):
        metrics = results.counted_metrics(evaluations) if evaluations else None
        run.checkpoints.save(step, state, host_state, metrics)


def _evaluate(run: _Run, state: TrainState) -> Evaluations:
    """Evaluates the trained weights and, where there are any, the EMA weights."""
    setup, progress = run.setup, run.output.progress
    evaluations: Evaluations = {}
    jax.block_until_ready(state.step)  # the time of the steps that still run is theirs
    if not run.steps.has_evaluation:
        with run.output.clock.phase("compile"), progress.phase("compiling the evaluation step"):
            with quiet_compiler(progress.on_terminal):
                run.steps.evaluation(state)
    with run.output.clock.phase("evaluation"), progress.phase("evaluating", recurs=True) as phase:
        for weights, steps in run.steps.evaluation(state).items():
            variables = state.variables(weights)
            if steps.batch_norm:
                variables = steps.batch_norm.replace_statistics(variables, int(state.step))
            evaluations[weights] = evaluate(
                steps.eval, setup.devices, setup.data.eval, variables, len(setup.data.class_names), setup.faults
            )
        phase.note = results.format_evaluations(evaluations, setup.checkpoints.best_metric)
    return evaluations
