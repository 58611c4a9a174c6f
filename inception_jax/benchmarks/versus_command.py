"""The part of `benchmark` that compares with other frameworks: its flags, and the comparison that they ask for."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from inception_jax import command_line
from inception_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from inception_jax.data.pipeline import TrainPipeline

FLAGS = frozenset({"vs", "torch_python", "torch_variants", "keras_python", "rounds", "steps", "time_limit"})
"""Names of the flags of a comparison of steps."""
INPUT_FLAGS = frozenset({"vs", "torch_python", "tf_python", "rounds", "time_limit"})
"""Names of the flags of a comparison of inputs, with --data."""


def add_flags(arguments: argparse.ArgumentParser) -> None:
    """Adds the flags of a comparison to those of `benchmark`."""
    group = arguments.add_argument_group("comparison with other frameworks")
    group.add_argument(
        "--vs",
        metavar="A,B",
        help="time the same step in torch or keras, and in onnxruntime (inference only), interleaved; with --data the "
        "input of a recipe in torch, grain, tf_data",
    )
    group.add_argument("--keras_python", metavar="PATH", help="interpreter that has Keras and JAX (default: this one)")
    group.add_argument("--torch_python", metavar="PATH", help="interpreter that has PyTorch (default: this one)")
    group.add_argument("--tf_python", metavar="PATH", help="interpreter that has TensorFlow (default: this one)")
    group.add_argument(
        "--torch_variants",
        metavar="A,B",
        help="default: eager,channels_last; on a GPU also compile,compile_max_autotune",
    )
    group.add_argument(
        "--rounds", type=command_line.whole(), default=10, help="rounds of one block per side and kind (default 10)"
    )
    group.add_argument("--steps", type=command_line.whole(), default=5, help="steps per block (default 5)")
    group.add_argument(
        "--time_limit",
        type=command_line.real(0, 1e9),
        default=1e9,
        metavar="SECONDS",
        help="begin no further round after this time, preparation included (default: no limit)",
    )


def compare(
    flags: argparse.Namespace, config: ConfigDict, kinds: Sequence[str], log: Callable[[str], None]
) -> dict[str, Any]:
    """Times the step of --model here and in the frameworks of --vs.

    Args:
      flags: of the command.
      config: of --model, with the values of the other flags.
      kinds: of "train" and "inference".
      log: takes a line on what happens.

    Returns:
      The result of `paired.compare`, not yet checked.

    Raises:
      UserError: flags that do not fit each other, a framework or a network that cannot be compared.
    """
    from inception_jax.benchmarks import paired, versus
    from inception_jax.models import registry
    from inception_jax.training import host_devices

    if not flags.model:
        raise UserError(f"--vs={flags.vs} goes with --model: other frameworks cannot take the step of a config")
    peers = _read_peers(flags, versus.PEERS)
    per_call = config.parallel.steps_per_execution
    if "train" in kinds and flags.steps % per_call:
        raise UserError(
            f"--steps={flags.steps} --steps_per_execution={per_call}: a block has a multiple of the steps of a call; "
            f"--steps={-(-flags.steps // per_call) * per_call} would do"
        )
    spec = registry.get_spec(flags.model)
    backend = _backend()
    workload = versus.make_workload(
        flags.model,
        peers=peers,
        batch_size=config.batch_size,
        image_size=config.data.image_size or spec.image_size,
        backend=backend,
        aux_weights=spec.aux_weights,
        options=dict(flags.set),
        dtype=config.model.dtype,
        num_classes=1000 if flags.num_classes is None else flags.num_classes,
        kinds=kinds,
        steps_per_execution=per_call,
    )
    if backend == "cpu" and kinds == ("inference",) and config.batch_size % host_devices.COUNT == 0:
        workload["devices"] = host_devices.COUNT if host_devices.gains(config.batch_size) else 1
    variants = flags.torch_variants.split(",") if flags.torch_variants else None
    sides = [versus.jax_side(backend, workload["devices"])]
    if "torch" in peers:
        sides += versus.torch_sides(backend, flags.torch_python, variants)
    if "keras" in peers:
        sides.append(versus.keras_side(backend, flags.keras_python))
    if "onnxruntime" in peers:
        sides.append(versus.onnx_side())
    return paired.compare(workload, sides, rounds=flags.rounds, steps=flags.steps, time_limit=flags.time_limit, log=log)


def compare_inputs(
    flags: argparse.Namespace, config: ConfigDict, pipeline: TrainPipeline, log: Callable[[str], None]
) -> tuple[dict[str, Any], list[str]]:
    """Compares the input of --config with the libraries' of --vs.

    Args:
      flags: of the command.
      config: of --config, with the values of the other flags.
      pipeline: of its training split.
      log: takes a line on what happens.

    Returns:
      The result of `paired.compare`, and why it is not valid.

    Raises:
      UserError: an unknown library, or an interpreter of one that is not compared; as `input_versus.make_workload` and
        `paired.compare`.
    """
    from inception_jax.benchmarks import input_versus, paired

    peers = _read_peers(flags, input_versus.PEERS)
    with tempfile.TemporaryDirectory() as folder:
        work = input_versus.make_workload(config, pipeline, flags.seconds, folder)
        sides = [input_versus.our_side(pipeline, folder)]
        sides += input_versus.peer_sides(peers, flags.torch_python, flags.tf_python)
        limits = {"rounds": flags.rounds, "time_limit": flags.time_limit}
        result = paired.compare(work, sides, steps=2, warmup=0, log=log, **limits)
    del result["task"]["files"]  # of the folder that is gone
    return result, input_versus.find_problems(result, peers)


def _read_peers(flags: argparse.Namespace, allowed: Collection[str]) -> tuple[str, ...]:
    """The names in --vs, of those that are allowed; an interpreter of another one is an error."""
    peers = tuple(dict.fromkeys(flags.vs.split(",")))
    if unknown := [name for name in peers if name not in allowed]:
        where = "with --data " if flags.data else ""
        hint = nearest(unknown[0], allowed)
        raise UserError(f"--vs: unknown {unknown[0]!r}{hint}; {where}allowed: {', '.join(allowed)}")
    for flag, peer in (("torch_python", "torch"), ("torch_variants", "torch"), ("keras_python", "keras"),
                       ("tf_python", "tf_data")):  # fmt: skip
        if getattr(flags, flag) and peer not in peers:
            raise UserError(f"--{flag} has an effect only with --vs={peer}")
    return peers


def _backend() -> str:
    """JAX's backend, asked in another process: this one must not allocate the GPU's memory."""
    code = "import jax; print(jax.default_backend())"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    name = answer.stdout.strip().rpartition("\n")[2]
    if name not in ("cpu", "gpu"):
        raise UserError(f"--vs=torch compares on a CPU or a GPU; JAX's backend here is {name or 'not available'}")
    return name
