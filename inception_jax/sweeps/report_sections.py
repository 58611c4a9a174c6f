"""The bookkeeping of a study, in Markdown: what was asked, how the trials ended, what it cost."""

from __future__ import annotations

import signal
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from inception_jax.errors import UserError
from inception_jax.metrics import wilson_interval
from inception_jax.runs import manifest, run_state
from inception_jax.runs.comparison_report import format_metric_value
from inception_jax.runs.formatting import format_duration
from inception_jax.runs.tables import format_markdown, format_value
from inception_jax.sweeps import scales
from inception_jax.sweeps.study_files import UNKNOWN, StoredParameter, StoredStudy, StoredTrial

_MEANINGS = {
    "finished": "ran to its end",
    "pruned": "given up early by the pruner",
    "diverged": "its loss became NaN or infinite",
    "failed": "ended with an error, or died too often",
    "running": "running when this was written",
    "interrupted": "stopped, to be continued by the same command",
    "waiting": "begun, and waiting to be started again",
    UNKNOWN: "its record is damaged or missing",
}
_SAMPLERS = {
    "tpe": "the tree-structured Parzen estimator (TPE)",
    "random": "uniform random search",
    "quasi": "a quasi-random (Sobol) sequence",
    "grid": "the whole grid",
    "list": "the listed configs alone",
}
_PRUNERS = {"halving": "successive halving", "median": "the median rule"}
_LONGEST = 300  # characters of a message


def setup(study: StoredStudy) -> Iterator[str]:
    """What was asked, in a paragraph."""
    content = study.content
    names = [f"`{parameter.field}`" for parameter in study.space]
    listed = len(content.get("listed") or ())
    varied = f"Which {_join_names(names)} " if names else "Which of the listed configs "
    best = "is best" if len(names) <= 1 else "are best"
    of_recipe = f" for the recipe `{content['recipe']}`" if content.get("recipe") else ""
    overrides = ", ".join(
        f"`{field}` = {format_value(value)}" for field, value in (content.get("overrides") or {}).items()
    )
    judged = "the final evaluation" if study.objective == "final" else "the best of its evaluations"
    weights = {"ema": ", of averaged weights", "raw": ", of raw weights"}.get(content.get("weights"), "")
    sampler, pruner = content.get("sampler"), content.get("pruner")
    parts = [
        f"{varied}{best}{of_recipe}" + (f" (with {overrides})" if overrides else "") + "?",
        f"A trial is judged by {scales.METRIC_NAMES[study.metric]} ({judged}{weights}); "
        f"{'more' if study.maximise else 'less'} is better.",
        f"The values were chosen by {_SAMPLERS.get(sampler, sampler)}"
        + (f", seed {content['seed']}" if "seed" in content else "")
        + (f", after {listed} listed configs" if listed and sampler != "list" else "")
        + ".",
        "No trial was pruned."
        if pruner in (None, "none")
        else f"Hopeless trials were given up by {_PRUNERS.get(pruner, pruner)}" + _pruner_details(content) + ".",
        f"{len(study.trials)} trials have begun"
        + (f" since {content['created']}" if content.get("created") else "")
        + ".",
    ]
    yield " ".join(parts)


def space(study: StoredStudy) -> Iterator[str]:
    """The space as a table."""
    rows = [[f"`{one.field}`", one.kind, _range(one), _condition(one)] for one in study.space]
    yield from format_markdown(("field", "kind", "values", "only where"), rows)


def counts(study: StoredStudy) -> Iterator[str]:
    """How many trials have which status."""
    statuses = [trial.status for trial in study.trials]
    order = [*_MEANINGS, *sorted(set(statuses) - {*_MEANINGS})]
    rows = [[status, statuses.count(status), _MEANINGS.get(status, "")] for status in order if status in statuses]
    yield from format_markdown(("status", "trials", ""), rows, "lrl")


def failures(study: StoredStudy) -> Iterator[str]:
    """The trials that came to nothing, and why."""
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
    """The trials whose process was started more than once, and how each of its processes ended."""
    rows = [
        [trial.number, trial.status, len(trial.starts), ", ".join(map(_format_exit, trial.starts))]
        for trial in study.trials
        if len(trial.starts) > 1
    ]
    if rows:
        again = sum(row[2] - 1 for row in rows)
        yield (
            f"{again} process{'es were' if again > 1 else ' was'} started again, after an end that was not the "
            "trial's; each went on from its newest checkpoint."
        )
        yield ""
        yield from format_markdown(("trial", "status", "starts", "ended by"), rows, "rlrl")


def time_spent(study: StoredStudy) -> Iterator[str]:
    """What the trials took, and what pruning saved."""
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
        ("trials", "", "time of their processes", "share"),
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
            f"Pruning saved about {format_duration(saved)}. This is an estimate: what the {len(pruned)} pruned trials "
            f"would have taken in addition, had each taken as long as the median finished one "
            f"({format_duration(whole)})."
        )


def _pruner_details(content: Mapping[str, Any]) -> str:
    details = [f"not before evaluation {content['min_evaluations']}"] if content.get("min_evaluations") else []
    if content.get("pruner") == "halving" and content.get("reduction_factor"):
        details.append(f"one of {content['reduction_factor']} goes on at each rung")
    return f" ({', '.join(details)})" if details else ""


def _range(one: StoredParameter) -> str:
    if one.kind == "choice":
        return ", ".join(map(format_value, one.choices))
    return (
        f"{format_value(one.low)} to {format_value(one.high)}"
        + (", logarithmic" if one.log else "")
        + (f", in steps of {format_value(one.step)}" if one.step else "")
    )


def _condition(one: StoredParameter) -> str:
    return ", ".join(
        f"`{field}` is " + " or ".join(map(format_value, wanted if isinstance(wanted, list) else [wanted]))
        for field, wanted in one.when.items()
    )


def _format_exit(start: Mapping[str, Any]) -> str:
    """How a process ended, from its exit code as `subprocess` gives it."""
    code = start.get("exit")
    if not isinstance(code, int):
        return "unknown" if start.get("ended") else "still running"
    if code < 0 or code > 128:
        number = -code if code < 0 else code - 128
        try:
            name = signal.Signals(number).name
        except ValueError:
            return f"exit code {code}"
        return name if code < 0 else f"{name} (saved)"
    return "done" if code == 0 else f"exit code {code}"


def _join_names(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def best_trial(study: StoredStudy) -> Iterator[str]:
    """The best trial in Markdown: its value with an interval, how much to believe of it, and in what it differs."""
    ranked = study.ranked()
    if not ranked:
        yield "No trial has finished with a value."
        return
    first = ranked[0]
    counted = _evaluation(study, first)
    interval = _interval(study, first, counted)
    yield (
        f"Trial {first.number}: **{format_metric(study, first.value)}**"
        + (f", {interval}" if interval else "")
        + f"; its run is in `{first.workdir.relative_to(study.path)}`."
    )
    if equal := [trial for trial in ranked[1:] if trial.value == first.value]:
        yield ""
        yield f"As good: {', '.join(f'trial {trial.number}' for trial in equal)}; the earliest is named."
    yield ""
    split = counted.get("split")
    on = f"`{split}`, the split" if split else "the split"
    chosen = "" if study.objective == "final" else ", and the best of each trial's evaluations"
    yield (
        f"**This value is optimistic.** It is the best of {len(ranked)} finished trials{chosen}, chosen on {on} "
        "that it is reported of: part of its lead is luck, and the interval, which is that of one network evaluated "
        "once, knows nothing of the choice. For a number to quote, evaluate the chosen config on pictures that no "
        "trial was judged by; several seeds of it say how much of the lead remains."
    )
    if lines := list(_differences(study, first)):
        yield ""
        yield from lines


def top_trials(study: StoredStudy, count: int) -> Iterator[str]:
    """The best trials as a table, with the parameters of the space."""
    ranked = study.ranked()[:count]
    if not ranked:
        return
    fields = [parameter.field for parameter in study.space]
    fields += sorted({field for trial in ranked for field in (*trial.params, *trial.overrides)} - {*fields})
    rows = []
    for place, trial in enumerate(ranked, 1):
        values = {**trial.overrides, **trial.params}
        interval = _interval(study, trial, _evaluation(study, trial)).removeprefix("95 % interval ")
        rows.append(
            [
                place,
                trial.number,
                format_metric_value(study.metric, trial.value),
                interval or "–",
                *(format_value(values[field], digits=4) if field in values else "–" for field in fields),
                format_duration(trial.seconds),
            ]
        )
    names = [f"`{field}`" for field in fields]
    head = ["", "trial", scales.METRIC_NAMES[study.metric], "95 % interval", *names, "time"]
    yield from format_markdown(head, rows, "rrrr" + "r" * len(fields) + "r")


def format_metric(study: StoredStudy, value: float) -> str:
    """A value in words: `98.61 % top-1 accuracy`."""
    return f"{format_metric_value(study.metric, value)} {scales.METRIC_NAMES[study.metric]}"


def _evaluation(study: StoredStudy, trial: StoredTrial) -> Mapping[str, Any]:
    """The evaluation row that a trial's value is of; {} where its metric file is lost."""
    rows = run_state.read(trial.workdir).evaluations(study.content.get("weights"))
    return next((row for row in reversed(rows) if row.get(study.metric) == trial.value), rows[-1] if rows else {})


def _interval(study: StoredStudy, trial: StoredTrial, row: Mapping[str, Any]) -> str:
    """The 95 % interval of an accuracy; "" for a loss, and where it is not known how many examples there were."""
    count = row.get("count")
    if study.metric == "loss" or not count or not 0 <= trial.value <= 1 <= count:
        return ""
    low, high = wilson_interval(round(trial.value * count), int(count))
    return f"95 % interval {100 * low:.2f}–{100 * high:.2f} %"


def _differences(study: StoredStudy, trial: StoredTrial) -> Iterator[str]:
    """In which fields the trial's config differs from the one that all trials start from."""
    try:
        config = manifest.read_config(trial.workdir)
    except UserError:
        config = None
    if config is None or not study.config:
        set_here = {**trial.overrides, **trial.params}
        pairs = [(field, manifest.ABSENT, set_here[field]) for field in sorted(set_here)]
    else:
        pairs = manifest.config_differences(study.config, config)
    rows = [[f"`{field}`", format_value(old), format_value(new)] for field, old, new in pairs]
    yield from format_markdown(("field", "recipe", f"trial {trial.number}"), rows)
