"""`--vs=torch`: the same step in PyTorch, timed fairly.

`make_task` says what is to be done, `jax_side` and `torch_sides` who does it; `compare` lets them, `verdict` doubts it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inception_jax.benchmarks.duel import Side, compare
from inception_jax.benchmarks.equivalents import EQUIVALENTS, equal_options, get_equivalent
from inception_jax.benchmarks.torch_side import VARIANTS
from inception_jax.benchmarks.versus_report import markdown, table, verdict
from inception_jax.errors import UserError, nearest

__all__ = [
    "EQUIVALENTS", "Side", "compare", "get_equivalent", "jax_side", "make_task", "markdown", "table", "torch_sides",
    "verdict",
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


def make_task(
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
    chosen = equal_options(model, options or {})
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
