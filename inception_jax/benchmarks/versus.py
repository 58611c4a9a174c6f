"""Compares our steps with other frameworks' (`benchmark --vs=torch,onnxruntime`, or keras): workload and sides.

`make_workload` describes the steps, `jax_side`, `torch_sides` and `onnx_side` the processes that take them; `compare`
(paired.py) runs them, `versus_report.py` checks and formats the result.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inception_jax.benchmarks.equivalents import keras_options, matching_options
from inception_jax.benchmarks.paired import Side
from inception_jax.benchmarks.torch_side import VARIANTS
from inception_jax.errors import UserError, nearest

BASELINE = "jax"
PEERS = ("torch", "keras", "onnxruntime")
KINDS = ("train", "inference")
# Default variants by backend; compiling PyTorch's step for a CPU takes minutes, so that is done on request only.
TORCH_VARIANTS = {
    "cpu": ("eager", "channels_last"),
    "gpu": ("eager", "channels_last", "compile", "compile_max_autotune"),
}

# Loads this package alone from its folder: PYTHONPATH would make everything that is installed beside it importable,
# for another interpreter.
_RUN_SIDE = """
import importlib.util, runpy, sys
folder, side = sys.argv.pop(1), sys.argv.pop(1)
spec = importlib.util.spec_from_file_location(
    "inception_jax", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules["inception_jax"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
runpy.run_module("inception_jax.benchmarks." + side, run_name="__main__", alter_sys=True)
"""


def module_command(python: str | None, module: str, *flags: str) -> tuple[str, ...]:
    """The command of a side that is a module of this folder, in another interpreter; None: in this one."""
    folder = str(Path(__file__).resolve().parents[1])
    return (python or sys.executable, "-c", _RUN_SIDE, folder, module, *flags)


def jax_side(backend: str, devices: int = 1) -> Side:
    """Our side, in this interpreter.

    Args:
      backend: "cpu" or "gpu".
      devices: of the workload; on a CPU the process gets so many.
    """
    # By default JAX uses the GPU where there is one, and preallocates three quarters of its memory, which leaves too
    # little for the other sides.
    environment = {"JAX_PLATFORMS": "cpu"} if backend == "cpu" else {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if backend == "cpu" and devices > 1:
        environment["JAX_NUM_CPU_DEVICES"] = str(devices)
    return Side(BASELINE, (sys.executable, "-m", "inception_jax.benchmarks.jax_side"), environment)


def torch_sides(backend: str, python: str | None = None, variants: Sequence[str] | None = None) -> list[Side]:
    """PyTorch's sides, one per variant.

    Args:
      backend: "cpu" or "gpu".
      python: path of the interpreter that has PyTorch; None for this one.
      variants: of `torch_side.VARIANTS`; None for the default of the backend, `TORCH_VARIANTS`.

    Raises:
      UserError: a variant is unknown.
    """
    for variant in variants or ():
        if variant not in VARIANTS:
            hint = nearest(variant, VARIANTS)
            raise UserError(f"--torch_variants: unknown variant {variant!r}{hint}; allowed: {', '.join(VARIANTS)}")
    environment = {"PYTHONWARNINGS": "default"}  # a setting that makes our warnings errors must not do so for PyTorch's
    return [
        Side(f"torch-{variant}", module_command(python, "torch_side", f"--variant={variant}"), environment)
        for variant in variants or TORCH_VARIANTS[backend]
    ]


def onnx_side() -> Side:
    """ONNX Runtime's side, in this interpreter: our network, exported; inference only."""
    command = (sys.executable, "-m", "inception_jax.exports.onnx_side")
    return Side("onnxruntime", command, {"JAX_PLATFORMS": "cpu"}, kinds=("inference",))


def keras_side(backend: str, python: str | None = None) -> Side:
    """The side of Keras on JAX.

    Args:
      backend: "cpu" or "gpu".
      python: path of the interpreter that has Keras and JAX; None for this one.
    """
    return Side("keras", module_command(python, "keras_side"), jax_side(backend).environment)


def make_workload(
    model: str,
    *,
    peers: Sequence[str] = ("torch",),
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
    devices: int = 1,
    steps_per_execution: int = 1,
) -> dict[str, Any]:
    """Describes the steps that every side takes, as JSON values.

    Args:
      model: one of `equivalents.EQUIVALENTS`; without "torch" any of ours.
      peers: of `PEERS`: the frameworks that ours is compared with.
      batch_size: images per step.
      image_size: height and width in pixels.
      backend: "cpu" or "gpu".
      aux_weights: loss weights of the auxiliary heads; not used if the equivalent network has no heads.
      options: options of `create_model`, beside those that make the networks equal.
      num_classes: outputs of every classifier.
      dtype: "float32" or "bfloat16"; parameters are float32 in either.
      seed: seed of images, parameters and dropout.
      batches: number of different batches, used in turn.
      kinds: kinds of steps, of "train" and "inference".
      learning_rate: of SGD without weight decay.
      momentum: of SGD.
      label_smoothing: in the loss of every head.
      threads: threads of the CPU's kernels; None for one per core that the process may use.
      devices: JAX devices of our side, over which it divides a batch; the other sides have one.
      steps_per_execution: training steps of our side in one call of its program.

    Raises:
      UserError: the model has no equivalent or no such option there, or the dtype or the backend is another.
    """
    if backend not in TORCH_VARIANTS:
        raise UserError(f"backend {backend!r}: --vs=torch compares on {', '.join(TORCH_VARIANTS)}")
    if {"torch", "keras"} <= set(peers):
        raise UserError(
            "--vs=torch,keras: their networks differ (batch norm's scale, the heads); compare one at a time"
        )
    chosen = dict(options or {})
    if (channels := chosen.get("in_channels", 3)) != 3:
        raise UserError(
            f"--set in_channels={channels}: the other frameworks' networks here read 3; leave it out with --vs"
        )
    if "torch" in peers:
        chosen = matching_options(model, chosen)
    elif "keras" in peers:
        chosen = keras_options(model, chosen)
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"--dtype={dtype!r}: --vs=torch compares float32, bfloat16")
    if "train" in kinds and tuple(peers) == ("onnxruntime",):
        raise UserError("--vs=onnxruntime compares inference only: add --what=inference")
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
        "peers": list(peers),
        "label_smoothing": label_smoothing,
        "threads": threads,
        "devices": devices,
        "steps_per_execution": steps_per_execution,
        "backend": backend,
    }
