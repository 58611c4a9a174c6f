"""Times the algorithms of the weight gradient on a CPU for every shape of layer that a network has.

    python experiments/step_time/weight_gradients.py --model=inception_v4 --batch_size=2 [--rounds=7] [--json=FILE]

Each row is a layer's shape: processor milliseconds by blocks, taps and, for 3x3 kernels of stride 1, Winograd's
filtering, in turn within one process; medians. The algorithm that `fast_weight_gradient` takes has an asterisk.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from inception_jax.models import registry, weight_gradient, winograd
from inception_jax.models.cost import LayerCost, count_cost


def main() -> None:
    """Measures and prints a row per shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, help="name of a network")
    parser.add_argument("--batch_size", type=int, required=True, help="images")
    parser.add_argument("--rounds", type=int, default=7, help="runs per algorithm")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    flags = parser.parse_args()
    layers = count_cost(registry.create_model(flags.model), registry.get_spec(flags.model).image_size).layers
    shapes = {(layer.kernel, layer.input, layer.output): layer for layer in layers if layer.kernel[:2] != (1, 1)}
    rows = []
    for layer in shapes.values():
        milliseconds = _measure(layer, flags.batch_size, flags.rounds)
        rows.append({"layer": layer.name, "kernel": layer.kernel, "output": layer.output, "milliseconds": milliseconds})
        times = ", ".join(f"{name} {time:.1f}" for name, time in milliseconds.items())
        print(f"{layer.name} {layer.kernel} to {layer.output}: {times}", flush=True)
    if flags.json:
        content = {"model": flags.model, "batch_size": flags.batch_size, "jax": jax.__version__, "layers": rows}
        flags.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _measure(layer: LayerCost, batch: int, rounds: int) -> dict[str, float]:
    """Processor milliseconds of each algorithm for one layer."""
    (rows, columns, _), (height, width, *_) = layer.output, layer.kernel
    strides = tuple(round(size / out) for size, out in zip(layer.input, (rows, columns), strict=False))
    needed = ((rows - 1) * strides[0] + height, (columns - 1) * strides[1] + width)
    total = [max(0, want - has) for want, has in zip(needed, layer.input, strict=False)]
    pads = tuple((pad // 2, pad - pad // 2) for pad in total)
    random = np.random.default_rng(0)
    x, kernel, gradient = (
        jnp.asarray(random.normal(size=shape), jnp.float32)
        for shape in ((batch, *layer.input), layer.kernel, (batch, *layer.output))
    )
    algorithms: dict[str, Callable[..., jax.Array]] = {
        "blocks": partial(weight_gradient.exact_weight_gradient, strides, pads),
        "taps": partial(weight_gradient.tap_gradient, strides, pads),
    }
    if (height, width) == (3, 3) and strides == (1, 1):
        algorithms["Winograd"] = lambda x, _, gradient: winograd.weight_gradient(pads, x, gradient)
    chosen = weight_gradient.fastest(strides, kernel.shape, gradient.shape)
    compiled = {f"{name}{'*' * (name == chosen)}": jax.jit(run) for name, run in algorithms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in compiled}
    for _ in range(rounds + 1):
        for name, run in compiled.items():
            start = time.process_time()
            jax.block_until_ready(run(x, kernel, gradient))
            seconds[name].append(time.process_time() - start)
    return {name: round(1e3 * float(np.median(times[1:])), 2) for name, times in seconds.items()}


if __name__ == "__main__":
    main()
