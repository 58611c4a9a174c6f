"""Loads a publisher's file of weights: reads it, identifies network and publisher, and imports the arrays."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inception_jax import patterns as regular_expressions
from inception_jax.errors import UserError
from inception_jax.models.registry import get_spec
from inception_jax.pretrained import catalog, identification, importing
from inception_jax.pretrained.importing import Background, ImportedWeights
from inception_jax.pretrained.preprocessing import Preprocessing
from inception_jax.pretrained.publishers import registry
from inception_jax.pretrained.records import WeightRecord
from inception_jax.pretrained.variants import FileArrays, Variant
from inception_jax.weight_files import Weights, read_weights


@dataclasses.dataclass(frozen=True)
class LoadedWeights:
    """An imported file of weights.

    Attributes:
      path: of the file.
      weights: what the reader returned, arrays included.
      imported: the arrays as variables of our network.
      record: of the published file that this is; None: it is none, or which one is unknown.
      preprocessing: the publisher's preprocessing of an image.
      findings: one line for each thing that was inferred rather than given.
      ignored: names of the file's arrays that were left out on request.
    """

    path: Path
    weights: Weights
    imported: ImportedWeights
    record: WeightRecord | None
    preprocessing: Preprocessing
    findings: tuple[str, ...]
    ignored: tuple[str, ...] = ()


def load_weights(
    path: str | os.PathLike,
    *,
    model: str | None = None,
    source: str | None = None,
    record: str | None = None,
    background: Background | None = None,
    options: Mapping[str, Any] | None = None,
    ignore: Sequence[str] = (),
    report: Callable[[str], None] = lambda line: None,
) -> LoadedWeights:
    """Reads a file of weights and imports it.

    Args:
      path: the file, in any format of `inception_jax.weight_files`.
      model: a name of `model_names()`; None: inferred from the names and shapes of the arrays.
      source: the publisher; None: inferred in the same way.
      record: the name of a published file that this is; its hash is checked where it is known.
      background: "keep" or "drop" class 0 of 1001; None: dropped where class 0 is the background.
      options: of `create_model`, for weights that differ from the published variant.
      ignore: regular expressions, searched for in the names of the file's arrays; a match is left out, such as a layer
        that was added for fine-tuning.
      report: is called with a line before each thing that takes time.

    Raises:
      UserError: no such file, no weights, no known publisher's, those of several publishers with different
        preprocessing, or another file than the record's.
    """
    path = Path(path)
    given = get_usable_record(record) if record else None
    if given:
        model, source = _check_record(given, model, source)
    report(f"{path}: reading")
    weights = read_weights(path)
    if given and (wrong := _digest_mismatch(given, path, weights.sha256)):
        raise UserError(
            f"{path} is not {given.name}: {wrong}; to import it anyway, replace --record by --model and --source"
        )
    kept, ignored = _without_ignored(weights.arrays, ignore, path)
    arrays = FileArrays(kept)
    findings = [f"ignored: {', '.join(ignored)}"] if ignored else []
    if model is None or source is None:
        variant, finding = find_variant(arrays, path, weights.sha256, model, source, report=report)
        findings.append(finding)
    else:
        variant = registry.get_variant(model, source)
    found = given
    if found is None:
        found, how = catalog.find_record(path.name, weights.sha256, variant.model, variant.source)
        if found and (wrong := _digest_mismatch(found, path, weights.sha256)):
            how = f"the file is named like {found.name}, but {wrong}"
            found = None
        findings.append(f"record: {found.name} ({how})" if found else f"record: none, {how}")
    options = dict(options or {})
    if found and found.classes == 0:
        options.setdefault("num_classes", 0)
    background = background or _default_background(variant, arrays)
    report(f"{path}: importing {len(arrays.weights(variant)):,} arrays")
    imported = importing.import_variant(variant, arrays, background=background, **options)
    preprocessing = found.preprocessing if found else catalog.common_preprocessing(variant.model, variant.source)
    findings += [f"{path}: {how}" for path, how in imported.adapted.items()]
    if imported.defaulted:
        findings.append(f"not in the file, set to the default: {', '.join(imported.defaulted)}")
    return LoadedWeights(path, weights, imported, found, preprocessing, tuple(findings), tuple(ignored))


def _without_ignored(
    arrays: Mapping[str, Any], patterns: Sequence[str], path: Path
) -> tuple[Mapping[str, Any], list[str]]:
    """Returns the arrays whose names match no pattern, and the names of the others.

    Raises:
      UserError: a pattern is no regular expression, or matches nothing.
    """
    ignored: set[str] = set()
    for pattern in patterns:
        found = regular_expressions.search(regular_expressions.compile_pattern(pattern, "--ignore"), arrays, "--ignore")
        if not found:
            raise UserError(
                f"--ignore={pattern}: no array of {path} has such a name; names: {', '.join(list(arrays)[:3])}, …"
            )
        ignored.update(found)
    kept = {name: array for name, array in arrays.items() if name not in ignored}
    return (kept if ignored else arrays), [name for name in arrays if name in ignored]


def find_variant(
    arrays: Mapping[str, np.ndarray],
    path: Path,
    sha256: str,
    model: str | None,
    source: str | None,
    *,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[Variant, str]:
    """Identifies network and publisher by the names and shapes of the arrays.

    Some publishers use the same names. Then the record of the file decides, and after it the number of classes.

    Args:
      arrays: {publisher's name: array}, as in the file.
      path: of the file.
      sha256: hex digest of the file.
      model: a name of `model_names()`, or None for any.
      source: a name of `registry.source_names()`, or None for any.
      report: is called with a line before the comparison, and with one that lists the nearest variants.

    Returns:
      The variant, and a sentence that names it and the fraction of names that fit.

    Raises:
      UserError: the arrays fit no variant, or several equally well, or the file is one that cannot be used.
    """
    catalog.refuse_unusable(path, sha256)
    arrays = FileArrays.of(arrays)
    asked = " ".join(filter(None, (source, model)))
    if model:
        get_spec(model)
    if source:
        registry.variants_of(source)
    variants = [
        variant
        for variant in registry.all_variants()
        if model in (None, variant.model) and source in (None, variant.source)
    ]
    report(
        f"{path}: comparing the names and shapes of {len(arrays):,} arrays with {len(variants)} published variants"
        f"{f' of {asked}' if asked else ''}"
    )
    scores = identification.identify(arrays, variants)
    if not scores:
        if arrays and all(name.startswith(("params/", "batch_stats/")) for name in arrays):
            raise UserError(
                f"{path}: these are variables by this package's names; read them with load_safetensors(path) of "
                "inception_jax.weight_files.safetensors_writer, for create_model(NAME).apply(variables, images)"
            )
        names = ", ".join(list(arrays)[:3])
        raise UserError(
            f"{path}: the arrays ({names}, …) fit no known variant{f' of {asked}' if asked else ''}; name network and "
            "publisher with --model and --source"
        )
    report(f"{path}: looks like {_format_nearest(arrays, variants, scores)}")
    best = [variant for score, variant in scores if score == scores[0][0]]
    recorded = [v for v in best if catalog.find_record(path.name, sha256, v.model, v.source)[0]]
    alike = recorded or [v for v in best if v.num_classes == _count_classes(v, arrays)] or best
    if len(alike) > 1:
        choices = " or ".join(f"--model={variant.model} --source={variant.source}" for variant in alike)
        raise UserError(f"{path}: the names and shapes fit several variants: {choices}")
    (variant,) = alike
    return variant, f"{_format_score(scores[0][0], variant)[:-1]} of the names and shapes fit)"


_NEAREST = 2  # further variants that are listed where none fits completely


def _format_nearest(arrays: FileArrays, variants: list[Variant], scores: list[tuple[float, Variant]]) -> str:
    """Formats the best variants, and the nearest others where these do not fit completely."""
    best = [pair for pair in scores if pair[0] == scores[0][0]]
    named = ", ".join(_format_score(*pair) for pair in best)
    others = [pair for pair in identification.bounds(arrays, variants) if all(pair[1] is not v for _, v in best)]
    if best[0][0] == 1 or not others:
        return named
    return f"{named}; next by their names: {', '.join(_format_score(*pair) for pair in others[:_NEAREST])}"


def _format_score(score: float, variant: Variant) -> str:
    return f"{variant.source}'s {variant.model} ({int(100 * score)} %)"


def get_usable_record(name: str) -> WeightRecord:
    """Returns the record of a published file that can be imported.

    Raises:
      UserError: there is no such record, or its file cannot be used; says why.
    """
    record = catalog.get_record(name)
    if record.unusable:
        raise UserError(f"{record.name} cannot be used: {record.unusable}")
    return record


def _check_record(record: WeightRecord, model: str | None, source: str | None) -> tuple[str, str]:
    """Network and publisher of a record, or UserError where the flags contradict it."""
    for flag, value, own in (("model", model, record.model), ("source", source, record.source)):
        if value not in (None, own):
            raise UserError(f"--{flag}={value}: {record.name} is {own}")
    return record.model, record.source


def _digest_mismatch(record: WeightRecord, path: Path, sha256: str) -> str | None:
    """Returns why the file is not the record's, by its hash; None: it is, or the hash is not known."""
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
    """The classes of the arrays' classifier, if it has the variant's name and rank; None: it has not."""
    theirs = importing.classifier_kernel(variant)
    array = FileArrays.of(arrays).weights(variant).get(theirs.name)
    try:
        return None if array is None else theirs.layout.to_ours(np.asarray(array)).shape[-1]
    except ValueError:
        return None


def _default_background(variant: Variant, arrays: Mapping[str, Any]) -> Background:
    return "drop" if variant.background and _count_classes(variant, arrays) == 1001 else "keep"
