"""Measures the input pipeline beside tf.data, PyTorch's DataLoader and plain Grain, each in turn; writes raw JSON.

    python experiments/input_rate/input_rate.py --images=runs/jpegs --output=experiments/input_rate/results.json \
        [--tf_python=PATH] [--torch_python=PATH]

See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKAGES = ("opencv-python-headless", "numpy", "grain", "jax")


def run(command: list[str]) -> str:
    """Runs a command to its end; returns its standard output."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def ours(images: Path, workers: int, seconds: float) -> dict[str, float]:
    """`benchmark --data` with two threads, or with two workers of one thread."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.json"
        fields = {
            "data.name": f"folder:{images}",
            "data.eval_split": "train",
            "data.workers": workers,
            "data.threads": 1 if workers else 2,
            "data.image_size": 224,
            "batch_size": 64,
        }
        command = [sys.executable, "-m", "inception_jax.benchmark", "--config=configs/inception_v1_bn_imagenet.py"]
        command += ["--data", f"--seconds={seconds}", f"--json={file}", "--devices=1"]
        run(command + [f"--config.{name}={value}" for name, value in fields.items()])
        measured = json.loads(file.read_text())["input"]
    return {name: measured[name] for name in ("images_per_second", "images_per_cpu_second")}


def tf_data(python: str, images: Path, seconds: float) -> dict[str, float]:
    """One measurement of tf_data.py."""
    command = [python, str(HERE / "tf_data.py"), f"--images={images / 'train'}", f"--seconds={seconds}"]
    return json.loads(run(command).splitlines()[-1])


def peer(python: str, side: str, images: Path, seconds: float) -> dict[str, Any]:
    """One measurement of peers.py; {"unavailable": reason} where its library does not work."""
    command = [python, str(HERE / "peers.py"), f"--side={side}", f"--images={images / 'train'}", f"--seconds={seconds}"]
    return json.loads(run(command).splitlines()[-1])


def main() -> None:
    """Measures all sides in rounds, in an order that rotates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--images", type=Path, required=True, help="what corpus.py made")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tf_python", help="an interpreter with TensorFlow")
    parser.add_argument("--torch_python", help="an interpreter with PyTorch and torchvision")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    flags = parser.parse_args()
    sides: dict[str, Callable[[], dict[str, Any]]] = {
        "ours, 2 threads": lambda: ours(flags.images, 0, flags.seconds),
        "ours, 2 workers": lambda: ours(flags.images, 2, flags.seconds),
    }
    if flags.tf_python:
        sides["tf.data, 2 threads"] = lambda: tf_data(flags.tf_python, flags.images, flags.seconds)
    peers = {"Grain, Pillow, 2 threads": "grain_pillow", "Grain, OpenCV, 2 threads": "grain_opencv"}
    pythons = dict.fromkeys(peers, sys.executable)
    if flags.torch_python:
        of_torch = {"PyTorch, Pillow, 2 workers": "torch_pillow", "PyTorch, torchvision.io, 2 workers": "torch_io"}
        peers, pythons = peers | of_torch, pythons | dict.fromkeys(of_torch, flags.torch_python)
    for name, side in peers.items():
        sides[name] = lambda name=name, side=side: peer(pythons[name], side, flags.images, flags.seconds)
    names, rounds = list(sides), []
    for number in range(flags.rounds):
        turn = number % len(names)
        rounds.append({name: sides[name]() for name in names[turn:] + names[:turn]})
        print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
        result = {
            "rounds": rounds,
            "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
            "python": platform.python_version(),
            "versions": {package: metadata.version(package) for package in PACKAGES},
        }
        flags.output.write_text(json.dumps(result, indent=1) + "\n")
    for name in names:
        if missing := [row[name]["unavailable"] for row in rounds if "unavailable" in row[name]]:
            print(f"{name:34s} not measured: {missing[0]}")
            continue
        rates = [row[name]["images_per_cpu_second"] for row in rounds]
        ratios = [row[name]["images_per_cpu_second"] / row[names[0]]["images_per_cpu_second"] for row in rounds]
        print(
            f"{name:34s} {statistics.median(rates):6.0f} images per CPU-second ({min(rates):.0f} to {max(rates):.0f}), "
            f"{statistics.median(ratios):.2f} of the first row's"
        )


if __name__ == "__main__":
    main()
