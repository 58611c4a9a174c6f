"""Compares steps of one network under values of a config field, by processor seconds.

    python experiments/step_time/levers.py --model=inception_v4 --batch_size=2 --field=model.convolution \
        --values=exact,fast [--kind=train] [--set FIELD=VALUE …] [--rounds=8] [--json=FILE]

All steps are compiled first and then run in turn (A B A B), in one process: one step each, or where one value takes
several in one execution (parallel.steps_per_execution) as many of each. Processor seconds (user and system, of all
threads) mean something on a machine that others use, too; seconds on the wall only where nothing else runs. See
README.md beside this file.
"""

from __future__ import annotations

import argparse
import ast
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from inception_jax.benchmarks.steps import Bench
from inception_jax.benchmarks.workload import build_setup, config_of_model, set_fields


def main() -> None:
    """Measures, prints a line per value and writes all numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, help="name of a network")
    parser.add_argument("--image_size", type=int, help="in pixels; default: the network's")
    parser.add_argument("--batch_size", type=int, required=True, help="examples per step")
    parser.add_argument("--field", required=True, help="a field of the config, such as model.convolution")
    parser.add_argument("--values", required=True, help="its values, separated by commas; the first is the baseline")
    parser.add_argument("--kind", choices=("train", "inference"), default="train", help="of the steps")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="another field, for all")
    parser.add_argument("--rounds", type=int, default=8, help="turns per value")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    flags = parser.parse_args()
    values = flags.values.split(",")
    benches, compilation = {}, {}
    for value in values:
        config = config_of_model(flags.model)
        fields = {"batch_size": flags.batch_size, "data.image_size": flags.image_size, "parallel.devices": 1}
        others = dict(other.split("=", 1) for other in flags.set)
        set_fields(config, fields | {name: _parse(text) for name, text in (others | {flags.field: value}).items()})
        benches[value] = Bench(build_setup(config))
        start = time.process_time()
        benches[value].compile(flags.kind)
        compilation[value] = time.process_time() - start
    turn = max(bench.steps_per_call for bench in benches.values()) if flags.kind == "train" else 1
    for bench in benches.values():
        bench.run(flags.kind, turn)
    seconds: dict[str, list[float]] = {value: [] for value in values}
    walls: dict[str, list[float]] = {value: [] for value in values}
    for _ in range(flags.rounds):
        for value, bench in benches.items():
            start, wall = time.process_time(), time.perf_counter()
            bench.run(flags.kind, turn)
            seconds[value].append((time.process_time() - start) / turn)
            walls[value].append((time.perf_counter() - wall) / turn)
    losses = {value: bench.pop_losses() for value, bench in benches.items()}
    for value in values:
        ratios = np.divide(seconds[value], seconds[values[0]])
        low, middle, high = np.quantile(ratios, (0.1, 0.5, 0.9))
        wall = np.median(np.divide(walls[value], walls[values[0]]))
        print(
            f"{flags.model} batch {flags.batch_size}, {flags.field}={value}: {1e3 * np.median(seconds[value]):,.0f} ms "
            f"of processor time, {middle:.3f} ({low:.3f}–{high:.3f}) of {values[0]}; on the wall {wall:.3f}; "
            f"compiled in {compilation[value]:.0f} s of processor time"
            + (f"; loss {losses[value][-1]:.6f}" if losses[value] else "")
        )
    if flags.json:
        content = {
            "model": flags.model,
            "image_size": flags.image_size,
            "batch_size": flags.batch_size,
            "field": flags.field,
            "kind": flags.kind,
            "set": flags.set,
            "jax": jax.__version__,
            "processor_seconds": seconds,
            "wall_seconds": walls,
            "processor_seconds_of_compilation": compilation,
            "losses": losses,
        }
        flags.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _parse(text: str) -> Any:
    """A value of a field as the command line has it: a number, True or False, or else a text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    main()
