"""Writes and reads the tables of an evaluation: confusion_matrix.csv, mistakes.csv and per_class.csv."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inception_jax.errors import UserError
from inception_jax.runs import tables
from inception_jax.runs.manifest import replace_text

if TYPE_CHECKING:
    from inception_jax.metric_definitions import Predictions
    from inception_jax.metrics import Accumulator

CONFUSION = "confusion_matrix.csv"
PER_CLASS = "per_class.csv"
MISTAKES = "mistakes.csv"
MAX_MISTAKES = 100_000

_MISTAKE_COLUMNS = ("example", "file", "true_class", "predicted_class", "true_probability", "predicted_probability")
_COLUMNS = ("class", "precision", "recall", "f1", "support", "predicted")
_AVERAGE_PRECISION = "average_precision"
_LISTED, _WORST = 30, 20  # with at most so many classes the report lists all; of more, so many with the lowest F1


def write(
    workdir: str | os.PathLike, evaluation: Accumulator, class_names: Sequence[str], record_name: Callable[[int], str]
) -> list[str]:
    """Writes per_class.csv, confusion_matrix.csv where a confusion matrix was kept, and mistakes.csv.

    per_class.csv has a line per class: precision, recall and F1 (empty where they are not defined: no prediction, no
    example, neither), the number of its examples and of its predictions; with several labels per example these are at a
    probability of 0.5, and average precision is the last column. confusion_matrix.csv has a line per true class
    and a column per predicted class. mistakes.csv, where examples have one label each, has a line per example whose
    most probable class is another one, the most confident first, up to `MAX_MISTAKES`.

    Args:
      workdir: where they are written.
      evaluation: with its predictions.
      class_names: one per class.
      record_name: the file or the record of an example, by its position in the split.

    Returns:
      The names of the files.

    Raises:
      UserError: a file cannot be written.
    """
    found = evaluation.class_metrics()
    columns: list[Any] = [class_names, found.precision, found.recall, found.f1, found.support, found.predicted]
    head = [*_COLUMNS]
    if found.average_precision is not None:
        columns.append(found.average_precision)
        head.append(_AVERAGE_PRECISION)
    written = [PER_CLASS]
    cells = ([_cell(value) for value in row] for row in zip(*columns, strict=True))
    replace_text(Path(workdir) / PER_CLASS, _format_csv([head, *cells]))
    if evaluation.confusion is not None:
        names = ("true class", *class_names)
        # Python's numbers: of ImageNet's million cells those of NumPy take seconds.
        lines = ([name, *counts.tolist()] for name, counts in zip(class_names, evaluation.confusion, strict=True))
        replace_text(Path(workdir) / CONFUSION, _format_csv([names, *lines]))
        written.append(CONFUSION)
    if evaluation.labels == "single":
        mistakes = _mistakes(evaluation.predictions(), class_names, record_name)
        replace_text(Path(workdir) / MISTAKES, _format_csv([_MISTAKE_COLUMNS, *mistakes]))
        written.append(MISTAKES)
    return sorted(written)


def _mistakes(
    found: Predictions, class_names: Sequence[str], record_name: Callable[[int], str]
) -> Iterator[Sequence[Any]]:
    """The lines of mistakes.csv; the true class has a probability where it is among those that were kept (five)."""
    wrong = np.flatnonzero(found.classes[:, 0] != found.labels)
    order = np.argsort(-found.probabilities[wrong, 0], kind="stable")
    for row in wrong[order[:MAX_MISTAKES]]:
        index, label, classes = int(found.index[row]), found.labels[row], found.classes[row]
        of_true, of_predicted = found.probabilities[row][classes == label], found.probabilities[row, 0]
        names = class_names[label], class_names[classes[0]]
        probability = f"{of_true[0]:.6g}" if of_true.size else ""
        yield index, record_name(index), *names, probability, f"{of_predicted:.6g}"


def _format_csv(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return "" if math.isnan(value) else repr(float(value))
    return value


def report_lines(workdir: Path, weights: Mapping[str, float] | None = None) -> list[str]:
    """The lines of the report on per_class.csv; none where there is no such file.

    Args:
      workdir: of a run.
      weights: {class: factor of its loss}, where the run had class weights.

    Raises:
      UserError: the file is damaged.
    """
    path = workdir / PER_CLASS
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        known: list[tuple[Any, ...]] = [
            (
                row["class"],
                *(float(row[name]) if row[name] else math.nan for name in ("precision", "recall", "f1")),
                int(row["support"]),
                int(row["predicted"]),
                *([float(row[_AVERAGE_PRECISION] or "nan")] if _AVERAGE_PRECISION in row else []),
            )
            for row in rows
        ]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, csv.Error):
        raise UserError(f"{path} is damaged: not a table of classes") from None
    shown, lines = known, list[str]()
    if len(known) > _LISTED:
        shown = sorted(known, key=lambda row: (math.isnan(row[3]), row[3]))[:_WORST]
        lines = [f"The {_WORST} of {len(known):,} classes with the lowest F1.", ""]
    cells = [
        (
            row[0],
            *("–" if math.isnan(value) else f"{100 * value:.2f} %" for value in row[1:4]),
            *row[4:6],
            *("–" if math.isnan(value) else f"{100 * value:.2f} %" for value in row[6:]),
            *([f"{weights[row[0]]:.4g}" if row[0] in weights else "–"] if weights else []),
        )
        for row in shown
    ]
    average = ["average precision"] if known and len(known[0]) > 6 else []
    head = ("class", "precision", "recall", "F1", "examples", "predictions", *average, *["weight"] * bool(weights))
    files = [name for name in (PER_CLASS, CONFUSION, MISTAKES) if (workdir / name).exists()]
    links = ", ".join(f"[{name}]({name})" for name in files)
    return [
        *lines,
        *tables.format_markdown(head, cells, "lrrrrrrr"[: len(head)]),
        "",
        f"{'All classes' if lines else 'As files'}: {links}.",
    ]
