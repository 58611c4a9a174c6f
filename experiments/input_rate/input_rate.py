"""Measures the input pipeline beside tf.data, PyTorch's DataLoader and plain Grain, each in turn; writes raw JSON.

    python experiments/input_rate/input_rate.py --images=runs/jpegs --output=experiments/input_rate/results.json \
        [--tf_python=PATH] [--torch_python=PATH]

The sides are those of `benchmark --data --vs`; ours is there twice, with threads and with worker processes. See
README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from inception_jax import recipe_files
from inception_jax.benchmarks import input_versus, paired, workload

PACKAGES = ("opencv-python-headless", "numpy", "grain", "jax")
NAMES = {
    "tf_data": "tf.data, 2 threads",
    "grain_pillow": "Grain, Pillow, 2 threads",
    "grain_opencv": "Grain, OpenCV, 2 threads",
    "torch_pillow": "PyTorch, Pillow, 2 workers",
    "torch_io": "PyTorch, torchvision.io, 2 workers",
}


def measured(side: dict[str, Any], number: int) -> dict[str, Any]:
    """What results.json says of a side in a round."""
    if "error" in side:
        return {"unavailable": side["error"]}
    found = side[input_versus.KIND]
    rates = {
        "images_per_second": 64 / found["blocks"][number],
        "images_per_cpu_second": 64 / found["cpu_blocks"][number],
    }
    return rates | {"versions": side["prepared"]["versions"]}


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
    recipe = ["--config=configs/inception_v1_bn_imagenet.py", f"--config.data.name=folder:{flags.images}"]
    recipe += ["--config.data.eval_split=train", "--config.batch_size=64", "--config.parallel.devices=1"]
    peers = ["tf_data"] * bool(flags.tf_python) + ["grain"] + ["torch"] * bool(flags.torch_python)
    with tempfile.TemporaryDirectory() as folder:
        sides = []
        for name, workers, threads in (("ours, 2 threads", 0, 2), ("ours, 2 workers", 2, 1)):
            options = [f"--config.data.workers={workers}", f"--config.data.threads={threads}"]
            config, _ = recipe_files.load_config(recipe + options)
            pipeline = workload.build_setup(config).data.train
            sides.append(input_versus.our_side(pipeline, folder, name))
            if not workers:
                task = input_versus.make_workload(config, pipeline, flags.seconds, folder)
        sides += input_versus.peer_sides(peers, flags.torch_python, flags.tf_python)
        found = paired.compare(
            task, sides, rounds=flags.rounds, steps=2, warmup=0, log=lambda line: print(line, file=sys.stderr)
        )
    print(input_versus.format_text(found))
    excluded = [name for name, side in found["sides"].items() if "error" in side]
    result = {
        "rounds": [
            {NAMES.get(name, name): measured(found["sides"][name], number) for name in [*order, *excluded]}
            for number, order in enumerate(found["order"])
        ],
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "python": platform.python_version(),
        "versions": {package: metadata.version(package) for package in PACKAGES},
    }
    flags.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
