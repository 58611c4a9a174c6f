"""Exports a run's weights as a file that a publisher's own code loads."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flax.traverse_util import flatten_dict

from inception_jax.checkpoints.reading import load_record, load_variables
from inception_jax.config import Config
from inception_jax.errors import UserError, nearest
from inception_jax.evaluation.trained_network import (
    default_weights,
    load_class_names,
    load_config,
    warn_of_running_statistics,
)
from inception_jax.models.base import BaseNetwork
from inception_jax.pretrained.publishers import registry
from inception_jax.pretrained.variants import Variant
from inception_jax.runs import manifest
from inception_jax.training import network_setup
from inception_jax.weight_files.atomic_write import atomic_write
from inception_jax.weight_files.safetensors_writer import save_arrays

SUFFIXES = (".safetensors", ".npz", ".pth")

# Fields of a network that a file's arrays have by their shapes.
_SIZES = ("num_classes", "in_channels", "width_multiplier", "min_width")

# Fields of a network that do not change what it computes in evaluation: number formats, training, position in a tree.
_TRAINING_FIELDS = {
    "dropout_rate", "aux_dropout_rate", "dtype", "param_dtype", "remat", "bn_momentum", "bn_unbiased_variance",
    "bn_axis_name", "bn_axis_index_groups", "bn_group_size", "bn_frozen", "fuse_siblings", "convolution",
    "parent", "name",
}  # fmt: skip


def export_run(
    workdir: str | os.PathLike,
    source: str,
    output: str | os.PathLike,
    *,
    weights: Literal["raw", "ema"] | None = None,
    step: Any = None,
) -> dict[str, Any]:
    """Writes a run's weights as a file of a publisher's arrays.

    Args:
      workdir: of the run.
      source: the publisher, a name of `registry.source_names()`.
      output: the file: .safetensors, .npz, or .pth where PyTorch is installed. In .npz, which has no name for it,
        bfloat16 becomes float32, without loss.
      weights: "raw" or "ema"; None: the EMA where the run has one.
      step: None for the newest checkpoint, "best", or a step.

    Returns:
      {"file": …, "model": …, "source": …, "step": …, "weights": …, "arrays": how many}.

    Raises:
      UserError: the publisher has no such network, the run's network computes another function than the
        publisher's, or the file cannot be written.
    """
    output = Path(output)
    if output.suffix not in SUFFIXES:
        raise UserError(
            f"--output={output}: the suffix must be {', '.join(SUFFIXES)}{nearest(output.suffix, SUFFIXES)}"
        )
    if output.exists():
        raise UserError(f"--output={output}: the file exists already; name a new one")
    workdir = Path(workdir)
    raw_config, classes = load_config(workdir), load_class_names(workdir)
    warn_of_running_statistics(raw_config)
    config = Config(raw_config)
    variant = registry.get_variant(config.model.name, source)
    model = network_setup.build_model(config, len(classes))
    _check_network(model, variant, workdir)
    weights = weights or default_weights(raw_config)
    run_id = manifest.read_run_id(workdir)
    found = load_record(workdir, step, run_id=run_id)["step"]
    variables = load_variables(workdir, weights, found, run_id=run_id)
    variables = {name: tree for name, tree in variables.items() if tree}
    same = {name: getattr(model, name) for name in _SIZES}
    arrays = export_weights(config.model.name, variables, source=source, **same)
    content = {"model": config.model.name, "source": source, "step": found, "weights": weights}
    _write(output, arrays, content)
    return {"file": str(output), **content, "arrays": len(arrays)}


def _check_network(model: BaseNetwork, variant: Variant, workdir: Path) -> None:
    """Raises UserError where the run's network computes another function than the publisher's, by its fields."""
    theirs = variant.create(aux_heads=model.aux_heads, **{name: getattr(model, name) for name in _SIZES})
    different = [
        field.name
        for field in dataclasses.fields(model)
        if field.name not in _TRAINING_FIELDS and getattr(model, field.name) != getattr(theirs, field.name)
    ]
    if different:
        named = ", ".join(
            f"{name} = {getattr(model, name)!r} (publisher: {getattr(theirs, name)!r})" for name in different
        )
        raise UserError(
            f"--workdir={workdir}: its network is not {variant.source}'s {variant.model}: {named}; with its weights "
            "the publisher's code would compute another function"
        )


def _write(output: Path, arrays: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """Writes a file, complete or not at all; only .safetensors files have metadata."""
    with atomic_write(output) as part:
        if output.suffix == ".safetensors":
            save_arrays(part, arrays, {name: str(value) for name, value in metadata.items()})
        elif output.suffix == ".npz":
            widened = {name: _without_bfloat16(array) for name, array in arrays.items()}
            with open(part, "wb") as file:
                np.savez(file, **widened)  # type: ignore[arg-type]  # no array is called `allow_pickle`
        else:
            _torch_save(part, arrays)


def _without_bfloat16(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _torch_save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    try:
        import torch
    except ModuleNotFoundError:
        raise UserError(
            "--output: a .pth file is written by PyTorch, which is not installed; a .safetensors file holds "
            "the same (safetensors.torch.load_file reads it)"
        ) from None

    def tensor(array: np.ndarray) -> Any:
        if array.dtype.name == "bfloat16":  # unknown to `from_numpy`: the bits are copied
            return torch.from_numpy(np.array(array).view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(np.array(array))

    torch.save({name: tensor(array) for name, array in arrays.items()}, path)


def export_weights(
    model_name: str, variables: Mapping[str, Any], *, source: str, **options: Any
) -> dict[str, np.ndarray]:
    """Converts a network's variables to a publisher's arrays: the inverse of `import_weights`.

    Args:
      model_name: a name of `model_names()`.
      variables: {"params": …, "batch_stats": …} of a network with the options `variant_options(model_name, source)`.
      source: the publisher, a name of `pretrained.publishers.registry.source_names()`.
      **options: of `create_model`, as for `import_weights`, where the variables differ from the published variant.
        `num_classes=0`: they have no classifier.

    Returns:
      {publisher's name: array}, in the order of the network; contiguous, dtypes as they are.

    Raises:
      UserError: an unknown source, or variables of another network: the message names the leaves.
    """
    variant = registry.get_variant(model_name, source)
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(variables, sep="/").items()}
    kernel = flat.get("params/classifier/kernel")
    if kernel is None and options.get("num_classes") != 0:
        raise UserError("variables: no params/classifier/kernel; the complete network is needed, or num_classes=0")
    found = {
        "num_classes": 0 if kernel is None else kernel.shape[-1],
        "aux_heads": any(path.split("/")[1].startswith("aux") for path in flat),
    }
    for name, value in found.items():
        if options.setdefault(name, value) != value:
            raise UserError(f"{name} = {options[name]}: the variables have {value}")
    leaves = variant.leaves(**options)
    wrong = [path for path in {**leaves, **flat} if path not in leaves or path not in flat]
    if wrong:
        whose = "only the variables have" if wrong[0] in flat else f"only {source}'s variant has"
        raise UserError(
            f"variables: {len(wrong)} leaves differ from {source}'s {model_name}: {whose} {wrong[0]}; "
            f"create the network with variant_options({model_name!r}, {source!r})"
        )
    arrays = {}
    for path, shape in leaves.items():
        theirs = variant.source_array(path, shape)
        if flat[path].shape != shape:
            raise UserError(f"variables: {path} is {flat[path].shape}, {source}'s {model_name} has {shape}")
        arrays[theirs.name] = np.ascontiguousarray(theirs.layout.to_theirs(flat[path]))
    return arrays
