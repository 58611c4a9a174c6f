"""Exports the network of a run to another program: the targets of `python -m inception_jax.export`."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import jax
import numpy as np

from inception_jax.errors import UserError, must_be_one_of
from inception_jax.evaluation import trained_network
from inception_jax.evaluation.trained_network import TrainedNetwork
from inception_jax.exports import onnx_file, stablehlo
from inception_jax.pretrained import exporting, hub
from inception_jax.pretrained.publishers import registry
from inception_jax.runs import remote_workdir
from inception_jax.runs.manifest import make_folder
from inception_jax.weight_files.safetensors_writer import save_safetensors

PROGRAMS = {"onnx": ".onnx", "stablehlo": ".stablehlo"}
"""{target that has a graph: suffix of its file}."""


def targets() -> tuple[str, ...]:
    """Returns the names of the targets: programs, our own safetensors, the folder for a hub, and the publishers."""
    return (*PROGRAMS, "safetensors", "hub", *_publishers())


def _publishers() -> list[str]:
    """The publishers; that of the ONNX model zoo has the name of a program, and `convert --to=onnx` exports for it."""
    return [name for name in registry.source_names() if name not in PROGRAMS]


def export(
    workdir: str | os.PathLike,
    to: str,
    output: str | os.PathLike | None = None,
    *,
    weights: str | None = None,
    step: Any = None,
    endpoints: Sequence[str] = (),
) -> dict[str, Any]:
    """Exports the network of a run.

    Args:
      workdir: of the run.
      to: one of `targets()`.
      output: the file, or for "hub" the folder; None: in `exports` of the workdir.
      weights: "raw" or "ema"; None: the EMA where the run has one.
      step: None for the newest checkpoint, "best", or a step.
      endpoints: of "onnx" and "stablehlo": further outputs by name, ours or slim's.

    Returns:
      {"output", "to", "model", "step", "weights"}; unless it is a publisher's file also "input", how an image becomes
      the network's input, and "preprocessing", the same as `hub.describe_input` has it; with classes also
      "activation", "softmax" or "sigmoid", which turns the logits into probabilities.

    Raises:
      UserError: an unknown target, no such run, an output that exists, or what the target's own function raises.
    """
    if to not in targets():
        raise UserError(f"--to={to}: {must_be_one_of(to, targets())}")
    if endpoints and to not in PROGRAMS:
        raise UserError(f"--endpoints: only with --to={' or '.join(PROGRAMS)}")
    if output is None:
        remote_workdir.refuse_address("--workdir", workdir, "or name a local --output")
    else:
        remote_workdir.refuse_address("--output", output, "name a local file or folder")
    workdir = remote_workdir.local_copy(workdir)
    name = trained_network.load_config(workdir).model.name
    path = Path(output) if output is not None else workdir / "exports" / _default_name(to, name)
    if path.exists():
        raise UserError(f"--output={path}: exists already; name a new one")
    with _folder(path.parent):
        if to in _publishers():
            kind = cast(Literal["raw", "ema"] | None, weights)
            done = exporting.export_run(workdir, to, path, weights=kind, step=step)
            about = {"step": done["step"], "weights": done["weights"]}
        else:
            network = trained_network.load_run(workdir, weights=weights, step=step)
            about = {"step": network.step, "weights": network.weights, **_describe_use(network)}
            _write(network, to, path, endpoints, workdir)
    return {"output": str(path), "to": to, "model": name, **about}


@contextlib.contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Makes a folder for the block, and removes it again where the block fails and nothing is in it."""
    new = not folder.exists()
    make_folder(folder)
    try:
        yield
    except BaseException:
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _default_name(to: str, model: str) -> str:
    if to == "hub":
        return "hub"
    if to in _publishers():
        return f"{model}-{to}.safetensors"
    return f"{model}{PROGRAMS.get(to, '.safetensors')}"


def _describe_use(network: TrainedNetwork) -> dict[str, Any]:
    """What a program needs to know of the network's input and output."""
    activation = {"activation": hub.format_activation(network)} if network.class_names else {}
    return {"input": hub.format_input(network), "preprocessing": hub.describe_input(network), **activation}


def _write(network: TrainedNetwork, to: str, path: Path, endpoints: Sequence[str], workdir: Path) -> None:
    variables = jax.tree.map(np.asarray, network.variables)
    use = _describe_use(network)
    about = {
        **use,
        "preprocessing": json.dumps(use["preprocessing"]),
        "classes": json.dumps(network.class_names, ensure_ascii=False),
        "step": str(network.step),
        "weights": network.weights,
    }
    if to == "onnx":
        onnx_file.export_onnx(network.model, variables, network.image_size, path, endpoints=endpoints, metadata=about)
    elif to == "stablehlo":
        stablehlo.export_stablehlo(network.model, variables, network.image_size, path, endpoints=endpoints)
    elif to == "safetensors":
        save_safetensors(path, variables, {"model": network.config.model.name, **about})
    else:
        hub.write(path, network, workdir)
