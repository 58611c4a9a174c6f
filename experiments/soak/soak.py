"""Interrupts a training run many times and checks that it ends with the bits of an uninterrupted run.

    python experiments/soak/soak.py --workdir=runs/soak --kills=50 --terms=10 [--config=… --config.FIELD=VALUE …]

See README.md beside this file.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from inception_jax.fault_injection import SHORT_DIGITS_RUN, InterruptedRun, ReferenceRun, ResumeFailure, RunStart

ROOT = Path(__file__).resolve().parents[2]

FLOAT64 = ["--config.model.dtype=float64", "--config.model.param_dtype=float64"]
RELATIVE_TOLERANCE = 1e-9
"""For the run over device counts, in float64: sums in another order differ, and 150 steps accumulate that."""


class Process(subprocess.Popen):
    """A process of `python -m inception_jax.train` whose stderr goes to a file."""

    def __init__(self, arguments: list[str], environment: dict[str, str], stderr_path: Path):
        self.stderr_path = stderr_path
        with open(stderr_path, "wb") as file:
            super().__init__(
                [sys.executable, "-m", "inception_jax.train", *arguments],
                cwd=ROOT,
                stderr=file,
                stdout=subprocess.DEVNULL,
                env=environment,
            )


class Soak:
    """The interrupted runs of one experiment, under one directory, with one config."""

    def __init__(self, directory: Path, recipe: list[str], seed: int):
        self.directory, self.recipe, self.seed = directory, recipe, seed

    def reference(self, name: str, extra: list[str], environment: dict[str, str]) -> ReferenceRun:
        """Runs without interruption; a finished run in that workdir is used as it is."""
        workdir = self.directory / name
        process = self._start(workdir, extra, environment)
        if process.wait():
            raise ResumeFailure(
                f"the uninterrupted run ended with exit code {process.returncode}: {process.stderr_path}"
            )
        return ReferenceRun(workdir)

    def interrupted_run(self, name: str, reference: ReferenceRun) -> InterruptedRun:
        """A run with the same config, to be interrupted."""
        workdir = self._fresh(name)
        return InterruptedRun(
            lambda: self._start(workdir, [], {}),
            _read_stderr,
            workdir,
            reference,
            random.Random(f"{self.seed} {name}"),
            log_start=_log_start,
        )

    def interrupted_run_over_devices(self, name: str, reference: ReferenceRun, counts: list[int]) -> InterruptedRun:
        """As `interrupted_run`, in float64, each start on a random number of devices and in a random mode."""
        workdir = self._fresh(name)
        generator = random.Random(f"{self.seed} {name}")

        def start() -> Process:
            flags = f"--xla_force_host_platform_device_count={generator.choice(counts)}"
            extra = [*FLOAT64, f"--config.parallel.mode={generator.choice(('jit', 'pmap'))}"]
            return self._start(workdir, extra, {"XLA_FLAGS": flags, "JAX_ENABLE_X64": "1"})

        aims = random.Random(f"{self.seed} aims of {name}")
        return InterruptedRun(start, _read_stderr, workdir, reference, aims, exact=False, log_start=_log_start)

    def _fresh(self, name: str) -> Path:
        workdir = self.directory / name
        shutil.rmtree(workdir, ignore_errors=True)
        return workdir

    def _start(self, workdir: Path, extra: list[str], environment: dict[str, str]) -> Process:
        flags = {"XLA_FLAGS": "--xla_backend_optimization_level=0 " + environment.get("XLA_FLAGS", "")}
        # One compilation cache for all: the first start fills it.
        fixed = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(self.directory / "xla")}
        self.directory.mkdir(parents=True, exist_ok=True)
        return Process(
            [*self.recipe, *extra, f"--workdir={workdir}"],
            {**os.environ, **fixed, **environment, **flags},
            workdir.with_suffix(".stderr"),
        )


def _read_stderr(process: Process) -> str:
    return process.stderr_path.read_text(errors="replace")


def _log_start(start: RunStart) -> None:
    print(
        f"aimed at {start.aim}, hit {start.hit} at step {start.step}, {start.seconds:.1f} s, "
        f"exit code {start.exit_code}",
        file=sys.stderr,
        flush=True,
    )


def summary(run: InterruptedRun, seconds: float) -> dict[str, Any]:
    """Summarizes a finished run as JSON values."""
    hits = collections.Counter(start.hit for start in run.starts if start.hit)
    return {
        "signals": run.hits(),
        "hits": dict(sorted(hits.items())),
        "starts": len(run.starts),
        "seconds": round(seconds, 1),
        "lives": [dataclasses.asdict(start) for start in run.starts],
    }


def largest_difference(mine: Path, other: Path) -> float:
    """The largest difference of the final parameters, relative to the largest value of each array."""
    import jax

    from inception_jax.checkpoints.reading import load_variables

    def leaves(workdir: Path) -> list[np.ndarray]:
        return [np.asarray(leaf) for leaf in jax.tree.leaves(load_variables(workdir, "raw"))]

    pairs = zip(leaves(mine), leaves(other), strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)) for a, b in pairs)


def main() -> int:
    """Runs what the flags ask for; returns 0 if every interrupted run was equal to the uninterrupted one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--workdir", type=Path, required=True, help="directory for the runs")
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs, and one more at the end (default 50)")
    parser.add_argument("--terms", type=int, default=10, help="SIGTERMs (default 10)")
    parser.add_argument("--device-kills", type=int, default=0, help="SIGKILLs over device counts (default 0)")
    parser.add_argument("--devices", default="1,2,4,8", help="its device counts (default 1,2,4,8)")
    parser.add_argument("--seed", type=int, default=0, help="seed of moments and delays (default 0)")
    parser.add_argument("--output", type=Path, help="JSON file to which each result is added")
    flags, train_flags = parser.parse_known_args()
    if not any(flag.startswith("--config=") for flag in train_flags):
        train_flags = [
            "--config=configs/digits.py",
            *(f"--config.{name}={value}" for name, value in SHORT_DIGITS_RUN.items()),
            *train_flags,
        ]
    soak = Soak(flags.workdir.absolute(), train_flags, flags.seed)

    setting = {
        "recipe": train_flags,
        "seed": flags.seed,
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "orbax-checkpoint")},
    }
    all_equal = True
    if flags.kills or flags.terms:
        reference = soak.reference("uninterrupted", [], {})
        setting["fingerprint"] = reference.outcome["fingerprint"]
    if flags.kills:
        run = soak.interrupted_run("killed", reference)
        result = _interrupt_and_finish(run, lambda: run.kill(flags.kills))
        all_equal &= _write_result(flags.output, setting, "SIGKILL", result)
    if flags.terms:
        run = soak.interrupted_run("terminated", reference)
        result = _interrupt_and_finish(run, lambda: run.terminate(flags.terms))
        all_equal &= _write_result(flags.output, setting, "SIGTERM", result)
    if flags.device_kills:
        reference = soak.reference("uninterrupted_float64", FLOAT64, {"JAX_ENABLE_X64": "1"})
        counts = [int(count) for count in flags.devices.split(",")]
        run = soak.interrupted_run_over_devices("killed_over_devices", reference, counts)
        result = _interrupt_and_finish(run, lambda: run.kill(flags.device_kills))
        if result["equal"]:
            result["difference"] = largest_difference(run.workdir, soak.directory / "uninterrupted_float64")
            result["equal"] = result["difference"] < RELATIVE_TOLERANCE
        all_equal &= _write_result(flags.output, setting, f"SIGKILL, {flags.devices} devices, jit and pmap", result)
    return 0 if all_equal else 1


def _write_result(output: Path | None, setting: dict[str, Any], name: str, result: dict[str, Any]) -> bool:
    """Prints the result of a run, adds it to the output file, and returns whether the run was equal."""
    print(name, {key: value for key, value in result.items() if key != "lives"}, flush=True)
    if output:
        before = json.loads(output.read_text()) if output.exists() else {}
        output.write_text(json.dumps(before | setting | {name: result}, indent=1) + "\n")
    return result["equal"]


def _interrupt_and_finish(run: InterruptedRun, interrupt: Callable[[], None]) -> dict[str, Any]:
    """Interrupts a run, lets it finish, and summarizes it."""
    start, problem = time.monotonic(), None
    try:
        interrupt()
        run.finish()
    except ResumeFailure as error:
        problem = str(error)
    return summary(run, time.monotonic() - start) | {"equal": problem is None, "problem": problem}


if __name__ == "__main__":
    sys.exit(main())
