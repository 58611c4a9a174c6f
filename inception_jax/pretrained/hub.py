"""Writes a network as a folder for a model hub, and loads it back: config.json, model.safetensors, a card (README.md).

The files have the names that the Hugging Face hub expects. model.safetensors holds our variables under their paths;
config.json what is needed to build the network: the run's config, and the class names.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from inception_jax import config as configs
from inception_jax.data import resampling
from inception_jax.errors import UserError, counted, write_error
from inception_jax.evaluation import trained_network
from inception_jax.evaluation.trained_network import TrainedNetwork
from inception_jax.pretrained.catalog import all_records
from inception_jax.pretrained.workdir import FILE as PROVENANCE
from inception_jax.runs import manifest, report, result
from inception_jax.weight_files.safetensors_writer import load_safetensors, save_safetensors

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
LIBRARY = "inception_jax"


_USE = {
    "softmax": 'network.class_names[found["classes"][0, 0]]',
    "sigmoid": '[network.class_names[k] for k, p in zip(found["classes"][0], found["probabilities"][0]) if p >= 0.5]',
}
_KINDS = {"softmax": "", "sigmoid": ", any number of them in an image, each with the sigmoid of its own logit"}


def is_hub_folder(path: str | os.PathLike) -> bool:
    """Returns whether a path is a folder that `write` has written."""
    config = Path(path) / CONFIG
    return config.is_file() and (manifest.read_json_object(config) or {}).get("library_name") == LIBRARY


def load(folder: str | os.PathLike) -> TrainedNetwork:
    """Loads a network from a folder.

    Raises:
      UserError: a file is missing or damaged, or the files do not belong together.
    """
    folder = Path(folder)
    about = manifest.read_json_object(folder / CONFIG) or {}
    missing = [name for name in ("config", "class_names", "weights", "step") if name not in about]
    if missing:
        raise UserError(f"{folder / CONFIG}: no {missing[0]!r}; write the folder again with inception_jax.export")
    if about["config"].get("extensions"):  # such a folder may come from anybody: it must not say what is imported
        raise UserError(
            f"{folder / CONFIG}: config.extensions = {about['config']['extensions']}; a published folder has none"
        )
    return trained_network.build(
        configs.from_dict(about["config"]),
        load_safetensors(folder / WEIGHTS),
        about["class_names"],
        weights=about["weights"],
        step=about["step"],
        where=folder / WEIGHTS,
    )


def write(folder: str | os.PathLike, network: TrainedNetwork, workdir: str | os.PathLike) -> None:
    """Writes the folder, complete or not at all.

    Args:
      folder: new.
      network: of the run.
      workdir: of the run; the card has its results.

    Raises:
      UserError: the folder exists, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"--output={folder}: exists already; name a new folder")
    if network.config.extensions:
        raise UserError(
            f"--workdir={workdir}: its recipe has extensions ({', '.join(network.config.extensions)}), which a hub's "
            "folder does not hold; export it to onnx, stablehlo or safetensors"
        )
    new = folder.absolute().with_name(f".{folder.name}.{os.getpid()}.new")
    variables = jax.tree.map(np.asarray, network.variables)
    try:
        new.mkdir(parents=True)
        save_safetensors(new / WEIGHTS, variables, {"format": "flax", "model": network.config.model.name})
        manifest.replace_text(new / CONFIG, json.dumps(_describe(network), indent=2, ensure_ascii=False) + "\n")
        manifest.replace_text(new / CARD, _card(network, Path(workdir)))
        new.rename(folder)
    except OSError as error:
        raise write_error(folder, error) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _describe(network: TrainedNetwork) -> dict[str, Any]:
    return {
        "library_name": LIBRARY,
        "versions": manifest.versions(),
        "architecture": network.config.model.name,
        "num_classes": len(network.class_names),
        **({"problem_type": "multi_label_classification"} if network.label_columns else {}),
        **({"activation": format_activation(network)} if network.class_names else {}),
        "class_names": network.class_names,
        "image_size": network.image_size,
        "preprocessing": describe_input(network),
        "weights": network.weights,
        "step": network.step,
        "config": network.config.to_dict(),
    }


def format_input(network: TrainedNetwork) -> str:
    """Formats in one sentence how an image becomes the network's input."""
    normalization = network.input.normalization
    channels = "" if network.input.channels == 3 else f" of {counted(network.input.channels, 'channel')}"
    order = "" if normalization.channel_order == "RGB" else f", channels in the order {normalization.channel_order}"
    return (
        f"{network.image_size} x {network.image_size} pixels{channels}: {network.crop.summary(network.image_size)}; "
        f"(pixel - mean) * scale with mean {_numbers(normalization.mean)} and scale "
        f"{_numbers(normalization.scale)}{order}"
    )


def describe_input(network: TrainedNetwork) -> dict[str, Any]:
    """What `format_input` says, as plain JSON values for a program without this package.

    Returns:
      "image_size" and "channels" of the input; "steps" from the decoded image to that size, as `EvalCrop.steps`;
      "interpolation" of the resizes, the "library" and its "name" there; then pixels become
      (pixel - mean) * scale, "mean" and "scale" per channel in "channel_order".
    """
    normalization = network.input.normalization
    library, name = resampling.LIBRARIES[network.crop.interpolation]
    return {
        "image_size": network.image_size,
        "channels": network.input.channels,
        "steps": network.crop.steps(network.image_size),
        "interpolation": {"library": library, "name": name},
        "mean": list(normalization.mean),
        "scale": list(normalization.scale),
        "channel_order": normalization.channel_order,
    }


def format_activation(network: TrainedNetwork) -> str:
    """The function that turns logits into probabilities: "softmax", or "sigmoid" where images have several labels."""
    return "sigmoid" if network.label_columns else "softmax"


def _numbers(values: tuple[float, ...]) -> str:
    return f"{values[0]:.6g}" if len(set(values)) == 1 else "(" + ", ".join(f"{value:.6g}" for value in values) + ")"


def _card(network: TrainedNetwork, workdir: Path) -> str:
    """Returns the card: metadata, how to use the network, and the results and the config of the run's report."""
    name, classes = network.config.model.name, network.class_names
    some = ", ".join(classes[:10]) + (", …" if len(classes) > 10 else "")
    sections = [
        "---\n" + "\n".join(_metadata(network, workdir)) + "\n---",
        report.format_results(workdir),
        "## Use\n\n```python\nimport inception_jax\n\n"
        'network = inception_jax.load_pretrained("FOLDER")  # this folder, downloaded\n'
        'found = network.predict("image.jpg")  # {"classes": …, "probabilities": …}, the most probable first\n'
        f"{_USE[format_activation(network)]}\n```\n\n"
        f"`{WEIGHTS}` holds the {network.weights} weights after step {network.step:,} under the paths of the Flax "
        f"module `inception_jax.create_model({name!r}, …)`; `{CONFIG}` has its options.",
        f"## Input and output\n\nImages: {format_input(network)}.\n\n"
        + (
            f"{len(classes):,} classes{_KINDS[format_activation(network)]}: {some}\n\n"
            f"The network's outputs are logits; the probabilities are their {format_activation(network)}."
            if classes
            else "No classifier: the output is the features."
        ),
        *_origin(workdir),
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(network: TrainedNetwork, workdir: Path) -> Iterator[str]:
    """Yields the lines of the card's YAML; strings are JSON, which YAML contains."""
    yield f"library_name: {LIBRARY}"
    yield f"pipeline_tag: {'image-classification' if network.class_names else 'image-feature-extraction'}"
    yield "tags: [jax, flax, inception, image-classification]"
    outcome = result.read_result(workdir) or {}
    if outcome.get("steps") != network.step:
        return  # the result is of other weights
    evaluations = {
        split: by_weights[network.weights]
        for split, by_weights in outcome.get("metrics", {}).items()
        if split != "train" and network.weights in by_weights
    }
    if not evaluations:
        return
    yield f"model-index:\n- name: {json.dumps(network.config.model.name)}\n  results:"
    dataset = json.dumps(str(outcome.get("dataset")))
    for split, values in evaluations.items():
        yield "  - task: {type: image-classification}"
        yield f"    dataset: {{name: {dataset}, type: {dataset}, split: {json.dumps(split)}}}"
        if "mean_average_precision" in values:
            yield f"    metrics: [{{type: mean_average_precision, value: {values['mean_average_precision']:.6g}}}]"
        else:
            yield f"    metrics: [{{type: accuracy, value: {values['top1']:.6g}}}]"


def _origin(workdir: Path) -> Iterator[str]:
    """Yields the section about the origin of imported weights."""
    about = manifest.read_json_object(workdir / PROVENANCE)
    if about is None:
        return
    record = next((record for record in all_records() if record.name == about.get("record")), None)
    lines = [f"Imported from `{about['file']}` (sha256 {about['sha256']}), {about['source']}'s {about['model']}."]
    if record:
        lines.append(f"Published file: {record.name}, {record.url or 'address not known'}.")
        lines.append(f"Licence: {dict(record.details())['licence']}. Accuracy as published: {record.accuracy()}.")
    yield "## Origin of the weights\n\n" + "\n".join(lines)
