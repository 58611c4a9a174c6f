"""`python -m inception_jax.benchmark`: measures training step, forward pass and input, beside the device's limits."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inception_jax import command_line, recipe_files
from inception_jax.benchmarks import versus_command
from inception_jax.errors import ArgumentParser, UserError
from inception_jax.ranges import MAX_BATCH

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from inception_jax.training.setup import Setup


def main(argv: list[str]) -> int:
    """Measures what the flags ask for and prints it; an invalid comparison is an error after its table.

    Args:
      argv: command-line arguments, without the program's name.

    Returns:
      The exit code, 0.

    Raises:
      UserError: the flags or the config are wrong, or the measurement is not valid.
    """
    arguments = _arguments()
    flags, config = recipe_files.parse_with_config(arguments, argv)
    _refuse_unread(arguments, flags)
    if flags.difference:
        return _difference(flags)
    if bool(flags.model) == (config is not None):
        raise UserError("give either --model=NAME or --config=FILE.py, to say what is measured")
    config = _build_config(flags, config)
    if flags.topology:
        return _topology(flags, config)
    if flags.data:
        return _data(flags, config)
    if flags.vs:
        return _versus(flags, config)
    if flags.largest_batch:
        return _largest_batch(flags, config)
    return _measure(flags, config)


def _arguments() -> ArgumentParser:
    arguments = command_line.parser("benchmark", "Measure training step, forward pass and input pipeline of a network.")
    add = arguments.add_argument
    add("--model", help="a network, with SGD on synthetic images; or --config for the step of a recipe")
    recipe_files.add_config(arguments)
    command_line.add_options(
        arguments, "with --model: an option of create_model, such as width_multiplier=0.5; may be repeated"
    )
    add(
        "--batch_size",
        type=command_line.whole(1, MAX_BATCH),
        metavar="N",
        help="over all devices (default: 32, or the config's; with --topology and --model 32 per device)",
    )
    command_line.add_image_size(arguments, "default: the network's, or the config's")
    add("--num_classes", type=command_line.whole(0, MAX_BATCH), metavar="N", help="with --model (default 1000)")
    add("--dtype", choices=("float32", "bfloat16", "float64"), help="compute dtype of the network")
    add("--mode", choices=("jit", "pmap"), help="default: jit, or the config's")
    add("--devices", type=command_line.whole(), metavar="N", help="number of devices (default: all)")
    add(
        "--steps_per_execution",
        type=command_line.whole(1, 1024),
        metavar="N",
        help="training steps that one call of the program takes (default: 1, or the config's)",
    )
    add("--what", choices=("train", "inference", "both"), default="both", help="kind of steps (default: both)")
    add(
        "--seconds",
        type=command_line.real(0, 1e9),
        default=10.0,
        help="total time of the timed steps of each kind, or of a block of --data (default 10)",
    )
    add("--blocks", type=command_line.whole(), default=10, help="minimum number of blocks of timed steps (default 10)")
    add(
        "--no_compile_times",
        action="store_true",
        help="compile once, with the usual compilation cache, and do not time it",
    )
    add("--no_input", action="store_true", help="do not measure the input pipeline")
    add("--peak_tflops", metavar="NUMBER|measure", help="peak of one device in this dtype (default: table of chips)")
    add("--bandwidth_gbs", metavar="NUMBER|measure", help="memory bandwidth of one device (default: table of chips)")
    add("--data", action="store_true", help="measure only the input pipeline; compile nothing")
    add("--largest_batch", action="store_true", help="find the largest batch whose training step fits into memory")
    add(
        "--topology",
        metavar="NAME",
        help="compile for hardware that is not here and read the programs: h200, h100:8, a100, v5e:16x16, v6e:2x4, …",
    )
    add("--trace", metavar="DIR", help="also write a profiler trace, for TensorBoard or Perfetto")
    add("--json", metavar="FILE", help="also write all measured numbers")
    add("--plot", metavar="FILE.png", help="also plot the measurement")
    add(
        "--difference",
        nargs=2,
        metavar=("A.json", "B.json"),
        help="compare two files written by --json; measures nothing",
    )
    versus_command.add_flags(arguments)
    return arguments


_WORKLOAD = {"config", "model", "set", "batch_size", "image_size", "num_classes", "dtype", "json"}
_READ = {  # {action: flags that it reads}
    "--difference": {"difference"},
    "--topology": _WORKLOAD | {"topology", "what", "peak_tflops", "bandwidth_gbs"},
    "--data --vs": _WORKLOAD | {"data", "mode", "devices", "seconds"} | versus_command.INPUT_FLAGS,
    "--vs": _WORKLOAD | {"what", "steps_per_execution"} | versus_command.FLAGS,
    "--data": _WORKLOAD | {"data", "mode", "devices", "seconds"},
    "--largest_batch": _WORKLOAD - {"batch_size"} | {"largest_batch", "mode", "devices"},
    "": _WORKLOAD | {"mode", "devices", "what", "steps_per_execution", "seconds", "blocks", "no_compile_times",
                     "no_input", "peak_tflops", "bandwidth_gbs", "trace", "plot"},
}  # fmt: skip


def _refuse_unread(arguments: ArgumentParser, flags: argparse.Namespace) -> None:
    """Raises UserError for a flag that has no effect under the others."""
    given = {f"--{name}" for name, value in vars(flags).items() if value}
    action = next(name for name in _READ if given.issuperset(name.split()))
    reason = f"has no effect with {action}" if action else "has an effect only with --vs=torch"
    arguments.refuse_unread(_READ[action], reason)


def _build_config(flags: argparse.Namespace, config: ConfigDict | None) -> ConfigDict:
    """The config of --model or --config, with the values of the other flags."""
    from inception_jax.benchmarks import workload
    from inception_jax.models import registry

    options = dict(flags.set)
    if config is None:
        recipe_files.check_model(flags.model)
        config = workload.config_of_model(flags.model, 1000 if flags.num_classes is None else flags.num_classes)
        registry.create_model(flags.model, **options)  # an unknown option or value is an error here
        workload.set_fields(
            config,
            {
                f"model.{name}" if name in config.model else f"model.options.{name}": value
                for name, value in options.items()
            },
        )
        config.data.name = workload.name_data(config)
    elif options or flags.num_classes is not None:
        raise UserError("--set and --num_classes go with --model; set the fields of a config with --config.FIELD=VALUE")
    if flags.steps_per_execution and flags.what == "inference":
        raise UserError("--steps_per_execution: has no effect with --what=inference; it is of training steps")
    command_line.check_devices(flags.devices)
    workload.set_fields(
        config,
        {
            "batch_size": flags.batch_size,
            "data.image_size": flags.image_size,
            "model.dtype": flags.dtype,
            "parallel.mode": flags.mode,
            "parallel.devices": flags.devices,
            "parallel.steps_per_execution": flags.steps_per_execution,
        },
    )
    if flags.dtype == "float64":
        import jax

        jax.config.update("jax_enable_x64", True)
    return config


def _kinds(flags: argparse.Namespace) -> tuple[str, ...]:
    return ("train", "inference") if flags.what == "both" else (flags.what,)


def _measure(flags: argparse.Namespace, config: ConfigDict) -> int:
    from inception_jax.benchmarks import measure, plot, report, workload
    from inception_jax.training import host_devices, parallel

    if flags.blocks < 2 or not flags.seconds > 0:
        raise UserError(
            f"--blocks={flags.blocks} --seconds={flags.seconds:g}: must be at least 2 blocks and more than 0 seconds"
        )
    # Inference is timed as evaluate, predict, extract and score compute it; training, and both together, on one device.
    if flags.what == "inference" and config.parallel.devices is None and config.batch_size % host_devices.COUNT == 0:
        host_devices.use_two(config.batch_size)
    parallel.enable_compilation_cache()
    setup = workload.build_setup(config)
    plan = measure.MeasurementPlan(
        kinds=_kinds(flags),
        seconds=flags.seconds,
        blocks=flags.blocks,
        compile_times=not flags.no_compile_times,
        trace=flags.trace,
        input_seconds=0.0 if flags.no_input else measure.MeasurementPlan.input_seconds,
    )
    with workload.translate_out_of_memory(setup):
        limits = measure.find_limits(setup, flags.peak_tflops, flags.bandwidth_gbs, _log)
        result = measure.measure(setup, plan, limits, _log)
    print(report.format_measurement(result))
    if flags.what == "both" and setup.devices.first_device.platform == "cpu" and setup.devices.count == 1:
        _log(
            "this forward pass is of one device, as the training step; evaluate, predict, extract and score make a CPU "
            "two devices, which --what=inference times"
        )
    _write_json(flags, result)
    if flags.plot:
        plot.draw(result, flags.plot)
        print(f"plot: {flags.plot}")
    return 0


def _data(flags: argparse.Namespace, config: ConfigDict) -> int:
    from inception_jax.benchmarks import input_versus, inputs, measure, report, workload

    setup = workload.build_setup(config)
    if flags.vs:
        compared, problems = versus_command.compare_inputs(flags, config, setup.data.train, _log)
        return _print_comparison(flags, compared, input_versus.format_text(compared), problems)
    result = measure.describe(setup) | {"input": inputs.measure_rate(setup.data.train, flags.seconds)}
    print(report.format_input(result["input"]))
    _write_json(flags, result)
    return 0


def _largest_batch(flags: argparse.Namespace, config: ConfigDict) -> int:
    from inception_jax.benchmarks import measure, memory
    from inception_jax.training import parallel

    parallel.enable_compilation_cache()
    first = _build_smallest_setup(config)
    unit = first.devices.count * first.objective.accumulation
    size = memory.largest_batch(memory.make_training_fits(config, _log), unit)
    if not size:
        raise UserError(f"not even a batch of {unit} fits: {first.spec.name} at {first.input.image_size} pixels")
    device = first.devices.first_device
    print(
        f"{size:,} is the largest batch that fits, to within a sixteenth: {first.spec.name}, {first.input.image_size} "
        f"pixels, {first.config.model.dtype}, training on {first.devices.count} x {device.device_kind}"
    )
    _write_json(flags, measure.describe(first) | {"largest_batch": size})
    return 0


def _build_smallest_setup(config: ConfigDict) -> Setup:
    """The setup with micro-batches of one example, which fits into memory if any does."""
    from inception_jax.benchmarks import workload
    from inception_jax.training.parallel import Devices

    devices = Devices(config.parallel.mode, config.parallel.devices).count
    config.batch_size = devices * config.optimizer.accumulation
    return workload.build_setup(config)


def _topology(flags: argparse.Namespace, config: ConfigDict) -> int:
    import jax

    from inception_jax.benchmarks import compile_only, measure, program_report, topologies, workload

    if "measure" in (flags.peak_tflops, flags.bandwidth_gbs):
        raise UserError("--topology: nothing can be measured on hardware that is not here; give a number")
    jax.config.update("jax_platforms", "cpu")  # a plugin would look for its devices, and wait
    topology = topologies.describe(flags.topology)
    workload.set_fields(config, {"parallel.mode": "jit", "parallel.devices": None})
    if flags.model and flags.batch_size is None:
        config.batch_size *= len(topology.devices)
    setup = workload.build_setup(config, topology.devices)
    with workload.translate_out_of_memory(setup):
        limits = measure.find_limits(setup, flags.peak_tflops, flags.bandwidth_gbs, _log)
        result = compile_only.compile_steps(setup, topology, _kinds(flags), limits, _log)
    print(program_report.format_programs(result))
    _write_json(flags, result)
    return 0


def _versus(flags: argparse.Namespace, config: ConfigDict) -> int:
    from inception_jax.benchmarks import versus_report

    result = versus_command.compare(flags, config, _kinds(flags), _log)
    return _print_comparison(flags, result, versus_report.format_text(result), versus_report.find_problems(result))


def _print_comparison(flags: argparse.Namespace, result: dict[str, Any], text: str, problems: list[str]) -> int:
    print(text)
    _write_json(flags, result)
    if problems:
        raise UserError("the comparison is not valid: " + "; ".join(problems))
    return 0


def _difference(flags: argparse.Namespace) -> int:
    from inception_jax.benchmarks import report

    first, second = map(report.read_measurement, flags.difference)
    print(report.format_difference(first, second, tuple(flags.difference)))
    return 0


def _write_json(flags: argparse.Namespace, result: dict[str, Any]) -> None:
    """Writes the file of --json, if given."""
    if flags.json:
        from inception_jax.runs.manifest import replace_text

        Path(flags.json).parent.mkdir(parents=True, exist_ok=True)
        replace_text(flags.json, json.dumps(result, indent=1) + "\n")
        print(f"all numbers: {flags.json}")


def _log(text: str) -> None:
    print(f"… {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    command_line.run(main)
