"""Measures a training step of each network of the study, and takes the compiler's plan of its memory.

    taskset --cpu-list 0 python experiments/family/cost.py

Writes cost.json beside this file, from which `studies.py --report` takes its columns. All networks are compiled first
(a quarter of an hour of one core); then each takes five steps in turn, in nine rounds. Times are of the processor, user
and system, all threads.
"""

from __future__ import annotations

import json
import platform
import runpy
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax

import inception_jax
from inception_jax.benchmarks import memory, workload
from inception_jax.benchmarks.steps import Bench
from inception_jax.training import parallel

FOLDER = Path(__file__).parent
STEPS, ROUNDS = 5, 9


def main() -> None:
    """Compiles and measures every variant; writes cost.json."""
    sys.path.insert(0, str(FOLDER.parent))  # of studies.py, which the study imports
    study = runpy.run_path(str(FOLDER / "study.py"))
    parallel.enable_compilation_cache()
    benches: dict[str, Bench] = {}
    for name, fields in study["VARIANTS"].items():
        config = inception_jax.from_config(study["RECIPE"], study["FIELDS"] | fields).config
        benches[name] = Bench(workload.build_setup(config))
        benches[name].compile("train")
        benches[name].run("train", 2)
        print(name, memory.program_memory(benches[name].compiled["train"]), file=sys.stderr, flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in benches}
    for _ in range(ROUNDS):
        for name, bench in benches.items():
            start = time.process_time()
            bench.run("train", STEPS)
            seconds[name].append((time.process_time() - start) / STEPS)
    content: dict[str, Any] = {"jax": jax.__version__, "machine": platform.machine(), "variants": {}}
    for name, bench in benches.items():
        content["variants"][name] = {
            "milliseconds": [round(1e3 * value, 2) for value in seconds[name]],
            "median_milliseconds": round(1e3 * statistics.median(seconds[name]), 1),
            "memory": memory.program_memory(bench.compiled["train"]),
        }
    (FOLDER / "cost.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
