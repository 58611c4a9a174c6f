"""The report of a study, whether it has ended or not: report.md, the best config as a recipe, pictures, a table."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from inception_jax.errors import UserError
from inception_jax.runs import manifest
from inception_jax.runs.tables import format_value
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


def write(study_dir: Path, study: optuna.Study | None = None) -> Path:
    """Writes the report of a study as it stands: report.md, best.py, trials.csv and the pictures.

    Each file is replaced whole; a picture or recipe that there is nothing for any more is removed. Damaged trials are
    told as such.

    Args:
      study_dir: the study's directory.
      study: Optuna's study, where it is open: importance is then estimated from it, else from what lies on the disk.

    Returns:
      The path of report.md.

    Raises:
      UserError: there is no study, or a file cannot be written.
    """
    study_dir = Path(study_dir)
    found = study_files.read(study_dir)
    study_files.write_table(found)
    estimate = importance.estimate(found, study)
    drawn = _draw_plots(found, estimate)
    why_no_recipe = _write_best(found)
    sections = [
        f"# Sweep: {found.name}",
        "\n".join(f"> {note}" for note in found.notes),
        "\n".join(report_sections.setup(found)),
        _section("Space", report_sections.space(found)),
        _section("Trials", report_sections.counts(found)),
        _section("The best trial", report_sections.best_trial(found)),
        _section("The ten best", report_sections.top_trials(found, 10)),
        _section("What went wrong", report_sections.failures(found)),
        _section("Deaths and restarts", report_sections.restarts(found)),
        _section("Time", report_sections.time_spent(found)),
        *(_section(PLOTS[name], _plot_section(name, estimate)) for name in PLOTS if name in drawn),
        "" if estimate.shares else _section("Importance", iter([f"Not estimated: {estimate.reason}."])),
        _section("Going on", _commands(found, why_no_recipe)),
    ]
    path = study_dir / FILE
    manifest.replace_text(path, "\n\n".join(filter(None, sections)) + "\n")
    return path


def _draw_plots(study: StoredStudy, estimate: Importance) -> list[str]:
    """Draws what there is something to draw of, and removes what an earlier report drew of the rest."""
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
    """Writes best.py; returns why there is none, or ""."""
    path = study.path / BEST
    ranked = study.ranked()
    try:
        if not ranked:
            raise UserError("no trial has finished")
        text = recipe.source(_config(study, ranked[0]), _docstring(study, ranked[0]))
    except UserError as error:
        path.unlink(missing_ok=True)
        return str(error)
    manifest.replace_text(path, text)
    return ""


def _config(study: StoredStudy, trial: StoredTrial) -> dict:
    """The whole config of a trial: as its run wrote it; or, where that is lost, the study's with the trial's values."""
    try:
        config = manifest.read_config(trial.workdir)
    except UserError:
        config = None
    if config is not None:
        return config
    values = {**dict(manifest.flatten(study.config)), **trial.overrides, **trial.params}
    tree: dict = {}
    for field, value in values.items():
        *sections, name = field.split(".")
        section = tree
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return tree


def _docstring(study: StoredStudy, trial: StoredTrial) -> str:
    value = report_sections.format_metric(study, trial.value)
    varied = ", ".join(f"{field} = {format_value(value)}" for field, value in trial.params.items())
    words = (
        f"The recipe was {study.content.get('recipe') or 'not recorded'}; the sweep chose {varied or 'nothing'}. It "
        f"is the best of {len(study.ranked())} finished trials, chosen on the split that the value is of: on "
        "pictures that no trial was judged by, expect less."
    )
    return "\n".join(
        [
            f"The best trial of the sweep {study.name}: number {trial.number}, {value}.",
            "",
            f"    python -m inception_jax.train --config={shlex.quote(str(study.path / BEST))} --workdir=runs/best",
            "",
            *textwrap.wrap(words, 118, break_long_words=False, break_on_hyphens=False),
        ]
    )


def _plot_section(name: str, estimate: Importance) -> Iterator[str]:
    yield f"![{PLOTS[name]}]({name}.png)"
    if name == "importance":
        yield ""
        yield (
            f"Estimated by {estimate.method} from {estimate.trials} finished trials: of what the parameters explain "
            "of the values, each one's share. It says nothing of ranges that were not tried, and little where the "
            "trials are few."
        )
        if estimate.left_out:
            yield ""
            yield (
                "Without an estimate, since not every finished trial has them or they never varied: "
                + ", ".join(f"`{field}`" for field in estimate.left_out)
                + "."
            )
    if name == "parallel_coordinates":
        yield ""
        yield "Colours go by rank. A parameter that a trial does not have leaves a gap in its line."


def _commands(study: StoredStudy, why_no_recipe: str) -> Iterator[str]:
    here = shlex.quote(str(study.path))
    if why_no_recipe:
        yield f"There is no {BEST}: {why_no_recipe}."
        yield ""
    yield "```"
    if not why_no_recipe:
        yield "# trains the best config again, or longer, or with another seed (--config.seed=1)"
        yield f"python -m inception_jax.train --config={here}/{BEST} --workdir=runs/best"
    if command := study.content.get("command"):
        yield "# continues the sweep"
        yield shlex.join(["python", *map(str, command[1:])])
    if ranked := study.ranked():
        yield "# the best trials beside each other"
        yield (
            "python -m inception_jax.compare "
            + " ".join(shlex.quote(str(trial.workdir)) for trial in ranked[:3])
            + f" --output={here}/comparison"
        )
    yield "# Optuna's own dashboard (pip install optuna-dashboard)"
    yield f"optuna-dashboard {shlex.quote(str(study.content.get('storage') or study.path / 'journal.log'))}"
    yield "```"
    yield ""
    yield f"All trials, a line each: [{study_files.TABLE}]({study_files.TABLE})."


def _section(title: str, lines: Iterator[str]) -> str:
    content = "\n".join(lines)
    return f"## {title}\n\n{content}" if content else ""
