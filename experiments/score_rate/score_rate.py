"""Measures how many images per second `score` and pytorch-fid turn into features on this CPU, in turn; writes JSON.

    python experiments/score_rate/score_rate.py --tool_python=PATH --output=FILE.json

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
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np

HERE = Path(__file__).parent
OURS, TOOL = "score", "pytorch-fid"


def write_images(folder: Path, count: int, side: int) -> None:
    """Smooth images with noise as PNG files, as a generator's samples are stored."""
    random = np.random.RandomState(0)
    for k in range(count):
        smooth = cv2.resize(random.uniform(0, 255, (8, 8, 3)), (side, side), interpolation=cv2.INTER_CUBIC)
        noisy = smooth + random.standard_normal((side, side, 3)) * 8
        cv2.imwrite(str(folder / f"{k:05}.png"), noisy.clip(0, 255).astype(np.uint8))


def write_weights(path: Path) -> None:
    """Seeded weights of the FID network under pytorch-fid's names: the published ones take the same time."""
    from inception_jax.parity.seeded_weights import seeded_arrays
    from inception_jax.pretrained.publishers import registry

    variant = registry.get_variant("inception_v3", "pytorch-fid")
    np.savez(path, **seeded_arrays(variant, aux_heads=False, dtype=np.float32))


def serve(weights: str, folder: str, batch_size: int) -> None:
    """Ours: for each line of standard input, computes all features; prints processor seconds and seconds."""
    from inception_jax import load_pretrained
    from inception_jax.features import fid_network, generative_metrics, image_sets

    network = fid_network.feature_network(load_pretrained(weights), TOOL)
    images, options = image_sets.open_set(folder), generative_metrics.Options(batch_size=batch_size)
    # The statistics of the real images are known, as in practice: features of one set, and their mean and covariance.
    generative_metrics.measure(images, "fake", ["fid"], network, options=options)
    print(json.dumps({name: metadata.version(name) for name in ("jax", "jaxlib", "numpy")}), flush=True)
    for _ in sys.stdin:
        begin = time.process_time(), time.perf_counter()
        generative_metrics.measure(images, "fake", ["fid"], network, options=options)
        print(json.dumps([time.process_time() - begin[0], time.perf_counter() - begin[1]]), flush=True)


def measure(flags: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Starts both sides, and asks them in turn."""
    (folder / "images").mkdir()
    write_images(folder / "images", flags.images, flags.side)
    write_weights(folder / "weights.npz")
    given = [str(folder / "weights.npz"), str(folder / "images"), str(flags.batch_size)]
    commands = {
        OURS: [sys.executable, str(Path(__file__)), "--serve", *given],
        TOOL: [flags.tool_python, "-W", "ignore", str(HERE / "pytorch_fid_side.py"), *given],
    }
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    sides = {name: subprocess.Popen(command, **pipes) for name, command in commands.items()}
    versions = {name: json.loads(side.stdout.readline()) for name, side in sides.items()}
    rounds = []
    for number in range(flags.rounds):
        found = {}
        for name in (OURS, TOOL) if number % 2 == 0 else (TOOL, OURS):
            print("go", file=sides[name].stdin, flush=True)
            found[name] = [seconds / flags.images for seconds in json.loads(sides[name].stdout.readline())]
        rounds.append(found)
        print(number, found, file=sys.stderr, flush=True)
    for side in sides.values():
        side.stdin.close()
        side.wait()
    return {"versions": versions, "rounds": rounds}


def summary(rounds: list[dict[str, list[float]]]) -> dict[str, Any]:
    """Medians over the rounds, and of the ratios within a round."""
    found: dict[str, Any] = {}
    for place, unit in enumerate(("processor_seconds_per_image", "seconds_per_image")):
        found[unit] = {name: statistics.median(one[name][place] for one in rounds) for name in (OURS, TOOL)}
        found[f"{unit}_ratio"] = statistics.median(one[OURS][place] / one[TOOL][place] for one in rounds)
    return found


def main() -> None:
    """Measures both sides in rounds, the first one in turn."""
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--tool_python", required=True, help="an interpreter that has pytorch-fid")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=64, help="of a round, a multiple of the batch")
    parser.add_argument("--side", type=int, default=256, help="height and width of the files, in pixels")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=4)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(flags, Path(folder))
    settings = {"images": flags.images, "side": flags.side, "batch_size": flags.batch_size}
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "date": time.strftime("%Y-%m-%d")}
    result = {**settings, **machine, **found, **summary(found["rounds"])}
    flags.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(summary(found["rounds"]), indent=2))


if __name__ == "__main__":
    main()
