"""Compiles pieces of networks, and whole steps, for described hardware, and makes a table of the programs.

    python experiments/accelerator_programs/accelerator_programs.py --topology=h200 [--steps] [--output=DIR]

Needs the compiler of that hardware and no device; README.md beside this file says more.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from inception_jax import benchmark
from inception_jax.benchmarks import hardware, memory, program_summary, topologies, weak_scaling
from inception_jax.models import inception_v1, lrn, pooling, registry
from inception_jax.models.blocks import Mixed
from inception_jax.models.heads import AuxHeadV1
from inception_jax.models.initialization import caffe_xavier
from inception_jax.models.layers import ConvUnit
from inception_jax.runs.tables import format_markdown
from inception_jax.training.parallel import Compiled

HERE = Path(__file__).resolve().parent
BATCH = 256  # per device; on a TPU maps of few channels have the batch in their 128 lanes
STEPS = (("inception_v1", 224, 256), ("inception_v4", 299, 128))  # (model, pixels, per-device batch)
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a network: forward pass and gradient in one program.

    Attributes:
      shape: of its input, without the batch.
      make: makes the function of the input, or a Flax module.
      reads_image: whether the input needs no gradient.
    """

    shape: Shape
    make: Callable[[], Any]
    reads_image: bool = False


def _options(name: str = "inception_v1") -> Any:
    model = registry.create_model(name, num_classes=1000, dtype=jnp.bfloat16)
    return model.layer_options(caffe_xavier, caffe_xavier, 0.0 if model.batch_norm else inception_v1.CONV_BIAS)


def _block(name: str = "inception_v1") -> Any:
    widths = inception_v1.GoogLeNetWidths(*inception_v1.MODULES["3a"])
    return Mixed(inception_v1.reduced_module(widths, 5), _options(name))


PIECES = {
    "stem 7x7/2": Piece((224, 224, 3), lambda: ConvUnit(64, (7, 7), _options(), 2, 3), reads_image=True),
    "max pool 3x3/2": Piece((112, 112, 64), lambda: lambda x: pooling.max_pool(x, 3, 2, "CEIL")),
    "max pool 3x3/1": Piece((28, 28, 256), lambda: lambda x: pooling.max_pool(x, 3, 1)),
    "average pool 3x3/1": Piece((17, 17, 128), lambda: lambda x: pooling.avg_pool(x, 3, 1)),
    "LRN": Piece((56, 56, 192), lambda: lrn.local_response_norm),
    "block 3a": Piece((28, 28, 192), _block),
    "block 3a, batch norm": Piece((28, 28, 192), lambda: _block("inception_v1_bn")),
    "auxiliary head": Piece((14, 14, 512), lambda: AuxHeadV1(1000, 0.0, _options())),
}


def compile_piece(piece: Piece, device: Any, batch: int = BATCH) -> Compiled:
    """Compiles forward pass and gradient of a piece in bfloat16."""
    sharding = NamedSharding(Mesh(np.asarray([device]), ("data",)), PartitionSpec())
    x = jax.ShapeDtypeStruct((batch, *piece.shape), jnp.bfloat16)
    module = piece.make()
    if isinstance(module, Mixed | ConvUnit | AuxHeadV1):
        extra: dict[str, Any] = {"example_keys": None, "site": 0} if isinstance(module, AuxHeadV1) else {}
        variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False, **extra), x)
        variables = dict(variables)

        def apply(variables: Any, x: jax.Array) -> jax.Array:
            output: Any = module.apply(variables, x, train=True, mutable=["batch_stats"], **extra)
            return output[0]
    else:
        variables = {}

        def apply(variables: Any, x: jax.Array) -> jax.Array:
            return module(x)

    output = jax.eval_shape(apply, variables, x)
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), (variables, x, output)
    )

    def run(variables: Any, x: jax.Array, gradient: jax.Array) -> Any:
        rest = dict(variables)
        params = rest.pop("params", {})
        result, pullback = jax.vjp(lambda params, x: apply({"params": params, **rest}, x), params, x)
        gradients = pullback(gradient)
        return result, gradients[0] if piece.reads_image else gradients

    start = time.perf_counter()
    lowered = jax.jit(run).lower(*arguments)
    lowering = time.perf_counter() - start
    return Compiled(lowered.compile(), time.perf_counter() - start, lowering)


def describe_piece(name: str, topology: topologies.Topology, batch: int = BATCH) -> dict[str, Any]:
    """Compiles a piece for a topology's first device; the numbers of its program."""
    device = topology.devices[0]
    compiled = compile_piece(PIECES[name], device, batch)
    limits = hardware.device_limits(device.device_kind, "bfloat16")
    summary = program_summary.summarize(compiled, limits)
    del summary["blocks"]
    return {
        "piece": name,
        "batch": batch,
        "compile_seconds": round(compiled.seconds, 1),
        "memory": memory.program_memory(compiled, accelerator=True),
        "program": summary,
    }


def make_table(output: Path) -> str:
    """The tables of all files in a folder, as Markdown."""
    sections = []
    for file in sorted(output.glob("*_pieces.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        rows = [("piece, forward + gradient", "kernels", "GFLOP", "GB", "temporary MB", "bound ms", "limited by")]
        rows += [_piece_row(row) for row in content["pieces"]]
        head = f"Pieces for {content['topology']} ({content['compiler']}), batch {BATCH}, bfloat16:"
        sections.append(f"{head}\n\n{_markdown(rows, 1)}")
    steps = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(output.glob("*_step.json"))]
    if steps:
        rows = [
            (
                "step",
                "device",
                "batch",
                "kernels",
                "< 2 MB",
                "TFLOP",
                "GB",
                "peak GB",
                "bound ms",
                "small ms",
                "largest batch",
            )
        ]
        rows += [_step_row(content, kind) for content in steps for kind in ("train", "inference") if kind in content]
        sections.append("Whole steps, bfloat16, per device:\n\n" + _markdown(rows, 2))
    if rows := _scaling_rows(steps):
        head = (
            "training step",
            "device",
            "bound ms",
            "all-reduce MB",
            *(f"{count:,}" for count in weak_scaling.COUNTS),
        )
        title = "Efficiency on that many devices, in per cent of one device's speed, predicted"
        sections.append(f"{title}:\n\n" + _markdown([head, *rows], 2))
    return "\n\n".join(sections) + "\n"


def _markdown(rows: list[tuple[str, ...]], words: int) -> str:
    """A table: the first row is its head, the first `words` columns are text."""
    return "\n".join(format_markdown(rows[0], rows[1:], "l" * words + "r" * (len(rows[0]) - words)))


def _piece_row(row: dict[str, Any]) -> tuple[str, ...]:
    program, planned = row["program"], row["memory"] or {}
    return (
        row["piece"],
        f"{program['kernels']:,}",
        f"{program['flops'] / 1e9:,.0f}",
        f"{program['bytes'] / 1e9:.2f}",
        f"{planned.get('temporary', 0) / 1e6:,.0f}",
        f"{1e3 * program['seconds']:.2f}",
        program["side"],
    )


def _step_row(content: dict[str, Any], kind: str) -> tuple[str, ...]:
    program, planned = content[kind]["program"], content[kind]["memory"]["program"]
    fits, small = content[kind]["memory"]["largest_batch"], program["small_kernel_seconds"]
    return (
        f"{content['task']['model']}, {kind}",
        content["topology"]["name"],
        f"{content['task']['batch_size'] // content['task']['devices']}",
        f"{program['kernels']:,}",
        f"{program['small_kernels']:,}",
        f"{program['flops'] / 1e12:.2f}",
        f"{program['bytes'] / 1e9:.1f}",
        f"{planned.get('peak', planned['total']) / 1e9:.2f}",
        f"{1e3 * program['seconds']:.1f}",
        "" if small is None else f"{1e3 * small:.1f}",
        f"{fits:,}" if fits else "",
    )


def _scaling_rows(steps: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Rows for the models that were compiled for several devices, which have the bytes of the all-reduces.

    A chip for which a model was compiled for one device alone takes another chip's bytes: those of the gradients.
    """
    compiled = {content["task"]["model"]: content for content in steps if content["task"]["devices"] > 1}
    rows = []
    for content in steps:
        model, name = content["task"]["model"], content["topology"]["name"]
        chip = name.partition(":")[0]
        own = compiled.get(model)
        if own is None or (content["task"]["devices"] == 1 and own["topology"]["name"].startswith(chip)):
            continue
        reductions = [row["bytes"] for row in own["train"]["program"]["collectives"] for _ in range(row["runs"])]
        seconds = content["train"]["program"]["seconds"]
        predicted = weak_scaling.predict(seconds, reductions, weak_scaling.LINKS[chip])
        efficiencies = [f"{100 * row['efficiency']:.1f}" for row in predicted]
        rows.append((model, name, f"{1e3 * seconds:.1f}", f"{sum(reductions) / 1e6:.1f}", *efficiencies))
    return rows


def main() -> None:
    """Compiles what the flags name, writes JSON files, and the table of all that are there."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "--topology", help="h200, h100, a100, v5e, v6e, …: hardware to compile for; none: table only"
    )
    arguments.add_argument("--piece", action="append", choices=tuple(PIECES), help="only this one; may be repeated")
    arguments.add_argument("--steps", action="store_true", help="whole steps, too: minutes each")
    arguments.add_argument("--batch", type=int, default=BATCH, help="images per device of the pieces")
    arguments.add_argument("--output", type=Path, default=HERE, help="folder of the files (default: this one)")
    flags = arguments.parse_args()
    flags.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_platforms", "cpu")
    if flags.topology:
        topology = topologies.describe(flags.topology)
        rows: list[dict[str, Any]] = []
        content = {"topology": topology.name, "compiler": topology.compiler, "jax": jax.__version__, "pieces": rows}
        file = flags.output / f"{flags.topology.replace(':', '_')}_pieces.json"
        for name in flags.piece or (PIECES if len(topology.devices) == 1 else ()):
            print(f"… {name} for {topology.name}", file=sys.stderr, flush=True)
            rows.append(describe_piece(name, topology, flags.batch))
            file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        for model, size, batch in STEPS if flags.steps else ():
            path = flags.output / f"{flags.topology.replace(':', '_')}_{model}_step.json"
            call = [f"--model={model}", f"--image_size={size}", f"--batch_size={batch * len(topology.devices)}"]
            benchmark.main([f"--topology={topology.name}", *call, "--dtype=bfloat16", f"--json={path}"])
    table = make_table(flags.output)
    (flags.output / "table.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
