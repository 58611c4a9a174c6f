"""From a publisher's file on the disk to our variables, with all that is known about it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inception_jax.errors import UserError
from inception_jax.pretrained import catalog, importing
from inception_jax.pretrained.importing import Background, Imported
from inception_jax.pretrained.preprocessing import Preprocessing
from inception_jax.pretrained.publishers import registry
from inception_jax.pretrained.records import Record
from inception_jax.pretrained.variants import Form
from inception_jax.weight_files import Weights, read_weights


@dataclasses.dataclass(frozen=True)
class Opened:
    """A file of weights, in our terms.

    Attributes:
      path: of the file.
      weights: what the reader found, arrays included.
      imported: the arrays in our tree.
      record: of the published file that this is; None: it is none, or it could not be told which.
      preprocessing: what its pictures must look like.
      findings: one line for each thing that was found out rather than given.
    """

    path: Path
    weights: Weights
    imported: Imported
    record: Record | None
    preprocessing: Preprocessing
    findings: tuple[str, ...]


def open_weights(
    path: str | os.PathLike,
    *,
    model: str | None = None,
    source: str | None = None,
    record: str | None = None,
    background: Background | None = None,
    options: Mapping[str, Any] | None = None,
) -> Opened:
    """Reads a file of weights and imports it.

    Args:
      path: the file, in any format of `pretrained.readers`.
      model: a name of `model_names()`; None: what the names and shapes of the arrays say.
      source: the publisher; None: likewise.
      record: the name of a published file that this is; its hash is checked where it is known.
      background: "keep" or "drop" class 0 of 1001; None: dropped where class 0 is the background.
      options: of `create_model`, for weights of another form than was published.

    Raises:
      UserError: no such file, not weights, nobody's, several publishers' with different rules, or another file than
        the record's.
    """
    path = Path(path)
    given = catalog.get_record(record) if record else None
    if given:
        model, source = _from_record(given, model, source)
    weights = read_weights(path)
    if given and (wrong := _other_digest(given, path, weights.sha256)):
        raise UserError(
            f"{path} is not {given.name}: {wrong}; leave --record out, and give --model and --source, to "
            "import it all the same"
        )
    findings = []
    if model is None or source is None:
        form, finding = find_form(weights.arrays, path, weights.sha256, model, source)
        findings.append(finding)
    else:
        form = registry.get_form(model, source)
    found, how = given, "as given"
    if found is None:
        found, how = catalog.find_file(path.name, weights.sha256, form.model, form.source)
        if found and (wrong := _other_digest(found, path, weights.sha256)):
            found, how = None, f"it is named like {found.name}, but {wrong}"
        findings.append(f"record: {found.name} ({how})" if found else f"record: none, {how}")
    options = dict(options or {})
    if found and found.classes == 0:
        options.setdefault("num_classes", 0)
    imported = importing.import_form(
        form, weights.arrays, background=background or _default_background(form, weights.arrays), **options
    )
    preprocessing = found.preprocessing if found else catalog.common_preprocessing(form.model, form.source)
    if imported.defaulted:
        findings.append(f"not in the file, and at its default: {', '.join(imported.defaulted)}")
    return Opened(path, weights, imported, found, preprocessing, tuple(findings))


def find_form(
    arrays: Mapping[str, np.ndarray], path: Path, sha256: str, model: str | None, source: str | None
) -> tuple[Form, str]:
    """Whose form of which network the arrays have, and the sentence that says so.

    Some publishers' names are alike. Then the record of the file decides, and after it the number of classes.

    Raises:
      UserError: nobody's, or that of several.
    """
    found = [
        (score, form)
        for score, form in importing.identify(arrays)
        if model in (None, form.model) and source in (None, form.source)
    ]
    asked = " ".join(filter(None, (source, model)))
    if not found:
        names = ", ".join(list(arrays)[:3])
        raise UserError(
            f"{path}: these are nobody's weights that are known{f' of {asked}' if asked else ''} (arrays: "
            f"{names}, …); --model and --source say whose they are"
        )
    best = [form for score, form in found if score == found[0][0]]
    recorded = [form for form in best if catalog.find_file(path.name, sha256, form.model, form.source)[0]]
    alike = recorded or [form for form in best if form.num_classes == _count_classes(form, arrays)] or best
    if len(alike) > 1:
        choices = " or ".join(f"--model={form.model} --source={form.source}" for form in alike)
        raise UserError(f"{path}: the names and shapes are those of several: {choices}")
    (form,) = alike
    return form, f"{form.source}'s {form.model} ({100 * found[0][0]:.0f} % of the names and shapes fit)"


def _from_record(record: Record, model: str | None, source: str | None) -> tuple[str, str]:
    if record.unusable:
        raise UserError(f"{record.name} cannot be used: {record.unusable}")
    for flag, value, own in (("model", model, record.model), ("source", source, record.source)):
        if value not in (None, own):
            raise UserError(f"--{flag}={value}: {record.name} is {own}")
    return record.model, record.source


def _other_digest(record: Record, path: Path, sha256: str) -> str | None:
    """What says that the file is another than the record's; None: nothing does, as far as its hash is known."""
    digest = record.digest
    if digest is None or (digest.of != record.file and digest.of != path.name) or not path.is_file():
        return None
    own = sha256 if digest.algorithm == "sha256" else _hash(path, digest.algorithm)
    if digest.fits(digest.algorithm, own):
        return None
    return f"its {digest.algorithm} is {own}, that of {digest.of} is {digest.hex}"


def _hash(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _count_classes(form: Form, arrays: Mapping[str, Any]) -> int | None:
    """The classes of the arrays' classifier, if it is this form's; None: it is not."""
    theirs = form.counterpart("params/classifier/kernel", (1, form.num_classes))
    array = form.weights(arrays).get(theirs.name)
    try:
        return None if array is None else theirs.layout.to_ours(np.asarray(array)).shape[-1]
    except ValueError:
        return None


def _default_background(form: Form, arrays: Mapping[str, Any]) -> Background:
    return "drop" if form.background and _count_classes(form, arrays) == 1001 else "keep"
