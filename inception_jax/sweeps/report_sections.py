"""The sections of a study's report in Markdown: setup, space, trials, best trials, failures, restarts, time."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from inception_jax import schema
from inception_jax.errors import UserError
from inception_jax.metric_definitions import TO_TARGET
from inception_jax.metrics import accuracy_interval
from inception_jax.runs import data_record, formatting, manifest, run_state, time_to_target
from inception_jax.runs.formatting import format_duration
from inception_jax.runs.tables import Markdown, code, escape, format_markdown, format_value
from inception_jax.sweeps import trial_process
from inception_jax.sweeps.parameters import Choice, Parameter, alternatives
from inception_jax.sweeps.study_files import UNKNOWN, StoredStudy, StoredTrial

_MEANINGS = {
    "finished": "trained to its end",
    "pruned": "stopped early by the pruner",
    "diverged": "its loss became NaN or infinite",
    "failed": "ended with an error, or its process died too often",
    "running": "running when this report was written",
    "interrupted": "stopped; the same command continues it",
    "waiting": "its process died; it will be started again",
    UNKNOWN: "its trial.json is damaged or missing",
}
_SAMPLERS = {
    "tpe": "the tree-structured Parzen estimator (TPE)",
    "random": "uniform random search",
    "quasi": "a quasi-random (Sobol) sequence",
    "grid": "a full grid",
    "list": "the list of configs",
}
_PRUNERS = {"halving": "successive halving", "median": "the median rule"}
_LONGEST = 300  # characters of a message
# A run chooses these where its recipe leaves them unset: so do all trials alike.
_CHOSEN_BY_RUNS = frozenset(path for path, field in schema.fields() if field.earlier is not None)


def setup(study: StoredStudy) -> Iterator[str]:
    """The question, the objective, the sampler and the pruner, in one paragraph."""
    content = study.content
    names = [code(field) for field in study.space]
    listed = len(content.get("listed") or ())
    varied = f"Which {_join_names(names)} " if names else "Which of the listed configs "
    best = "is best" if len(names) <= 1 else "are best"
    of_recipe = f" for the recipe {code(content['recipe'])}" if content.get("recipe") else ""
    overrides = ", ".join(
        f"{code(field)} = {escape(format_value(value))}" for field, value in (content.get("overrides") or {}).items()
    )
    counted = "the final evaluation" if study.objective == "final" else "the best of its evaluations"
    weights = {"ema": ", of EMA weights", "raw": ", of raw weights"}.get(str(content.get("weights")), "")
    if study.metric.name in TO_TARGET:
        target = (study.config.get("stop") or {}).get("target")
        counted = f"{study.evaluated.name} {target}, at the first evaluation that reached it"
    sampler, pruner = str(content.get("sampler")), str(content.get("pruner") or "none")
    parts = [
        f"{varied}{best}{of_recipe}" + (f" (with {overrides})" if overrides else "") + "?",
        f"The objective is {study.metric.title} ({counted}{weights}); "
        f"{'more' if study.maximize else 'less'} is better.",
        f"The values were chosen by {_SAMPLERS.get(sampler, sampler)}"
        + (f", seed {content['seed']}" if "seed" in content else "")
        + (f", after {listed} listed configs" if listed and sampler != "list" else "")
        + ".",
        "No trial was pruned."
        if pruner == "none"
        else f"Trials were pruned by {_PRUNERS.get(pruner, pruner)}" + _pruner_details(content) + ".",
        f"{len(study.trials)} trials have begun"
        + (f" since {content['created']}" if content.get("created") else "")
        + ".",
    ]
    yield " ".join(parts)


def space(study: StoredStudy) -> Iterator[str]:
    """The search space as a table."""
    rows = [[code(field), one.kind, _range(one), _condition(one)] for field, one in study.space.items()]
    yield from format_markdown(("field", "kind", "values", "condition"), rows)


def counts(study: StoredStudy) -> Iterator[str]:
    """The number of trials per status."""
    statuses = [trial.status for trial in study.trials]
    order = [*_MEANINGS, *sorted(set(statuses) - {*_MEANINGS})]
    rows = [[status, statuses.count(status), _MEANINGS.get(status, "")] for status in order if status in statuses]
    yield from format_markdown(("status", "trials", ""), rows, "lrl")
    workdirs = {"the study": study.path} | {f"trial {trial.number}": trial.workdir for trial in study.trials}
    for difference in data_record.differences(workdirs):
        yield ""
        yield f"**Not all trials are comparable: {escape(difference)}.**"


def failures(study: StoredStudy) -> Iterator[str]:
    """The diverged, failed and unreadable trials, with their messages."""
    rows = [
        [
            trial.number,
            trial.status,
            f"{trial.evaluations[-1][0]:.3g}" if trial.evaluations else "–",
            ", ".join(f"{field} = {format_value(value, digits=4)}" for field, value in trial.params.items()),
            (trial.message or "–")[:_LONGEST],
        ]
        for trial in study.with_status("diverged", "failed", UNKNOWN)
    ]
    yield from format_markdown(("trial", "status", "last epoch", "parameters", "message"), rows, "rlrll")


def restarts(study: StoredStudy) -> Iterator[str]:
    """The trials whose process was started more than once, and how each of these processes ended."""
    restarted = [trial for trial in study.trials if len(trial.starts) > 1]
    rows = [
        [trial.number, trial.status, len(trial.starts), ", ".join(map(_format_exit, trial.starts))]
        for trial in restarted
    ]
    if rows:
        again = sum(len(trial.starts) - 1 for trial in restarted)
        yield (
            f"{again} process{'es were' if again > 1 else ' was'} started again before the trial had ended; each "
            "continued from its newest checkpoint."
        )
        yield ""
        yield from format_markdown(("trial", "status", "starts", "ended by"), rows, "rlrl")


def time_spent(study: StoredStudy) -> Iterator[str]:
    """The run time of the trials per status, and an estimate of what pruning saved."""
    spent = {status: sum(trial.seconds for trial in study.with_status(status)) for status in _MEANINGS}
    total = sum(spent.values())
    if not total:
        return
    rows = [
        [status, len(study.with_status(status)), format_duration(seconds), f"{100 * seconds / total:.0f} %"]
        for status, seconds in spent.items()
        if seconds
    ]
    yield from format_markdown(
        ("trials", "", "run time of processes", "share"),
        [*rows, ["all", len(study.trials), format_duration(total), ""]],
        "lrrr",
    )
    pruned = study.with_status("pruned")
    finished = [trial.seconds for trial in study.with_status("finished") if trial.seconds]
    if pruned and finished:
        whole = statistics.median(finished)
        saved = sum(max(0.0, whole - trial.seconds) for trial in pruned)
        yield ""
        yield (
            f"Pruning saved about {format_duration(saved)} (estimate: each of the {len(pruned)} pruned trials would "
            f"have taken as long as the median finished one, {format_duration(whole)})."
        )


def _pruner_details(content: Mapping[str, Any]) -> str:
    details = [f"not before evaluation {content['min_evaluations']}"] if content.get("min_evaluations") else []
    if content.get("pruner") == "halving" and content.get("reduction_factor"):
        details.append(f"one of {content['reduction_factor']} continues at each rung")
    return f" ({', '.join(details)})" if details else ""


def _range(one: Parameter) -> str:
    if isinstance(one, Choice):
        return ", ".join(map(format_value, one.values))
    return (
        f"{format_value(one.low)} to {format_value(one.high)}"
        + (", logarithmic" if one.log else "")
        + (f", in steps of {format_value(one.step)}" if one.step else "")
    )


def _condition(one: Parameter) -> Markdown:
    conditions = []
    for field, wanted in one.when.items():
        values = map(format_value, alternatives(wanted))
        conditions.append(f"{code(field)} is {escape(' or '.join(values))}")
    return Markdown(", ".join(conditions))


def _format_exit(start: Mapping[str, Any]) -> str:
    """Formats how a process ended, from its exit code as `subprocess` gives it."""
    code = start.get("exit")
    if not isinstance(code, int):
        return "unknown" if start.get("ended") else "still running"
    if name := trial_process.signal_of(code):
        return name if code < 0 else f"{name} (saved)"
    return "done" if code == 0 else f"exit code {code}"


def _join_names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def facts(study: StoredStudy) -> Iterator[str]:
    """What is read first, an item each: the best value, the trials, the run time."""
    finished = len(study.with_status("finished"))
    if ranked := study.ranked():
        first = ranked[0]
        interval = _interval(study, first, _evaluation(study, first))
        value = formatting.format_metric(study.metric, first.shown_value)
        yield f"- **{value}** {escape(study.metric.title)} of the best trial, number {first.number}" + (
            f"; {interval}" if interval else ""
        )
    yield f"- **{finished:,} of {len(study.trials):,}** trials finished"
    if study.metric.name in TO_TARGET and finished:
        values = [math.inf if trial.value is None else trial.value for trial in study.with_status("finished")]
        median = formatting.format_metric(study.metric, time_to_target.median(values))
        yield (
            f"- **{sum(map(math.isfinite, values)):,} of {finished:,}** finished trials reached their target; median "
            f"{escape(study.metric.title)} of all finished ones: {median}"
        )
    if seconds := sum(trial.seconds for trial in study.trials):
        yield f"- **{format_duration(seconds)}** run time of all processes"


def best_trial(study: StoredStudy) -> Iterator[str]:
    """The best trial: its value with an interval, a warning about selection bias, and the fields it changed."""
    ranked = study.ranked()
    if not ranked:
        yield "No trial has finished with a value."
        return
    first = ranked[0]
    counted = _evaluation(study, first)
    interval = _interval(study, first, counted)
    yield (
        f"Trial {first.number}: **{format_metric(study, first.shown_value)}**"
        + (f", {interval}" if interval else "")
        + f"; its run is in {code(first.workdir.relative_to(study.path))}."
    )
    if equal := [trial for trial in ranked[1:] if trial.value == first.value]:
        yield ""
        yield f"Equally good: {', '.join(f'trial {trial.number}' for trial in equal)}; the earliest is shown."
    yield ""
    split = counted.get("split")
    on = f"{code(split)}, the split" if split else "the split"
    chosen = "" if study.objective == "final" else ", and the best of each trial's evaluations"
    yield (
        f"**This value is optimistic.** It is the best of {len(ranked)} finished trials{chosen}, selected on {on} "
        "that it was measured on: part of its lead is chance, and the interval, which is that of one network "
        "evaluated once, does not account for the selection. For a number to publish, evaluate the config on "
        "held-out images that were not used in the sweep; train it with several seeds to see how much of the lead "
        "remains."
    )
    if lines := list(_differences(study, first)):
        yield ""
        yield from lines


def top_trials(study: StoredStudy, count: int) -> Iterator[str]:
    """A table of the best trials with their parameters.

    Args:
      study: the study.
      count: largest number of trials.
    """
    ranked = study.ranked()[:count]
    if not ranked:
        return
    fields = [*study.space]
    fields += sorted({field for trial in ranked for field in (*trial.params, *trial.overrides)} - {*fields})
    rows = []
    for place, trial in enumerate(ranked, 1):
        values = {**trial.overrides, **trial.params}
        interval = _interval(study, trial, _evaluation(study, trial)).removeprefix("95 % interval ")
        rows.append(
            [
                place,
                trial.number,
                formatting.format_metric(study.metric, trial.shown_value),
                interval or "–",
                *(format_value(values[field], digits=4) if field in values else "–" for field in fields),
                format_duration(trial.seconds),
            ]
        )
    names = [code(field) for field in fields]
    head = ["", "trial", study.metric.title, "95 % interval", *names, "time"]
    yield from format_markdown(head, rows, "rrrr" + "r" * len(fields) + "r")


def format_metric(study: StoredStudy, value: float) -> str:
    """Formats a value with its metric: `98.61 % top-1 accuracy`."""
    return f"{formatting.format_metric(study.metric, value)} {study.metric.title}"


def _evaluation(study: StoredStudy, trial: StoredTrial) -> Mapping[str, Any]:
    """The evaluation row that has the trial's value; {} where its metrics.jsonl is lost."""
    rows = run_state.read(trial.workdir).evaluations(study.content.get("weights"))
    return next((row for row in reversed(rows) if row.get(study.metric.name) == trial.value), rows[-1] if rows else {})


def _interval(study: StoredStudy, trial: StoredTrial, row: Mapping[str, Any]) -> str:
    """The 95 % interval of an accuracy; "" for another metric, and where the number of examples is unknown."""
    interval = accuracy_interval(trial.shown_value, row.get("count")) if study.metric.is_proportion else None
    return f"95 % interval {100 * interval[0]:.2f}–{100 * interval[1]:.2f} %" if interval else ""


def _differences(study: StoredStudy, trial: StoredTrial) -> Iterator[str]:
    """A table of the fields in which the trial's config differs from the study's config."""
    config = None
    with contextlib.suppress(UserError):
        config = manifest.read_config(trial.workdir)
    set_here = {**trial.overrides, **trial.params}
    if config is None or not study.config:
        pairs = [(field, manifest.ABSENT, set_here[field]) for field in sorted(set_here)]
    else:
        chosen_by_run = _CHOSEN_BY_RUNS - set_here.keys()
        pairs = [
            (field, old, new)
            for field, old, new in manifest.config_differences(study.config, config)
            if not (field in chosen_by_run and old in (None, manifest.ABSENT))
        ]
    rows = [[code(field), format_value(old), format_value(new)] for field, old, new in pairs]
    yield from format_markdown(("field", "recipe", f"trial {trial.number}"), rows)
