"""Several processes as one run: how they find each other, agree, and end together.

Every process runs the same program on its own devices and its own share of each batch. Process 0 alone writes the
workdir, which all of them must see. Where processes could come to different answers (whether the workdir is free, which
checkpoint is the newest, whether to stop), they exchange them, for whoever goes on alone waits for ever in the next
collective.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import dataclasses
import glob
import importlib.util
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # its client has no public name
from jax.experimental import multihost_utils

from inception_jax.errors import ExitCode, UserError
from inception_jax.multihost import heartbeat

T = TypeVar("T")

_ADVICE = "start all of them again, and the run goes on from its newest checkpoint"


class PeerLost(UserError):
    """Another process of the run has ended; without it there is no next step."""

    exit_code = ExitCode.PEER_LOST


@dataclasses.dataclass(frozen=True)
class Launch:
    """How this process joins the others; what is None is left to `jax.distributed` to find out.

    Attributes:
      coordinator_address: host:port of process 0.
      num_processes: how many there are.
      process_id: which of them this is.
      found_by: "flags", or the launcher whose environment said so.
      heartbeat_timeout_seconds: how long a process may give no sign of life before the others end.
    """

    coordinator_address: str | None
    num_processes: int | None
    process_id: int | None
    found_by: str
    heartbeat_timeout_seconds: int = 100


def find(flags: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Launch | None:
    """Which processes this one belongs to, from the flags, else from what the launcher left in the environment.

    Args:
      flags: with what `command_line.add_processes` added.
      environment: of this process.

    Returns:
      None for a run of one process.

    Raises:
      UserError: flags that are incomplete or do not fit together.
    """
    patience = flags.heartbeat_timeout_seconds
    if patience < 10:
        raise UserError(f"--heartbeat_timeout_seconds={patience}: at least 10, for a busy process may be as late")
    given = {name: getattr(flags, name) for name in ("coordinator_address", "num_processes", "process_id")}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) < len(given):
        if missing or flags.distributed == "off":
            what = f"{' and '.join(missing)} missing" if missing else "--distributed=off"
            raise UserError(f"--coordinator_address, --num_processes and --process_id go together: {what}")
        if not 0 <= flags.process_id < flags.num_processes:
            raise UserError(
                f"--process_id={flags.process_id}: with --num_processes={flags.num_processes} it is "
                f"0 to {flags.num_processes - 1}"
            )
        if not flags.coordinator_address.rpartition(":")[2].isdigit():
            raise UserError(f"--coordinator_address={flags.coordinator_address}: HOST:PORT is meant")
        return Launch(**given, found_by="flags", heartbeat_timeout_seconds=patience)
    if flags.distributed == "off":
        return None
    if flags.distributed == "on":
        return Launch(None, None, None, "jax.distributed", patience)
    launch = _launcher(environment)
    return launch and dataclasses.replace(launch, heartbeat_timeout_seconds=patience)


def _launcher(environment: Mapping[str, str]) -> Launch | None:
    """The launcher that started several processes, if one did.

    SLURM sets SLURM_STEP_NODELIST for tasks of `srun` alone, not for the batch script around them. Open MPI before 5
    says where its head is, and JAX takes the address from it; with a later one, JAX_COORDINATOR_ADDRESS must be set.
    """

    def number(name: str) -> int:
        value = environment.get(name, "")
        return int(value) if value.isdigit() else 0

    if "SLURM_STEP_NODELIST" in environment and number("SLURM_NTASKS") > 1:
        return Launch(None, None, None, "SLURM")
    if (size := number("OMPI_COMM_WORLD_SIZE")) > 1:
        address = environment.get("JAX_COORDINATOR_ADDRESS")
        if not address and "OMPI_MCA_orte_hnp_uri" not in environment:
            raise UserError(
                f"Open MPI started {size} processes, but not where they meet: set JAX_COORDINATOR_ADDRESS "
                "to HOST:PORT of the first (mpirun -x JAX_COORDINATOR_ADDRESS=…)"
            )
        return Launch(address, size, number("OMPI_COMM_WORLD_RANK"), "Open MPI")
    if importlib.util.find_spec("libtpu") and (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*")):
        return Launch(None, None, None, "TPU")  # also for a single host, where it changes nothing
    return None


@contextlib.contextmanager
def joined(launch: Launch | None) -> Iterator[None]:
    """Joins the other processes, before any array is made, and leaves them together.

    A process that ends with an error leaves without JAX's ordinary end, which waits for the others, minutes long, while
    they wait for it; process 0, where all meet, when the others have heard of it, or after 50 s. The others end in
    their next collective with `PeerLost`, or, where the collective does not notice (NCCL, TPU), by `peers.Watch` with
    the same exit code: within seconds of an error, within `heartbeat_timeout_seconds` and 25 s of a kill. When process
    0 is killed, JAX itself ends them by SIGABRT.

    Args:
      launch: from `find`; None: nothing is joined.

    Raises:
      UserError: the others cannot be reached.
      PeerLost: a collective failed inside.
    """
    if launch is None:
        yield
        return
    _keep_standard_output()
    try:
        # JAX's own watch is for a process that our thread cannot end; ours comes first. JAX's signs are half its
        # timeout apart, so that it may end a process when half of it has passed (measured: 7.5 to 12.8 s of 12).
        longest = heartbeat.longest(launch.heartbeat_timeout_seconds)
        jax.distributed.initialize(
            launch.coordinator_address,
            launch.num_processes,
            launch.process_id,
            heartbeat_timeout_seconds=math.ceil(2 * longest) + 30,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes of the run (found by {launch.found_by}) did not come together: {_one_line(error)}"
        ) from None
    watch = heartbeat.Watch(
        distributed.global_state.client,
        jax.process_index(),
        jax.process_count(),
        patience=launch.heartbeat_timeout_seconds,
        exit_code=PeerLost.exit_code,
        advice=_ADVICE,
    )
    watch.start()
    try:
        yield
    except BaseException as error:
        lost = _as_peer_lost(error)
        watch.end(failed=True, stay=lost is None and not isinstance(error, KeyboardInterrupt))
        # Registered last, so run first: before JAX's own handler, which would wait.
        stopped = 130 if isinstance(error, KeyboardInterrupt) else 1
        atexit.register(_leave, getattr(lost or error, "exit_code", stopped))
        if lost:
            raise lost from error
        raise
    watch.end(failed=False)
    jax.distributed.shutdown()


def _keep_standard_output() -> None:
    """Standard output is for the command's result; Gloo's C++ writes its greetings there: they go to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(kept, "w", encoding=sys.stdout.encoding)


def _as_peer_lost(error: BaseException) -> PeerLost | None:
    if not isinstance(error, jax.errors.JaxRuntimeError) or jax.process_count() == 1 or "EXHAUSTED" in str(error):
        return None
    return PeerLost(f"a collective failed: another process of this run has ended ({_one_line(error)}); {_ADVICE}")


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def is_first() -> bool:
    """Whether this process writes what the run leaves behind."""
    return jax.process_index() == 0


def worst_of_all(status: int) -> int:
    """The highest status of any process, known to all of them afterwards: they must decide alike."""
    return max(_gathered(status))


def from_first(value: T) -> T:
    """Process 0's value, on every process.

    Args:
      value: what JSON can hold, without tuples; it counts on process 0 only.
    """
    if jax.process_count() == 1:
        return value
    return json.loads(gather_bytes(json.dumps(value).encode() if is_first() else b"")[0])


def gather_bytes(content: bytes) -> list[bytes]:
    """The contents of all processes, in their order; the lengths may differ."""
    if jax.process_count() == 1:
        return [content]
    lengths = _gathered(len(content))
    padded = np.zeros(max(1, *lengths), np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:length]) for row, length in zip(np.asarray(rows), lengths, strict=True)]


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """What is inside succeeds on every process, or fails on every process.

    Every process must come here, and nothing inside may wait for the others.

    Raises:
      UserError: this process's own; or, where only others have one, with the same exit code, whose it was.
    """
    problem: UserError | None = None
    try:
        yield
    except UserError as error:
        problem = error
    codes = _gathered(problem.exit_code if problem else 0)
    if problem:
        raise problem
    if any(codes):
        code = next(code for code in codes if code)
        other = UserError(f"process {codes.index(code)} could not go on; its own message says why")
        other.exit_code = code
        raise other


def refuse_differences(what: str, value: Any) -> None:
    """Compares a value over all processes.

    Args:
      what: names it in the error.
      value: what JSON can hold.

    Raises:
      UserError: it is not the same everywhere.
    """
    values = gather_bytes(json.dumps(value, sort_keys=True).encode())
    odd = [index for index, other in enumerate(values) if other != values[0]]
    if odd:
        raise UserError(f"{what} of process {odd[0]} differs from that of process 0: start all processes alike")


def _gathered(number: int) -> list[int]:
    if jax.process_count() == 1:
        return [number]
    return np.asarray(multihost_utils.process_allgather(np.int32(number))).tolist()


def barrier(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
