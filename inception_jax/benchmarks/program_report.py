"""Formats what `compile_only` reads from programs that were compiled for described hardware."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from inception_jax.benchmarks.measure import KIND_NAMES
from inception_jax.benchmarks.memory import format_bytes
from inception_jax.benchmarks.report import format_head, format_milliseconds, format_roofline, format_work
from inception_jax.runs.tables import format_table


def format_programs(result: Mapping[str, Any]) -> str:
    """Formats all numbers of the programs.

    Args:
      result: from `compile_only.compile_steps`.
    """
    topology = result["topology"]
    head = [*format_head(result), f"compiled by {topology['compiler']} for {topology['name']}; nothing ran"]
    sections = ["\n".join(head)]
    sections += ["\n".join(_kind(result, kind)) for kind in KIND_NAMES if kind in result]
    return "\n\n".join(sections)


def _kind(result: Mapping[str, Any], kind: str) -> Iterator[str]:
    content = result[kind]
    program, times = content["program"], content["compile"]
    yield KIND_NAMES[kind]
    yield f"  compilation  {times['lowering']:.1f} s tracing and lowering, {times['cold']:.1f} s compiler"
    yield f"  work         {format_work(content['flops'])}"
    yield f"  memory       {_memory(result['topology'], content['memory'])}"
    yield (
        f"  program      {program['kernels']:,} kernels, {program['small_kernels']:,} of them below 2 MB; "
        f"{program['flops'] / 1e12:,.4g} TFLOP, {program['bytes'] / 1e9:,.4g} GB{_compiler(program['compiler'])}"
    )
    for row in program["collectives"]:
        yield f"  collective   {row['runs']} x {row['opcode']} of {row['bytes'] / 1e6:,.4g} MB"
    yield f"  properties   {_properties(program['properties'])}"
    if program["seconds"] is not None:
        seconds, arithmetic = program["seconds"], program["compute_bound_seconds"]
        small = program["small_kernel_seconds"]
        yield (
            f"  bound        {format_milliseconds(seconds)} ({result['task']['batch_size'] / seconds:,.0f} "
            f"images/s), kernel after kernel, {100 * arithmetic / seconds:.0f} % of it bound by arithmetic: limited by "
            f"{program['side']}"
            f"{'' if small is None else f'; small kernels beside that {format_milliseconds(small)}'}"
        )
        yield format_table(list(_program_rows(program, "kinds", "kind")), "lrrrrl")
        yield format_table(list(_program_rows(program, "blocks", "block")), "lrrrrl")
    if content["roofline"]:
        yield from format_roofline(content["roofline"])
    if "weak_scaling" in content:
        yield f"  weak scaling, predicted (weak_scaling.py has the model; {content['weak_scaling']['source']})"
        yield format_table(list(_scaling_rows(content["weak_scaling"]["rows"])), "rrrr")


def _memory(topology: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    planned = content["program"]
    if not planned:
        return "the compiler does not report it"
    peak = f", {format_bytes(planned['peak'])} at once" if "peak" in planned else ""
    text = (
        f"{format_bytes(planned['total'])} planned{peak}: state and batch {format_bytes(planned['arguments'])}, "
        f"temporary {format_bytes(planned['temporary'])}; of {format_bytes(topology['memory_bytes'])}"
    )
    batch = content["largest_batch"]
    return text if batch is None else f"{text}; a batch of about {batch:,} would fit"


def _compiler(count: Mapping[str, float] | None) -> str:
    """The compiler's own count, where it has one."""
    if not count:
        return ""
    return f" (the compiler counts {count['flops'] / 1e12:,.4g} TFLOP and {count['bytes'] / 1e9:,.4g} GB)"


def _properties(content: Mapping[str, Any]) -> str:
    sums = len(content["half_precision_sums"])
    return (
        f"convolutions in {', '.join(content['convolution_dtypes']) or 'none'}, {content['scatters']} scatters, "
        f"{sums} sums in 16 bits, {content['aliased']} results written over one of {content['arguments']} arguments"
    )


def _program_rows(program: Mapping[str, Any], rows: str, column: str) -> Iterator[tuple[str, ...]]:
    yield f"    {column}", "kernels", "GFLOP", "MB", "bound ms", "limited by"
    for row in program[rows]:
        yield (
            f"    {row[column]}",
            f"{row['kernels']:,}",
            f"{row['flops'] / 1e9:,.3f}",
            f"{row['bytes'] / 1e6:,.1f}",
            f"{1e3 * row['seconds']:,.3f}",
            row["side"],
        )


def _scaling_rows(rows: list[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    yield "    devices", "collectives ms", "step ms", "efficiency"
    for row in rows:
        yield (
            f"    {row['devices']:,}",
            f"{1e3 * row['collective_seconds']:,.3f}",
            f"{1e3 * row['step_seconds']:,.3f}",
            f"{100 * row['efficiency']:.1f} %",
        )
