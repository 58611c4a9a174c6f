"""Formats the sections of a run's report as Markdown: heading, results, heads, times, commands, config, versions."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inception_jax import metric_definitions
from inception_jax.metrics import wilson_interval
from inception_jax.runs import manifest, metric_files, remote_workdir, tables, time_to_target
from inception_jax.runs.formatting import format_duration, format_metric, format_number, is_multi_label, per_head
from inception_jax.runs.tables import code, escape

_HIGHLIGHTS = (
    "seed", "batch_size", "num_epochs", "num_steps", "model.name", "model.width_multiplier", "model.aux_heads",
    "model.dtype", "data.name", "data.labels", "data.image_size", "augmentation.rule", "optimizer.name",
    "optimizer.learning_rate",
    "optimizer.momentum", "optimizer.weight_decay", "optimizer.clip_norm", "schedule.name", "schedule.warmup_epochs",
    "loss.label_smoothing", "loss.class_weights", "loss.aux_weights", "data.sampling", "ema.decay", "parallel.mode",
    "parallel.batch_norm", "checkpoint.best_metric", "stop.patience",
    "stop.target_metric", "stop.target",
)  # fmt: skip
_WEIGHTS = {"ema": "EMA weights", "raw": "raw weights"}
_SECONDS = {
    "wall_seconds": "wall clock, all starts together",
    "startup_seconds": "starting: reading data, making or restoring the state",
    "compile_seconds": "compiling",
    "data_wait_seconds": "waiting for data",
    "evaluation_seconds": "evaluating",
    "checkpoint_seconds": "saving checkpoints",
    "plots_seconds": "drawing plots",
}
_REST = "training steps and everything else"


def heading(config: Mapping[str, Any], outcome: Mapping[str, Any], rows: list[dict[str, Any]]) -> str:
    """The title (network and data set), and one sentence on how far the run came and how it ended."""
    name = outcome.get("model") or config_value(config, "model.name") or "A run"
    dataset = outcome.get("dataset") or config_value(config, "data.name")
    last = max((row["step"] for row in rows), default=None)
    step = outcome.get("steps", last)
    where = "" if step is None else f" at step {step:,}"
    if "epochs" in outcome:
        where += f" ({outcome['epochs']:.4g} epochs)"
    summaries = {
        "finished": f"Finished{where}.{_early_end(outcome)}",
        "interrupted": f"Stopped by {outcome.get('signal', 'a signal')}{where}; the same command continues.",
        "diverged": f"Ended{where}: {outcome.get('message', 'the loss was not finite')}",
        "failed": f"Ended{where}: {outcome.get('message', 'an error')}",
        None: f"Not finished; the newest row of its metrics is of step {last:,}." if rows else "Not finished.",
    }
    status = outcome.get("status")
    title = f"{name} on {dataset}" if dataset else name
    return f"# {escape(title)}\n\n{escape(summaries.get(status, f'{status}{where}.'))}"


def _early_end(outcome: Mapping[str, Any]) -> str:
    ended = str(outcome.get("ended") or "")
    if ended.startswith("target reached"):
        return " It ended at its target."
    return f" It ended by {ended}." if ended.startswith("early stopping") else ""


def facts(
    outcome: Mapping[str, Any],
    rows: list[dict[str, Any]],
    timing: list[dict[str, Any]],
    config: Mapping[str, Any],
    starts: Mapping[str, Any],
) -> Iterator[str]:
    """Yields what is read first, a line each: the accuracy, the step of the best evaluation, the time."""
    final = _final_evaluations(outcome, rows)
    for split in dict.fromkeys(split for split, _ in final):
        weights = "ema" if (split, "ema") in final else "raw"
        values = final.get((split, weights))
        if values and is_multi_label(values):
            shown = [
                f"{format_metric(metric, values[metric.name])} {metric.title}"
                for metric in map(metric_definitions.describe, ("mean_average_precision", "micro_f1", "exact_match"))
                if metric.name in values
            ]
            yield (
                f"- **{shown[0]}** on {escape(split)}, {_WEIGHTS[weights]}: {', '.join(shown[1:])}; "
                f"{values['count']:,} examples"
            )
        elif values:
            right, low, high = _interval(values)
            yield (
                f"- **{100 * values['top1']:.2f} %** top-1 on {escape(split)}, {_WEIGHTS[weights]}: {right:,} of "
                f"{values['count']:,}, 95 % interval {100 * low:.2f}–{100 * high:.2f} %"
            )
    warnings = outcome.get("warnings")
    yield from (f"- **warning**: {escape(str(line))}" for line in (warnings if isinstance(warnings, list) else ()))
    best = outcome.get("best") or {}
    if best.keys() >= {"metric", "value", "step"}:
        metric = metric_definitions.describe(best["metric"], best)
        weights = "ema" if any(kind == "ema" for _, kind in final) else "raw"
        yield (
            f"- **step {best['step']:,}** has the best {escape(metric.title)}: "
            f"{format_metric(metric, best['value'])}, {_WEIGHTS[weights]}"
        )
    if (outcome.get("target") or {}).keys() >= {"metric", "value"}:
        what, _, how = time_to_target.format_reached(outcome["target"]).partition(": ")
        yield f"- **{what}**: {escape(how)}"
    if wall := _wall_seconds(outcome, timing):
        whole = round(wall)
        unit = "" if whole < 60 or whole >= 86_400 else " min" if whole < 3_600 else " h"
        shares = {name: share for name, _, share in _parts_of_time(outcome, wall)}
        parts = [
            f"{shares[name]} % {_SECONDS[name]}"
            for name in ("compile_seconds", "evaluation_seconds", "data_wait_seconds")
            if name in shares
        ]
        yield f"- **{format_duration(whole)}{unit}** wall clock" + (f": {', '.join(parts)}" if parts else "")


def _final_evaluations(
    outcome: Mapping[str, Any], rows: list[dict[str, Any]]
) -> dict[tuple[str, str], Mapping[str, Any]]:
    """{(split, weights): final evaluation}: of result.json, otherwise the last rows of metrics.jsonl."""
    final: dict[tuple[str, str], Mapping[str, Any]] = {
        (row["split"], row["weights"]): row
        for row in rows
        if row.get("kind") == "evaluation" and row.keys() >= {"split", "weights"}
    }
    for split, by_weights in outcome.get("metrics", {}).items():  # beside them is "train": {metric: value}
        final |= {(split, kind): values for kind, values in by_weights.items() if isinstance(values, Mapping)}
    needed = {"count", "loss"}
    return {
        key: values
        for key, values in final.items()
        if values.keys() >= needed
        and (is_multi_label(values) or values.keys() >= {"top1", "top5"})
        and key[1] in _WEIGHTS
    }


def _interval(values: Mapping[str, Any]) -> tuple[int, float, float]:
    """(number of right answers, lower and upper end of the 95 % interval of the accuracy) of an evaluation."""
    right = round(values["top1"] * values["count"])
    return right, *wilson_interval(right, values["count"])


def _best_evaluation(
    rows: list[dict[str, Any]], config: Mapping[str, Any], starts: Mapping[str, Any]
) -> tuple[metric_definitions.Metric, list[dict[str, Any]]]:
    """(the metric that chooses the best checkpoint, the rows of the best evaluations by it: several where equal).

    They are of the EMA weights where there are any, as the best checkpoint is.
    """
    name = config_value(config, "checkpoint.best_metric") or "top1"
    metric = metric_definitions.describe(name, (starts.get("metrics") or {}).get(name))
    known = [row for row in rows if row.get("kind") == "evaluation" and not math.isnan(row.get(name, math.nan))]
    kind = "ema" if any(row.get("weights") == "ema" for row in known) else "raw"
    known = [row for row in known if row.get("weights") == kind]
    value = (max if metric.better == "higher" else min)((row[name] for row in known), default=None)
    return metric, [row for row in known if row[name] == value]


def evaluations(
    outcome: Mapping[str, Any], rows: list[dict[str, Any]], config: Mapping[str, Any], starts: Mapping[str, Any]
) -> Iterator[str]:
    """Yields the final evaluation per split and weights, the best one, and the fingerprint of the state."""
    recorded = starts.get("metrics") or {}
    final = _final_evaluations(outcome, rows)
    others = [
        metric_definitions.describe(name, recorded.get(name))
        for name in (*metric_definitions.METRICS, *recorded)
        if name not in metric_definitions.SUMMED and any(name in values for values in final.values())
    ]
    others = list({metric.name: metric for metric in others}.values())
    one_label = not any(map(is_multi_label, final.values()))
    table = []
    for (split, weights), values in final.items():
        accuracies = []
        if one_label:
            _, low, high = _interval(values)
            interval = f"{100 * low:.2f}–{100 * high:.2f} %"
            accuracies = [f"{100 * values['top1']:.2f} %", interval, f"{100 * values['top5']:.2f} %"]
        table.append(
            (
                split,
                weights,
                *accuracies,
                format_number(values["loss"]),
                *(format_metric(metric, values.get(metric.name)) for metric in others),
                f"{values['count']:,}",
            )
        )
    names = [metric.column for metric in others]
    accuracies = ["top-1", "95 % interval", "top-5"] if one_label else []
    head = ("split", "weights", *accuracies, "loss", *names, "examples")
    yield from tables.format_markdown(head, table, "ll" + "r" * (len(head) - 2))
    if final and (images := config_value(config, "evaluation.batch_norm_images")):
        yield ""
        yield f"Evaluated with batch-norm statistics of {images:,} training images, not with the running statistics."
    metric, equal = _best_evaluation(rows, config, starts)
    if equal:
        recorded_step = (outcome.get("best") or {}).get("step")  # in runs of earlier versions the first of equal ones
        best = next((row for row in equal if row["step"] == recorded_step), equal[-1])
        as_good = len(equal) - 1
        also = f"; {as_good:,} other evaluation{'s are' if as_good > 1 else ' is'} equal" if as_good else ""
        yield ""
        yield (
            f"Best {escape(metric.column)} of all evaluations: {format_metric(metric, best[metric.name])} "
            f"({escape(best['split'])}, {best['weights']}) at step {best['step']:,}, epoch {best['epoch']:.4g}{also}."
        )
    if "fingerprint" in outcome:
        yield ""
        yield f"Fingerprint of the final state: `{outcome['fingerprint']}`"


def heads(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yields each head's loss and accuracy in the first and the last row."""
    train = [row for row in rows if row.get("kind") == "train"]
    if not train:
        return
    first, last = train[0], train[-1]
    tops = [dict(per_head(row, "top1")) for row in (first, last)]
    before = dict(per_head(first, "loss"))
    table: list[tuple[str, ...]] = (
        [("all, weighted", format_number(first["loss"]), format_number(last["loss"]), "", "")]
        if "loss" in first
        else []
    )
    for head, loss in per_head(last, "loss"):
        accuracies = [f"{100 * top[head]:.1f} %" if head in top else "" for top in tops]
        table.append((head, format_number(before[head]) if head in before else "", format_number(loss), *accuracies))
    names = [f"{what}, step {row['step']:,}" for what in ("loss", "top-1") for row in (first, last)]
    kept = 5 if any(tops) else 3  # of several labels per example there is no top-1
    yield from tables.format_markdown(("head", *names)[:kept], [row[:kept] for row in table], "lrrrr"[:kept])


def times(outcome: Mapping[str, Any], timing: list[dict[str, Any]]) -> Iterator[str]:
    """Yields where the time of the run went, and the median speed of its rows."""
    if wall := _wall_seconds(outcome, timing):
        table = [(_SECONDS["wall_seconds"], _clock_time(round(10 * wall)), "100 %")]
        parts = _parts_of_time(outcome, wall)
        table += [(_SECONDS.get(name, _REST), _clock_time(tenths), f"{share} %") for name, tenths, share in parts]
        yield from tables.format_markdown(("", "h:min:s", "fraction"), table, "lrr")
    yield from _goodput(outcome)
    speeds = [row["images_per_second"] for row in timing if "images_per_second" in row]
    if speeds:
        waits = [row.get("data_wait_fraction", 0.0) for row in timing]
        yield ""
        yield (
            f"Median of {len(speeds):,} rows: {statistics.median(speeds):,.1f} images/s, "
            f"{100 * statistics.median(waits):.0f} % of the time between steps spent waiting for data."
        )


def _goodput(outcome: Mapping[str, Any]) -> Iterator[str]:
    """Yields the fraction of the time that went into training steps that were kept, and what is not in the table."""
    if not outcome.keys() >= {"goodput", "starts", "lost_seconds", "between_starts_seconds"}:
        return
    yield ""
    goodput = f"Goodput: {100 * outcome['goodput']:.1f} % of the time was spent in training steps that were kept"
    if outcome["starts"] == 1:
        yield f"{goodput}."
        return
    lost, between = (format_duration(outcome[f"{name}_seconds"]) for name in ("lost", "between_starts"))
    yield (
        f"{goodput}, over {outcome['starts']:,} starts. Not in the table: {lost} of killed starts, of which no "
        f"checkpoint was left (in the goodput, this time counts), and {between} in which no start ran, or what it did "
        "was not measured (this does not)."
    )


def _wall_seconds(outcome: Mapping[str, Any], timing: list[dict[str, Any]]) -> float | None:
    return outcome.get("wall_seconds") or (timing[-1].get("wall_seconds") if timing else None)


def _parts_of_time(outcome: Mapping[str, Any], wall: float) -> list[tuple[str, int, int]]:
    """The phases of a run and what remains: (name, tenths of a second, per cent of `wall`); [] where none is known.

    The tenths add up to those of `wall` and the percentages to 100: the largest fractions are rounded up.
    """
    tenths = {name: round(10 * outcome[name]) for name in _SECONDS if outcome.get(name) is not None}
    tenths.pop("wall_seconds", None)
    if not tenths:
        return []
    total = round(10 * wall)
    tenths["rest"] = max(0, total - sum(tenths.values()))
    exact = {name: 100 * part / max(1, total) for name, part in tenths.items()}
    shares = {name: math.floor(share) for name, share in exact.items()}
    missing = 100 - sum(shares.values())
    for name in sorted(exact, key=lambda name: shares[name] - exact[name])[: max(0, missing)]:
        shares[name] += 1
    return [(name, part, shares[name]) for name, part in tenths.items()]


def _clock_time(tenths: int) -> str:
    return f"{tenths // 36_000}:{tenths // 600 % 60:02d}:{tenths % 600 / 10:04.1f}"


def next_commands(workdir: Path, starts: Mapping[str, Any], outcome: Mapping[str, Any]) -> Iterator[str]:
    """Yields the commands that continue the run, or show its result again, and that use its network."""
    yield "```"
    if command := starts.get("command"):
        finished = outcome.get("status") == "finished"
        yield "# " + ("shows the result again: the run has finished" if finished else "continues the run")
        yield shlex.join(["python", *command[1:]])
    here = shlex.quote(remote_workdir.display_name(workdir))
    # A run that ended before its first checkpoint has no network to use.
    if outcome.get("status") not in ("diverged", "failed") or any(workdir.glob("checkpoints/*")):
        yield f"python -m inception_jax.evaluate --workdir={here}"
        yield f"python -m inception_jax.predict --workdir={here} image.jpg"
    if (workdir / metric_files.EVENTS).is_dir():
        yield "# with TensorBoard, the extra: pip install 'inception_jax[tensorboard]'"
        yield f"tensorboard --logdir={here}"
    yield "```"


def config_fields(config: Mapping[str, Any]) -> Iterator[str]:
    """Yields the fields of the config that are read most, with their values."""
    unused = "num_epochs" if config.get("num_steps") else "num_steps"
    values = [(path, config_value(config, path)) for path in _HIGHLIGHTS if path != unused]
    rows = [(code(path), value) for path, value in values if value is not None]
    yield from tables.format_markdown(("field", "value"), rows)
    if config:
        yield ""
        yield f"All fields: [{manifest.CONFIG}]({manifest.CONFIG})."


def versions(starts: Mapping[str, Any]) -> Iterator[str]:
    """Yields the code, the libraries and the machine of the run, and when it was started."""
    git = starts.get("git") or {}
    revision = git.get("revision", "unknown") + (" with uncommitted changes" if git.get("dirty") else "")
    table = [("revision", revision)] if starts else []
    table += [(name, version) for name, version in (starts.get("versions") or {}).items() if version]
    table += [(name, starts[name]) for name in ("hostname", "platform") if starts.get(name)]
    table += [("devices", ", ".join(map(str, starts["devices"])))] if starts.get("devices") else []
    times = [start.get("time", "?") for start in starts.get("starts", [])]
    table += [("started", ", ".join(times))] if times else []
    yield from tables.format_markdown(("", ""), table)


def config_value(config: Mapping[str, Any], path: str) -> Any:
    """Returns the value at a dotted path, or None."""
    value: Any = config
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
