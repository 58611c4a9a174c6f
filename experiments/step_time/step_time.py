"""Step times of GoogLeNet and Inception-v4 on this machine, alone and beside PyTorch, and a table of them.

    python experiments/step_time/step_time.py --output=DIR [--torch_python=PATH] [--minutes=9.5]

On a CPU: batches of 8 and 2 in float32. On a GPU or TPU: batches of 256 in bfloat16. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from inception_jax.runs.tables import format_markdown


@dataclasses.dataclass(frozen=True)
class Part:
    """One call of `benchmark`.

    Attributes:
      name: of its JSON file.
      arguments: of the command.
      versus: whether it is beside PyTorch.
    """

    name: str
    arguments: tuple[str, ...]
    versus: bool = False


def cpu_parts() -> list[Part]:
    """What fits a CPU: small batches in float32; the machine's limits are measured, for no table knows them."""
    alone = ("--dtype=float32", "--seconds=20", "--peak_tflops=measure", "--bandwidth_gbs=measure")
    beside = ("--dtype=float32", "--vs=torch", "--rounds=8", "--steps=2")
    networks = [("inception_v1", 224, 8), ("inception_v1_bn", 224, 8), ("inception_v4", 299, 2)]
    return [
        Part(f"{model}_vs_torch", (*_network(model, size, batch), *beside), True) for model, size, batch in networks
    ] + [Part(model, (*_network(model, size, batch), *alone)) for model, size, batch in networks]


def accelerator_parts(gpu: bool) -> list[Part]:
    """What an accelerator is asked: large batches in bfloat16, the two papers' networks first."""
    parts = []
    for model, size in (("inception_v1", 224), ("inception_v4", 299), ("inception_v1_bn", 224)):
        words = (*_network(model, size, 256), "--dtype=bfloat16")
        quick = () if model == "inception_v1" else ("--no_compile_times",)
        parts.append(Part(model, (*words, "--seconds=5", *quick)))
        if gpu:
            beside = ("--vs=torch", "--rounds=10", "--steps=10", "--torch_variants=eager,channels_last,compile")
            parts.append(Part(f"{model}_vs_torch", (*words, *beside), True))
    return parts


def _network(model: str, size: int, batch: int) -> tuple[str, ...]:
    return f"--model={model}", f"--image_size={size}", f"--batch_size={batch}"


def run(part: Part, output: Path, torch_python: str | None, deadline: float) -> str:
    """Runs one part, and says how it ended; its files are `NAME.json`, `NAME.txt` and, alone, `NAME.png`."""
    left = deadline - time.monotonic()
    if left < 30:
        return "left out: no time left"
    words = [sys.executable, "-m", "inception_jax.benchmark", *part.arguments, f"--json={output / part.name}.json"]
    if part.versus:
        words += [f"--torch_python={torch_python}"] if torch_python else []
    else:
        words.append(f"--plot={output / part.name}.png")
    start = time.monotonic()
    with open(output / f"{part.name}.txt", "w", encoding="utf-8") as file:
        try:
            code = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, timeout=left).returncode
        except subprocess.TimeoutExpired:
            return f"stopped: no time left (see {part.name}.txt)"
    took = f"{time.monotonic() - start:.0f} s"
    return f"done in {took}" if code == 0 else f"ended with exit code {code} after {took} (see {part.name}.txt)"


def table(output: Path) -> str:
    """Everything that was measured, as Markdown."""
    alone, beside = [], []
    for path in sorted(output.glob("*.json")):
        content = json.loads(path.read_text())
        if "sides" in content:
            beside += _beside(content)
        else:
            alone += _alone(content)
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


def _alone(content: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for kind in ("train", "inference"):
        if kind in content:
            part, task = content[kind], content["task"]
            seconds, work = part["step_seconds"], part["flops"]
            share = work["utilization"]
            compiled = part.get("compile")
            rows.append(
                (
                    f"{task['model']}@{task['image_size']} {task['dtype']}",
                    kind,
                    task["batch_size"],
                    f"{1e3 * seconds['median']:.4g}",
                    f"{1e3 * seconds['p10']:.4g}–{1e3 * seconds['p90']:.4g}",
                    f"{part['images_per_second']:.4g}",
                    f"{work['per_second_per_device'] / 1e9:,.4g}",
                    f"{100 * share:.0f} %" if share is not None else "",
                    f"{100 * part['roofline']['fraction']:.0f} %" if part["roofline"] else "",
                    f"{part['memory']['program']['total'] / 2**20:,.0f} MiB" if part["memory"]["program"] else "",
                    f"{compiled['lowering'] + compiled['cold']:.0f}; cached {compiled['cached']:.0f}"
                    if compiled
                    else "",
                )
            )
    return rows


def _beside(content: dict[str, Any]) -> list[tuple[str, ...]]:
    rows, task = [], content["task"]
    for kind in task["kinds"]:
        for name, side in content["sides"].items():
            if kind in side:
                ratio = side[kind]["ratio"]
                rows.append(
                    (
                        f"{task['model']}@{task['image_size']} {task['dtype']}",
                        kind,
                        task["batch_size"],
                        name,
                        f"{1e3 * side[kind]['step_seconds']['median']:.4g}",
                        f"{ratio['median']:.2f}",
                        f"{ratio['p10']:.2f}–{ratio['p90']:.2f}",
                        f"{side[kind]['images_per_second']:.4g}",
                    )
                )
    return rows


def main() -> None:
    """Runs what there is time for, and writes table.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--output", type=Path, required=True, help="a directory; parts that are there are kept")
    parser.add_argument("--torch_python", help="an interpreter with PyTorch, torchvision and timm (default: this one)")
    parser.add_argument("--minutes", type=float, help="for everything (default: 9.5 on an accelerator, 60 on a CPU)")
    flags = parser.parse_args()
    asked = subprocess.run(
        [sys.executable, "-c", "import jax; print(jax.default_backend())"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    backend = asked.stdout.split()[-1]
    parts = cpu_parts() if backend == "cpu" else accelerator_parts(backend == "gpu")
    minutes = flags.minutes or (60.0 if backend == "cpu" else 9.5)
    deadline = time.monotonic() + 60 * minutes
    flags.output.mkdir(parents=True, exist_ok=True)
    for part in parts:
        if not (flags.output / f"{part.name}.json").exists():
            print(f"{part.name}: {run(part, flags.output, flags.torch_python, deadline)}", flush=True)
    text = table(flags.output)
    (flags.output / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
