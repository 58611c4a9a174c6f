"""Prints the GPU time of a step by kind of kernel, and its longest kernels, from a trace of `benchmark --trace=DIR`.

    python experiments/step_time/kernels.py DIR/train [--steps=5] [--longest=30]

XLA runs most of a step as CUDA graphs, so a trace has names of kernels and no names of layers.
"""

from __future__ import annotations

import argparse
import collections
import re
from pathlib import Path

from jax.profiler import ProfileData

from inception_jax.benchmarks.measure import TRACED_STEPS
from inception_jax.runs.tables import format_markdown

# The first pattern that a kernel's name has gives its kind. Names of fusions say how XLA wrote the kernel.
KINDS = (
    (r"fprop", "convolutions, forward"),
    (r"wgrad", "convolutions, gradient of the kernel"),
    (r"dgrad|ImplicitGemmConvolution", "convolutions, gradient of the input"),
    (r"AddPadding|nchwToNhwc|nhwcToNchw", "convolutions: padding of channels and changes of layout"),
    (r"nvjet|gemm|cublas|cutlass|splitK", "matrix products (1x1 convolutions, classifiers)"),
    (r"input_reduce_select", "fusions: ReLU's gradient with the bias' gradient"),
    (r"input_.*reduce", "fusions: other sums (gradient norm, losses)"),
    (r"slice_fusion", "fusions: shifted slices (gradients of pools and LRN)"),
    (r"maximum", "fusions: maxima (pools, ReLU)"),
    (r"transpose", "fusions: transpositions"),
    (r"concatenate", "fusions: concatenations"),
    (r"memset|memcpy", "fills and copies"),
    (r"", "other fusions"),
)


def read_kernels(folder: Path, steps: int) -> dict[str, tuple[float, float]]:
    """Reads {name of a kernel: (milliseconds, launches)} of a step.

    Args:
      folder: a folder in which `jax.profiler.trace` wrote one trace.
      steps: number of steps in the trace.

    Raises:
      SystemExit: there is not one trace, or it is not of a GPU.
    """
    files = sorted(folder.glob("plugins/profile/*/*.xplane.pb"))
    if len(files) != 1:
        raise SystemExit(f"{folder}: has {len(files)} traces, not one; name DIR/train or DIR/inference of --trace=DIR")
    planes = [plane for plane in ProfileData.from_file(str(files[0])).planes if plane.name.startswith("/device:GPU")]
    if not planes:
        raise SystemExit(f"{files[0]}: has no GPU's kernels; make the trace on a GPU")
    total: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for event in (event for plane in planes for line in plane.lines for event in line.events):
        total[event.name][0] += event.duration_ns / 1e6 / steps
        total[event.name][1] += 1 / steps
    return {name: (milliseconds, launches) for name, (milliseconds, launches) in total.items()}


def table(kernels: dict[str, tuple[float, float]], longest: int) -> str:
    """Formats two Markdown tables: by kind of kernel, and the longest kernels."""
    kinds: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for name, measured in kernels.items():
        kind = next(kind for pattern, kind in KINDS if re.search(pattern, name, re.IGNORECASE))
        kinds[kind] = [total + one for total, one in zip(kinds[kind], measured, strict=True)]
    kinds["all"] = [sum(measured[column] for measured in kernels.values()) for column in (0, 1)]
    lines = []
    for head, rows, count in (("kind of kernel", kinds, len(kinds)), ("kernel", kernels, longest)):
        ordered = sorted(rows.items(), key=lambda row: -row[1][0])[:count]
        cells = [(name[:80], f"{took:.2f}", f"{launches:.0f}") for name, (took, launches) in ordered]
        lines += [*format_markdown((head, "ms a step", "launches"), cells, "lrr"), ""]
    return "\n".join(lines)


def main() -> None:
    """Prints the tables of the trace that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="DIR/train or DIR/inference of `benchmark --trace=DIR`")
    parser.add_argument("--steps", type=int, default=TRACED_STEPS, help="number of steps in the trace")
    parser.add_argument("--longest", type=int, default=30, help="number of kernels in the second table")
    flags = parser.parse_args()
    print(table(read_kernels(flags.folder, flags.steps), flags.longest))


if __name__ == "__main__":
    main()
