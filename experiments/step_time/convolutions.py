"""Times every convolution of a network alone, on a CPU: ours beside PyTorch's in channels_last, which are oneDNN's.

    taskset --cpu-list 0 python experiments/step_time/convolutions.py --model=inception_v1_bn --batch_size=8 \
        [--algorithms=fast,onednn] [--torch_python=PATH] [--rounds=5] [--json=FILE]

Forward, the gradient of the input and that of the kernel, float32; medians of rounds, in milliseconds on the wall and
of the processor. The interpreter with PyTorch runs this file, too, and needs nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

Calls = dict[str, Callable[[], Any]]


def median_times(call: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Median milliseconds of a call, on the wall and of the processor, after two calls that are not counted."""
    found = []
    for number in range(rounds + 2):
        wall, processor = time.perf_counter(), time.process_time()
        call()
        if number > 1:
            found.append((time.perf_counter() - wall, time.process_time() - processor))
    return statistics.median(1e3 * one for one, _ in found), statistics.median(1e3 * two for _, two in found)


def layers_of(model: str) -> list[dict[str, Any]]:
    """The shapes of a network's convolutions, each once, with the number of its layers."""
    from inception_jax.models import registry
    from inception_jax.models.cost import count_cost

    counts: Counter[tuple] = Counter()
    for layer in count_cost(registry.create_model(model), registry.get_spec(model).image_size).layers:
        if layer.input[:2] == (1, 1):  # a fully connected layer
            continue
        strides, pads = [], []
        for size, taps, out in zip(layer.input[:2], layer.kernel[:2], layer.output[:2], strict=True):
            strides.append(round(size / out))
            pad = max(0, (out - 1) * strides[-1] + taps - size)
            pads.append((pad // 2, pad - pad // 2))
        counts[layer.input, layer.kernel, layer.output, tuple(strides), tuple(pads)] += 1
    names = ("input", "kernel", "output", "strides", "pads")
    return [dict(zip(names, shape, strict=True)) | {"layers": count} for shape, count in counts.items()]


def our_calls(layer: dict[str, Any], batch: int, algorithm: str = "fast") -> Calls:
    """`conv2d` of this package and its gradients."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from inception_jax.models.convolution import conv2d

    random = np.random.default_rng(0)
    shapes = (batch, *layer["input"]), layer["kernel"], (batch, *layer["output"])
    operands = [jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes]

    def forward(x: Any, kernel: Any) -> Any:
        return conv2d(x, kernel, layer["strides"], layer["pads"], algorithm=algorithm)

    functions = {
        "forward": lambda x, kernel, gradient: forward(x, kernel),
        "input gradient": lambda x, kernel, gradient: jax.vjp(lambda x: forward(x, kernel), x)[1](gradient),
        "kernel gradient": lambda x, kernel, gradient: jax.vjp(lambda kernel: forward(x, kernel), kernel)[1](gradient),
    }
    compiled = {kind: jax.jit(function) for kind, function in functions.items()}
    return {kind: lambda run=run: jax.block_until_ready(run(*operands)) for kind, run in compiled.items()}


def torch_calls(layer: dict[str, Any], batch: int) -> Calls:
    """The same by PyTorch; a map with more padding on one side is padded before."""
    import torch

    (rows, columns, width), (height, breadth, _, filters) = layer["input"], layer["kernel"]
    (top, bottom), (left, right) = layer["pads"]
    x = torch.nn.functional.pad(torch.randn(batch, width, rows, columns), (0, right - left, 0, bottom - top))
    kernel = torch.randn(filters, width, height, breadth)
    gradient = torch.randn(batch, filters, *layer["output"][:2])
    x, kernel, gradient = (array.to(memory_format=torch.channels_last) for array in (x, kernel, gradient))

    def backward(*wanted: bool) -> Any:
        options = (None, layer["strides"], [top, left], [1, 1], False, [0, 0], 1)
        return torch.ops.aten.convolution_backward(gradient, x, kernel, *options, wanted)

    return {
        "forward": lambda: torch.nn.functional.conv2d(x, kernel, None, layer["strides"], [top, left]),
        "input gradient": lambda: backward(True, False, False),
        "kernel gradient": lambda: backward(False, True, False),
    }


def measure(
    layers: list[dict[str, Any]], make: Callable[[dict[str, Any], int], Calls], batch: int, rounds: int
) -> list[dict[str, tuple[float, float]]]:
    """{kind: times} of each shape; the images need no gradient."""
    found = []
    for layer in layers:
        calls = make(layer, batch)
        if layer["input"][2] == 3:
            del calls["input gradient"]
        found.append({kind: median_times(call, rounds) for kind, call in calls.items()})
    return found


def main() -> None:
    """Measures both sides and prints a row per shape, and the sums over all layers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", help="name of a network")
    parser.add_argument("--batch_size", type=int, default=8, help="images")
    parser.add_argument("--algorithms", default="fast", help="of `conv2d`, separated by commas")
    parser.add_argument("--torch_python", help="an interpreter with PyTorch")
    parser.add_argument("--rounds", type=int, default=5, help="calls that are counted")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    flags = parser.parse_args()
    if not flags.model:  # the side of PyTorch: shapes come in, times go out
        print(json.dumps(measure(json.load(sys.stdin), torch_calls, flags.batch_size, flags.rounds)))
        return
    layers = layers_of(flags.model)
    sides = {
        name: measure(layers, partial(our_calls, algorithm=name), flags.batch_size, flags.rounds)
        for name in flags.algorithms.split(",")
    }
    if flags.torch_python:
        command = [flags.torch_python, __file__, f"--batch_size={flags.batch_size}", f"--rounds={flags.rounds}"]
        done = subprocess.run(command, input=json.dumps(layers), stdout=subprocess.PIPE, text=True, check=True)
        sides["PyTorch"] = json.loads(done.stdout)
    sums: Counter[tuple[str, str, int]] = Counter()
    for place, layer in enumerate(layers):
        print(f"{layer['kernel']} on {layer['input']} to {layer['output']}, {layer['layers']} layers")
        for kind in next(iter(sides.values()))[place]:
            times = {side: rows[place][kind] for side, rows in sides.items()}
            print(f"  {kind}: " + ", ".join(f"{side} {one:.2f} ({two:.2f})" for side, (one, two) in times.items()))
            for side, pair in times.items():
                sums.update({(kind, side, number): layer["layers"] * value for number, value in enumerate(pair)})
    print("all layers, milliseconds on the wall (of the processor):")
    for kind, side, _ in list(sums)[::2]:
        print(f"  {kind}, {side}: {sums[kind, side, 0]:.0f} ({sums[kind, side, 1]:.0f})")
    if flags.json:
        rows = [layer | {side: found[place] for side, found in sides.items()} for place, layer in enumerate(layers)]
        flags.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
