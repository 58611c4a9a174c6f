"""Trains three small networks on the digits and evaluates them by every protocol, each by itself and together.

    python experiments/evaluation_protocols/evaluation_protocols.py

Runs and predictions are written below runs/evaluation_protocols, the results to results.json beside this file. A second
start continues the runs and leaves out what is there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RUNS = Path("runs/evaluation_protocols")
SEEDS = (0, 1, 2)
PROTOCOLS = ("single", "10-crop", "12-crop", "144-crop")
FIELDS = {"model.width_multiplier": 0.25, "num_epochs": 4.0, "logging.pictures": False}
KEPT = ("top1", "top5", "loss", "expected_calibration_error", "count", "top1_interval_95")


def run(verb: str, *flags: str) -> str:
    """Runs a command of the package; returns what it prints."""
    command = [sys.executable, "-m", f"inception_jax.{verb}", *flags]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """Trains, evaluates and writes results.json."""
    overrides = [f"--config.{path}={value}" for path, value in FIELDS.items()]
    for seed in SEEDS:
        run("train", "--config=configs/digits.py", f"--config.seed={seed}", *overrides, f"--workdir={RUNS / str(seed)}")
    results: dict[str, Any] = {"seeds": SEEDS, "fields": FIELDS, "protocols": {}}
    for protocol in PROTOCOLS:
        files = []
        for seed in SEEDS:
            files.append(RUNS / f"{protocol}_{seed}.npz")
            if not files[-1].exists():
                flags = [f"--protocol={protocol}", f"--save_predictions={files[-1]}", "--batch_size=144", "--json"]
                run("evaluate", f"--workdir={RUNS / str(seed)}", *flags)
        found = json.loads(run("evaluate", f"--from={','.join(map(str, files))}", "--json"))
        results["environment"] = found["environment"]
        results["protocols"][protocol] = {
            "networks": [{name: member[name] for name in ("top1", "loss")} for member in found["members"]],
            "ensemble": {name: found[name] for name in KEPT},
        }
    (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    for protocol, row in results["protocols"].items():
        single = [100 * network["top1"] for network in row["networks"]]
        shown = ", ".join(f"{value:.2f}" for value in single)
        print(f"{protocol}: {shown}; mean {sum(single) / len(single):.2f}; all {100 * row['ensemble']['top1']:.2f}")


if __name__ == "__main__":
    main()
