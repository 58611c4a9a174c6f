"""Fine-tunes a digits run and imported weights on photographs, with three ways to have batch-norm statistics.

    python experiments/fine_tuning/fine_tuning.py --images=runs/photographs --workdir=runs/fine_tuning \
        --output=experiments/fine_tuning/results.json

See README.md beside this file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

# torchvision's form of the network, whose weights torchvision's file format can hold; small images.
NETWORK = {
    "model.name": "inception_v1_bn",
    "model.options.five_by_five": 3,
    "model.options.pool4_window": 2,
    "model.options.conv1_padding": "caffe",
    "model.options.pool_rounding": "caffe",
    "model.options.aux_pool": "adaptive",
    "data.image_size": 64,
    "data.threads": 2,
    "logging.tensorboard": False,
}
DIGITS = NETWORK | {
    "num_epochs": 3.0,
    "model.bn_initial_fraction": 0.01,
    "data.normalization": "inception",
    "logging.pictures": False,
}
FINE_TUNING = NETWORK | {"num_steps": 60, "evaluation.every_epochs": 4.0, "logging.pictures": False}
# A fraction of 0.99 leaves the recipe's largest momentum, 0.99, as it is: the recipe as it was before.
STATISTICS: dict[str, dict[str, Any]] = {
    "momentum 0.99": {"model.bn_initial_fraction": 0.99},
    "momentum by the length (the recipe)": {},
    "momentum 0.99, statistics of 320 training images": {
        "model.bn_initial_fraction": 0.99,
        "evaluation.batch_norm_images": 320,
    },
}

# The recipe freezes most of the network, batch norm included; without that all layers have new statistics.
FREEZING: dict[str, dict[str, Any]] = {"up to 4e (the recipe)": {}, "nothing": {"optimizer.freeze": "()"}}


def run(verb: str, *arguments: str) -> None:
    """Runs a command to its end."""
    command = [sys.executable, "-m", f"inception_jax.{verb}", *arguments]
    if code := subprocess.run(command, stdout=sys.stderr).returncode:
        raise SystemExit(f"{verb} {' '.join(arguments)}: exit code {code}")


def train(recipe: str, workdir: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """Trains, continues, or reads a finished run; returns the content of its result.json."""
    run("train", f"--config={recipe}", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in fields.items()))
    return json.loads((workdir / "result.json").read_text())


def make_sources(workdir: Path) -> dict[str, Path]:
    """Trains the digits run, writes its weights in torchvision's format and imports that file; {name: workdir}."""
    digits, file, imported = workdir / "digits", workdir / "torchvision.safetensors", workdir / "imported"
    train("configs/digits.py", digits, DIGITS)
    if not file.exists():
        run("convert", f"--workdir={digits}", "--to=torchvision", f"--output={file}")
    if not imported.exists():
        run(
            "convert",
            f"--weights={file}",
            "--model=inception_v1_bn",
            "--source=torchvision",
            "--image_size=64",
            "--set=num_classes=10",
            "--data=digits",
            f"--output={imported}",
        )
    return {"digits run": digits, "imported file": imported}


def main() -> None:
    """Makes the runs that are not there yet, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--images", type=Path, required=True, help="the folder that photographs.py made")
    parser.add_argument("--workdir", type=Path, required=True, help="holds the runs; finished ones are not repeated")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the results")
    flags = parser.parse_args()
    flags.workdir.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")},
        "fields": {name: str(value) for name, value in FINE_TUNING.items()},
        "runs": [],
    }
    for source, checkpoint in make_sources(flags.workdir).items():
        for frozen, statistics in itertools.product(FREEZING, STATISTICS):
            if frozen == "nothing" and source != "digits run":
                continue  # the imported weights are those of the digits run
            name = f"{source} {list(FREEZING).index(frozen)} {list(STATISTICS).index(statistics)}".replace(" ", "_")
            fields = FINE_TUNING | FREEZING[frozen] | STATISTICS[statistics] | {"initialize.checkpoint": checkpoint}
            found = train(f"configs/fine_tuning.py:{flags.images}", flags.workdir / name, fields)
            result["runs"].append(
                {
                    "source": source,
                    "frozen": frozen,
                    "statistics": statistics,
                    "train_top1": found["metrics"]["train"]["top1_main"],
                    "test": found["metrics"]["test"],
                    "seconds": found["wall_seconds"],
                    "fingerprint": found["fingerprint"],
                }
            )
            flags.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
