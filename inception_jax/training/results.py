"""Formats evaluations, and writes result.json, plots and report.md when a run ends."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from inception_jax import tree_paths
from inception_jax.data.channels import COLOURS
from inception_jax.errors import NonFiniteLoss, UserError
from inception_jax.metric_definitions import METRICS, Metric
from inception_jax.metrics import Accumulator
from inception_jax.models import input_channels
from inception_jax.multihost import peer_loss, processes
from inception_jax.runs import batch_sheet, class_tables, goodput, metric_files, report, result
from inception_jax.runs.file_forms import keep_valid_fields
from inception_jax.runs.formatting import format_metric
from inception_jax.runs.progress import Progress
from inception_jax.runs.sinks import Sinks
from inception_jax.training import batch_views, executables, preprocess, run_warnings
from inception_jax.training.clock import Clock
from inception_jax.training.early_stopping import BestEvaluation
from inception_jax.training.executable_files import Store
from inception_jax.training.parallel import Devices
from inception_jax.training.setup import Setup
from inception_jax.training.state import TrainState
from inception_jax.training.target import Target, TargetRecord

_IMAGES_OF_BATCH = 16


@dataclasses.dataclass(frozen=True)
class RunOutput:
    """The outputs of a run: files, log, progress bar, and the clock whose times they show.

    Attributes:
      workdir: of the run.
      recorded: "run_id" and "environment" of this start.
      starts: of the run, this one included, as in manifest.json; [] on other processes than the first.
      writer: of metrics.jsonl, timing.jsonl and TensorBoard events.
      sinks: to which all of it is copied.
      progress: of the log and the progress bar.
      clock: seconds by phase.
    """

    workdir: Path
    recorded: Mapping[str, Any]
    starts: Sequence[Mapping[str, Any]]
    writer: metric_files.MetricWriter
    sinks: Sinks
    progress: Progress
    clock: Clock

    def log_news(self) -> None:
        """Logs what there is to say about the sinks."""
        for line in self.sinks.pop_news():
            self.progress.message(line)


def metric_rows(setup: Setup, evaluations: Mapping[str, Accumulator], step: int) -> Iterator[dict[str, Any]]:
    """The rows of an evaluation for metrics.jsonl, one for each kind of weights ("raw", "ema")."""
    for weights, evaluation in evaluations.items():
        yield {
            "kind": "evaluation",
            "step": step,
            "epoch": setup.length.epoch(step),
            "split": setup.data.eval.dataset.split,
            "weights": weights,
            **evaluation.result(),
        }


def counted_metrics(evaluations: Mapping[str, Accumulator]) -> dict[str, float]:
    """The metrics that choose the best checkpoint and reach a target: of the EMA weights if there are any, else raw.

    Of process 0, on all processes: a registered metric may draw random numbers, and the last bit of a sum depends on
    the processor. Processes that decided by their own values would wait for each other forever.
    """
    return processes.broadcast_from_first((evaluations.get("ema") or evaluations["raw"]).result())


def format_evaluations(evaluations: Mapping[str, Accumulator], best_metric: Metric) -> str:
    """Formats an evaluation as one line: `raw: loss 0.0512, top-1 98.61 % (355/360) | ema: …`.

    The metric by which the best one is chosen is added where it is neither of these. With several labels per example:
    `raw: loss 0.0512, mAP 83.20 %`.
    """
    texts, name = [], best_metric.name
    for weights, evaluation in evaluations.items():
        means = evaluation.result()
        if evaluation.labels == "multi":
            shown = [METRICS[key] for key in dict.fromkeys(("loss", "mean_average_precision", name))]
            texts.append(
                f"{weights}: {', '.join(f'{one.column} {format_metric(one, means[one.name])}' for one in shown)}"
            )
            continue
        correct = round(means["top1"] * means["count"])
        other = "" if name in ("loss", "top1") else f", {best_metric.column} {format_metric(best_metric, means[name])}"
        texts.append(
            f"{weights}: loss {means['loss']:.4f}, top-1 {100 * means['top1']:.2f} % "
            f"({correct:,}/{means['count']:,}){other}"
        )
    return " | ".join(texts)


def write_finished(
    setup: Setup,
    output: RunOutput,
    state: TrainState,
    evaluations: Mapping[str, Accumulator],
    best: BestEvaluation,
    target: TargetRecord,
    finish_checkpoint: Callable[[], None] | None = None,
    store: Store | None = None,
) -> dict[str, Any]:
    """Draws the plots and writes the tables, result.json and report.md of a finished run, on process 0.

    The last checkpoint may still be written while the plots are drawn.

    Args:
      setup: of the run.
      output: of the run.
      state: after the last step.
      evaluations: of the last step, by weights.
      best: the best evaluation of the run.
      target: of the run, and whether it was reached.
      finish_checkpoint: waits until the last checkpoint is written, before result.json says that the run has finished;
        None: it is written.
      store: of kept programs, that of the activations among them; None: it is compiled.

    Returns:
      The content of result.json; {} on the other processes.
    """
    step = int(state.step)
    plots: dict[str, Path] = {}
    if not processes.is_first():
        return {}
    shown = evaluations.get("ema") or evaluations["raw"]
    record_name = setup.data.eval.dataset.source.record_name
    tables = class_tables.write(output.workdir, shown, setup.data.class_names, record_name)
    if setup.logging.pictures:
        with output.clock.phase("plots"), output.progress.phase("drawing plots"):
            plots = report.draw_plots(
                output.workdir,
                shown,
                setup.data.eval,
                setup.data.class_names,
                first_layer=first_kernel(setup, state.params),
                blocks=_blocks(setup, state.variables("ema" if "ema" in evaluations else "raw"), store),
            )
            output.writer.write_images(step, plots)
    warnings = run_warnings.find_warnings(setup, state, shown)
    if finish_checkpoint:
        finish_checkpoint()
    content = _result("finished", setup, output, state, target)
    content["metrics"][setup.data.eval.dataset.split] = {
        weights: evaluation.result() for weights, evaluation in evaluations.items()
    }
    content["pictures"] = sorted(path.name for path in plots.values())
    content["tables"] = tables
    content["warnings"] = warnings
    content["best"] = best.to_json() | {"evaluations": _count_evaluations(output.workdir)}
    ended = target.summary() if target.ends_run else best.summary()
    content["ended"] = ended if step < setup.length.total else "all steps are done"
    if setup.objective.class_weights:
        content["class_weights"] = dict(zip(setup.data.class_names, setup.objective.class_weights, strict=True))
    _write(output, step, content, plots)
    return content


def draw_training_batch(setup: Setup, output: RunOutput, batch: dict[str, jax.Array]) -> None:
    """Draws images of the first batch of a run to the workdir, as the network sees them.

    From the devices: reading them again could meet a storage that hangs.

    Args:
      setup: of the run.
      output: of the run.
      batch: that the first step trains on, on the devices; this process is the first.
    """
    rows = setup.devices.first_rows({name: batch[name] for name in ("image", "label", "mask")}, _IMAGES_OF_BATCH)
    augmentation, names = setup.objective.augmentation, setup.data.class_names
    with output.clock.phase("plots"):
        images, captions = batch_views.view_training_batch(
            rows, 0, setup.objective.seed, augmentation, setup.input, names
        )
        dataset = setup.data.train.dataset
        title = f"{dataset.name}, {dataset.split}: the first batch as the network sees it"
        batch_sheet.draw(images, captions, output.workdir / batch_sheet.FILE, title=title)


def write_interrupted(
    setup: Setup, output: RunOutput, state: TrainState, target: TargetRecord, signal: str
) -> dict[str, Any]:
    """Writes result.json and report.md of a run that a signal stopped, on process 0.

    Args:
      setup: of the run.
      output: of the run.
      state: that was saved.
      target: of the run, and whether it was reached.
      signal: its name, such as "SIGTERM".

    Returns:
      The content of result.json; {} on the other processes.
    """
    if not processes.is_first():
        return {}
    content = _result("interrupted", setup, output, state, target) | {"signal": signal}
    _write(output, int(state.step), content)
    return content


def _write(output: RunOutput, step: int, content: dict[str, Any], plots: Mapping[str, Path] | None = None) -> None:
    """Writes result.json and report.md, passes them to the sinks, and adds to `content` and file what those say."""
    path = result.write_result(output.workdir, content)
    report.write(output.workdir)
    statuses = output.sinks.finish(
        step, content, [output.workdir / report.FILE, output.workdir / report.PAGE, path], plots
    )
    if output.writer.tensorboard_error:
        statuses = {"tensorboard": output.writer.tensorboard_error, **statuses}
    if statuses:
        content["sinks"] = statuses
        result.write_result(output.workdir, content)
    output.log_news()


@contextlib.contextmanager
def failure_recorded(
    setup: Setup, workdir: Path, recorded: Mapping[str, Any], sinks: Sinks, target: TargetRecord
) -> Iterator[None]:
    """Writes result.json and report.md, where that is possible, if a `UserError` is raised inside; reraises it.

    Where another process is lost and no collective raises an error, only result.json is written.

    Args:
      setup: of the run.
      workdir: of the run.
      recorded: as in `RunOutput`.
      sinks: of the run.
      target: of the run, and whether it was reached.
    """

    def write(error: UserError, complete: bool = False) -> None:
        # A second error here (such as a full disk) must not hide the one that ended the run.
        with contextlib.suppress(UserError):
            if processes.is_first():
                row = _last_train_row(workdir)
                content = {
                    "status": "diverged" if isinstance(error, NonFiniteLoss) else "failed",
                    "model": setup.spec.name,
                    "message": str(error),
                    "exit_code": int(error.exit_code),
                    "metrics": {"train": row},
                    **recorded,
                    **_target(target),
                }
                path = result.write_result(workdir, content)
                if not complete:
                    return
                report.write(workdir)
                if statuses := sinks.finish(
                    int(row.get("step", 0)), content, [workdir / report.FILE, workdir / report.PAGE, path]
                ):
                    result.write_result(workdir, content | {"sinks": statuses})

    try:
        with processes.called_before_exit(write), peer_loss.lost_peers():
            yield
    except UserError as error:
        write(error, complete=True)
        raise


def read_finished(workdir: Path, step: int, target: Target | None = None) -> dict[str, Any] | None:
    """Reads the result of a run that finished at this step.

    Returns:
      The content of result.json; None if the run was stopped before it wrote that, or has another status, step or
      target. (A result stands where the config has no target any more.)
    """
    content = processes.broadcast_from_first(result.read_result(workdir) if processes.is_first() else None)
    wrong: list[str] = []
    if not content or (content.get("status"), content.get("steps")) != ("finished", step) or not content.get("metrics"):
        return None
    recorded = keep_valid_fields(workdir / result.FILE, content, wrong).get("target") or {}
    if wrong:  # one of another form than this package writes is written anew
        return None
    if target and (recorded.get("metric"), recorded.get("value")) != (target.metric.name, target.value):
        return None
    return content


def first_kernel(setup: Setup, params: Mapping[str, Any]) -> Any:
    """The kernel of the first convolution, for its picture; None: there is none.

    Args:
      setup: of the run.
      params: of its network.

    Returns:
      [h, w, 1 or 3, n]. Of other numbers of channels than 1 and 3 what `channels.to_rgb` draws: one of two, three of
      more. Red comes first, also where the network reads blue, green, red.
    """
    channels = setup.input.channels
    kernels = {
        path: leaf for path, leaf in tree_paths.flatten(params).items() if leaf.ndim == 4 and leaf.shape[2] == channels
    }
    path = next(iter(kernels), None)
    if len(kernels) > 1:  # a layer inside reads as many channels
        found = input_channels.find_image_kernel(setup.model, setup.input.image_size)
        path = found if found in kernels else path
    if path is None:
        return None
    kernel = kernels[path][:, :, : 1 if channels < COLOURS else COLOURS]
    return kernel[:, :, ::-1] if setup.input.normalization.channel_order == "BGR" else kernel


def _blocks(setup: Setup, variables: Any, store: Store | None = None) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """The function from an image [h, w, C] to {block: its output [h, w, channels]}, on this process's first device.

    The blocks are in the order of the network.
    """

    def run(variables: Any, images: jax.Array) -> tuple[dict[str, jax.Array], ...]:
        inputs = preprocess.preprocess(images, normalization=setup.input.normalization, dtype=setup.input.dtype)
        output: Any = setup.model.apply(variables, inputs, train=False)
        # A dictionary each: JAX sorts the keys of one.
        return tuple({name: maps} for name, maps in output.endpoints.items() if maps.ndim == 4 and maps.shape[1] > 1)

    def blocks(image: np.ndarray) -> dict[str, np.ndarray]:
        device = Devices("jit", described=setup.devices.mesh.local_devices[:1])
        # A copy in host memory: with several processes the variables' arrays are not of this one alone.
        arguments = jax.device_put((jax.device_get(variables), image[None]), device.replicated)
        kept = store if setup.devices.process_count == 1 else None  # all processes must ask for it, and one draws
        compiled = executables.load_or_compile(kept, "blocks", setup, arguments, partial(device.compile_plain, run))
        return {name: np.asarray(maps, np.float32)[0] for part in compiled(*arguments) for name, maps in part.items()}

    return blocks


def _target(target: TargetRecord) -> dict[str, Any]:
    return {"target": content} if (content := target.to_json()) else {}


def _result(status: str, setup: Setup, output: RunOutput, state: TrainState, target: TargetRecord) -> dict[str, Any]:
    step, totals = int(state.step), output.clock.totals()
    return {
        "status": status,
        "model": setup.spec.name,
        "dataset": setup.data.train.dataset.name,
        "steps": step,
        "epochs": setup.length.epoch(step),
        "metrics": {"train": _last_train_row(output.workdir)},
        **totals,
        **goodput.account(totals, output.starts),
        **_target(target),
        "fingerprint": result.fingerprint(state),
        **output.recorded,
    }


def _count_evaluations(workdir: Path) -> int:
    """The number of evaluations in metrics.jsonl; one of raw and of EMA weights is one."""
    path = workdir / metric_files.METRICS
    rows = metric_files.read_rows(path) if path.exists() else []
    return len({row["step"] for row in rows if row["kind"] == "evaluation"})


def _last_train_row(workdir: Path) -> dict[str, float]:
    """The newest training row of metrics.jsonl, without the fields that are not metrics; {}: there is none."""
    path = workdir / metric_files.METRICS
    rows = [row for row in (metric_files.read_rows(path) if path.exists() else []) if row["kind"] == "train"]
    return {name: value for name, value in rows[-1].items() if name not in ("kind", "epoch")} if rows else {}
