"""`python -m inception_jax.benchmark`: how fast a network trains and predicts here, against what the chip can do."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inception_jax import command_line
from inception_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from inception_jax.training.setup import Setup


def main(argv: list[str]) -> int:
    """Measures, and prints what came out; a comparison that cannot be believed is an error after its table."""
    arguments = _arguments()
    if any(word.startswith("--config") for word in argv):
        flags, config, _ = command_line.parse_with_config(arguments, argv)
    else:
        flags, config = arguments.parse_args(argv), None
    _refuse_unread(arguments, flags)
    if flags.difference:
        return _difference(flags)
    if bool(flags.model) == (config is not None):
        raise UserError("give --model=NAME or --config=FILE.py: what is to be measured")
    config = _build_config(flags, config)
    if flags.vs:
        return _versus(flags, config)
    if flags.data:
        return _data(flags, config)
    if flags.largest_batch:
        return _largest_batch(flags, config)
    return _measure(flags, config)


def _arguments() -> argparse.ArgumentParser:
    arguments = command_line.parser("benchmark", "Time training step and forward pass of a network, and the input.")
    add = arguments.add_argument
    add("--model", help="a network, on synthetic pictures with SGD; or --config for a recipe's own step")
    command_line.add_config(arguments)
    add(
        "--set",
        type=command_line.option,
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="with --model: an option of create_model, such as width_multiplier=0.5; may be repeated",
    )
    add("--batch_size", type=int, metavar="N", help="over all devices (default: 32, or the recipe's)")
    add("--image_size", type=int, metavar="PIXELS", help="default: the network's, or the recipe's")
    add("--num_classes", type=int, metavar="N", help="with --model: default 1000")
    add("--dtype", choices=("float32", "bfloat16", "float64"), help="what the network computes in")
    add("--mode", choices=("jit", "pmap"), help="default: jit, or the recipe's")
    add("--devices", type=int, metavar="N", help="how many (default: all)")
    add("--what", choices=("train", "inference", "both"), default="both", help="default: both")
    add("--seconds", type=float, default=10.0, help="of counted steps per kind (default 10)")
    add("--blocks", type=int, default=10, help="that the counted steps are cut into, at least (default 10)")
    add("--no_compile_times", action="store_true", help="compile once, through the usual cache, and time nothing of it")
    add("--peak_tflops", metavar="NUMBER|measure", help="of one device in this dtype (default: the table of chips)")
    add("--bandwidth_gbs", metavar="NUMBER|measure", help="of one device's memory (default: the table of chips)")
    add("--data", action="store_true", help="measure the input pipeline alone; nothing is compiled")
    add("--largest_batch", action="store_true", help="find the largest batch whose training step fits into memory")
    add("--trace", metavar="DIR", help="also leave a profiler trace, for TensorBoard or Perfetto")
    add("--json", metavar="FILE", help="also write everything that was measured")
    add("--plot", metavar="FILE.png", help="also draw it")
    add("--difference", nargs=2, metavar=("A.json", "B.json"), help="compare two files of --json; measures nothing")
    group = arguments.add_argument_group("beside PyTorch")
    group.add_argument("--vs", choices=("torch",), help="time the same step in PyTorch in turn with ours")
    group.add_argument("--torch_python", metavar="PATH", help="the interpreter that has PyTorch (default: this one)")
    group.add_argument("--torch_variants", metavar="A,B", help="default: eager,channels_last; on a GPU compile, too")
    group.add_argument("--rounds", type=int, default=10, help="of one block per side (default 10)")
    group.add_argument("--steps", type=int, default=5, help="of a block (default 5)")
    return arguments


_TASK = {"model", "set", "batch_size", "image_size", "num_classes", "dtype", "json"}
_READ = {  # by what is done: the flags that it reads
    "--difference": {"difference"},
    "--vs": _TASK | {"vs", "what", "torch_python", "torch_variants", "rounds", "steps"},
    "--data": _TASK | {"data", "mode", "devices", "seconds"},
    "--largest_batch": _TASK - {"batch_size"} | {"largest_batch", "mode", "devices"},
    "": _TASK | {"mode", "devices", "what", "seconds", "blocks", "no_compile_times", "peak_tflops", "bandwidth_gbs",
                 "trace", "plot"},
}  # fmt: skip


def _refuse_unread(arguments: argparse.ArgumentParser, flags: argparse.Namespace) -> None:
    """Raises UserError for a flag that nothing would read."""
    action = next((name for name in _READ if name and getattr(flags, name.removeprefix("--"))), "")
    given = {name for name, value in vars(flags).items() if name != "_" and value != arguments.get_default(name)}
    if unread := sorted(given - _READ[action] - {"config"}):
        raise UserError(f"--{unread[0]}: {f'{action} does not read it' if action else 'only --vs=torch reads it'}")


def _build_config(flags: argparse.Namespace, config: ConfigDict | None) -> ConfigDict:
    """The config of a network or of a file, with the flags' values in it."""
    from inception_jax.benchmarks import workload
    from inception_jax.models import registry

    options = dict(flags.set)
    if config is None:
        config = workload.config_of_model(flags.model, 1000 if flags.num_classes is None else flags.num_classes)
        registry.create_model(flags.model, **options)  # an unknown option or value is an error here
        workload.set_fields(
            config,
            {
                f"model.{name}" if name in config.model else f"model.options.{name}": value
                for name, value in options.items()
            },
        )
    elif options or flags.num_classes is not None:
        raise UserError("--set and --num_classes go with --model; a recipe's fields are set by --config.FIELD=VALUE")
    workload.set_fields(
        config,
        {
            "batch_size": flags.batch_size,
            "data.image_size": flags.image_size,
            "model.dtype": flags.dtype,
            "parallel.mode": flags.mode,
            "parallel.devices": flags.devices,
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
    from inception_jax.training import parallel

    if flags.blocks < 2 or not flags.seconds > 0:
        raise UserError("--blocks and --seconds: at least 2 blocks and more than 0 seconds are needed for a spread")
    parallel.enable_compilation_cache()
    setup = workload.build_setup(config)
    plan = measure.MeasurementPlan(_kinds(flags), flags.seconds, flags.blocks, not flags.no_compile_times, flags.trace)
    with workload.translate_out_of_memory(setup):
        limits = measure.find_limits(setup, flags.peak_tflops, flags.bandwidth_gbs, _log)
        result = measure.measure(setup, plan, limits, _log)
    print(report.format_measurement(result))
    _write_json(flags, result)
    if flags.plot:
        plot.draw(result, flags.plot)
        print(f"picture: {flags.plot}")
    return 0


def _data(flags: argparse.Namespace, config: ConfigDict) -> int:
    from inception_jax.benchmarks import inputs, measure, report, workload

    setup = workload.build_setup(config)
    result = measure.describe(setup) | {"input": inputs.measure_rate(setup.data.train, flags.seconds)}
    print(report.format_input(result["input"]))
    _write_json(flags, result)
    return 0


def _largest_batch(flags: argparse.Namespace, config: ConfigDict) -> int:
    from inception_jax.benchmarks import measure, memory, workload
    from inception_jax.training import parallel

    parallel.enable_compilation_cache()
    first = _smallest(workload.build_setup, config)
    unit = first.devices.count * first.objective.accumulation
    found = memory.largest_batch(memory.make_training_fits(config, _log), unit)
    if not found:
        raise UserError(f"not even a batch of {unit} of {first.spec.name} at {first.input.image_size} pixels fits")
    device = first.devices.mesh.devices.flat[0]
    print(
        f"{found:,} is the largest batch that fits, to within a sixteenth: {first.spec.name}, {first.input.image_size} "
        f"pixels, {first.config.model.dtype}, training on {first.devices.count} x {device.device_kind}"
    )
    _write_json(flags, measure.describe(first) | {"largest_batch": found})
    return 0


def _smallest(build: Any, config: ConfigDict) -> Setup:
    """The setup of a batch of one example per part of a share, which fits if any does."""
    from inception_jax.training.parallel import Devices

    devices = Devices(config.parallel.mode, config.parallel.devices).count
    config.batch_size = devices * config.optimizer.accumulation
    return build(config)


def _versus(flags: argparse.Namespace, config: ConfigDict) -> int:
    from inception_jax.benchmarks import versus
    from inception_jax.models import registry

    if not flags.model:
        raise UserError("--vs=torch goes with --model: the sides take the same step, which is no recipe's")
    spec = registry.get_spec(flags.model)
    backend = _backend()
    workload = versus.make_workload(
        flags.model,
        batch_size=config.batch_size,
        image_size=config.data.image_size or spec.image_size,
        backend=backend,
        aux_weights=spec.aux_weights,
        options=dict(flags.set),
        dtype=config.model.dtype,
        num_classes=1000 if flags.num_classes is None else flags.num_classes,
        kinds=_kinds(flags),
    )
    variants = flags.torch_variants.split(",") if flags.torch_variants else None
    sides = [versus.jax_side(backend), *versus.torch_sides(backend, flags.torch_python, variants)]
    result = versus.compare(workload, sides, rounds=flags.rounds, steps=flags.steps, log=_log)
    print(versus.table(result))
    _write_json(flags, result)
    complaints = versus.find_problems(result)
    if complaints:
        raise UserError("the comparison is not to be believed: " + "; ".join(complaints))
    return 0


def _backend() -> str:
    """ "gpu" where JAX would find one, found in another process: this one must not take the GPU's memory."""
    import subprocess

    code = "import jax; print(jax.default_backend())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    name = found.stdout.strip().rpartition("\n")[2]
    if name not in ("cpu", "gpu"):
        raise UserError(f"--vs=torch compares on a CPU or a GPU; JAX's backend here is {name or 'none'}")
    return name


def _difference(flags: argparse.Namespace) -> int:
    from inception_jax.benchmarks import report

    first, second = map(report.read_measurement, flags.difference)
    print(report.format_difference(first, second, tuple(flags.difference)))
    return 0


def _write_json(flags: argparse.Namespace, result: dict[str, Any]) -> None:
    """Writes the JSON file, where one is asked for."""
    if flags.json:
        from inception_jax.runs.manifest import replace_text

        Path(flags.json).parent.mkdir(parents=True, exist_ok=True)
        replace_text(flags.json, json.dumps(result, indent=1) + "\n")
        print(f"all numbers: {flags.json}")


def _log(text: str) -> None:
    print(f"… {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    command_line.run(main)
