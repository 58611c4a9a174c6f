"""The proof: our networks with a publisher's weights compute what the publisher's own code computes.

Every variant is compared in the cases of `cases_of` with seeded weights at full size: live where the publisher's code
is installed, and against the goldens that such a live run left (`goldens/`), where it is not. `ledger.json` keeps what
the live runs measured; the README's table is made of it (`ledger.py`).
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

# What counts as equal: relative rms differences.
LOGITS_FLOAT64, LOGITS_FLOAT32, GRADIENTS_FLOAT64 = 1e-9, 2e-6, 1e-5

# A golden keeps every eighth class, and of each array's gradient its norm and its product with random signs.
_KEPT_CLASSES = slice(None, None, 8)
# Arrays whose gradient is smaller than this part of the whole gradient's norm hold rounding noise alone (the bias of a
# convolution under batch statistics has none).
_NEGLIGIBLE = 1e-9


def cases_of(variant: Variant) -> tuple[Case, ...]:
    """Evaluation at the publisher's size and at one of the other parity, and training with batch statistics."""
    inference_only = (variant.source, variant.model) in _INFERENCE_ONLY
    size = variant.image_size
    other = variant.other_size or max(get_spec(variant.model).min_image_size, size - 43 if size % 2 else size - 31)
    evaluation = (
        Case("eval", size, gradients=not inference_only),
        Case("eval", other),
        Case("eval", size, dtype="float32"),
    )
    return evaluation if inference_only else (*evaluation, Case("train", size, gradients=True))


# Runtimes that evaluate and do nothing else.
_INFERENCE_ONLY = {("onnx", "inception_v1")}


@dataclasses.dataclass(frozen=True)
class RelativeDifference:
    """How far apart two results are, relative to theirs.

    Attributes:
      rms: the norm of the difference over the norm of theirs.
      max: the largest difference over the largest of theirs.
    """

    rms: float
    max: float


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> RelativeDifference:
    """The difference of two arrays.

    Raises:
      ValueError: other shapes.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"shapes {ours.shape} and {theirs.shape}")
    apart, wide = ours.astype(np.float64) - theirs, theirs.astype(np.float64)
    return RelativeDifference(
        float(np.linalg.norm(apart) / np.linalg.norm(wide)), float(np.abs(apart).max() / np.abs(wide).max())
    )


def compare_outputs(ours: Outputs, theirs: Outputs) -> dict[str, Any]:
    """One case of the ledger: {"logits": {rms, max}, "aux": [...], "gradients": {rms, worst}}."""
    if len(ours.aux) != len(theirs.aux):
        raise ValueError(f"{len(ours.aux)} auxiliary heads here, {len(theirs.aux)} there")
    row: dict[str, Any] = {"logits": dataclasses.asdict(relative_difference(ours.logits, theirs.logits))}
    if theirs.aux:
        row["aux"] = [dataclasses.asdict(relative_difference(a, b)) for a, b in zip(ours.aux, theirs.aux, strict=True)]
    if theirs.gradients:
        row["gradients"] = compare_gradients(ours.gradients, theirs.gradients)
    return row


def compare_gradients(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """{"rms": of all arrays as one vector, "worst": the largest of one array's, "array": its name}.

    Raises:
      ValueError: other arrays.
    """
    # What evaluation does not reach has a gradient of zero here and none there.
    if wrong := [name for name in theirs if name not in ours] + [n for n in ours if n not in theirs and ours[n].any()]:
        raise ValueError(f"gradients differ in their arrays: {wrong[:3]}")
    squares = {name: float(np.sum(np.square(array, dtype=np.float64))) for name, array in theirs.items()}
    total = sum(squares.values()) ** 0.5
    apart = {name: float(np.linalg.norm(ours[name].astype(np.float64) - array)) for name, array in theirs.items()}
    relative = {
        name: apart[name] / square**0.5 for name, square in squares.items() if square**0.5 > _NEGLIGIBLE * total
    }
    worst = max(relative, key=relative.__getitem__)
    rms = sum(value**2 for value in apart.values()) ** 0.5 / total
    return {"rms": rms, "worst": relative[worst], "array": worst}


# --- Goldens ---------------------------------------------------------------------------------------------------------


def golden_path(variant: Variant) -> Path:
    """Where a variant's goldens lie."""
    return GOLDENS / f"{variant.source}_{variant.model}.npz"


def make_golden(outputs: Outputs) -> dict[str, np.ndarray]:
    """The part of a publisher's outputs that is kept."""
    kept = {"logits": outputs.logits[:, _KEPT_CLASSES]}
    kept |= {f"aux/{i}": aux[:, _KEPT_CLASSES] for i, aux in enumerate(outputs.aux)}
    if outputs.gradients:
        kept["gradients"] = _fingerprints(outputs.gradients)
        kept["gradient_names"] = np.array(sorted(outputs.gradients))
    return kept | {"version": np.array(outputs.version)}


def _fingerprints(gradients: Mapping[str, np.ndarray]) -> np.ndarray:
    """[arrays, 2]: norm, and product with random signs over the square root of the size; in the order of the names."""
    rows = []
    for name in sorted(gradients):
        array = gradients[name].astype(np.float64)
        signs = runs.seeded_probe(name, array.shape)
        rows.append((np.linalg.norm(array), float((array * signs).sum()) / array.size**0.5))
    return np.array(rows)


def compare_golden(ours: Outputs, golden: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """As `compare_outputs`, with what was kept; the gradients' difference is that of the fingerprints."""
    row: dict[str, Any] = {
        "logits": dataclasses.asdict(relative_difference(ours.logits[:, _KEPT_CLASSES], golden["logits"]))
    }
    heads = sum(name.startswith("aux/") for name in golden)
    if heads != len(ours.aux):
        raise ValueError(f"{len(ours.aux)} auxiliary heads here, {heads} there")
    if heads:
        row["aux"] = [
            dataclasses.asdict(relative_difference(aux[:, _KEPT_CLASSES], golden[f"aux/{i}"]))
            for i, aux in enumerate(ours.aux)
        ]
    if ours.gradients and "gradients" in golden:
        names = [str(name) for name in golden["gradient_names"]]
        found = _fingerprints({name: ours.gradients[name] for name in names})
        row["gradients"] = {"rms": relative_difference(found, golden["gradients"]).rms}
    return row


def write_golden(variant: Variant, case: Case, outputs: Outputs) -> None:
    """Keeps a publisher's outputs of one case beside those of the others."""
    path = golden_path(variant)
    path.parent.mkdir(exist_ok=True)
    kept: dict[str, np.ndarray] = {}
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            kept = {name: file[name] for name in file.files if not name.startswith(f"{case.name}/")}
    kept |= {f"{case.name}/{name}": array for name, array in make_golden(outputs).items()}
    np.savez_compressed(path, **kept)


# --- One case --------------------------------------------------------------------------------------------------------


def verify_live(variant: Variant, case: Case, python: str) -> tuple[dict[str, Any], Outputs]:
    """One case against the publisher's code: the row, and what the publisher's code gave.

    Raises:
      UserError: the publisher's code cannot be run there.
    """
    arrays = runs.case_arrays(variant, case)
    theirs = runs.run_theirs(variant, case, arrays, python)
    return compare_outputs(runs.run_ours(variant, case, arrays), theirs), theirs


def verify_golden(variant: Variant, case: Case) -> tuple[dict[str, Any], str]:
    """One case against the goldens: the row, and the version of the publisher's code that they are of.

    Raises:
      UserError: there are none.
    """
    golden = {}
    if golden_path(variant).exists():
        with np.load(golden_path(variant), allow_pickle=False) as file:
            golden = {n.removeprefix(f"{case.name}/"): file[n] for n in file.files if n.startswith(f"{case.name}/")}
    if not golden:
        raise UserError(f"no goldens of {variant.source}'s {variant.model} in {case.name}")
    ours = runs.run_ours(variant, case, runs.case_arrays(variant, case))
    return compare_golden(ours, golden), str(golden["version"])


def verify_weights(
    variant: Variant,
    arrays: Mapping[str, np.ndarray],
    python: str,
    dtype: str,
    options: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], str]:
    """A file's own weights through the publisher's code and ours, evaluation on seeded pictures: row and version.

    Raises:
      UserError: the publisher's code cannot be run there.
    """
    case = Case("eval", variant.image_size, dtype=dtype)
    kept = {name: np.asarray(array, dtype) for name, array in FileArrays.of(arrays).weights(variant).items()}
    theirs = runs.run_theirs(variant, case, kept, python)
    options = dict(options or {}) if has_classifier(variant, arrays) else {"num_classes": 0, **(options or {})}
    return compare_outputs(runs.run_ours(variant, case, kept, **options), theirs), theirs.version


def is_equal(row: Mapping[str, Any], dtype: str) -> bool:
    """Whether every difference of a row is within what counts as equal."""
    limit = LOGITS_FLOAT64 if dtype == "float64" else LOGITS_FLOAT32
    outputs = [row["logits"], *row.get("aux", [])]
    gradients = row.get("gradients", {"rms": 0.0})["rms"]
    return all(output["rms"] <= limit for output in outputs) and gradients <= GRADIENTS_FLOAT64
