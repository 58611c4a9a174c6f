"""Kills a training run again and again, and asks whether it ends with the bits of one that nobody touched.

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
from interruptions import Chain, Life, Reference, SoakError

ROOT = Path(__file__).resolve().parents[2]

# The digits recipe, shortened: GoogLeNet with both heads, LRN, dropout, crops and EMA; narrow, on small pictures.
RECIPE = {
    "batch_size": 16, "num_steps": 150, "data.image_size": 32, "model.width_multiplier": 0.25, "data.threads": 2,
    "data.train_split": "train[:100]", "data.eval_split": "test[:40]", "logging.every_steps": 1,
    "evaluation.every_epochs": 0.64, "checkpoint.every_epochs": 0.48, "logging.pictures": False,
}  # fmt: skip
FLOAT64 = ["--config.model.dtype=float64", "--config.model.param_dtype=float64"]
RELATIVE_TOLERANCE = 1e-9
"""Of the chain over device counts, in float64: the order of a sum differs, and 150 steps carry that on."""


class Process(subprocess.Popen):
    """`python -m inception_jax.train`, its stderr in a file."""

    def __init__(self, arguments: list[str], environment: dict[str, str], words: Path):
        self.words = words
        with open(words, "wb") as file:
            super().__init__(
                [sys.executable, "-m", "inception_jax.train", *arguments],
                cwd=ROOT,
                stderr=file,
                stdout=subprocess.DEVNULL,
                env=environment,
            )


class Soak:
    """The chains of one soak, under one directory, by one recipe."""

    def __init__(self, directory: Path, recipe: list[str], seed: int):
        self.directory, self.recipe, self.seed = directory, recipe, seed

    def reference(self, name: str, extra: list[str], environment: dict[str, str]) -> Reference:
        """The run that nobody interrupts; one that is there already is taken."""
        workdir = self.directory / name
        process = self._start(workdir, extra, environment)
        if process.wait():
            raise SoakError(f"the uninterrupted run ended with exit code {process.returncode}: {process.words}")
        return Reference(workdir)

    def chain(self, name: str, reference: Reference) -> Chain:
        """A run of the same recipe and its lives to come."""
        workdir = self._fresh(name)
        return Chain(
            lambda: self._start(workdir, [], {}),
            _words,
            workdir,
            reference,
            random.Random(f"{self.seed} {name}"),
            tell=_tell,
        )

    def chain_over_devices(self, name: str, reference: Reference, counts: list[int]) -> Chain:
        """As `chain`, in float64, each start on another number of devices and in another mode."""
        workdir = self._fresh(name)
        generator = random.Random(f"{self.seed} {name}")

        def start() -> Process:
            flags = f"--xla_force_host_platform_device_count={generator.choice(counts)}"
            extra = [*FLOAT64, f"--config.parallel.mode={generator.choice(('jit', 'pmap'))}"]
            return self._start(workdir, extra, {"XLA_FLAGS": flags, "JAX_ENABLE_X64": "1"})

        aims = random.Random(f"{self.seed} aims of {name}")
        return Chain(start, _words, workdir, reference, aims, exact=False, tell=_tell)

    def _fresh(self, name: str) -> Path:
        workdir = self.directory / name
        shutil.rmtree(workdir, ignore_errors=True)
        return workdir

    def _start(self, workdir: Path, extra: list[str], environment: dict[str, str]) -> Process:
        flags = {"XLA_FLAGS": "--xla_backend_optimization_level=0 " + environment.get("XLA_FLAGS", "")}
        # One cache for the soak: the first start compiles, the others take what it made.
        fixed = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(self.directory / "xla")}
        self.directory.mkdir(parents=True, exist_ok=True)
        return Process(
            [*self.recipe, *extra, f"--workdir={workdir}"],
            {**os.environ, **fixed, **environment, **flags},
            workdir.with_suffix(".stderr"),
        )


def _words(process: Process) -> str:
    return process.words.read_text(errors="replace")


def _tell(life: Life) -> None:
    print(
        f"aimed at {life.aim}, hit {life.hit} at step {life.step}, {life.seconds:.1f} s, exit code {life.exit_code}",
        file=sys.stderr,
        flush=True,
    )


def summary(chain: Chain, seconds: float) -> dict[str, Any]:
    """A finished chain in numbers."""
    hits = collections.Counter(life.hit for life in chain.lives if life.hit)
    return {
        "signals": chain.hits(),
        "hits": dict(sorted(hits.items())),
        "starts": len(chain.lives),
        "seconds": round(seconds, 1),
        "lives": [dataclasses.asdict(life) for life in chain.lives],
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
    """Runs the chains that were asked for; 0 if every one of them kept its promise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--workdir", type=Path, required=True, help="where the runs go")
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs, and one more at the end (default 50)")
    parser.add_argument("--terms", type=int, default=10, help="SIGTERMs (default 10)")
    parser.add_argument("--device-kills", type=int, default=0, help="SIGKILLs over device counts (default 0)")
    parser.add_argument("--devices", default="1,2,4,8", help="its device counts (default 1,2,4,8)")
    parser.add_argument("--seed", type=int, default=0, help="of the aims and delays (default 0)")
    parser.add_argument("--output", type=Path, help="a JSON file that every run's result is put into")
    flags, words = parser.parse_known_args()
    if not any(word.startswith("--config=") for word in words):
        words = ["--config=configs/digits.py", *(f"--config.{name}={value}" for name, value in RECIPE.items()), *words]
    soak = Soak(flags.workdir.absolute(), words, flags.seed)

    setting = {
        "recipe": words,
        "seed": flags.seed,
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "orbax-checkpoint")},
    }
    good = True
    if flags.kills or flags.terms:
        reference = soak.reference("uninterrupted", [], {})
        setting["fingerprint"] = reference.outcome["fingerprint"]
    if flags.kills:
        chain = soak.chain("killed", reference)
        good &= _record(flags.output, setting, "SIGKILL", _run(chain, lambda: chain.kill(flags.kills)))
    if flags.terms:
        chain = soak.chain("terminated", reference)
        good &= _record(flags.output, setting, "SIGTERM", _run(chain, lambda: chain.terminate(flags.terms)))
    if flags.device_kills:
        reference = soak.reference("uninterrupted_float64", FLOAT64, {"JAX_ENABLE_X64": "1"})
        chain = soak.chain_over_devices("killed_over_devices", reference, [int(n) for n in flags.devices.split(",")])
        run = _run(chain, lambda: chain.kill(flags.device_kills))
        if run["equal"]:
            run["difference"] = largest_difference(chain.workdir, soak.directory / "uninterrupted_float64")
            run["equal"] = run["difference"] < RELATIVE_TOLERANCE
        good &= _record(flags.output, setting, f"SIGKILL, {flags.devices} devices, jit and pmap", run)
    return 0 if good else 1


def _record(output: Path | None, setting: dict[str, Any], name: str, run: dict[str, Any]) -> bool:
    """Tells what came of a run, puts it into the output beside what is there, and returns whether it was equal."""
    print(name, {key: value for key, value in run.items() if key != "lives"}, flush=True)
    if output:
        before = json.loads(output.read_text()) if output.exists() else {}
        output.write_text(json.dumps(before | setting | {name: run}, indent=1) + "\n")
    return run["equal"]


def _run(chain: Chain, interrupt: Callable[[], None]) -> dict[str, Any]:
    """Interrupts a run, and lets it finish."""
    start, problem = time.monotonic(), None
    try:
        interrupt()
        chain.finish()
    except SoakError as error:
        problem = str(error)
    return summary(chain, time.monotonic() - start) | {"equal": problem is None, "problem": problem}


if __name__ == "__main__":
    sys.exit(main())
