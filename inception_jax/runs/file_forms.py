"""The forms of the JSON files of a workdir: readers drop, with a note, what has another one."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from inception_jax.runs import manifest, result

TRIAL = "trial.json"

NUMBER, TEXT, OBJECT, LIST = numbers.Real, str, Mapping, Sequence


class Each(NamedTuple):
    """The form of an object whose values, under any names, have one of these forms."""

    forms: tuple[Any, ...]


# A type; [form] is a list of such; {name: form} an object that may have these fields, and others of any form. Only the
# fields that are used.
_VALUES = Each((NUMBER,))
_FORMS: dict[str, dict[str, Any]] = {
    manifest.CONFIG: {"model": OBJECT, "data": OBJECT, "num_steps": NUMBER, "num_epochs": NUMBER,
                      "batch_size": NUMBER,
                      "evaluation": {"batch_norm_images": NUMBER}, "checkpoint": {"best_metric": TEXT},
                      "stop": {"target": NUMBER, "target_metric": TEXT}},
    manifest.MANIFEST: {"versions": Each((TEXT,)), "git": {"revision": TEXT}, "devices": LIST,
                        "starts": [{"time": TEXT}], "hostname": TEXT, "platform": TEXT,
                        "metrics": Each((OBJECT,)), "command": [TEXT], "environment": OBJECT},
    result.FILE: {"status": TEXT, "model": TEXT, "dataset": TEXT, "message": TEXT, "signal": TEXT, "steps": NUMBER,
                  "epochs": NUMBER, "metrics": Each((Each((NUMBER, _VALUES)),)), "wall_seconds": NUMBER,
                  "compile_seconds": NUMBER, "data_wait_seconds": NUMBER, "evaluation_seconds": NUMBER,
                  "checkpoint_seconds": NUMBER, "plots_seconds": NUMBER, "fingerprint": TEXT,
                  "startup_seconds": NUMBER, "training_seconds": NUMBER, "lost_seconds": NUMBER,
                  "between_starts_seconds": NUMBER, "starts": NUMBER, "goodput": NUMBER,
                  "target": {"metric": TEXT, "value": NUMBER, "title": TEXT, "better": TEXT, "reached": _VALUES},
                  "class_weights": _VALUES, "pictures": [TEXT],
                  "tables": [TEXT], "ended": TEXT,
                  "best": {"metric": TEXT, "value": NUMBER, "step": NUMBER, "title": TEXT, "better": TEXT,
                           "evaluations": NUMBER}},
    TRIAL: {"status": TEXT, "message": TEXT, "value": NUMBER},
}  # fmt: skip
_NAMES: dict[Any, str] = {NUMBER: "a number", TEXT: "a string", OBJECT: "an object", LIST: "a list"}


def keep_valid_fields(path: Path, content: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Drops the values of a file that have another form than this package writes; null counts as absent.

    Args:
      path: of the file; its name selects the form.
      content: of the file.
      notes: gets a line for each value of a wrong form.
    """
    wrong: list[str] = []
    kept = _fit(content, _FORMS[path.name], "", wrong)
    notes += [f"{path}: {text}, and is ignored" for text in wrong]
    return kept


def has_type(value: Any, kind: type) -> bool:
    """Returns whether a value has a type; a boolean or a huge integer is no number, a string no list."""
    if kind is NUMBER:
        if isinstance(value, int) and abs(value) > 2**63:
            return False
        return isinstance(value, NUMBER) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is LIST and isinstance(value, str))


def _fit(value: Any, form: Any, where: str, wrong: list[str]) -> Any:
    """Returns the parts of a value that have the form; None, and a text in `wrong`, where nothing has."""
    if isinstance(form, type):
        kind = form
    else:
        kind = LIST if isinstance(form, list) else OBJECT
    if not has_type(value, kind):
        wrong.append(f"{where!r} = {str(value)[:40]!r} is not {_NAMES[kind]}")
        return None
    if isinstance(form, type):
        return value
    if isinstance(form, list):
        fitted = [_fit(item, form[0], where, wrong) for item in value]
        return [item for item in fitted if item is not None]
    kept = {}
    for name, item in value.items():
        if isinstance(form, Each):
            inner = next((one for one in form.forms if _is_of(item, one)), form.forms[-1])
        elif name in form:
            inner = form[name]
        else:
            kept[name] = item
            continue
        if item is not None and (item := _fit(item, inner, f"{where}.{name}" if where else name, wrong)) is not None:
            kept[name] = item
    return kept


def _is_of(value: Any, form: Any) -> bool:
    return has_type(value, form if isinstance(form, type) else OBJECT)
