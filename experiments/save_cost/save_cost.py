"""Measures the cost of saving: blocks of steps with an asynchronous checkpoint and blocks without, in turn.

    python experiments/save_cost/save_cost.py --workdir=runs/save_cost --output=results.json

See README.md beside this file.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from inception_jax.checkpoints.saving import Checkpoints
from inception_jax.config import Config
from inception_jax.training import parallel, restore
from inception_jax.training import setup as setups
from inception_jax.training.step import make_train_step

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "inception_v4_imagenet.py"


def build_config(batch_size: int, image_size: int) -> Any:
    """The config of Inception-v4 at full width, with its whole state; only the batch and the images are small."""
    spec = importlib.util.spec_from_file_location("recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.batch_size = batch_size
    config.data.image_size = image_size
    config.data.name, config.data.train_split, config.data.eval_split = "synthetic", "train", "test"
    config.num_epochs = 1.0
    config.parallel.devices = 1
    return config


class SaveBenchmark:
    """A compiled training step, its state and a batch on the device: no input pipeline, no evaluation, no log."""

    def __init__(self, batch_size: int, image_size: int, directory: Path):
        setup = setups.build(Config(build_config(batch_size, image_size)))
        devices = setup.devices
        self.checkpoints = Checkpoints(directory, keep_latest=setup.checkpoints.keep)
        self.state, _ = restore.restore_or_start(setup, self.checkpoints)
        self.bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))
        self._step = devices.compile_train(
            make_train_step(setup.model, setup.optimizer, setup.objective, devices=devices.count),
            self.state,
            devices.abstract_batch(batch_size, image_size),
        )
        numbers = np.random.default_rng(0)
        self._batch = devices.put(
            {
                "image": numbers.integers(0, 256, (batch_size, image_size, image_size, 3), dtype=np.uint8),
                "label": numbers.integers(0, len(setup.data.class_names), batch_size, dtype=np.int32),
                "mask": np.ones(batch_size, bool),
            }
        )

    def block(self, steps: int, save: bool) -> dict[str, Any]:
        """Takes steps, with one checkpoint after the first of them or with none.

        Returns:
          "seconds" of the whole block, to the end of the save if there is one; "steps", the seconds of each step (the
          first includes the call of `save`); with `save`: "blocked", seconds of that call, and "written", seconds until
          the checkpoint was complete.
        """
        content: dict[str, Any] = {"steps": []}
        began = last = time.perf_counter()
        for number in range(steps):
            self.state, metrics = self._step(self.state, self._batch)
            jax.block_until_ready((self.state, metrics))
            if save and number == 0:
                step, start = int(self.state.step), time.perf_counter()
                self.checkpoints.save(step, self.state, {})
                content["blocked"] = time.perf_counter() - start
            elif save and "written" not in content and step in self.checkpoints.steps():
                content["written"] = time.perf_counter() - start
            now = time.perf_counter()
            content["steps"].append(now - last)
            last = now
        if save:
            self.checkpoints.wait()
            content.setdefault("written", time.perf_counter() - start)
        return content | {"seconds": time.perf_counter() - began}


def summary(pairs: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """The ratio of the times with and without saves, and its components; medians over the pairs of blocks."""

    def median(kind: str, name: str) -> float:
        return statistics.median(pair[kind][name] for pair in pairs)

    def step(kind: str) -> float:
        return statistics.median(second for pair in pairs for second in pair[kind]["steps"])

    ratios = [pair["saving"]["seconds"] / pair["none"]["seconds"] for pair in pairs]
    return {
        "ratio": median("saving", "seconds") / median("none", "seconds"),
        "ratios_of_pairs": ratios,
        "ratio_of_median_steps": step("saving") / step("none"),
        "step_seconds_without": median("none", "seconds") / steps,
        "step_seconds_with": median("saving", "seconds") / steps,
        "blocked_seconds": median("saving", "blocked"),
        "written_seconds": median("saving", "written"),
    }


def main() -> None:
    """Measures the pairs of blocks that the output does not have yet, and writes it after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--workdir", type=Path, required=True, help="checkpoints go to a new folder in it; 3 GB")
    parser.add_argument("--output", type=Path, required=True, help="JSON file; an existing one is continued")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of blocks, without and with a save (default 5)")
    parser.add_argument("--steps", type=int, default=100, help="steps per block (default 100)")
    parser.add_argument("--batch_size", type=int, default=2, help="default 2")
    parser.add_argument("--image_size", type=int, default=75, help="in pixels; default 75, the smallest")
    flags = parser.parse_args()
    setting = {
        "steps": flags.steps,
        "batch_size": flags.batch_size,
        "image_size": flags.image_size,
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "orbax-checkpoint")},
    }
    result = json.loads(flags.output.read_text()) if flags.output.exists() else {"setting": setting, "pairs": []}
    if result["setting"] != setting:
        parser.error(f"{flags.output} was measured with other settings: {result['setting']}; name another file")
    pairs = result["pairs"]
    if len(pairs) < flags.pairs:
        parallel.enable_compilation_cache()
        flags.workdir.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(dir=flags.workdir))
        benchmark = SaveBenchmark(flags.batch_size, flags.image_size, directory)
        result["state_bytes"] = benchmark.bytes
        with benchmark.checkpoints:
            for save in (False, True):  # warm-up: the first block of each kind opens files and fills caches
                benchmark.block(2, save)
            while len(pairs) < flags.pairs:
                pairs.append(
                    {"none": benchmark.block(flags.steps, False), "saving": benchmark.block(flags.steps, True)}
                )
                result["summary"] = summary(pairs, flags.steps)
                flags.output.write_text(json.dumps(result, indent=1) + "\n")
        shutil.rmtree(directory)
    print(json.dumps({name: value for name, value in result.items() if name != "pairs"}, indent=2))


if __name__ == "__main__":
    main()
