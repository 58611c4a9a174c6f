"""What a run says at its evaluations, and what it leaves when it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inception_jax.errors import NonFiniteLoss, UserError
from inception_jax.metrics import Accumulator
from inception_jax.multihost import processes
from inception_jax.runs import metric_files, report, result
from inception_jax.runs.progress import Progress
from inception_jax.training.clock import Clock
from inception_jax.training.eval_loop import evaluate
from inception_jax.training.parallel import Compiled
from inception_jax.training.setup import Setup
from inception_jax.training.state import TrainState


def evaluate_weights(setup: Setup, eval_step: Compiled, state: TrainState) -> dict[str, Accumulator]:
    """Evaluates the trained weights, and their running average where one is kept: {"raw": …, "ema": …}."""
    kinds = ("raw", "ema") if state.ema is not None else ("raw",)
    return {
        weights: evaluate(
            eval_step, setup.devices, setup.eval_data, state.variables(weights), len(setup.class_names), setup.faults
        )
        for weights in kinds
    }


def metric_rows(setup: Setup, evaluations: Mapping[str, Accumulator], step: int) -> Iterator[dict[str, Any]]:
    """The rows of an evaluation for metrics.jsonl."""
    for weights, evaluation in evaluations.items():
        yield {
            "kind": "evaluation",
            "step": step,
            "epoch": setup.length.epoch(step),
            "split": setup.eval_data.dataset.split,
            "weights": weights,
            **evaluation.result(),
        }


def checkpoint_metrics(evaluations: Mapping[str, Accumulator]) -> dict[str, float] | None:
    """The metrics that a checkpoint is judged by: of the averaged weights where there are any; None: not evaluated."""
    judged = evaluations.get("ema") or evaluations.get("raw")
    return judged.result() if judged else None


def format_evaluations(evaluations: Mapping[str, Accumulator]) -> str:
    """An evaluation in a line: `raw: loss 0.0512, top-1 98.61 % (355/360) | ema: …`."""
    parts = []
    for weights, evaluation in evaluations.items():
        means = evaluation.result()
        right = round(means["top1"] * means["count"])
        parts.append(
            f"{weights}: loss {means['loss']:.4f}, top-1 {100 * means['top1']:.2f} % ({right:,}/{means['count']:,})"
        )
    return " | ".join(parts)


def write_finished(
    setup: Setup,
    workdir: Path,
    state: TrainState,
    evaluations: Mapping[str, Accumulator],
    clock: Clock,
    progress: Progress,
    writer: metric_files.MetricWriter,
) -> dict[str, Any]:
    """Draws the pictures, and writes result.json and report.md, on process 0.

    Returns:
      The content of result.json.
    """
    step = int(state.step)
    pictures: dict[str, Path] = {}
    if not processes.is_first():
        return {}
    if setup.pictures:
        with progress.phase("drawing pictures"):
            best = evaluations.get("ema") or evaluations["raw"]
            pictures = report.draw_plots(
                workdir, best, setup.eval_data, setup.class_names, first_layer=first_kernel(state.params)
            )
            writer.write_images(step, pictures)
    content = _result("finished", setup, workdir, state, clock)
    content["metrics"][setup.eval_data.dataset.split] = {
        weights: evaluation.result() for weights, evaluation in evaluations.items()
    }
    content["pictures"] = sorted(path.name for path in pictures.values())
    result.write_result(workdir, content)
    report.write(workdir)
    return content


def write_interrupted(setup: Setup, workdir: Path, state: TrainState, clock: Clock, signal: str) -> dict[str, Any]:
    """Writes the result.json of a run that a signal stopped, on process 0; `signal` is its name."""
    if not processes.is_first():
        return {}
    content = _result("interrupted", setup, workdir, state, clock) | {"signal": signal}
    result.write_result(workdir, content)
    report.write(workdir)
    return content


@contextlib.contextmanager
def failure_recorded(setup: Setup, workdir: Path) -> Iterator[None]:
    """Writes the result.json of a run that ended with an error inside, where it can, and lets the error pass."""
    try:
        yield
    except UserError as error:
        status = "diverged" if isinstance(error, NonFiniteLoss) else "failed"
        with contextlib.suppress(UserError):  # of a full disk, for one: the error that ended the run is to be seen
            if processes.is_first():
                result.write_result(
                    workdir,
                    {
                        "status": status,
                        "model": setup.spec.name,
                        "message": str(error),
                        "exit_code": int(error.exit_code),
                        "metrics": {"train": _last_train_row(workdir)},
                    },
                )
                report.write(workdir)
        raise


def read_finished(workdir: Path, step: int) -> dict[str, Any] | None:
    """The result of a run that has finished at this step already; None where it was stopped before it said so."""
    content = processes.broadcast_from_first(result.read_result(workdir) if processes.is_first() else None)
    return content if content and content["status"] == "finished" and content["steps"] == step else None


def first_kernel(params: Mapping[str, Any]) -> Any:
    """The kernel [h, w, 3, n] of the only convolution that reads pictures: the one with three input channels."""
    for child in params.values():
        if isinstance(child, Mapping):
            if (found := first_kernel(child)) is not None:
                return found
        elif child.ndim == 4 and child.shape[2] == 3:
            return child
    return None


def _result(status: str, setup: Setup, workdir: Path, state: TrainState, clock: Clock) -> dict[str, Any]:
    step = int(state.step)
    return {
        "status": status,
        "model": setup.spec.name,
        "dataset": setup.train_data.dataset.name,
        "steps": step,
        "epochs": setup.length.epoch(step),
        "metrics": {"train": _last_train_row(workdir)},
        **clock.totals(),
        "fingerprint": result.fingerprint(state),
    }


def _last_train_row(workdir: Path) -> dict[str, float]:
    """The newest training row of metrics.jsonl, without what is not a metric."""
    path = workdir / metric_files.METRICS
    kept = [row for row in (metric_files.read_rows(path) if path.exists() else []) if row["kind"] == "train"]
    return {name: value for name, value in kept[-1].items() if name not in ("kind", "epoch")} if kept else {}
