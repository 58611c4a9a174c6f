"""What a study found: its best trial, with the caution that belongs to it, and the ones after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from inception_jax.errors import UserError
from inception_jax.metrics import wilson_interval
from inception_jax.runs import manifest, run_state
from inception_jax.runs.comparison_report import metric_text
from inception_jax.runs.formatting import duration
from inception_jax.runs.tables import markdown, value_text
from inception_jax.sweeps import scales
from inception_jax.sweeps.archive import Study, Trial


def best(study: Study) -> Iterator[str]:
    """The best trial in Markdown: its value with an interval, how much to believe of it, and in what it differs."""
    ranked = study.ranked()
    if not ranked:
        yield "No trial has finished with a value."
        return
    first = ranked[0]
    counted = _evaluation(study, first)
    interval = _interval(study, first, counted)
    yield (
        f"Trial {first.number}: **{words(study, first.value)}**"
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


def top(study: Study, count: int) -> Iterator[str]:
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
                metric_text(study.metric, trial.value),
                interval or "–",
                *(value_text(values[field], digits=4) if field in values else "–" for field in fields),
                duration(trial.seconds),
            ]
        )
    names = [f"`{field}`" for field in fields]
    head = ["", "trial", scales.METRIC_NAMES[study.metric], "95 % interval", *names, "time"]
    yield from markdown(head, rows, "rrrr" + "r" * len(fields) + "r")


def words(study: Study, value: float) -> str:
    """A value in words: `98.61 % top-1 accuracy`."""
    return f"{metric_text(study.metric, value)} {scales.METRIC_NAMES[study.metric]}"


def _evaluation(study: Study, trial: Trial) -> Mapping[str, Any]:
    """The evaluation row that a trial's value is of; {} where its metric file is lost."""
    rows = run_state.read(trial.workdir).evaluations(study.said.get("weights"))
    return next((row for row in reversed(rows) if row.get(study.metric) == trial.value), rows[-1] if rows else {})


def _interval(study: Study, trial: Trial, row: Mapping[str, Any]) -> str:
    """The 95 % interval of an accuracy; "" for a loss, and where it is not known how many examples there were."""
    count = row.get("count")
    if study.metric == "loss" or not count or not 0 <= trial.value <= 1 <= count:
        return ""
    low, high = wilson_interval(round(trial.value * count), int(count))
    return f"95 % interval {100 * low:.2f}–{100 * high:.2f} %"


def _differences(study: Study, trial: Trial) -> Iterator[str]:
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
    rows = [[f"`{field}`", value_text(old), value_text(new)] for field, old, new in pairs]
    yield from markdown(("field", "recipe", f"trial {trial.number}"), rows)
