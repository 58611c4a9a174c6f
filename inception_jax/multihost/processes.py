"""Runs of several processes (multi-host): launch detection, `jax.distributed`, agreement between processes, shutdown.

Every process runs the same program on its own devices and its own rows of each global batch. Process 0 alone writes the
workdir, which all of them must see. Where processes could come to different answers (whether the workdir is free, which
checkpoint is the newest, whether to stop), they exchange them: a process that goes on alone waits forever in the next
collective.
"""

from __future__ import annotations

import argparse
import atexit
import collections
import contextlib
import dataclasses
import glob
import importlib.util
import json
import math
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import clusters, distributed  # the client and the launchers' variables have no public name
from jax.experimental import multihost_utils

from inception_jax.errors import UserError, shorten
from inception_jax.multihost import heartbeat
from inception_jax.multihost.peer_loss import ADVICE, as_peer_lost, lost_peers, one_line
from inception_jax.multihost.peer_loss import PeerLost as PeerLost
from inception_jax.standard_streams import RecordingStream

T = TypeVar("T")

_EXIT_SECONDS = 10.0  # after a lost process, for printing the error; Orbax's threads would wait 300 s for it

_monitor: heartbeat.HeartbeatMonitor | None = None  # of this process, within `initialize`
_exit_code = 0


@dataclasses.dataclass(frozen=True)
class Launch:
    """Arguments of `jax.distributed.initialize`, which finds those that are None by itself, and their origin.

    Attributes:
      coordinator_address: host:port of process 0.
      num_processes: how many there are.
      process_id: which of them this is.
      found_by: "flags", or the launcher whose environment variables were found.
      heartbeat_timeout_seconds: without a heartbeat for so long, a process counts as lost and the others end.
    """

    coordinator_address: str | None
    num_processes: int | None
    process_id: int | None
    found_by: str
    heartbeat_timeout_seconds: int = 100


def find_launch(flags: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Launch | None:
    """Finds the processes that this one belongs to: from the flags, or from the launcher's environment variables.

    Args:
      flags: with those that `command_line.add_processes` adds.
      environment: variables of this process.

    Returns:
      None for a run of one process.

    Raises:
      UserError: flags that are incomplete or contradict each other.
    """
    timeout = flags.heartbeat_timeout_seconds
    if timeout < 10:
        raise UserError(f"--heartbeat_timeout_seconds={timeout}: at least 10, because a busy process may be that late")
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
        _check_address("--coordinator_address", flags.coordinator_address)
        return Launch(**given, found_by="flags", heartbeat_timeout_seconds=timeout)
    if flags.distributed == "off":
        return None
    if flags.distributed == "on":
        return Launch(None, None, None, "jax.distributed", timeout)
    launch = _detect_launcher(environment)
    return launch and dataclasses.replace(launch, heartbeat_timeout_seconds=timeout)


def _check_address(name: str, address: str) -> None:
    port = address.rpartition(":")[2]
    if not (port.isdecimal() and 0 < int(port) < 1 << 16):
        raise UserError(f"{name}={address}: not HOST:PORT, with a port of 1 to 65535")


def _detect_launcher(environment: Mapping[str, str]) -> Launch | None:
    """Detects the launcher that started several processes, if one did.

    SLURM sets SLURM_STEP_NODELIST only for tasks of `srun`, not for the batch script around them. Open MPI before 5
    gives the address of its head process, which JAX uses; a later one needs JAX_COORDINATOR_ADDRESS.
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
                f"Open MPI started {size} processes, but gives no coordinator address: set JAX_COORDINATOR_ADDRESS "
                "to HOST:PORT of the first process (mpirun -x JAX_COORDINATOR_ADDRESS=…)"
            )
        if address:
            _check_address("JAX_COORDINATOR_ADDRESS", address)
        return Launch(address, size, number("OMPI_COMM_WORLD_RANK"), "Open MPI")
    if importlib.util.find_spec("libtpu") and (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*")):
        return Launch(None, None, None, "TPU")  # also for a single host, where it changes nothing
    return None


def _refuse_used_port(launch: Launch) -> None:
    """Refuses a port on which this process, the coordinator, cannot listen.

    JAX's server ends the process by SIGSEGV there, in 4 of 5 tries (jaxlib 0.10.2).

    Raises:
      UserError: another program has the port, or this user may not use it.
    """
    address, process_id = read_coordinator(launch)
    if process_id != 0 or not address:
        return
    port = int(address.rpartition(":")[2])
    dual = socket.has_dualstack_ipv6()  # JAX listens on all addresses of the machine
    try:
        socket.create_server(
            ("", port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual
        ).close()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        remedy = "name a free one" if launch.coordinator_address else "set JAX_COORDINATOR_PORT to a free one"
        raise UserError(
            f"the coordinator's address {address}: port {port} of this machine cannot be used ({reason}); {remedy}, "
            "the same for all processes"
        ) from None


def read_coordinator(launch: Launch) -> tuple[str | None, int | None]:
    """The coordinator's address and this process's id; None: JAX finds it, and asks the network for it.

    Where SLURM or Open MPI has started the processes, JAX chooses the port by the number of the job, which two jobs on
    one machine can share.

    Raises:
      UserError: a variable of JAX does not give an address.
    """
    address = launch.coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if launch.found_by not in ("SLURM", "Open MPI"):
        return launch.coordinator_address, launch.process_id
    if address:
        _check_address("JAX_COORDINATOR_ADDRESS", address)
    try:
        address, _, process_id, _ = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            address, launch.num_processes, launch.process_id, None, None, None
        )
    except (KeyError, ValueError, RuntimeError):  # JAX meets it, too, and says so
        return launch.coordinator_address, launch.process_id
    if address:
        _check_address(f"the address of the coordinator (found by {launch.found_by})", address)
    return address, process_id


@contextlib.contextmanager
def initialize(launch: Launch | None) -> Iterator[None]:
    """Initializes `jax.distributed` before any array is made; on leaving, waits until this process may end.

    A process that ends with an error skips JAX's ordinary shutdown, which waits for the others for minutes while they
    wait for it. Process 0, the coordinator, ends when the others have read that it failed, or after 50 s. The others
    end in their next collective with `PeerLost`, or, where the collective does not notice (NCCL, TPU), by
    `heartbeat.HeartbeatMonitor` with the same exit code: within seconds of an error, within `heartbeat_timeout_seconds`
    and 25 s of a kill. When process 0 is killed, JAX itself ends them by SIGABRT: its client takes a callback instead,
    but that of jaxlib 0.10.2 cannot be written in Python (std::bad_cast).

    A process that has done its work waits for process 0, which writes the results, and process 0 for all that live.
    Then each ends when the interpreter does, without JAX's shutdown, with the code of `set_exit_code`.

    Args:
      launch: from `find_launch`; None does nothing.

    Raises:
      UserError: the others cannot be reached, or have another number of devices.
      PeerLost: a collective failed inside.
    """
    if launch is None:
        yield
        return
    _redirect_stdout_of_libraries()
    _refuse_used_port(launch)
    try:
        # JAX's own heartbeat is for a process that our thread cannot end; ours acts first. JAX's heartbeats are half
        # its timeout apart, so it may end a process when half of it has passed (measured: 7.5 to 12.8 s of 12).
        longest = heartbeat.longest_detection_seconds(launch.heartbeat_timeout_seconds)
        jax.distributed.initialize(
            launch.coordinator_address,
            launch.num_processes,
            launch.process_id,
            heartbeat_timeout_seconds=math.ceil(2 * longest) + 30,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes of the run (found by {launch.found_by}) did not connect: {one_line(error)}"
        ) from None
    global _monitor, _exit_code
    _exit_code = 0
    client = distributed.global_state.client
    assert client is not None  # `initialize` made it
    monitor = _monitor = heartbeat.HeartbeatMonitor(
        client,
        jax.process_index(),
        jax.process_count(),
        timeout=launch.heartbeat_timeout_seconds,
        exit_code=PeerLost.exit_code,
        advice=ADVICE,
    )
    monitor.start()
    try:
        _refuse_unequal_devices()
        yield
        why = monitor.finish()
        if why:
            raise PeerLost(f"{why}; {ADVICE}")
    except BaseException as error:
        lost = as_peer_lost(error)
        # Of two processes, nobody is there to wait for.
        alone = lost is not None and jax.process_count() == 2
        monitor.stop(failed=True, wait_for_others=not alone and not isinstance(error, KeyboardInterrupt))
        stopped = 130 if isinstance(error, KeyboardInterrupt) else 1
        _exit_code = getattr(lost or error, "exit_code", stopped)
        _exit_soon(monitor)
        if lost and lost is not error:
            raise lost from error
        raise
    finally:
        _monitor = None
    # Not by `jax.distributed.shutdown`: where another process has gone, its barrier ends this one by SIGABRT.
    monitor.stop(failed=False)
    atexit.register(_exit_now, monitor)


def _redirect_stdout_of_libraries() -> None:
    """Sends what C++ libraries print (Gloo's connection messages) to stderr: stdout is for the command's result."""
    sys.stdout.flush()
    original = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = RecordingStream(os.fdopen(original, "w", encoding=sys.stdout.encoding))


def _refuse_unequal_devices() -> None:
    """Refuses processes that do not have equally many devices: no collective of the host works between them.

    Raises:
      UserError: on all of them.
    """
    held = [count for _, count in sorted(collections.Counter(device.process_index for device in jax.devices()).items())]
    if len({*held}) > 1:
        error = UserError(
            f"the processes 0 to {len(held) - 1} have {', '.join(map(str, held))} devices ({jax.default_backend()}); "
            "each needs equally many (CUDA_VISIBLE_DEVICES chooses those of a process)"
        )
        error.on_all_processes = True
        raise error


@contextlib.contextmanager
def called_before_exit(action: Callable[[PeerLost], None]) -> Iterator[None]:
    """Has `action` called where another process is lost while this one waits for it in the block, and is ended."""
    monitor = _monitor
    if monitor:
        monitor.call_before_exit(lambda reason: action(PeerLost(reason)))
    try:
        yield
    finally:
        if monitor:
            monitor.call_before_exit(None)


def set_exit_code(code: int) -> None:
    """Sets the code with which a process of several ends; default: that of the error that was raised, or 0."""
    global _exit_code
    _exit_code = code


def _exit_soon(monitor: heartbeat.HeartbeatMonitor) -> None:
    """Ends this process when the interpreter does, before what would wait for the others."""
    # Registered last, so it runs first: before JAX's own handler. But threads are joined before that.
    atexit.register(_exit_now, monitor)
    timer = threading.Timer(_EXIT_SECONDS, _exit_now, [monitor])
    timer.daemon = True
    timer.start()


def _exit_now(monitor: heartbeat.HeartbeatMonitor) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    monitor.leave()
    os._exit(_exit_code)


def is_first() -> bool:
    """Returns whether this is process 0, which writes the workdir."""
    return jax.process_index() == 0


def max_over_processes(value: int) -> int:
    """Returns the maximum over all processes, on every process, so that they decide alike."""
    return max(_gather_ints(value))


def broadcast_from_first(value: T) -> T:
    """Returns process 0's value on every process.

    Args:
      value: of JSON's types, without tuples; only process 0's is used.
    """
    if jax.process_count() == 1:
        return value
    return json.loads(gather_bytes(json.dumps(value).encode() if is_first() else b"")[0])


def gather_bytes(content: bytes) -> list[bytes]:
    """Returns the bytes of all processes, in the order of their ids; the lengths may differ."""
    if jax.process_count() == 1:
        return [content]
    lengths = _gather_ints(len(content))
    padded = np.zeros(max(1, *lengths), np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    rows = gather(padded)
    return [bytes(row[:length]) for row, length in zip(np.asarray(rows), lengths, strict=True)]


def gather_names(names: Iterable[str]) -> set[str]:
    """Returns the names that any process has, on every process."""
    return set().union(*map(json.loads, gather_bytes(json.dumps([*names]).encode())))


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """Makes the block fail on every process where it fails on one.

    Every process must enter it, and nothing inside may wait for the others.

    Raises:
      UserError: this process's own; where only another process failed, one that names it, with the same exit code.
        `on_all_processes` is set, unless another process is lost.
    """
    problem: UserError | None = None
    try:
        yield
    except UserError as error:
        problem = error
    try:
        codes = _gather_ints(problem.exit_code if problem else 0)
    except PeerLost:
        if problem is None:
            raise
        raise problem from None
    if problem:
        problem.on_all_processes = True
        raise problem
    if any(codes):
        code = next(code for code in codes if code)
        other = UserError(f"process {codes.index(code)} failed; its own message says why")
        other.exit_code, other.on_all_processes = code, True
        raise other


def check_equal(what: str, value: Any, remedy: str = "start all processes with the same arguments") -> None:
    """Checks that a value is the same on all processes.

    Args:
      what: names the value in the error.
      value: of JSON's types.
      remedy: for the error.

    Raises:
      UserError: it differs on some process; names the first entry that does, of a mapping.
    """
    values = gather_bytes(json.dumps(value, sort_keys=True).encode())
    odd = [index for index, other in enumerate(values) if other != values[0]]
    if odd:
        entry = _name_difference(json.loads(values[0]), json.loads(values[odd[0]]))
        error = UserError(f"{what} of process {odd[0]} differs from that of process 0: {remedy}{entry}")
        error.on_all_processes = True
        raise error


def _name_difference(one: Any, other: Any, path: str = "") -> str:
    """Names the first entry in which two mappings differ, with both values; "" where they are no mappings."""
    if isinstance(one, dict) and isinstance(other, dict):
        name = next(name for name in sorted({*one, *other}) if one.get(name, one) != other.get(name, other))
        return _name_difference(one.get(name), other.get(name), f"{path}.{name}" if path else name)
    return f" ({path}: {shorten(repr(other), 60)}, not {shorten(repr(one), 60)})" if path else ""


def _gather_ints(number: int) -> list[int]:
    if jax.process_count() == 1:
        return [number]
    return gather(np.int32(number)).tolist()


def gather(values: Any, tiled: bool = False) -> np.ndarray:
    """`jax.experimental.multihost_utils.process_allgather` of an array.

    Raises:
      PeerLost: another process has ended.
    """
    with lost_peers():
        return np.asarray(multihost_utils.process_allgather(values, tiled=tiled))


def barrier(name: str) -> None:
    """Returns when every process has called it.

    Raises:
      PeerLost: another process has ended.
    """
    if jax.process_count() > 1:
        with lost_peers():
            multihost_utils.sync_global_devices(name)
