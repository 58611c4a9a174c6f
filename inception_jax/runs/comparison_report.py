"""Formats a comparison of runs: aligned text for the terminal, Markdown for a file, both with the same tables."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from inception_jax.errors import write_error
from inception_jax.metric_definitions import METRICS, SUMMED, TO_TARGET
from inception_jax.runs import comparison_plot, html_page, listing, plot_style, remote_workdir, tables, time_to_target
from inception_jax.runs.comparison import Comparison
from inception_jax.runs.formatting import format_duration, format_metric, format_number, format_rate
from inception_jax.runs.tables import UNKNOWN, code, escape

FILE = listing.COMPARISON_FILE
PLOT_FILE = "comparison.png"

_LONGEST = 44  # characters of a value in the terminal; the Markdown has all of it


@dataclasses.dataclass(frozen=True)
class _Table:
    """A table: title, column names, cells, and the alignment of each column, "l" or "r"."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    align: str


def format_text(comparison: Comparison, *, width: int = 160) -> str:
    """Formats the comparison for a terminal.

    Args:
      comparison: from `comparison.compare`.
      width: width of the terminal in columns; wider tables are split.
    """
    parts = [f"WARNING: {warning}" for warning in comparison.warnings]
    for table in _tables(comparison):
        rows = [[plot_style.shorten(cell, _LONGEST) for cell in row] for row in table.rows]
        formatted = tables.format_table([table.head, *rows], table.align)
        if max(map(cell_len, formatted.splitlines())) > width:
            formatted = "\n\n".join(tables.split_table(table.head, rows, width, table.align))
        parts.append(f"{table.title}\n{formatted}")
    parts += [*_remarks(comparison), *(f"note: {note}" for run in comparison.runs for note in run.notes)]
    return "\n\n".join(parts)


def format_markdown(comparison: Comparison, *, plot: str | None = None) -> str:
    """Formats the comparison as a Markdown document.

    Args:
      comparison: from `comparison.compare`.
      plot: path of the image of the curves, as the document links to it; None: there is none.
    """
    runs = "\n".join(
        f"- **{escape(label)}**: {code(remote_workdir.display_name(run.path))}"
        + (f": {escape(run.why)}" if run.why else "")
        for label, run in zip(comparison.labels, comparison.runs, strict=True)
    )
    parts = ["# Runs side by side", runs]
    parts += [f"> **{escape(_sentence(warning))}**" for warning in comparison.warnings]
    parts += [f"> {escape(note)}" for run in comparison.runs for note in run.notes]
    result, *others = _tables(comparison)
    parts.append(_section(result))
    parts += [escape(_sentence(remark)) for remark in _remarks(comparison)]
    if plot:
        parts.append(f"## Curves\n\n![Loss and accuracy of each run]({plot})")
    parts += map(_section, others)
    return "\n\n".join(parts) + "\n"


def _tables(comparison: Comparison) -> Iterator[_Table]:
    """Yields the tables, the results first. A column that no run has a value for is left out."""
    yield _result(comparison)
    yield from _targets(comparison)
    for table in map(_without_unknown, (_losses(comparison), _times(comparison))):
        if len(table.head) > 1:
            yield table
    many = len(comparison.runs) > 1
    for title, differences in (
        ("Config differences", comparison.config),
        ("What else differs", comparison.circumstances if many else ()),
    ):
        if differences:
            rows = [[one.name, *tables.format_values(one.values)] for one in differences]
            yield _Table(title, ("field", *comparison.labels), rows, "l" * (len(comparison.runs) + 1))


def _without_unknown(table: _Table) -> _Table:
    known = [i for i in range(len(table.head)) if any(row[i] != UNKNOWN for row in table.rows)]
    return _Table(
        table.title,
        [table.head[i] for i in known],
        [[row[i] for i in known] for row in table.rows],
        "".join(table.align[i] for i in known),
    )


def _result(comparison: Comparison) -> _Table:
    metric = comparison.metric
    own = () if metric.name in SUMMED else (metric.column,)  # the others have a column already
    # Of several labels per example there is no top-1.
    known = any(one.top1 is not None for one in comparison.outcomes) or not any(
        one.value is not None for one in comparison.outcomes
    )
    accuracies = ["top-1", "95 % interval", "top-5"] if known else []
    head = ["run", "status", "steps", "epochs", "split", "weights", *accuracies, "loss", *own]
    head += [f"best {metric.column}", "at epoch"]
    rows = []
    for label, one in zip(comparison.labels, comparison.outcomes, strict=True):
        interval = one.top1_interval
        rows.append(
            [
                label,
                listing.format_status(one.entry),
                _steps(one.entry),
                _format_or_unknown(one.entry.epoch, "{:.4g}"),
                one.split or UNKNOWN,
                one.weights or UNKNOWN,
                *(
                    format_metric(METRICS["top1"], one.top1),
                    f"{100 * interval[0]:.2f}–{100 * interval[1]:.2f} %" if interval else UNKNOWN,
                    format_metric(METRICS["top5"], one.top5),
                )[: len(accuracies)],
                format_metric(METRICS["loss"], one.loss),
                *(format_metric(metric, one.value) for _ in own),
                format_metric(metric, one.best[0]) if one.best else UNKNOWN,
                f"{one.best[1]:.4g}" if one.best else UNKNOWN,
            ]
        )
    return _Table("Result", head, rows, "llrrll" + "r" * (len(head) - 6))


def _losses(comparison: Comparison) -> _Table:
    heads = list(dict.fromkeys(head for one in comparison.outcomes for head in one.train_losses))
    names = ["total, weighted" if head == "total" else head for head in heads]
    rows = [
        [label, *(format_number(one.train_losses[head]) if head in one.train_losses else UNKNOWN for head in heads)]
        for label, one in zip(comparison.labels, comparison.outcomes, strict=True)
    ]
    return _Table("Last training loss per head", ["run", *names], rows, "l" + "r" * len(heads))


def _times(comparison: Comparison) -> _Table:
    rows = [
        [
            label,
            _format_or_unknown(one.parameters, "{:,}"),
            *(
                UNKNOWN if seconds is None else format_duration(seconds)
                for seconds in (one.wall_seconds, one.compile_seconds, one.data_wait_seconds)
            ),
            UNKNOWN if one.images_per_second is None else format_rate(one.images_per_second),
            UNKNOWN if one.goodput is None else f"{100 * one.goodput:.1f} %",
            one.fingerprint[:8] if one.fingerprint else UNKNOWN,
        ]
        for label, one in zip(comparison.labels, comparison.outcomes, strict=True)
    ]
    head = ["run", "parameters", "wall time", "compiling", "waiting for data", "images/s, median", "goodput"]
    return _Table("Size, time and final state", [*head, "final state"], rows, "lrrrrrrl")


def _targets(comparison: Comparison) -> Iterator[_Table]:
    """Yields what the runs needed to reach their targets, and the medians of runs that differ in their seed alone."""
    targets = [one.target for one in comparison.outcomes]
    if not any(targets):
        return
    names = [metric.title.removesuffix(" to target") for metric in TO_TARGET.values()]
    rows = []
    for label, target in zip(comparison.labels, targets, strict=True):
        if target:
            reached = target.get("reached") or {}
            values = [reached.get(name.removesuffix(time_to_target.SUFFIX)) for name in TO_TARGET]
            rows.append(
                [label, time_to_target.describe_target(target)[1], *map(format_metric, TO_TARGET.values(), values)]
            )
            if not reached:
                rows[-1][2] = "not reached"
    yield _without_unknown(_Table("Time to target", ("run", "target", *names), rows, "ll" + "r" * len(names)))
    rows = [
        [
            ", ".join(comparison.labels[index] for index in group),
            f"{sum(bool((targets[index] or {}).get('reached')) for index in group)} of {len(group)}",
            *(format_metric(TO_TARGET[name], value) for name, value in medians.items()),
        ]
        for group, medians in time_to_target.median_over_seeds(comparison.runs, targets)
    ]
    if rows:
        head = ("runs that differ in their seed alone", "reached it", *names)
        yield _Table("Time to target, median over seeds", head, rows, "lr" + "r" * len(names))


def _remarks(comparison: Comparison) -> Iterator[str]:
    known = [run for run in comparison.runs if run.config]
    if len(known) > 1:
        fields = f"{comparison.same_fields:,} fields"
        yield f"configs: the same otherwise: {fields}" if comparison.config else f"configs: all {fields} are the same"
    for group in comparison.equal:
        yield f"{', '.join(group)} ended in the same state, bit for bit"
    ended = [one for one in comparison.outcomes if one.entry.status == "finished" and one.fingerprint]
    if len(ended) > 1 and not comparison.equal and not comparison.config:
        yield "the configs are equal, but no two of the runs ended in the same state"


def write(comparison: Comparison, folder: str | os.PathLike, *, x: str = "epoch") -> list[Path]:
    """Writes comparison.md, the same as comparison.html, and comparison.png where there are rows to draw.

    Args:
      comparison: from `comparison.compare`.
      folder: made where it is missing; files of an earlier comparison are replaced.
      x: the x axis of the curves: "epoch", "step" or "seconds".

    Returns:
      The files written.

    Raises:
      UserError: a file or the folder cannot be written.
    """
    folder = Path(folder)
    report, plot = folder / FILE, folder / PLOT_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plot.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(error.filename or folder, error) from None
    drawn = comparison_plot.draw(comparison, plot, x=x) is not None
    html_page.write_report(report, format_markdown(comparison, plot=PLOT_FILE if drawn else None))
    files = [report, html_page.page_path(report), plot]
    return [path for path in files if path.exists()]


def _steps(one: listing.RunEntry) -> str:
    if one.step is None:
        return UNKNOWN
    return f"{one.step:,}" + (f"/{one.total_steps:,}" if one.total_steps not in (None, one.step) else "")


def _format_or_unknown(value: Any, template: str) -> str:
    return UNKNOWN if value is None else template.format(value)


def _section(table: _Table) -> str:
    return f"## {table.title}\n\n" + "\n".join(tables.format_markdown(table.head, table.rows, table.align))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
