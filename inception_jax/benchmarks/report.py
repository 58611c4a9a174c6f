"""Formats measurements as text: one with all its numbers, or two side by side; reads their JSON files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inception_jax.benchmarks.measure import FORMAT, KIND_NAMES
from inception_jax.benchmarks.memory import format_bytes
from inception_jax.errors import UserError
from inception_jax.runs import manifest
from inception_jax.runs.formatting import INPUT_BOUND, format_rate
from inception_jax.runs.tables import format_table


def format_measurement(result: Mapping[str, Any]) -> str:
    """Formats a measurement with all its numbers.

    Args:
      result: from `measure.measure` or `read_measurement`.
    """
    sections = ["\n".join(format_head(result))]
    sections += ["\n".join(_kind(result, kind)) for kind in KIND_NAMES if kind in result]
    if "input" in result:
        sections.append("\n".join(_input(result)))
    return "\n\n".join(sections)


def format_milliseconds(seconds: float) -> str:
    """Formats a time in milliseconds with three or more digits: `12.3 ms`."""
    return f"{1e3 * seconds:,.3g} ms" if seconds < 1 else f"{1e3 * seconds:,.0f} ms"


def format_head(result: Mapping[str, Any]) -> Iterator[str]:
    """The lines on network, devices and their limits."""
    workload, device, host = result["task"], result["device"], result["host"]
    heads = "with auxiliary heads" if workload["aux_heads"] else "without auxiliary heads"
    options = "".join(f", {name}={value}" for name, value in workload["options"].items())
    yield (
        f"{workload['model']}{options}: {result['parameters']:,} parameters {heads}, {workload['image_size']} pixels, "
        f"batch {workload['batch_size']:,}, {workload['dtype']}"
    )
    yield (
        f"{device['count']} x {device['kind']} ({host['cores']} cores of {host['processor']}), "
        f"mode {workload['mode']}, jax {result['versions']['jax']}"
    )
    limits = result["limits"]
    known = [f"{limits['flops'] / 1e12:,.4g} TFLOP/s"] if limits["flops"] else []
    known += [f"{limits['bandwidth'] / 1e9:,.4g} GB/s"] if limits["bandwidth"] else []
    if len(known) == 2:
        yield f"peak {' and '.join(known)} per device ({limits['source']})"
    else:
        yield (
            f"peak FLOP/s or bandwidth not known ({limits['source']}), so there is no "
            + ("roofline" if limits["flops"] else "utilization and no roofline")
            + "; --peak_tflops and --bandwidth_gbs give them (a number, or 'measure' to measure them now)"
        )


def _kind(result: Mapping[str, Any], kind: str) -> Iterator[str]:
    """The lines on one kind of step."""
    content = result[kind]
    seconds, work = content["step_seconds"], content["flops"]
    yield KIND_NAMES[kind]
    yield (
        f"  time         {format_milliseconds(seconds['median'])} (p10 {format_milliseconds(seconds['p10'])}, p90 "
        f"{format_milliseconds(seconds['p90'])}; {len(content['blocks'])} blocks of {content['steps_per_block']} steps)"
    )
    yield f"  speed        {format_rate(content['images_per_second'])} images/s"
    if "compile" in content:
        times = content["compile"]
        yield (
            f"  compilation  {times['lowering']:.1f} s tracing and lowering, {times['cold']:.1f} s compiler; "
            f"{times['cached']:.1f} s for both from the cache"
        )
    yield f"  work         {format_work(work)}"
    used = f", {100 * work['utilization']:.1f} % of the peak" if work["utilization"] is not None else ""
    yield f"  utilization  {work['per_second_per_device'] / 1e12:,.4g} TFLOP/s per device{used}"
    yield f"  memory       {_memory(content['memory'])}"
    if "losses" in content:
        losses = content["losses"]
        yield (
            f"  loss         {losses['first_quarter']:.4f} in the first quarter of all steps taken, "
            f"{losses['last_quarter']:.4f} in the last"
        )
    if content["roofline"]:
        yield from format_roofline(content["roofline"])


def format_work(work: Mapping[str, Any]) -> str:
    """Formats the FLOPs of an image: ours, and the compiler's where it counts."""
    text = (
        f"{work['per_image'] / 1e9:,.4g} GFLOP per image, of which {work['inside_per_image'] / 1e9:,.4g} not on padding"
    )
    if work["compiler_per_image"] is None:
        return f"{text}; the compiler does not count"
    return (
        f"{text}; the compiler counts {work['compiler_per_image'] / 1e9:,.4g} "
        f"({100 * (work['compiler_over_inside'] - 1):+.1f} %, with activations, batch norm and pools)"
    )


def _memory(content: Mapping[str, Any]) -> str:
    """The compiler's plan and the device's peak."""
    program, device = content["program"], content["device"]
    texts = []
    if program:
        texts.append(
            f"{format_bytes(program['total'])} planned: state and batch {format_bytes(program['arguments'])}, "
            f"temporary {format_bytes(program['temporary'])}"
        )
    if device:
        limit = f" of {format_bytes(device['limit'])}" if "limit" in device else ""
        texts.append(f"{format_bytes(device['peak'])}{limit} peak since the start, as counted by the device")
    return "; ".join(texts) or "reported by neither compiler nor device"


def format_roofline(content: Mapping[str, Any]) -> Iterator[str]:
    """The sum of the bounds, and a table of them."""
    measured = f"; measured {1 / content['fraction']:.2f} times that" if "fraction" in content else ""
    yield f"  roofline     at least {format_milliseconds(content['seconds'])}, layer by layer{measured}"
    rows = [("    block", "GFLOP", "MB", "compute ms", "memory ms", "bound ms", "limited by")]
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
    yield format_table(rows, "lrrrrrl")


def _input(result: Mapping[str, Any]) -> Iterator[str]:
    """The lines on the input pipeline, alone and feeding the training step."""
    content = result["input"]
    yield format_input(content)
    if "fed" in content:
        fed, resident = content["fed"], result["train"]["images_per_second"]
        bound = " (input-bound)" if fed["data_wait_fraction"] > INPUT_BOUND else ""
        yield (
            f"  fed          {format_rate(fed['images_per_second'])} images/s with the step fed by it, "
            f"{format_rate(resident)} with batches on the device; "
            f"data wait {100 * fed['data_wait_fraction']:.0f} %{bound}"
        )


def format_input(content: Mapping[str, Any]) -> str:
    """Formats the speed of the input pipeline alone."""
    how = f"{content['workers']} workers of {content['threads']}" if content["workers"] else f"{content['threads']}"
    cpu = format_rate(content["images_per_cpu_second"])
    return (
        f"input\n  alone        {format_rate(content['images_per_second'])} images/s of {content['dataset']} "
        f"with {how} threads on {content['cores']} cores, {cpu} per CPU-second"
    )


_SETTINGS = ("task", "device", "host", "limits", "versions", "git")
# (name, path below a kind of step, factor, unit): smaller is better in all but the rates.
_FIGURES = (
    ("step, median", "step_seconds.median", 1e3, "ms"),
    ("step, p10", "step_seconds.p10", 1e3, "ms"),
    ("step, p90", "step_seconds.p90", 1e3, "ms"),
    ("images/s", "images_per_second", 1.0, ""),
    ("utilization", "flops.utilization", 100.0, "%"),
    ("of the roofline", "roofline.fraction", 100.0, "%"),
    ("layers' bound", "roofline.seconds", 1e3, "ms"),
    ("kernels' bound", "program.seconds", 1e3, "ms"),
    ("kernels", "program.kernels", 1.0, ""),
    ("kernels < 2 MB", "program.small_kernels", 1.0, ""),
    ("bytes", "program.bytes", 1e-9, "GB"),
    ("FLOPs", "program.flops", 1e-12, "TFLOP"),
    ("memory planned", "memory.program.total", 1 / 2**20, "MiB"),
    ("memory, peak plan", "memory.program.peak", 1 / 2**20, "MiB"),
    ("memory peak", "memory.device.peak", 1 / 2**20, "MiB"),
    ("tracing, lowering", "compile.lowering", 1.0, "s"),
    ("compiler, cold", "compile.cold", 1.0, "s"),
    ("start, cached", "compile.cached", 1.0, "s"),
)


def read_measurement(path: str | Path) -> dict[str, Any]:
    """Reads the JSON file of a measurement.

    Raises:
      UserError: there is no such file, or it is not a measurement.
    """
    content = manifest.read_json_object(path)
    if content is None:
        raise UserError(f"{path}: there is no such file")
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path}: not a measurement written by `benchmark --json`: its format is {content.get('format')!r}, "
            f"allowed: {FORMAT!r}"
        )
    return content


def format_difference(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]) -> str:
    """Formats two measurements side by side: the settings that differ, then every number that both have, and its ratio.

    Args:
      first: from `read_measurement`.
      second: as `first`.
      names: names of the two, for the heads of the columns.

    Raises:
      UserError: they have no kind of step in common.
    """
    kinds = [kind for kind in KIND_NAMES if kind in first and kind in second]
    if not kinds:
        raise UserError(f"{names[0]} and {names[1]}: they have no kind of step in common")
    settings = [{name: content.get(name) for name in _SETTINGS} for content in (first, second)]
    differences = manifest.config_differences(*settings)
    sections = []
    if differences:
        sections.append("Different settings:\n" + format_table([("", *names), *differences]))
    for kind in kinds:
        rows = list(_rows(first[kind], second[kind]))
        sections.append(f"{KIND_NAMES[kind]}:\n" + format_table([("", *names, "ratio"), *rows], "lrrr"))
    return "\n\n".join(sections)


def _rows(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """(name, first, second, ratio) of every number that both have."""
    yield from _bound_beside_time(first, second)
    for name, path, factor, unit in _FIGURES:
        one, two = _at(first, path), _at(second, path)
        if one is not None and two is not None:
            texts = [f"{factor * value:,.4g} {unit}".rstrip() for value in (one, two)]
            yield name, texts[0], texts[1], f"{two / one:.3f}" if one else ""


def _bound_beside_time(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """The time of a measured step beside the bound of one that was compiled for described hardware."""
    times = [_at(content, "step_seconds.median") for content in (first, second)]
    bounds = [_at(content, "program.seconds") for content in (first, second)]
    if (times[0] is None) == (times[1] is None) or (bounds[0] is None) == (bounds[1] is None):
        return
    one, two = (bound if time is None else time for time, bound in zip(times, bounds, strict=True))
    if one and two:
        words = ["bound" if time is None else "median" for time in times]
        yield f"step, {words[0]} / {words[1]}", f"{1e3 * one:,.4g} ms", f"{1e3 * two:,.4g} ms", f"{two / one:.3f}"


def _at(content: Any, path: str) -> float | None:
    """The number at a dotted path, or None where a part of the path is missing."""
    for name in path.split("."):
        content = content.get(name) if isinstance(content, Mapping) else None
    return content
