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
from inception_jax.pretrained.importing import Background, ImportedWeights
from inception_jax.pretrained.preprocessing import Preprocessing
from inception_jax.pretrained.publishers import registry
from inception_jax.pretrained.records import WeightRecord
from inception_jax.pretrained.variants import Variant
from inception_jax.weight_files import Weights, read_weights


@dataclasses.dataclass(frozen=True)
class LoadedWeights:
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
    imported: ImportedWeights
    record: WeightRecord | None
    preprocessing: Preprocessing
    findings: tuple[str, ...]


def load_weights(
    path: str | os.PathLike,
    *,
    model: str | None = None,
    source: str | None = None,
    record: str | None = None,
    background: Background | None = None,
    options: Mapping[str, Any] | None = None,
) -> LoadedWeights:
    """Reads a file of weights and imports it.

    Args:
      path: the file, in any format of `pretrained.readers`.
      model: a name of `model_names()`; None: what the names and shapes of the arrays say.
      source: the publisher; None: likewise.
      record: the name of a published file that this is; its hash is checked where it is known.
      background: "keep" or "drop" class 0 of 1001; None: dropped where class 0 is the background.
      options: of `create_model`, for weights of another variant than was published.

    Raises:
      UserError: no such file, not weights, nobody's, several publishers' with different rules, or another file than
        the record's.
    """
    path = Path(path)
    given = catalog.get_record(record) if record else None
    if given:
        model, source = _from_record(given, model, source)
    weights = read_weights(path)
    if given and (wrong := _digest_mismatch(given, path, weights.sha256)):
        raise UserError(
            f"{path} is not {given.name}: {wrong}; leave --record out, and give --model and --source, to "
            "import it all the same"
        )
    findings = []
    if model is None or source is None:
        variant, finding = find_variant(weights.arrays, path, weights.sha256, model, source)
        findings.append(finding)
    else:
        variant = registry.get_variant(model, source)
    found, how = given, "as given"
    if found is None:
        found, how = catalog.find_record(path.name, weights.sha256, variant.model, variant.source)
        if found and (wrong := _digest_mismatch(found, path, weights.sha256)):
            found, how = None, f"it is named like {found.name}, but {wrong}"
        findings.append(f"record: {found.name} ({how})" if found else f"record: none, {how}")
    options = dict(options or {})
    if found and found.classes == 0:
        options.setdefault("num_classes", 0)
    imported = importing.import_variant(
        variant, weights.arrays, background=background or _default_background(variant, weights.arrays), **options
    )
    preprocessing = found.preprocessing if found else catalog.common_preprocessing(variant.model, variant.source)
    if imported.defaulted:
        findings.append(f"not in the file, and at its default: {', '.join(imported.defaulted)}")
    return LoadedWeights(path, weights, imported, found, preprocessing, tuple(findings))


def find_variant(
    arrays: Mapping[str, np.ndarray], path: Path, sha256: str, model: str | None, source: str | None
) -> tuple[Variant, str]:
    """Whose variant of which network the arrays have, and the sentence that says so.

    Some publishers' names are alike. Then the record of the file decides, and after it the number of classes.

    Raises:
      UserError: nobody's, or that of several.
    """
    found = [
        (score, variant)
        for score, variant in importing.identify(arrays)
        if model in (None, variant.model) and source in (None, variant.source)
    ]
    asked = " ".join(filter(None, (source, model)))
    if not found:
        names = ", ".join(list(arrays)[:3])
        raise UserError(
            f"{path}: these are nobody's weights that are known{f' of {asked}' if asked else ''} (arrays: "
            f"{names}, …); --model and --source say whose they are"
        )
    best = [variant for score, variant in found if score == found[0][0]]
    recorded = [variant for variant in best if catalog.find_record(path.name, sha256, variant.model, variant.source)[0]]
    alike = recorded or [variant for variant in best if variant.num_classes == _count_classes(variant, arrays)] or best
    if len(alike) > 1:
        choices = " or ".join(f"--model={variant.model} --source={variant.source}" for variant in alike)
        raise UserError(f"{path}: the names and shapes are those of several: {choices}")
    (variant,) = alike
    return variant, f"{variant.source}'s {variant.model} ({100 * found[0][0]:.0f} % of the names and shapes fit)"


def _from_record(record: WeightRecord, model: str | None, source: str | None) -> tuple[str, str]:
    if record.unusable:
        raise UserError(f"{record.name} cannot be used: {record.unusable}")
    for flag, value, own in (("model", model, record.model), ("source", source, record.source)):
        if value not in (None, own):
            raise UserError(f"--{flag}={value}: {record.name} is {own}")
    return record.model, record.source


def _digest_mismatch(record: WeightRecord, path: Path, sha256: str) -> str | None:
    """What says that the file is another than the record's; None: nothing does, as far as its hash is known."""
    digest = record.digest
    if digest is None or (digest.of != record.file and digest.of != path.name) or not path.is_file():
        return None
    own = sha256 if digest.algorithm == "sha256" else _hash(path, digest.algorithm)
    if digest.matches(digest.algorithm, own):
        return None
    return f"its {digest.algorithm} is {own}, that of {digest.of} is {digest.hex}"


def _hash(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _count_classes(variant: Variant, arrays: Mapping[str, Any]) -> int | None:
    """The classes of the arrays' classifier, if it is this variant's; None: it is not."""
    theirs = variant.source_array("params/classifier/kernel", (1, variant.num_classes))
    array = variant.weights(arrays).get(theirs.name)
    try:
        return None if array is None else theirs.layout.to_ours(np.asarray(array)).shape[-1]
    except ValueError:
        return None


def _default_background(variant: Variant, arrays: Mapping[str, Any]) -> Background:
    return "drop" if variant.background and _count_classes(variant, arrays) == 1001 else "keep"
