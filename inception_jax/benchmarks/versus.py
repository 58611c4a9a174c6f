"""`--vs=torch`: the same step in PyTorch, timed fairly.

`make_workload` says what is to be done, `jax_side` and `torch_sides` who does it; `compare` lets them, `find_problems`
doubts it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inception_jax.benchmarks.equivalents import EQUIVALENTS, get_equivalent, matching_options
from inception_jax.benchmarks.paired import Side, compare
from inception_jax.benchmarks.torch_side import VARIANTS
from inception_jax.errors import UserError, nearest

__all__ = [
    "EQUIVALENTS",
    "Side",
    "compare",
    "find_problems",
    "get_equivalent",
    "jax_side",
    "make_workload",
    "markdown",
    "table",
    "torch_sides",
]  # fmt: skip

BASELINE = "jax"
KINDS = ("train", "inference")
# By the backend; compiling PyTorch's step for a CPU takes minutes and is left to who asks for it.
TORCH_VARIANTS = {
    "cpu": ("eager", "channels_last"),
    "gpu": ("eager", "channels_last", "compile", "compile_max_autotune"),
}

# Loads this package, and it alone, from where it lies here: on PYTHONPATH its folder would bring along all that is
# installed beside it, for another interpreter.
_RUN_TORCH_SIDE = """
import importlib.util, runpy, sys
folder = sys.argv.pop(1)
spec = importlib.util.spec_from_file_location(
    "inception_jax", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules["inception_jax"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
runpy.run_module("inception_jax.benchmarks.torch_side", run_name="__main__", alter_sys=True)
"""


def jax_side(backend: str) -> Side:
    """Ours, in this interpreter.

    Args:
      backend: "cpu" or "gpu".
    """
    # By default JAX takes the GPU where there is one, and three quarters of its memory, which leaves too little for the
    # other sides.
    environment = {"JAX_PLATFORMS": "cpu"} if backend == "cpu" else {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return Side(BASELINE, (sys.executable, "-m", "inception_jax.benchmarks.jax_side"), environment)


def torch_sides(backend: str, python: str | None = None, variants: Sequence[str] | None = None) -> list[Side]:
    """PyTorch's, one per variant.

    Args:
      backend: "cpu" or "gpu".
      python: the interpreter that has PyTorch; None for this one.
      variants: of `torch_side.VARIANTS`; None for all that are worth their time on this backend.

    Raises:
      UserError: an unknown variant.
    """
    for variant in variants or ():
        if variant not in VARIANTS:
            hint = nearest(variant, VARIANTS)
            raise UserError(f"torch variant {variant!r} is unknown{hint}; variants: {', '.join(VARIANTS)}")
    folder = str(Path(__file__).resolve().parents[1])
    environment = {"PYTHONWARNINGS": "default"}  # where ours are errors, other packages' should not be
    return [
        Side(
            f"torch-{variant}",
            (python or sys.executable, "-c", _RUN_TORCH_SIDE, folder, f"--variant={variant}"),
            environment,
        )
        for variant in variants or TORCH_VARIANTS[backend]
    ]


def make_workload(
    model: str,
    *,
    batch_size: int,
    image_size: int,
    backend: str,
    aux_weights: Sequence[float],
    options: Mapping[str, Any] | None = None,
    num_classes: int = 1000,
    dtype: str = "float32",
    seed: int = 0,
    batches: int = 3,
    kinds: Sequence[str] = KINDS,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    label_smoothing: float = 0.0,
    threads: int | None = None,
) -> dict[str, Any]:
    """What every side is asked for, as JSON values.

    Args:
      model: one of `EQUIVALENTS`.
      batch_size: pictures of a step.
      image_size: height and width in pixels.
      backend: "cpu" or "gpu".
      aux_weights: of our registry's record of the model; none are used where the equal network has no heads.
      options: of `create_model`, beside those that make the networks equal.
      num_classes: outputs of every classifier.
      dtype: "float32" or "bfloat16"; parameters are float32 in either.
      seed: of pictures, parameters and dropout.
      batches: different batches, taken in turn.
      kinds: of steps, "train" and "inference".
      learning_rate, momentum: of SGD, without weight decay.
      label_smoothing: of every head's loss.
      threads: of the CPU's kernels; None for one per core that the process may use.

    Raises:
      UserError: no equivalent, an option that it does not follow, or another dtype or backend.
    """
    if backend not in TORCH_VARIANTS:
        raise UserError(f"backend = {backend!r}: --vs=torch compares on {', '.join(TORCH_VARIANTS)}")
    chosen = matching_options(model, options or {})
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype = {dtype!r}: --vs=torch compares float32, bfloat16")
    return {
        "model": model,
        "options": chosen,
        "batch_size": batch_size,
        "image_size": image_size,
        "num_classes": num_classes,
        "dtype": dtype,
        "seed": seed,
        "batches": batches,
        "kinds": list(kinds),
        "learning_rate": learning_rate,
        "momentum": momentum,
        "aux_weights": list(aux_weights) if chosen.get("aux_heads", True) else [],
        "label_smoothing": label_smoothing,
        "threads": threads,
        "backend": backend,
    }


_HEADER = ("side", "step", "ms/step", "p10", "p90", "images/s", "time", "p10", "p90", "loss")

# What must be the same on all sides, where both of two have told it.
_EQUAL = {
    "pictures": "pictures (SHA-256)",
    "parameters": "parameters",
    "macs": "multiply-adds",
    "threads": "threads",
}
_FREE = 0.05  # share of the cores that others may take before a table says so


def find_problems(result: dict[str, Any]) -> list[str]:
    """Why a comparison must not be believed, a line each; nothing where all is well.

    Args:
      result: of `paired.compare`.
    """
    baseline, lines = result["baseline"], []
    reference = _reported(result["sides"][baseline])
    for name, side in result["sides"].items():
        if "error" in side:
            lines.append(f"left out: {side['error']}")
            continue
        prepared = _reported(side)
        for field, what in _EQUAL.items():
            if field in prepared and field in reference and prepared[field] != reference[field]:
                lines.append(f"{name}: its {what} are {prepared[field]}, those of {baseline} {reference[field]}")
        if not side["finite"]:
            lines.append(f"{name}: a loss or a logit is not a finite number")
        elif side["falling"] is False:
            losses = side["losses"]
            lines.append(
                f"{name}: the training loss does not fall: {losses['first_quarter']:.4g} is the mean of the first "
                f"quarter of {losses['steps']} steps, {losses['last_quarter']:.4g} of the last"
            )
    return lines


def _reported(side: dict[str, Any]) -> dict[str, Any]:
    """A side's answer to `prepare`, its flags among the rest."""
    return {**side["prepared"].get("flags", {}), **side["prepared"]}


def table(result: dict[str, Any]) -> str:
    """The comparison as aligned text, with what it is about above and its complaints below."""
    rows = [_HEADER, *_rows(result)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([_title(result), *lines, *_notes(result), *(f"! {line}" for line in find_problems(result))])


def markdown(result: dict[str, Any]) -> str:
    """The comparison as Markdown: a paragraph, a table, and its complaints."""
    rows = [_HEADER, ("---", "---", *("---:",) * (len(_HEADER) - 2)), *_rows(result)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    notes = [f"- {line}" for line in (*_notes(result), *(f"**{line}**" for line in find_problems(result)))]
    return "\n".join([_title(result), "", *lines, "", *notes])


def _title(result: dict[str, Any]) -> str:
    workload = result["task"]
    device = result["sides"][result["baseline"]]["prepared"].get("device", workload["backend"])
    return (
        f"{workload['model']}, {workload['image_size']} px, batch {workload['batch_size']}, {workload['dtype']}, "
        f"on {device}: "
        f'{result["rounds"]} rounds of {result["steps"]} steps; "time" is relative to {result["baseline"]} in the '
        "same round; medians, 10th and 90th percentiles"
    )


def _rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for kind in result["task"]["kinds"]:
        for name, side in result["sides"].items():
            if kind not in side:
                continue
            seconds, ratio = side[kind]["step_seconds"], side[kind]["ratio"]
            losses = side["losses"] if kind == "train" else None
            rows.append(
                (
                    name,
                    kind,
                    *(f"{1e3 * seconds[key]:.4g}" for key in ("median", "p10", "p90")),
                    f"{side[kind]['images_per_second']:.4g}",
                    *(f"{ratio[key]:.3f}" for key in ("median", "p10", "p90")),
                    f"{_loss(losses['first_quarter'])} to {_loss(losses['last_quarter'])}" if losses else "",
                )
            )
    return rows


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"


def _notes(result: dict[str, Any]) -> list[str]:
    """What runs on each side, where the networks differ, and whether the machine was free for them."""
    notes, others, cores = [], result["cores_of_others"], result["cores"]
    if others is not None and others > _FREE * cores:
        notes.append(
            f"a busy machine: other processes took {others:.2g} of {cores} cores meanwhile; these times are not to be "
            "quoted (threads that spin, as PyTorch's do, suffer most)"
        )
    for name, side in result["sides"].items():
        prepared = side.get("prepared", {})
        flags = {key: value for key, value in prepared.get("flags", {}).items() if value not in (None, "", {})}
        words = [*prepared.get("versions", {}).items(), *flags.items()]
        if words:
            notes.append(f"{name}: " + ", ".join(f"{key} {value}" for key, value in words))
    record, differences = EQUIVALENTS.get(result["task"]["model"]), []
    if "train" in result["task"]["kinds"]:
        differences.append("a training step of ours also counts top-1 and top-5 and measures the gradient's norm")
    if result["task"]["dtype"] != "float32":
        differences.append("PyTorch's is autocast, which takes the classifiers in low precision, too; ours are float32")
    if record is not None:
        notes.append(f"in PyTorch: {record.torch}; what differs: {'; '.join((*record.differences, *differences))}")
    return notes
