"""Verifies that our networks with a publisher's weights compute the same as the publisher's own code.

Every variant is compared in the cases of `cases_of` with seeded weights at full size: live, where the publisher's code
is installed, otherwise with the goldens (`goldens/`) that such a live run has written. `ledger.json` holds what live
runs measured; the table in this package's README.md is made from it (`ledger.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inception_jax.errors import UserError
from inception_jax.models.registry import get_spec
from inception_jax.parity import runs
from inception_jax.parity.runs import Case, Outputs
from inception_jax.pretrained.importing import has_classifier
from inception_jax.pretrained.variants import FileArrays, Variant

GOLDENS = Path(__file__).parent / "goldens"

# Limits below which outputs count as equal: relative rms differences.
LOGITS_FLOAT64, LOGITS_FLOAT32, GRADIENTS_FLOAT64 = 1e-9, 2e-6, 1e-5

# A golden stores every eighth class, and of each array's gradient its norm and its product with random signs.
_GOLDEN_CLASSES = slice(None, None, 8)
# An array whose gradient is below this fraction of the total gradient norm holds rounding noise alone (the bias of a
# convolution before batch norm under batch statistics has gradient zero).
_NEGLIGIBLE = 1e-9


def cases_of(variant: Variant) -> tuple[Case, ...]:
    """Returns a variant's cases: evaluation at the publisher's size and at an odd or even one, and batch statistics."""
    inference_only = (variant.source, variant.model) in _INFERENCE_ONLY
    size = variant.image_size
    other = variant.other_size or max(get_spec(variant.model).min_image_size, size - 43 if size % 2 else size - 31)
    evaluation = (
        Case("eval", size, gradients=not inference_only),
        Case("eval", other),
        Case("eval", size, dtype="float32"),
    )
    return evaluation if inference_only else (*evaluation, Case("train", size, gradients=True))


# Implementations that can only evaluate.
_INFERENCE_ONLY = {("onnx", "inception_v1")}


@dataclasses.dataclass(frozen=True)
class RelativeDifference:
    """The difference of two arrays, relative to the publisher's.

    Attributes:
      rms: norm of the difference divided by the norm of the publisher's array.
      max: largest absolute difference divided by the publisher's largest absolute value.
    """

    rms: float
    max: float


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> RelativeDifference:
    """Computes the difference of two arrays, relative to `theirs`.

    Raises:
      ValueError: the shapes differ.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"shapes {ours.shape} and {theirs.shape}")
    error, wide = ours.astype(np.float64) - theirs, theirs.astype(np.float64)
    return RelativeDifference(
        float(np.linalg.norm(error) / np.linalg.norm(wide)), float(np.abs(error).max() / np.abs(wide).max())
    )


def compare_outputs(ours: Outputs, theirs: Outputs) -> dict[str, Any]:
    """Compares two outputs: a row of the ledger, {"logits": {rms, max}, "aux": [...], "gradients": {rms, worst}}.

    Raises:
      ValueError: the numbers of auxiliary heads differ, or the arrays.
    """
    if len(ours.aux) != len(theirs.aux):
        raise ValueError(f"{len(ours.aux)} auxiliary heads here, {len(theirs.aux)} there")
    row: dict[str, Any] = {"logits": dataclasses.asdict(relative_difference(ours.logits, theirs.logits))}
    if theirs.aux:
        row["aux"] = [dataclasses.asdict(relative_difference(a, b)) for a, b in zip(ours.aux, theirs.aux, strict=True)]
    if theirs.gradients:
        row["gradients"] = compare_gradients(ours.gradients, theirs.gradients)
    return row


def compare_gradients(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Compares gradients by array.

    Args:
      ours: {publisher's name: gradient} of our network.
      theirs: {publisher's name: gradient} of the publisher's code.

    Returns:
      {"rms": of all arrays as one vector, "worst": the largest relative difference of one array, "array": its name}.

    Raises:
      ValueError: the names differ.
    """
    # Arrays that evaluation does not use have a gradient of zero here and none there.
    if wrong := [name for name in theirs if name not in ours] + [n for n in ours if n not in theirs and ours[n].any()]:
        raise ValueError(f"gradients of different arrays: {wrong[:3]}")
    squares = {name: float(np.sum(np.square(array, dtype=np.float64))) for name, array in theirs.items()}
    total = sum(squares.values()) ** 0.5
    errors = {name: float(np.linalg.norm(ours[name].astype(np.float64) - array)) for name, array in theirs.items()}
    relative = {
        name: errors[name] / square**0.5 for name, square in squares.items() if square**0.5 > _NEGLIGIBLE * total
    }
    worst = max(relative, key=relative.__getitem__)
    rms = sum(value**2 for value in errors.values()) ** 0.5 / total
    return {"rms": rms, "worst": relative[worst], "array": worst}


# --- Goldens ---------------------------------------------------------------------------------------------------------


def golden_path(variant: Variant) -> Path:
    """Returns the path of a variant's goldens."""
    return GOLDENS / f"{variant.source}_{variant.model}.npz"


def make_golden(outputs: Outputs) -> dict[str, np.ndarray]:
    """Returns the part of a publisher's outputs that a golden stores."""
    kept = {"logits": outputs.logits[:, _GOLDEN_CLASSES]}
    kept |= {f"aux/{i}": aux[:, _GOLDEN_CLASSES] for i, aux in enumerate(outputs.aux)}
    if outputs.gradients:
        kept["gradients"] = _fingerprints(outputs.gradients)
        kept["gradient_names"] = np.array(sorted(outputs.gradients))
    return kept | {"version": np.array(outputs.version)}


def _fingerprints(gradients: Mapping[str, np.ndarray]) -> np.ndarray:
    """[arrays, 2], sorted by name: norm, and product with random signs divided by the square root of the size."""
    rows = []
    for name in sorted(gradients):
        array = gradients[name].astype(np.float64)
        signs = runs.seeded_probe(name, array.shape)
        rows.append((np.linalg.norm(array), float((array * signs).sum()) / array.size**0.5))
    return np.array(rows)


def compare_golden(ours: Outputs, golden: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Compares outputs with a golden, as `compare_outputs` does; of gradients it compares the fingerprints."""
    row: dict[str, Any] = {
        "logits": dataclasses.asdict(relative_difference(ours.logits[:, _GOLDEN_CLASSES], golden["logits"]))
    }
    heads = sum(name.startswith("aux/") for name in golden)
    if heads != len(ours.aux):
        raise ValueError(f"{len(ours.aux)} auxiliary heads here, {heads} there")
    if heads:
        row["aux"] = [
            dataclasses.asdict(relative_difference(aux[:, _GOLDEN_CLASSES], golden[f"aux/{i}"]))
            for i, aux in enumerate(ours.aux)
        ]
    if ours.gradients and "gradients" in golden:
        names = [str(name) for name in golden["gradient_names"]]
        found = _fingerprints({name: ours.gradients[name] for name in names})
        row["gradients"] = {"rms": relative_difference(found, golden["gradients"]).rms}
    return row


def write_golden(variant: Variant, case: Case, outputs: Outputs) -> None:
    """Stores a publisher's outputs of one case in the variant's file of goldens, beside those of other cases."""
    path = golden_path(variant)
    path.parent.mkdir(exist_ok=True)
    kept: dict[str, np.ndarray] = {}
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            kept = {name: file[name] for name in file.files if not name.startswith(f"{case.name}/")}
    kept |= {f"{case.name}/{name}": array for name, array in make_golden(outputs).items()}
    np.savez_compressed(path, **kept)  # type: ignore[arg-type]  # a name of ours is never `allow_pickle`


# --- One case --------------------------------------------------------------------------------------------------------


def verify_live(variant: Variant, case: Case, python: str) -> tuple[dict[str, Any], Outputs]:
    """Compares one case with the publisher's code.

    Args:
      variant: the publisher's variant.
      case: the comparison.
      python: the interpreter of the environment where the publisher's code is installed.

    Returns:
      The row of the ledger, and the outputs of the publisher's code.

    Raises:
      UserError: the publisher's code cannot be run there.
    """
    arrays = runs.case_arrays(variant, case)
    theirs = runs.run_theirs(variant, case, arrays, python)
    return compare_outputs(runs.run_ours(variant, case, arrays), theirs), theirs


def verify_golden(variant: Variant, case: Case) -> tuple[dict[str, Any], str]:
    """Compares one case with the goldens.

    Args:
      variant: the publisher's variant.
      case: the comparison.

    Returns:
      The row, and the version of the publisher's code that the goldens were made with.

    Raises:
      UserError: there are no goldens of this case.
    """
    golden = {}
    if golden_path(variant).exists():
        with np.load(golden_path(variant), allow_pickle=False) as file:
            golden = {n.removeprefix(f"{case.name}/"): file[n] for n in file.files if n.startswith(f"{case.name}/")}
    if not golden:
        raise UserError(f"no goldens of {variant.source}'s {variant.model} for {case.name}")
    ours = runs.run_ours(variant, case, runs.case_arrays(variant, case))
    return compare_golden(ours, golden), str(golden["version"])


def verify_weights(
    variant: Variant,
    arrays: Mapping[str, np.ndarray],
    python: str,
    dtype: str,
    options: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], str]:
    """Compares the publisher's code and ours in evaluation with a file's own weights, on seeded images.

    Args:
      variant: the publisher's variant.
      arrays: {publisher's name: array}, as in the file.
      python: the interpreter of the environment where the publisher's code is installed.
      dtype: "float64" or "float32".
      options: of `create_model`, for our side.

    Returns:
      The row, and the version of the publisher's code.

    Raises:
      UserError: the publisher's code cannot be run there.
    """
    case = Case("eval", variant.image_size, dtype=dtype)
    weights = {name: np.asarray(array, dtype) for name, array in FileArrays.of(arrays).weights(variant).items()}
    theirs = runs.run_theirs(variant, case, weights, python)
    options = dict(options or {}) if has_classifier(variant, arrays) else {"num_classes": 0, **(options or {})}
    return compare_outputs(runs.run_ours(variant, case, weights, **options), theirs), theirs.version


def is_equal(row: Mapping[str, Any], dtype: str) -> bool:
    """Returns whether every difference of a row is within the limits of its dtype."""
    limit = LOGITS_FLOAT64 if dtype == "float64" else LOGITS_FLOAT32
    outputs = [row["logits"], *row.get("aux", [])]
    gradients = row.get("gradients", {"rms": 0.0})["rms"]
    return all(output["rms"] <= limit for output in outputs) and gradients <= GRADIENTS_FLOAT64
