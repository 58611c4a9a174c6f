"""Compares the input pipeline of a recipe with other libraries' on the same files (`benchmark --data --vs=torch,…`).

`make_workload` describes the work, `our_side` and `peer_sides` the processes that do it (input_sides.py);
`paired.compare` runs them, `find_problems` and `format_text` check and format the result.
"""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from inception_jax import schema
from inception_jax.benchmarks import measure, versus, versus_report
from inception_jax.benchmarks.paired import Side
from inception_jax.data import storage
from inception_jax.data.pipeline import TrainPipeline
from inception_jax.data.records import ConcatenatedRecords, FileRecords, RecordSource
from inception_jax.errors import UserError
from inception_jax.runs.formatting import format_rate
from inception_jax.runs.tables import format_table

PEERS = {"torch": ("torch_pillow", "torch_io"), "grain": ("grain_pillow", "grain_opencv"), "tf_data": ("tf_data",)}
"""{value of --vs: its sides}."""
KIND = "input"
_SAME = {  # {field: the value with which the libraries do the same work}
    "model.in_channels": 3,
    "data.labels": "single",
    "data.sampling": "uniform",
    "data.decode": "exact",
    "data.cache_mb": 0,
    "augmentation.rule": "area_aspect",
    "augmentation.interpolation": "bilinear",
    "augmentation.policy": "none",
}
_ON_DEVICE = ("photometric", "lighting", "erasing_probability", "mixup_alpha", "cutmix_alpha")
_SMOOTH = "smooths where it shrinks, as Pillow does (ours interpolates between four pixels)"
_DIFFERENCES = {
    "torch_pillow": f"decodes all rows; {_SMOOTH}; batches are [N, 3, height, width]; worker processes alone",
    "torch_io": f"decodes all rows; {_SMOOTH}; batches are [N, 3, height, width]; worker processes alone",
    "grain_pillow": f"decodes all rows; {_SMOOTH}; its windows are chosen by our code",
    "grain_opencv": "decodes all rows; its windows are chosen by our code",
    "tf_data": "decodes the crop alone, and JPEGs only; threads alone; its windows are smaller on average, because "
    "sample_distorted_bounding_box draws their height and not their area",
}


def make_workload(config: ConfigDict, pipeline: TrainPipeline, seconds: float, folder: str) -> dict[str, Any]:
    """Describes the work of every side, as JSON values.

    Args:
      config: of the recipe.
      pipeline: of its training split.
      seconds: duration of a block, without its start.
      folder: where the paths and labels of the images are written; the sides read them there.

    Raises:
      UserError: the data are not files, or the recipe has what the other libraries do not do.
    """
    dataset, fields = pipeline.dataset, config.augmentation
    for name, needed in _SAME.items():
        section, field = name.split(".")
        if (found := config[section][field]) != needed:
            raise UserError(
                f"--data --vs: config.{name} = {found!r}: the other libraries do not do the same; to compare without "
                f"it: --config.{name}={needed}"
            )
    files = Path(folder, "files.json")
    paths = _paths(dataset.source, range(len(dataset.source)), dataset.name)
    files.write_text(json.dumps({"paths": paths, "labels": dataset.labels().tolist()}))
    default = schema.SCHEMA["augmentation"]
    return {
        "kinds": [KIND],
        "dataset": dataset.name,
        "split": dataset.split,
        "images": len(paths),
        "files": str(files),
        "batch_size": pipeline.batch_size,
        "image_size": pipeline.image_size,
        "area": list(fields.area),
        "aspect": list(fields.aspect),
        "flip": fields.flip,
        "threads": pipeline.threads,
        "workers": pipeline.workers,
        "ahead": pipeline.prefetch + 3 * pipeline.threads * max(1, pipeline.workers),
        "seconds": seconds,
        "processor": measure.processor(),
        "on_device": {"normalization": config.data.normalization}
        | {name: fields[name] for name in _ON_DEVICE if fields[name] != default[name].default},
    }


def _paths(source: RecordSource, records: range, name: str) -> list[str]:
    """The paths of records, in their order."""
    if isinstance(source, ConcatenatedRecords):
        return [path for part in source.parts for path in _paths(part.source, range(part.start, part.stop), name)]
    if isinstance(source, FileRecords) and not storage.is_remote(source.folder):
        return [source.path(record) for record in records]
    raise UserError(
        f"--data --vs: {name}: the other libraries read image files on this machine: --config.data.name=folder:PATH or "
        "list:FILE"
    )


def our_side(pipeline: TrainPipeline, folder: str, name: str = "ours") -> Side:
    """The side of a pipeline, which is written to a folder, in this interpreter."""
    file = Path(folder, f"{name}.pickle")
    file.write_bytes(pickle.dumps(pipeline))
    return _side(
        name, (sys.executable, "-m", "inception_jax.benchmarks.input_sides", "--side=ours", f"--pipeline={file}")
    )


def peer_sides(peers: Sequence[str], torch_python: str | None = None, tf_python: str | None = None) -> list[Side]:
    """The sides of other libraries.

    Args:
      peers: of `PEERS`.
      torch_python: interpreter that has PyTorch and torchvision; None: this one.
      tf_python: interpreter that has TensorFlow; None: this one.
    """
    pythons = {"torch": torch_python, "tf_data": tf_python}
    return [
        _side(name, versus.module_command(pythons.get(peer), "input_sides", f"--side={name}"))
        for peer in peers
        for name in PEERS[peer]
    ]


def _side(name: str, command: tuple[str, ...]) -> Side:
    # No side has work for a GPU, whose memory TensorFlow would take.
    environment = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1", "PYTHONWARNINGS": "default"}
    return Side(name, command, environment, kinds=(KIND,))


def find_problems(result: dict[str, Any], peers: Sequence[str] = ()) -> list[str]:
    """Finds reasons why a comparison is not valid.

    Args:
      result: from `paired.compare`.
      peers: as in `peer_sides`; one of which no side is available is such a reason.

    Returns:
      One line per reason; [] for a valid comparison.
    """
    task, sides, lines = result["task"], result["sides"], []
    for name, side in sides.items():
        if "error" in side and side["kind"] != "unavailable":
            lines.append(f"excluded: {side['error']}")
        elif "error" not in side:
            n, s = task["batch_size"], task["image_size"]
            batches = [f"uint8 {[n, s, s, 3]}", f"uint8 {[n, 3, s, s]}"]
            if (found := side["prepared"]["batch"]) not in batches:
                lines.append(f"{name}: its batches are {found}, not {batches[0]}")
    for peer in peers:
        if all(sides[name].get("kind") == "unavailable" for name in PEERS[peer]):
            lines.append(f"--vs={peer}: none of its sides is available")
    return lines


def format_text(result: dict[str, Any]) -> str:
    """Formats a comparison as aligned text: title, table, notes."""
    task, sides = result["task"], result["sides"]
    rows = [("side", "images/s", "per CPU-second", "time", "p10", "p90", "CPU time", "p10", "p90")]
    for name, side in sides.items():
        if KIND in side:
            found, batch = side[KIND], task["batch_size"]
            ratios = [f"{found[kind][key]:.3f}" for kind in ("ratio", "cpu_ratio") for key in ("median", "p10", "p90")]
            rates = [format_rate(found["images_per_second"]), format_rate(batch / found["cpu_seconds"])]
            rows.append((name, *rates, *ratios))
    how = f"{task['workers']} workers of {task['threads']} threads" if task["workers"] else f"{task['threads']} threads"
    title = (
        f"{task['dataset']} [{task['split']}], {task['images']:,} images, {task['image_size']} px, batch "
        f"{task['batch_size']}, {how}, on {task['processor']}: {result['rounds']} rounds of {task['seconds']:g} s; "
        f'"time" of an image is relative to {result["baseline"]} in the same round; medians, 10th and 90th percentiles'
    )
    return "\n".join([title, format_table(rows, "l" + "r" * 8), *_notes(result)])


def _notes(result: dict[str, Any]) -> list[str]:
    """What is the same on all sides, what differs, and what is not there."""
    task, sides, least = result["task"], result["sides"], result["task"]["image_size"]
    notes = versus_report.note_settings(result)
    flip = ", flipped with probability 1/2" if task["flip"] else ""
    area, aspect = (" to ".join(f"{end:.3g}" for end in task[name]) for name in ("area", "aspect"))
    notes.append(
        "all sides: these files and their labels, each once per epoch in random order; a random crop of area "
        f"{area} and aspect {aspect}, resized by bilinear interpolation{flip}; uint8 batches; as many threads or "
        "worker processes in all"
    )
    device = ", ".join(f"{name} {value}" for name, value in task["on_device"].items())
    notes.append(f"no side: {device}; our step does this on the device")
    notes.append(
        "ours decodes a JPEG down to the end of its crop; it enlarges an image whose shorter side is below "
        f"{least} pixels before it crops, no other side does"
    )
    notes += [f"{name}: {text}" for name, text in _DIFFERENCES.items() if KIND in sides.get(name, {})]
    return notes + [f"not available: {side['error']}" for side in sides.values() if side.get("kind") == "unavailable"]
