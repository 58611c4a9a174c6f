"""Measures the memory that `score` takes at most, at two numbers of images; writes JSON.

    python experiments/score_rate/memory.py --network=RUN --output=experiments/score_rate/memory.json

See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np

CASES = {"fid": "fid", "kid": "kid", "precision and recall": "precision,recall"}
SIDE = 8  # pixels: of a mapped file of images, the pages that were read count as memory of the process


def peak(arguments: list[str]) -> float:
    """Runs `score`; returns its largest resident memory, in MB."""
    process = subprocess.Popen(
        [sys.executable, "-m", "inception_jax.score", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise SystemExit(errors.decode())
    return usage.ru_maxrss * 1024 / 1e6


def main() -> None:
    """Measures every case once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--network", required=True, help="the workdir of a run with a small network")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--counts", type=int, nargs=2, default=(1000, 8000), metavar="N")
    flags = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in flags.counts:
            random = np.random.default_rng(count)
            sets = []
            for role in ("real", "fake"):
                sets.append(f"{folder}/{role} {count}.npz")
                np.savez(sets[-1], arr_0=random.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8))
            for name, metrics in CASES.items():
                given = [*sets, f"--metrics={metrics}", f"--network={flags.network}", "--batch_size=100"]
                found.setdefault(name, {})[str(count)] = peak(given)
                if name != "fid":
                    cached = [*given, f"--cache={folder}/cache {name} {count}"]
                    found.setdefault(f"{name}, --cache", {})[str(count)] = peak(cached)
                print(count, name, found[name], file=sys.stderr, flush=True)
    versions = {name: metadata.version(name) for name in ("jax", "numpy")}
    result = {"megabytes": found, "side": SIDE, "versions": versions}
    flags.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
