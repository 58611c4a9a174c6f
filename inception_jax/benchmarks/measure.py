"""Measures the steps of a setup: time, compilation, FLOPs, memory, roofline and input, as content of a JSON file."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from inception_jax.benchmarks import hardware, inputs, memory, program_summary, roofline, steps, timing
from inception_jax.benchmarks.hardware import Limits
from inception_jax.benchmarks.steps import Bench, StepPrograms
from inception_jax.errors import UserError
from inception_jax.models import registry
from inception_jax.runs import manifest
from inception_jax.training.setup import Setup

FORMAT = "inception_jax.benchmark/1"
TRACED_STEPS = 5
KIND_NAMES = {"train": "training step", "inference": "forward pass"}


@dataclasses.dataclass(frozen=True)
class MeasurementPlan:
    """The measurements to make, and their duration.

    Attributes:
      kinds: kinds of steps, of "train" and "inference".
      seconds: total time of the timed steps of each kind, approximately.
      blocks: minimum number of blocks of those steps.
      compile_times: whether compilation is timed, cold and from the cache; it is then done twice.
      trace: directory for a profiler trace of `TRACED_STEPS` steps of each kind, or None.
      input_seconds: time for the input pipeline alone, and again for the step fed by it; 0: input is not measured.
    """

    kinds: Sequence[str]
    seconds: float = 10.0
    blocks: int = 10
    compile_times: bool = True
    trace: str | None = None
    input_seconds: float = 5.0


def describe(setup: Setup) -> dict[str, Any]:
    """Workload, device, host, package versions and git revision: the first entries of the JSON file."""
    config, device = setup.config, setup.devices.first_device
    return {
        "format": FORMAT,
        "task": {
            "model": setup.spec.name,
            "batch_size": config.batch_size,
            "image_size": setup.input.image_size,
            "num_classes": len(setup.data.class_names),
            "dtype": config.model.dtype,
            "mode": setup.devices.mode,
            "devices": setup.devices.count,
            "batch_norm": config.parallel.batch_norm,
            "aux_heads": bool(setup.objective.aux_weights),
            "optimizer": config.optimizer.name,
            "accumulation": setup.objective.accumulation,
            "steps_per_execution": setup.steps_per_execution,
            "ema": setup.objective.ema_decay > 0,
            "width_multiplier": config.model.width_multiplier,
            "options": config.model.options.read_specified(),
        },
        "device": {"kind": device.device_kind, "platform": device.platform, "count": setup.devices.count},
        "host": {"cores": len(os.sched_getaffinity(0)), "processor": processor(), "platform": platform.platform()},
        "versions": manifest.versions(),
        "git": manifest.git_revision(),
    }


def find_limits(setup: Setup, peak_tflops: str | None, bandwidth_gbs: str | None, log: Callable[[str], None]) -> Limits:
    """Limits of the devices: from the table of chips, from the flags, or measured now.

    Args:
      setup: names the devices and the compute dtype.
      peak_tflops: value of the flag: a number, "measure", or None for the table of chips.
      bandwidth_gbs: as `peak_tflops`, in GB/s.
      log: called with a line before each measurement.

    Raises:
      UserError: a flag is neither a number above 0 nor "measure".
    """
    device, dtype = setup.devices.first_device, setup.config.model.dtype
    sharing = setup.devices.count if device.platform == "cpu" else 1  # devices of a CPU share what is measured

    def parse_limit(flag: str, text: str | None, unit: float, measured: Callable[[], float]) -> float | None:
        if text == "measure":
            log(f"measuring the limit of the device ({flag}=measure)")
            return measured() / sharing
        try:
            return None if text is None else unit * float(text)
        except ValueError:
            raise UserError(f"{flag}={text!r}: must be a number above 0, or 'measure'") from None

    peak_flops = parse_limit("--peak_tflops", peak_tflops, 1e12, lambda: hardware.measure_flops(dtype, device))
    bandwidth = parse_limit("--bandwidth_gbs", bandwidth_gbs, 1e9, lambda: hardware.measure_bandwidth(device))
    limits = hardware.device_limits(device.device_kind, dtype, peak_flops, bandwidth)
    source = limits.source
    if peak_tflops == "measure":
        source = source.replace(hardware.FLOPS_GIVEN, f"FLOP/s measured by {dtype} matrix products")
    if bandwidth_gbs == "measure":
        source = source.replace(hardware.BANDWIDTH_GIVEN, "bandwidth measured by copying an array")
    return dataclasses.replace(limits, source=source)


def measure(setup: Setup, plan: MeasurementPlan, limits: Limits, log: Callable[[str], None]) -> dict[str, Any]:
    """Measures the steps of a setup, and the input where `plan` asks for it.

    Args:
      setup: from `workload.build_setup`.
      plan: the measurements to make.
      limits: from `find_limits`.
      log: called with a line before each measurement.

    Returns:
      The content of the JSON file: `describe`'s, "limits", "parameters", "pictures", and per kind of step "compile",
      "step_seconds", "images_per_second", "blocks", "flops", "memory" and "roofline"; for training also "losses" and
      (beside the kinds) "input".

    Raises:
      FlopsDisagree: the compiler counts other FLOPs than we do, by more than 10 %; of a network that a recipe registers
        that is logged.
      Recompiled: a step was compiled again while it was timed.
      JaxRuntimeError: the device ran out of memory, among others; see `workload.translate_out_of_memory`.
      UserError: the setup has several processes, or the compilation cache was not hit.
    """
    bench = Bench(setup)
    result = describe(setup) | {
        "limits": dataclasses.asdict(limits),
        "parameters": bench.num_parameters,
        "pictures": bench.fingerprint,
    }
    for kind in plan.kinds:
        log(f"compiling the {KIND_NAMES[kind]}" + (", cold and from the cache" if plan.compile_times else ""))
        result[kind] = _measure_kind(bench, kind, plan, limits, log)
    if "train" in plan.kinds and plan.input_seconds > 0:
        log("measuring the input pipeline, alone and feeding the step")
        result["input"] = inputs.measure_rate(setup.data.train, plan.input_seconds)
        result["input"]["fed"] = inputs.measure_fed_step(bench, plan.input_seconds)
    return result


def _measure_kind(
    bench: Bench, kind: str, plan: MeasurementPlan, limits: Limits, log: Callable[[str], None]
) -> dict[str, Any]:
    """Measures one kind of step; `measure` lists what it returns."""
    config, devices = bench.setup.config, bench.setup.devices
    content: dict[str, Any] = {}
    if plan.compile_times:
        content["compile"] = dataclasses.asdict(bench.time_compilation(kind))
    else:
        bench.compile(kind)
    layers = bench.layers(kind)
    flops = count_flops(bench, kind, log)
    log(f"timing the {KIND_NAMES[kind]}")
    unit = bench.steps_per_call if kind == "train" else 1
    times = timing.time_steps(lambda steps: bench.run(kind, steps), seconds=plan.seconds, blocks=plan.blocks, unit=unit)
    content |= times.to_json(config.batch_size)
    work = config.batch_size * roofline.model_flops(layers, kind)
    rate = work / times.median / devices.count
    content["flops"] = flops | {
        "per_second_per_device": rate,
        "utilization": rate / limits.flops if limits.flops else None,
    }
    device = devices.first_device
    content["memory"] = {
        "program": memory.program_memory(bench.compiled[kind], accelerator=device.platform != "cpu"),
        "device": memory.device_memory(device),
    }
    # On a CPU the text hides most of the program in calls of libraries; a loop of steps is not the program of one.
    if device.platform != "cpu" and unit == 1:
        content["program"] = program_summary.summarize(bench.compiled[kind], limits, bench.block_names)
    content["roofline"] = layer_roofline(bench, kind, limits)
    if content["roofline"]:
        content["roofline"]["fraction"] = content["roofline"]["seconds"] / times.median
    if kind == "train":
        first, last = steps.quarter_means(bench.pop_losses())
        content["losses"] = {"first_quarter": first, "last_quarter": last}
    if plan.trace:
        log(f"tracing {TRACED_STEPS} steps into {plan.trace}")
        with jax.profiler.trace(str(Path(plan.trace) / kind)):
            bench.run(kind, TRACED_STEPS)
    return content


def count_flops(programs: StepPrograms, kind: str, log: Callable[[str], None]) -> dict[str, float | None]:
    """Counts a step's FLOPs: ours, and the compiler's, which must agree.

    Returns:
      "per_image" and "inside_per_image", ours with and without multiply-adds on padding; "compiler_per_image",
      "compiler_per_step_beside" and "compiler_over_inside", None where no compiler of the process counts.

    Raises:
      FlopsDisagree, UserError: as `measure`.
    """
    layers, counted = programs.layers(kind), programs.count_flops(kind)
    per_image, beside = counted or (None, None)
    return {
        "per_image": roofline.model_flops(layers, kind),
        "inside_per_image": roofline.inside_flops(layers, kind),
        "compiler_per_image": per_image,
        "compiler_per_step_beside": beside,
        "compiler_over_inside": None if per_image is None else _compare_flops(programs, kind, per_image, log),
    }


def _compare_flops(bench: StepPrograms, kind: str, per_image: float, log: Callable[[str], None]) -> float:
    """The compiler's count of FLOPs divided by ours.

    Raises:
      FlopsDisagree: they differ by more than 10 %, of a network of this package.
      UserError: no layer of a registered network can be counted.
    """
    ours, name = roofline.inside_flops(bench.layers(kind), kind), bench.setup.spec.name
    if name in registry.BUILT_IN:
        return roofline.check_flops(ours, per_image, KIND_NAMES[kind])
    if not ours:
        raise UserError(
            f"{name}: none of its layers is one whose FLOPs are counted: nn.Conv, nn.Dense, or this package's"
        )
    ratio = per_image / ours
    if abs(ratio - 1) > roofline.TOLERANCE:
        others = f", such as {', '.join(bench.cost.uncounted)}" if bench.cost.uncounted else ""
        log(
            f"{name}: the compiler counts {ratio:.2f} times the FLOPs of its convolutions and dense layers; "
            f"utilization and roofline leave out the rest{others}"
        )
    return ratio


def layer_roofline(bench: StepPrograms, kind: str, limits: Limits) -> dict[str, Any] | None:
    """The roofline bounds of all layers, by block; None where the device's limits are not known."""
    if not (limits.flops and limits.bandwidth):
        return None
    setup = bench.setup
    per_device = setup.config.batch_size // setup.devices.count
    bounds = roofline.block_bounds(
        bench.layers(kind),
        kind,
        per_device,
        jnp.dtype(setup.config.model.dtype).itemsize,
        limits.flops,
        limits.bandwidth,
    )
    total = sum(bound.seconds for bound in bounds)
    return {
        "seconds": total,
        "blocks": [dataclasses.asdict(bound) | {"side": bound.limited_by} for bound in bounds],
    }


def processor() -> str:
    """The processor's model name in /proc/cpuinfo, or the machine type."""
    try:
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        match = None
    return match[1] if match else platform.machine()
