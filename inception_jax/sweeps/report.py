"""Writes the report of a study, running or ended: report.md and .html, the best config as a recipe, plots, a table."""

from __future__ import annotations

import contextlib
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flax import traverse_util

from inception_jax.errors import UserError
from inception_jax.runs import html_page, manifest
from inception_jax.runs.tables import code, escape, format_value, section
from inception_jax.sweeps import importance, parallel_coordinates, plots, recipe, report_sections, study_files
from inception_jax.sweeps.importance import Importance
from inception_jax.sweeps.study_files import StoredStudy, StoredTrial

if TYPE_CHECKING:
    import optuna

FILE = "report.md"
BEST = "best.py"

PLOTS = {
    "history": "History",
    "learning_curves": "Learning curves",
    "parallel_coordinates": "Parallel coordinates",
    "slices": "Value against each parameter",
    "importance": "Importance",
}
"""{name: caption}; the file of each is `name`.png in the study's directory."""

_DESCRIPTIONS = {
    "history": "Value of every trial in the order of the trials, and the best so far",
    "learning_curves": "Metric of every trial by epoch",
    "parallel_coordinates": "A line per trial through the values of its parameters",
    "slices": "Value of every trial against each parameter",
    "importance": "Share of the variance that each parameter explains",
}


def write(study_dir: Path, study: optuna.Study | None = None) -> Path:
    """Writes the report of a study in its current state: report.md and .html, best.py, trials.csv and the plots.

    Each file is replaced whole; a plot or recipe without data is removed. Damaged trials are listed as notes.

    Args:
      study_dir: the study's directory.
      study: the open Optuna study: importance is estimated from it; default: from the study's files.

    Returns:
      Path of report.md.

    Raises:
      UserError: the directory has no study, or a file cannot be written.
    """
    study_dir = Path(study_dir)
    found = study_files.read(study_dir)
    study_files.write_table(found)
    estimate = importance.estimate(found, study)
    drawn = _draw_plots(found, estimate)
    why_no_recipe = _write_best(found)
    sections = [
        f"# Sweep: {escape(found.name)}",
        "\n".join(report_sections.setup(found)),
        "\n".join(report_sections.facts(found)),
        "\n>\n".join(f"> {escape(note)}" for note in found.notes),
        section("Best trial", report_sections.best_trial(found)),
        section("Space", report_sections.space(found)),
        section("Trials", report_sections.counts(found)),
        section("Ten best trials", report_sections.top_trials(found, 10)),
        section("Failed and diverged trials", report_sections.failures(found)),
        section("Restarts", report_sections.restarts(found)),
        section("Time", report_sections.time_spent(found)),
        *(section(PLOTS[name], _plot_section(name, estimate)) for name in PLOTS if name in drawn),
        "" if estimate.shares else section("Importance", iter([f"Not estimated: {escape(estimate.reason)}."])),
        section("Next steps", _commands(found, why_no_recipe)),
    ]
    path = study_dir / FILE
    html_page.write_report(path, "\n\n".join(filter(None, sections)) + "\n")
    return path


def _draw_plots(study: StoredStudy, estimate: Importance) -> list[str]:
    """Draws the plots that have data, removes the files of the others; returns the names of those drawn."""
    paths = {name: study.path / f"{name}.png" for name in PLOTS}
    figures = {
        "history": plots.history(study, paths["history"]),
        "learning_curves": plots.learning_curves(study, paths["learning_curves"]),
        "parallel_coordinates": parallel_coordinates.parallel_coordinates(study, paths["parallel_coordinates"]),
        "slices": plots.slices(study, paths["slices"]),
        "importance": plots.importance(estimate, paths["importance"]) if estimate.shares else None,
    }
    for name, figure in figures.items():
        if figure is None:
            paths[name].unlink(missing_ok=True)
    return [name for name, figure in figures.items() if figure is not None]


def _write_best(study: StoredStudy) -> str:
    """Writes best.py; returns "", or the reason why there is none."""
    path = study.path / BEST
    ranked = study.ranked()
    try:
        if not ranked:
            raise UserError("no trial has finished")
        text = recipe.format_recipe(_config(study, ranked[0]), _docstring(study, ranked[0]))
    except UserError as error:
        path.unlink(missing_ok=True)
        return str(error)
    manifest.replace_text(path, text)
    return ""


def _config(study: StoredStudy, trial: StoredTrial) -> dict[str, Any]:
    """The whole config of a trial: its config.json; where that is unreadable, the study's with the trial's values."""
    with contextlib.suppress(UserError):
        if (config := manifest.read_config(trial.workdir)) is not None:
            return config
    values = {**dict(manifest.flatten(study.config)), **trial.overrides, **trial.params}
    return traverse_util.unflatten_dict(values, sep=".")


def _docstring(study: StoredStudy, trial: StoredTrial) -> str:
    value = report_sections.format_metric(study, trial.shown_value)
    varied = ", ".join(f"{field} = {format_value(value)}" for field, value in trial.params.items())
    text = (
        f"The recipe was {study.content.get('recipe') or 'not recorded'}; the sweep chose {varied or 'nothing'}. It "
        f"is the best of {len(study.ranked())} finished trials, chosen on the split that the value was measured on: on "
        "other images, expect a lower one."
    )
    return "\n".join(
        [
            f"The best trial of the sweep {study.name}: number {trial.number}, {value}.",
            "",
            f"    python -m inception_jax.train --config={shlex.quote(str(study.path / BEST))} --workdir=runs/best",
            "",
            *textwrap.wrap(text, 118, break_long_words=False, break_on_hyphens=False),
        ]
    )


def _plot_section(name: str, estimate: Importance) -> Iterator[str]:
    yield f"![{_DESCRIPTIONS[name]}]({name}.png)"
    if name == "importance":
        yield ""
        yield (
            f"Estimated by {estimate.method} from {estimate.trials} finished trials: the share of the variance of the "
            "values that each parameter explains. It does not hold for ranges that were not tried, and is uncertain "
            "with few trials."
        )
        if estimate.unreached:
            yield ""
            yield f"Finished trials that have not reached their target are left out: {estimate.unreached}."
        if estimate.left_out:
            yield ""
            yield (
                "Without an estimate, because not every finished trial has them or they never varied: "
                + ", ".join(code(field) for field in estimate.left_out)
                + "."
            )
    if name == "parallel_coordinates":
        yield ""
        yield "Colours show the rank. A parameter that a trial does not have leaves a gap in its line."


def _commands(study: StoredStudy, why_no_recipe: str) -> Iterator[str]:
    here = shlex.quote(str(study.path))
    if why_no_recipe:
        yield f"There is no {BEST}: {escape(why_no_recipe)}."
        yield ""
    yield "```"
    if not why_no_recipe:
        yield "# trains the best config again, or longer, or with another seed (--config.seed=1)"
        yield f"python -m inception_jax.train --config={here}/{BEST} --workdir=runs/best"
    if command := study.content.get("command"):
        yield "# continues the sweep"
        yield shlex.join(["python", *map(str, command[1:])])
    if ranked := study.ranked():
        yield "# compares the best trials"
        yield (
            "python -m inception_jax.compare "
            + " ".join(shlex.quote(str(trial.workdir)) for trial in ranked[:3])
            + f" --output={here}/comparison"
        )
    yield "# opens Optuna's dashboard (pip install optuna-dashboard)"
    yield f"optuna-dashboard {shlex.quote(str(study.content.get('storage') or study.path / 'journal.log'))}"
    yield "```"
    yield ""
    yield f"All trials, one per line: [{study_files.TABLE}]({study_files.TABLE})."
