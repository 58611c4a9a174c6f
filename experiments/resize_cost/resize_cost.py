"""Fine-tunes on photographs that `data.prepare --resize=N` has stored smaller, and compares with the originals.

    python experiments/fine_tuning/photographs.py --block=120 --crop=112 --output=runs/photographs_112
    python experiments/resize_cost/resize_cost.py --images=runs/photographs_112 --workdir=runs/resize_cost \
        --output=experiments/resize_cost/results.json

See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

NAME = "photographs"
SIZE = 64  # the network's input, in pixels
# Of crops of 112 pixels, as photographs of 375 pixels are for an input of 214: N / SIZE is 1 to 1.42.
STORED = {
    "original": None,
    "91, quality 95": (91, "95"),  # as 320 for an input of 224
    "73, quality 95": (73, "95"),  # as 256
    "73, raw": (73, "raw"),
    "64, quality 95": (64, "95"),  # as 224
}
SEEDS = (0, 1)
NETWORK = {
    "model.name": "inception_v1_bn",
    "model.width_multiplier": 0.5,
    "data.image_size": SIZE,
    "data.threads": 2,
    "logging.tensorboard": False,
    "logging.pictures": False,
    "checkpoint.every_epochs": 100.0,
}
DIGITS = NETWORK | {"num_epochs": 3.0, "model.bn_initial_fraction": 0.01, "data.normalization": "inception"}
FINE_TUNING = NETWORK | {"num_steps": 60, "evaluation.every_epochs": 100.0, "optimizer.freeze": "()"}


def run(verb: str, *arguments: str) -> None:
    """Runs a command to its end."""
    command = [sys.executable, "-m", f"inception_jax.{verb}", *arguments]
    if code := subprocess.run(command, stdout=sys.stderr).returncode:
        raise SystemExit(f"{verb} {' '.join(arguments)}: exit code {code}")


def overrides(fields: dict[str, Any]) -> list[str]:
    """The fields as flags."""
    return [f"--config.{path}={value}" for path, value in fields.items()]


def train(recipe: str, workdir: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """Trains, continues, or reads a finished run; returns the content of its result.json."""
    run("train", f"--config={recipe}", f"--workdir={workdir}", *overrides(fields))
    return json.loads((workdir / "result.json").read_text())


def prepare(images: Path, data_dir: Path) -> dict[str, str]:
    """Prepares the data set in every size; {name in `STORED`: data.name}."""
    names = {}
    for name, stored in STORED.items():
        flags = [] if stored is None else [f"--resize={stored[0]}", f"--quality={stored[1]}"]
        run("data.prepare", "folder", f"--name={NAME}", f"--source={images}", f"--data_dir={data_dir}", *flags)
        coding = "" if stored is None else f"/resize_{stored[0]}_{'raw' if stored[1] == 'raw' else f'jpeg{stored[1]}'}"
        names[name] = NAME + coding
    return names


def main() -> None:
    """Makes the runs that are not there yet, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--images", type=Path, required=True, help="the folder that photographs.py made")
    parser.add_argument("--workdir", type=Path, required=True, help="holds the runs; finished ones are not repeated")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the results")
    flags = parser.parse_args()
    data_dir = flags.workdir.absolute() / "data"
    data_dir.mkdir(parents=True, exist_ok=True)
    names = prepare(flags.images, data_dir)
    digits = flags.workdir / "digits"
    train("configs/digits.py", digits, DIGITS)
    runs: list[dict[str, Any]] = []
    for seed in SEEDS:
        for stored, name in names.items():
            recipe = f"configs/fine_tuning.py:{flags.images}"
            workdir = flags.workdir / f"{stored}_{seed}".replace(", ", "_").replace(" ", "")
            data = {"data.data_dir": data_dir, "initialize.checkpoint": digits, "seed": seed}
            fields = FINE_TUNING | data | {"data.name": name}
            found = train(recipe, workdir, fields)
            on_originals = found["metrics"]["test"]["raw"]
            if stored != "original":
                evaluated = workdir / "originals"
                fields |= {"data.name": names["original"]}
                if not evaluated.exists():
                    run(
                        "evaluate", f"--config={recipe}", *overrides(fields), f"--checkpoint={workdir}",
                        f"--workdir={evaluated}", "--weights=raw",
                    )  # fmt: skip
                (file,) = evaluated.glob("evaluations/*/result.json")
                on_originals = json.loads(file.read_text())
            runs.append(
                {
                    "stored": stored,
                    "seed": seed,
                    "train_loss": found["metrics"]["train"]["loss_main"],
                    "test_stored": _metrics(found["metrics"]["test"]["raw"]),
                    "test_originals": _metrics(on_originals),
                    "fingerprint": found["fingerprint"],
                }
            )
            result = {
                "versions": {package: metadata.version(package) for package in ("jax", "jaxlib", "flax", "optax")},
                "fields": {path: str(value) for path, value in FINE_TUNING.items()},
                "bytes": {key: _bytes(data_dir / value) for key, value in names.items()},
                "runs": runs,
            }
            flags.output.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(table(runs)))


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    return {name: values[name] for name in ("top1", "loss", "count")}


def _bytes(folder: Path) -> int:
    """Bytes of the records of a data set; of the original one, which is above the others, of its own version alone."""
    return sum(path.stat().st_size for path in folder.glob("[0-9]*/*.array_record*"))


def table(runs: list[dict[str, Any]]) -> list[str]:
    """The rows of the page's table: means over the seeds, and differences to the originals seed by seed."""
    lines = []
    for stored in STORED:
        own = [run for run in runs if run["stored"] == stored]
        base = [run for run in runs if run["stored"] == "original"]
        cells = [stored]
        for where in ("test_stored", "test_originals"):
            for metric, scale in (("top1", 100), ("loss", 1)):
                values = [scale * run[where][metric] for run in own]
                pairs = zip(values, base, strict=True)
                differences = [value - scale * run[where][metric] for value, run in pairs]
                cells.append(f"{statistics.mean(values):.3g}")
                if stored != "original":
                    mean, deviation = statistics.mean(differences), statistics.stdev(differences)
                    cells[-1] += f" ({mean:+.2g} ± {deviation:.2g})"
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
