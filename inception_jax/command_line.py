"""Common code of the commands: the flags of several processes, options, errors as one line."""

from __future__ import annotations

import argparse
import ast
import contextlib
import errno
import math
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from inception_jax import standard_streams
from inception_jax.errors import (
    ArgumentParser,
    ExitCode,
    UserError,
    compiler_disk_full,
    is_disk_full,
    shorten,
    shorten_message,
    write_error,
)
from inception_jax.ranges import INT32_MAX, MAX_IMAGE_PIXELS, MAX_SIDE, Range


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs a command on `sys.argv` and exits the process; an error is one line on stderr and its own exit code.

    Args:
      main: takes the arguments after the program's name and returns an exit code; None is 0.
    """
    standard_streams.prepare()
    try:
        code = main(sys.argv[1:]) or 0
    except UserError as error:
        code = _print_error(error, error.exit_code)
    except OSError as error:
        if is_disk_full(error):
            full = write_error(error.filename or "a file", error)
            code = _print_error(full, full.exit_code)
        elif error.errno != errno.ENAMETOOLONG:
            raise
        else:
            code = _print_error(f"{error.filename}: {error.strerror}", UserError.exit_code)
    except KeyboardInterrupt as interrupt:  # Python's own has no text; a command may say what to do next
        code = _print_error("; ".join(["interrupted", *map(str, interrupt.args)]), 130)
    except ValueError as error:
        if not _is_model_error(error):
            raise
        code = _print_error(error, UserError.exit_code)
    except (AssertionError, RuntimeError) as error:
        if is_disk_full(error):
            code = _print_error(compiler_disk_full(error), ExitCode.DISK_FULL)
        elif (problem := device_problem()) is None:
            raise
        else:
            code = _print_error(problem, UserError.exit_code)
    if failure := standard_streams.stdout_failure():
        standard_streams.discard_stdout()
        # The reader may have closed the pipe (`| head`); and the code of a run that was stopped or failed stays.
        if not code and not isinstance(failure, BrokenPipeError):
            unwritten = write_error("standard output", failure)
            code = _print_error(unwritten, unwritten.exit_code)
    if processes := sys.modules.get("inception_jax.multihost.processes"):
        processes.set_exit_code(code)  # one of several processes does not end by the interpreter alone
    sys.exit(code)


def parser(module: str, purpose: str) -> ArgumentParser:
    """The argument parser of `python -m inception_jax.<module>`; an unknown flag is an error of one line."""
    return ArgumentParser(prog=f"python -m inception_jax.{module}", description=purpose)


def add_processes(arguments: argparse.ArgumentParser) -> None:
    """Adds the flags with which several processes join one run (`multihost.processes.find_launch` reads them).

    Their names are those of `jax.distributed.initialize`.
    """
    group = arguments.add_argument_group("several processes (SLURM, Open MPI and TPU slices need no flags)")
    group.add_argument("--coordinator_address", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--num_processes", type=whole(), metavar="N", help="how many processes the run has")
    group.add_argument("--process_id", type=whole(0), metavar="I", help="which of them this is, from 0")
    group.add_argument(
        "--heartbeat_timeout_seconds",
        type=whole(),
        metavar="S",
        default=100,
        help="a process without a heartbeat for so long counts as lost (100)",
    )
    group.add_argument(
        "--distributed",
        choices=("auto", "on", "off"),
        default="auto",
        help="auto: join the others if a launcher started several; on: call jax.distributed; off: one process",
    )


def shared_flags(flags: argparse.Namespace) -> dict[str, Any]:
    """The flags that are the same on all processes of a run: without those of `add_processes`, and `--json`."""
    own = argparse.ArgumentParser()
    add_processes(own)
    return {name: value for name, value in vars(flags).items() if name not in {"json", *vars(own.parse_args([]))}}


def add_devices(arguments: argparse.ArgumentParser) -> None:
    """Adds `--mode` and `--devices`: how a finished run is computed, whatever it was trained with."""
    arguments.add_argument("--mode", choices=("jit", "pmap"), help="of the parallel computation; default: the config's")
    arguments.add_argument(
        "--devices", type=whole(), metavar="N", help="number of devices; default: the config's, else all"
    )


def set_devices(config: Any, flags: argparse.Namespace) -> None:
    """Sets a config's mode and number of devices by the flags of `add_devices`.

    Raises:
      UserError: `check_devices`.
    """
    check_devices(flags.devices)
    config.parallel.mode = flags.mode or config.parallel.mode
    config.parallel.devices = flags.devices or config.parallel.devices


def check_devices(count: int | None) -> None:
    """Checks `--devices`, whose number is asked for: that of a config is that of the machine where the run was trained.

    Raises:
      UserError: there are fewer devices.
    """
    if count is None:
        return
    import jax

    if count > (present := jax.device_count()):
        platform = jax.default_backend()
        remedy = f"; JAX_NUM_CPU_DEVICES={count} divides a CPU into so many" if platform == "cpu" else ""
        raise UserError(f"--devices={count}: there {'is' if present == 1 else 'are'} {present} ({platform}){remedy}")


_DATA_FIELDS = {
    "class_names": ("FILE", "the classes of its labels, in their order"),
    "image_key": ("NAME", "its column or feature of the images"),
    "label_key": ("NAME", "its column or feature of the labels"),
}


def add_data_fields(arguments: ArgumentParser, *names: str) -> None:
    """Adds the flags of fields of --data, which `other_data` reads."""
    for name in names:
        metavar, what = _DATA_FIELDS[name]
        arguments.add_argument(f"--{name}", metavar=metavar, help=f"with --data: {what}, as config.data.{name}")


def other_data(flags: argparse.Namespace) -> dict[str, str] | None:
    """The fields of the data set that the flags name, as `data_setup.OtherData` has them; None: they name none.

    Raises:
      UserError: a field of it without --data.
    """
    given = {name: value for name in _DATA_FIELDS if (value := getattr(flags, name, None)) is not None}
    if flags.data is not None:
        return {"name": flags.data, **given}
    for name in given:
        raise UserError(f"--{name}: only with --data=NAME; of the run's own data its config has it")
    return None


def add_options(arguments: argparse.ArgumentParser, what: str) -> None:
    """Adds `--set OPTION=VALUE`, options of create_model, whose help is `what`."""
    arguments.add_argument("--set", type=option, action="append", default=[], metavar="OPTION=VALUE", help=what)


def add_image_size(arguments: argparse.ArgumentParser, what: str) -> None:
    """Adds `--image_size`, whose help is `what`."""
    arguments.add_argument("--image_size", type=whole(1, MAX_SIDE), metavar="PIXELS", help=what)


def add_max_pixels(arguments: argparse.ArgumentParser, default: str) -> None:
    """Adds `--max_pixels`, whose default is described by `default`."""
    arguments.add_argument(
        "--max_pixels",
        type=whole(1, MAX_IMAGE_PIXELS),
        metavar="N",
        help=f"largest image file that is decoded, height times width; default: {default}",
    )


def report(line: str) -> None:
    """Prints a line on stderr that says what a command does: its result alone goes to stdout."""
    print(line, file=sys.stderr, flush=True)


def step(text: str | None) -> int | str | None:
    """Converts the value of `--step`: the step of a checkpoint as a number, or a name such as "best"."""
    return int(text) if text and text.isdecimal() and len(text) < 20 else text


def whole(low: int = 1, high: int = INT32_MAX) -> Callable[[str], int]:
    """The argparse type of a whole number.

    Args:
      low: the smallest number.
      high: the largest number.
    """
    allowed = Range(low, high)

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"={shorten(text)}: not a whole number") from None
        if value not in allowed:
            raise argparse.ArgumentTypeError(f"={shorten(text)}: it must be {allowed}")
        return value

    return parse


def real(low: float, high: float) -> Callable[[str], float]:
    """The argparse type of a number greater than `low` and up to `high`."""
    allowed = Range(low, high, open_low=True)

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isnan(value):
            raise argparse.ArgumentTypeError(f"={shorten(text)}: not a number")
        if value not in allowed:
            raise argparse.ArgumentTypeError(f"={shorten(text)}: it must be {allowed}")
        return value

    return parse


def option(text: str) -> tuple[str, Any]:
    """The argparse type of OPTION=VALUE: (name, value); the value is a Python literal, or else a string."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{shorten(text)!r} is not OPTION=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return name, {"true": True, "false": False}.get(value.lower(), value)


def _is_model_error(error: ValueError) -> bool:
    registry = sys.modules.get("inception_jax.models.registry")
    return registry is not None and isinstance(error, registry.ModelError)


def device_problem() -> str | None:
    """Why JAX has no device to compute on; None: it has one, or nothing has imported it.

    With JAX_PLATFORMS=cuda and no GPU, jax 0.10 fails an assertion without a text.
    """
    jax = sys.modules.get("jax")
    if jax is None:
        return None
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else "there is no such device"
        platforms = jax.config.jax_platforms
        named = f"JAX_PLATFORMS={platforms}" if platforms else "JAX"
        return f"{named}: no device can be used on this machine: {reason}; JAX_PLATFORMS=cpu computes on the CPU"
    return None


def _print_error(error: object, code: int) -> int:
    with contextlib.suppress(BrokenPipeError):
        print(f"error: {shorten_message(str(error))}", file=sys.stderr)
    return code
