"""Measures step times of Inception networks on this machine, alone and beside PyTorch, and makes a table.

    python experiments/step_time/step_time.py --output=DIR [--torch_python=PATH] [--minutes=9.5]

On a CPU: batches of 8 and 2 in float32. On a GPU or TPU: batches of 256 in bfloat16. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inception_jax.runs.tables import format_markdown


@dataclasses.dataclass(frozen=True)
class BenchmarkCall:
    """One call of `python -m inception_jax.benchmark`.

    Attributes:
      name: name of its files, without suffix.
      arguments: arguments of the command.
      versus: whether it compares with PyTorch.
      trace: whether it also writes a profiler trace.
    """

    name: str
    arguments: tuple[str, ...]
    versus: bool = False
    trace: bool = False


def cpu_calls(variants: str) -> list[BenchmarkCall]:
    """The calls on a CPU: small batches in float32; limits are measured, because the table of chips has no CPUs.

    Args:
      variants: of PyTorch, as `benchmark --torch_variants` takes them.
    """
    alone = ("--dtype=float32", "--seconds=20", "--peak_tflops=measure", "--bandwidth_gbs=measure")
    beside = ("--dtype=float32", "--vs=torch,onnxruntime", f"--torch_variants={variants}", "--rounds=8", "--steps=2")
    networks = [
        ("inception_v1", 224, 8),
        ("inception_v1_bn", 224, 8),
        ("inception_v3", 299, 4),
        ("inception_v4", 299, 2),
    ]
    return [
        BenchmarkCall(f"{model}_beside", (*_network(model, size, batch), *beside), True)
        for model, size, batch in networks
    ] + [BenchmarkCall(model, (*_network(model, size, batch), *alone)) for model, size, batch in networks]


# Networks on an accelerator, the papers' first, with image sizes in pixels.
ACCELERATOR_NETWORKS = {
    "inception_v1": 224,
    "inception_v4": 299,
    "inception_v3": 299,
    "inception_resnet_v2": 299,
    "inception_v1_bn": 224,
}


def accelerator_calls(gpu: bool, names: Sequence[str], tiny: bool = False) -> list[BenchmarkCall]:
    """The calls on an accelerator: large batches in bfloat16; the compile times of the first network come last.

    Every network is measured alone and traced, then (on a GPU) beside PyTorch; the second call finds the first one's
    program in the compilation cache.

    Args:
      gpu: whether PyTorch is compared.
      names: networks of `ACCELERATOR_NETWORKS`, in order.
      tiny: batches of 2 and short measurements, to try the calls on a CPU.
    """
    calls = []
    batch, seconds, rounds, steps = (2, 1, 2, 2) if tiny else (256, 5, 10, 10)
    for model in names:
        command = (*_network(model, ACCELERATOR_NETWORKS[model], batch), "--dtype=bfloat16")
        alone = (f"--seconds={seconds}", "--no_compile_times", "--no_input")
        calls.append(BenchmarkCall(model, (*command, *alone), trace=True))
        if gpu:
            beside = ("--vs=torch", f"--rounds={rounds}", f"--steps={steps}")
            variants = "--torch_variants=eager,channels_last,compile"
            calls.append(BenchmarkCall(f"{model}_vs_torch", (*command, *beside, variants), True))
    command = (*_network(names[0], ACCELERATOR_NETWORKS[names[0]], batch), "--dtype=bfloat16", f"--seconds={seconds}")
    return [*calls, BenchmarkCall(f"{names[0]}_compile_times", command)]


def _network(model: str, size: int, batch: int) -> tuple[str, ...]:
    return f"--model={model}", f"--image_size={size}", f"--batch_size={batch}"


def run(call: BenchmarkCall, output: Path, torch_python: str | None, deadline: float) -> str:
    """Runs one call and returns how it ended; its files are `NAME.json`, `NAME.txt` and, alone, `NAME.png`."""
    left = deadline - time.monotonic()
    if left < 30:
        return "skipped: no time left"
    command = [sys.executable, "-m", "inception_jax.benchmark", *call.arguments, f"--json={output / call.name}.json"]
    if call.versus:
        command.append(f"--time_limit={left - 20:.0f}")  # 20 s for the round in progress and the table
        command += [f"--torch_python={torch_python}"] if torch_python else []
    else:
        command.append(f"--plot={output / call.name}.png")
    if call.trace:
        command.append(f"--trace={output / call.name}.trace")
    start = time.monotonic()
    with open(output / f"{call.name}.txt", "w", encoding="utf-8") as file:
        try:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, timeout=left).returncode
        except subprocess.TimeoutExpired:
            return f"stopped: no time left (see {call.name}.txt)"
    took = f"{time.monotonic() - start:.0f} s"
    return f"done in {took}" if code == 0 else f"ended with exit code {code} after {took} (see {call.name}.txt)"


def table(output: Path) -> str:
    """Formats all measurements in the directory as two Markdown tables."""
    alone, beside = [], []
    for path in sorted(output.glob("*.json")):
        content = json.loads(path.read_text())
        if "sides" in content:
            beside += _comparison_rows(content)
        else:
            alone += _measurement_rows(content)
    head = (
        "network",
        "step",
        "batch",
        "ms",
        "p10–p90",
        "images/s",
        "GFLOP/s",
        "of peak",
        "of roofline",
        "memory",
        "compile s",
    )
    lines = [*format_markdown(head, alone, "llrrrrrrrrr"), ""]
    head = ("network", "step", "batch", "side", "ms", "time, of JAX's", "p10–p90", "images/s")
    return "\n".join([*lines, *format_markdown(head, beside, "llrlrrrr")]) + "\n"


def _measurement_rows(content: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for kind in ("train", "inference"):
        if kind in content:
            step, workload = content[kind], content["task"]
            seconds, work = step["step_seconds"], step["flops"]
            utilization = work["utilization"]
            compiled = step.get("compile")
            rows.append(
                (
                    f"{workload['model']}@{workload['image_size']} {workload['dtype']}",
                    kind,
                    workload["batch_size"],
                    f"{1e3 * seconds['median']:.4g}",
                    f"{1e3 * seconds['p10']:.4g}–{1e3 * seconds['p90']:.4g}",
                    f"{step['images_per_second']:.4g}",
                    f"{work['per_second_per_device'] / 1e9:,.4g}",
                    f"{100 * utilization:.0f} %" if utilization is not None else "",
                    f"{100 * step['roofline']['fraction']:.0f} %" if step["roofline"] else "",
                    f"{step['memory']['program']['total'] / 2**20:,.0f} MiB" if step["memory"]["program"] else "",
                    f"{compiled['lowering'] + compiled['cold']:.0f}; cached {compiled['cached']:.0f}"
                    if compiled
                    else "",
                )
            )
    return rows


def _comparison_rows(content: dict[str, Any]) -> list[tuple[str, ...]]:
    rows, workload = [], content["task"]
    for kind in workload["kinds"]:
        for name, side in content["sides"].items():
            if kind in side:
                ratio = side[kind]["ratio"]
                rows.append(
                    (
                        f"{workload['model']}@{workload['image_size']} {workload['dtype']}",
                        kind,
                        workload["batch_size"],
                        name,
                        f"{1e3 * side[kind]['step_seconds']['median']:.4g}",
                        f"{ratio['median']:.2f}",
                        f"{ratio['p10']:.2f}–{ratio['p90']:.2f}",
                        f"{side[kind]['images_per_second']:.4g}",
                    )
                )
    return rows


def main() -> None:
    """Runs the calls for which there is time, and writes table.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--output", type=Path, required=True, help="a directory; measurements that it has are not repeated"
    )
    parser.add_argument("--torch_python", help="an interpreter with PyTorch, torchvision and timm (default: this one)")
    parser.add_argument(
        "--minutes", type=float, help="time limit for all (default: 9.5 on an accelerator, 60 on a CPU)"
    )
    parser.add_argument(
        "--cpu_torch_variants",
        default="eager,channels_last",
        metavar="A,B",
        help="PyTorch's variants on a CPU (default: %(default)s; compile takes minutes per network)",
    )
    parser.add_argument(
        "--networks",
        default=",".join(ACCELERATOR_NETWORKS),
        metavar="A,B",
        help="networks on an accelerator, in this order (default: %(default)s)",
    )
    parser.add_argument(
        "--accelerator_calls",
        action="store_true",
        help="make the calls of a GPU whatever the device is, with batches of 2: a trial of this script on a CPU",
    )
    flags = parser.parse_args()
    names = flags.networks.split(",")
    if unknown := set(names) - set(ACCELERATOR_NETWORKS):
        parser.error(f"--networks: {', '.join(sorted(unknown))}: must be of {', '.join(ACCELERATOR_NETWORKS)}")
    asked = subprocess.run(
        [sys.executable, "-c", "import jax; print(jax.default_backend())"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    backend = asked.stdout.split()[-1]
    if flags.accelerator_calls:
        calls = accelerator_calls(True, names, tiny=True)
    else:
        calls = cpu_calls(flags.cpu_torch_variants) if backend == "cpu" else accelerator_calls(backend == "gpu", names)
    minutes = flags.minutes or (60.0 if backend == "cpu" else 9.5)
    deadline = time.monotonic() + 60 * minutes
    flags.output.mkdir(parents=True, exist_ok=True)
    for call in calls:
        if not (flags.output / f"{call.name}.json").exists():
            print(f"{call.name}: {run(call, flags.output, flags.torch_python, deadline)}", flush=True)
    text = table(flags.output)
    (flags.output / "table.md").write_text(text, encoding="utf-8")
    print(text)
    packed = flags.output / "results.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        for path in sorted(flags.output.iterdir()):
            if path != packed:
                archive.add(path, path.name)
    print(f"all files: {packed}")


if __name__ == "__main__":
    main()
