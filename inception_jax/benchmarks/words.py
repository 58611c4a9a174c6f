"""A measurement in words, for the terminal: everything that its JSON file holds, in the order of its questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from inception_jax.benchmarks.measure import WORDS
from inception_jax.benchmarks.memory import gibibytes
from inception_jax.runs.status import INPUT_BOUND, rate
from inception_jax.runs.tables import aligned


def tell(result: Mapping[str, Any]) -> str:
    """The whole measurement as text."""
    parts = ["\n".join(_head(result))]
    parts += ["\n".join(_kind(result, kind)) for kind in WORDS if kind in result]
    if "input" in result:
        parts.append("\n".join(_input(result)))
    return "\n\n".join(parts)


def milliseconds(seconds: float) -> str:
    """`12.3 ms`, with three digits or more."""
    return f"{1e3 * seconds:,.3g} ms" if seconds < 1 else f"{1e3 * seconds:,.0f} ms"


def _head(result: Mapping[str, Any]) -> Iterator[str]:
    task, device, host = result["task"], result["device"], result["host"]
    heads = "with auxiliary heads" if task["aux_heads"] else "without auxiliary heads"
    options = "".join(f", {name}={value}" for name, value in task["options"].items())
    yield (
        f"{task['model']}{options}: {result['parameters']:,} parameters {heads}, {task['image_size']} pixels, batch "
        f"{task['batch_size']:,}, {task['dtype']}"
    )
    yield (
        f"{device['count']} x {device['kind']} ({host['cores']} cores of {host['processor']}), mode {task['mode']}, "
        f"jax {result['versions']['jax']}"
    )
    limits = result["limits"]
    known = [f"{limits['flops'] / 1e12:,.4g} TFLOP/s"] if limits["flops"] else []
    known += [f"{limits['bandwidth'] / 1e9:,.4g} GB/s"] if limits["bandwidth"] else []
    if len(known) == 2:
        yield f"at most {' and '.join(known)} per device ({limits['source']})"
    else:
        yield (
            f"its limits are not known ({limits['source']}), so there is no "
            + ("roofline" if limits["flops"] else "utilisation and no roofline")
            + "; --peak_tflops and --bandwidth_gbs give them, or measure them with the value 'measure'"
        )


def _kind(result: Mapping[str, Any], kind: str) -> Iterator[str]:
    content = result[kind]
    seconds, work = content["step_seconds"], content["flops"]
    yield WORDS[kind]
    yield (
        f"  time         {milliseconds(seconds['median'])} (p10 {milliseconds(seconds['p10'])}, p90 "
        f"{milliseconds(seconds['p90'])}; {len(content['blocks'])} blocks of {content['steps_per_block']} steps)"
    )
    yield f"  speed        {rate(content['images_per_second'])} images/s"
    if "compile" in content:
        times = content["compile"]
        yield (
            f"  compilation  {times['lowering']:.1f} s tracing and lowering, {times['cold']:.1f} s compiler; "
            f"{times['cached']:.1f} s in all from the cache"
        )
    yield (
        f"  work         {work['per_image'] / 1e9:,.4g} GFLOP per image, of which "
        f"{work['inside_per_image'] / 1e9:,.4g} not on padding; the compiler counts "
        f"{work['compiler_per_image'] / 1e9:,.4g} ({100 * (work['compiler_over_inside'] - 1):+.1f} %), other "
        "operations included"
    )
    used = f", {100 * work['utilization']:.1f} % of the peak" if work["utilization"] is not None else ""
    yield f"  utilisation  {work['per_second_per_device'] / 1e12:,.4g} TFLOP/s per device{used}"
    yield f"  memory       {_memory(content['memory'])}"
    if "losses" in content:
        losses = content["losses"]
        yield (
            f"  loss         {losses['first_quarter']:.4f} in the first quarter of all steps taken, "
            f"{losses['last_quarter']:.4f} in the last"
        )
    if content["roofline"]:
        yield from _roofline(content["roofline"])


def _memory(content: Mapping[str, Any]) -> str:
    program, device = content["program"], content["device"]
    parts = []
    if program:
        parts.append(
            f"{gibibytes(program['total'])} planned: state and batch {gibibytes(program['arguments'])}, "
            f"temporary {gibibytes(program['temporary'])}"
        )
    if device:
        limit = f" of {gibibytes(device['limit'])}" if "limit" in device else ""
        parts.append(f"{gibibytes(device['peak'])}{limit} at most since the start, by the device")
    return "; ".join(parts) or "not told by compiler or device"


def _roofline(content: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"  roofline     at least {milliseconds(content['seconds'])}, layer by layer; measured "
        f"{1 / content['fraction']:.2f} times that"
    )
    rows = [("    block", "GFLOP", "MB", "compute ms", "memory ms", "bound ms", "set by")]
    for bound in content["blocks"]:
        times = (bound[name] for name in ("compute_seconds", "memory_seconds", "seconds"))
        rows.append(
            (
                f"    {bound['block']}",
                f"{bound['flops'] / 1e9:,.3f}",
                f"{bound['bytes'] / 1e6:,.1f}",
                *(f"{1e3 * seconds:,.3f}" for seconds in times),
                bound["side"],
            )
        )
    yield aligned(rows, "lrrrrrl")


def _input(result: Mapping[str, Any]) -> Iterator[str]:
    content = result["input"]
    yield input_line(content)
    if "fed" in content:
        fed, resident = content["fed"], result["train"]["images_per_second"]
        bound = " (input-bound)" if fed["data_wait_fraction"] > INPUT_BOUND else ""
        yield (
            f"  fed          {rate(fed['images_per_second'])} images/s by the input, against {rate(resident)} from "
            f"batches on the device; data wait {100 * fed['data_wait_fraction']:.0f} %{bound}"
        )


def input_line(content: Mapping[str, Any]) -> str:
    """The pipeline's own speed."""
    how = f"{content['workers']} workers of {content['threads']}" if content["workers"] else f"{content['threads']}"
    return (
        f"input\n  alone        {rate(content['images_per_second'])} images/s of {content['dataset']} with {how} "
        f"threads on {content['cores']} cores"
    )
