"""Compiles the steps of a setup for described hardware and reads the programs, as content of a JSON file.

The programs are those that `measure` times: the training step and the forward pass, for the same shapes. What only a
device can tell (time, its own memory counter, input) is missing; in its place is what the program's text tells:
kernels, bytes, collectives, and a bound (`program_cost`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inception_jax.benchmarks import measure, memory, program_summary, weak_scaling
from inception_jax.benchmarks.hardware import Limits
from inception_jax.benchmarks.steps import StepPrograms
from inception_jax.benchmarks.topologies import Topology
from inception_jax.training.compilation import quiet_compiler
from inception_jax.training.setup import Setup

MEMORY_FRACTION = {"gpu": 0.75, "tpu": 1.0}  # that JAX allocates (XLA_PYTHON_CLIENT_MEM_FRACTION)


def compile_steps(
    setup: Setup, topology: Topology, kinds: Sequence[str], limits: Limits, log: Callable[[str], None]
) -> dict[str, Any]:
    """Compiles steps and reads their programs.

    Args:
      setup: from `workload.build_setup`, for the topology's devices.
      topology: the described hardware.
      kinds: of "train" and "inference".
      limits: of one device.
      log: called with a line before each compilation.

    Returns:
      The content of the JSON file: that of `measure.measure` without what only a device can tell, with "topology", and
      per kind of step "program" (`summarize`); for training on several devices also "weak_scaling".

    Raises:
      FlopsDisagree: as `measure.measure`.
      JaxRuntimeError: the program does not fit into the memory, among others; see `workload.translate_out_of_memory`.
    """
    programs = StepPrograms(setup)
    result = measure.describe(setup) | {
        "topology": {
            "name": topology.name,
            "compiler": topology.compiler,
            "memory_bytes": topology.memory_bytes,
        },
        "limits": dataclasses.asdict(limits),
        "parameters": programs.num_parameters,
    }
    for kind in kinds:
        log(f"compiling the {measure.KIND_NAMES[kind]} for {topology.name}; this takes minutes")
        result[kind] = _read_step(programs, kind, topology, limits, log)
    return result


def _read_step(
    programs: StepPrograms, kind: str, topology: Topology, limits: Limits, log: Callable[[str], None]
) -> dict[str, Any]:
    with quiet_compiler(True):  # it warns after two minutes
        compiled = programs.compile(kind)
    planned = memory.program_memory(compiled, accelerator=True)
    content: dict[str, Any] = {
        "compile": {
            "lowering": compiled.lowering_seconds,
            "cold": compiled.seconds - compiled.lowering_seconds,
        },
        "flops": measure.count_flops(programs, kind, log),
        "memory": {
            "program": planned,
            "device": None,
            "largest_batch": estimate_largest_batch(programs, planned, topology)
            if planned and kind == "train"
            else None,
        },
        "roofline": measure.layer_roofline(programs, kind, limits),
        "program": program_summary.summarize(compiled, limits, programs.block_names),
    }
    links = weak_scaling.LINKS.get(topology.chip)
    if kind == "train" and programs.setup.devices.count > 1 and links and content["program"]["seconds"] is not None:
        reductions = [row["bytes"] for row in content["program"]["collectives"] for _ in range(row["runs"])]
        content["weak_scaling"] = {
            "rows": weak_scaling.predict(content["program"]["seconds"], reductions, links),
            "source": links.source,
        }
    return content


def estimate_largest_batch(programs: StepPrograms, planned: Mapping[str, int], topology: Topology) -> int:
    """Estimates the largest global batch whose training step fits: all but the state grows in proportion to the batch.

    Args:
      programs: of the setup that was compiled.
      planned: `memory.program_memory` of its training step.
      topology: whose memory is to hold it.

    Returns:
      A multiple of the devices and micro-batches.
    """
    setup, state = programs.setup, programs.state_bytes
    growing = max(1, planned.get("peak", planned["total"]) - state)
    room = MEMORY_FRACTION[setup.devices.first_device.platform] * topology.memory_bytes - state
    unit = setup.objective.accumulation
    per_device = setup.config.batch_size // setup.devices.count
    return max(0, int(per_device * room / growing) // unit * unit) * setup.devices.count
