"""Runs one side of a comparison in a process of its own: requests and answers are JSON lines over pipes.

A worker is asked to prepare a workload and then, in turn with the other sides' workers, for blocks of steps. It answers
over a pipe of its own: what libraries print on standard output goes with its standard error into a log file, whose last
lines are quoted when the worker dies. On Linux a worker cannot outlive its parent. Only the standard library is used
here, because the interpreter of a side may have no JAX.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from inception_jax.errors import UserError, is_disk_full

ERROR_KINDS = ("out_of_memory", "unavailable", "failed")
_ANSWERS = "INCEPTION_JAX_ANSWERS"  # environment variable: "file descriptor of the answer pipe:pid of the parent"
_PR_SET_PDEATHSIG = 1  # sys/prctl.h
_CLOSE_SECONDS = 10.0
_RESET_PEAK = b"5"  # proc(5): written to clear_refs, the peak of resident memory becomes what is resident now
_QUOTED_LINES = 3
# Parts of allocators' error messages: XLA's status, PyTorch's on a GPU and on a CPU.
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "can't allocate memory", "not enough memory")


class Unavailable(Exception):
    """A side cannot run here: a package or a device is missing. The message gives the remedy."""


def import_version(name: str, needed: str, flag: str = "") -> str:
    """Imports a package and returns its version.

    Args:
      name: of its module.
      needed: the packages that the side needs, for the message.
      flag: of the command, which names an interpreter that has them; "": there is none.

    Raises:
      Unavailable: the import fails; a torchvision built for another PyTorch raises a RuntimeError.
    """
    try:
        return importlib.import_module(name).__version__
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        other = f"; or name an interpreter that has them with {flag}" if flag else ""
        raise Unavailable(
            f"{sys.executable} cannot import {name} ({reason}); install there, in versions that belong together: "
            f"{needed}{other}"
        ) from error


class SideError(UserError):
    """A side failed to prepare or to take its steps.

    Attributes:
      side: its name.
      kind: "out_of_memory", "unavailable", or "failed" (also for a worker that died or hung).
    """

    def __init__(self, side: str, message: str, kind: str = "failed"):
        """Makes the error; `message` is shown after the side's name."""
        super().__init__(f"{side}: {message}")
        self.side, self.kind = side, kind


class SideProtocol(Protocol):
    """The methods that a worker serves: one implementation per framework."""

    def prepare(self, workload: dict[str, Any]) -> dict[str, Any]:
        """Builds and compiles what the workload needs; called once. Returns a description of the side (JSON values)."""

    def block(self, kind: str, steps: int) -> dict[str, Any]:
        """Takes `steps` steps of a kind. Returns JSON values: "seconds" of the whole block, "steps" if it took more."""


def serve(side: SideProtocol) -> None:
    """Answers requests until standard input ends or the parent dies.

    Args:
      side: an exception in it is answered as {"error": one line, "kind": one of `ERROR_KINDS`}; its traceback is
        printed.

    Raises:
      SystemExit: the process was not started by a `Worker`.
    """
    requests, answers = _take_pipes()
    with requests, answers:
        for line in requests:
            request = json.loads(line)
            try:
                answer = json.dumps(getattr(side, request["ask"])(**request["arguments"]))
            except Exception as error:
                traceback.print_exc()
                answer = json.dumps({"error": _one_line(error), "kind": _error_kind(error)})
            sys.stdout.flush()  # into the log file, before the parent may quote it
            answers.write(answer + "\n")
            answers.flush()


def _take_pipes() -> tuple[Any, Any]:
    """(requests, answers) as files that nothing else in this process, and no child of it, can reach."""
    if _ANSWERS not in os.environ:
        sys.exit("this module is a worker process: it is started by `python -m inception_jax.benchmark --vs=torch`")
    descriptor, parent = map(int, os.environ.pop(_ANSWERS).split(":"))
    _die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent closes its workers
    os.set_inheritable(descriptor, False)
    requests = os.dup(0)  # not inheritable
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    return os.fdopen(requests), os.fdopen(descriptor, "w")


def _die_with_parent(parent: int) -> None:
    """Makes the kernel kill this process when its parent dies, even within a block (Linux; elsewhere EOF ends it)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before
        os._exit(1)


def _one_line(error: BaseException) -> str:
    """The first line of the error that is not empty, after the type's name unless it is a UserError or Unavailable."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, UserError | Unavailable):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _error_kind(error: BaseException) -> str:
    """One of `ERROR_KINDS`."""
    if isinstance(error, Unavailable):
        return "unavailable"
    if isinstance(error, MemoryError) or (
        any(text in str(error) for text in _OUT_OF_MEMORY) and not is_disk_full(error)
    ):
        return "out_of_memory"
    return "failed"


class Worker:
    """The parent's handle on the process of one side; a context manager that closes it.

    The thread that makes a Worker must outlive it: for Linux the end of that thread is the death of the parent.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None, timeout: float = 600.0
    ):
        """Starts the process.

        Args:
          name: name of the side, for messages.
          command: the command line of the process, which calls `serve`.
          environment: variables added to those of this process.
          timeout: seconds after which a worker that has not answered counts as hung.

        Raises:
          SideError: the program cannot be started.
        """
        self.name, self._timeout, self._unread = name, timeout, b""
        self._log = tempfile.TemporaryFile()
        self._answers, write_end = os.pipe()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(write_end,),
                env={**os.environ, **(environment or {}), _ANSWERS: f"{write_end}:{os.getpid()}"},
            )
        except OSError as error:
            os.close(self._answers)
            self._log.close()
            raise SideError(name, f"cannot start {command[0]}: {error.strerror}", "unavailable") from None
        finally:
            os.close(write_end)  # only the worker has it now, so that we read EOF when it ends
        assert self._process.stdin is not None  # stdin=PIPE
        self._requests = self._process.stdin

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None:
            self._process.kill()  # it may be within a long block whose result is not needed any more
        self.close()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def prepare(self, workload: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
        """Makes the side build and compile what the workload needs, and returns its answer.

        Args:
          workload: from `versus.make_workload`.
          timeout: seconds; None for the worker's own.

        Raises:
          SideError: the side answered with an error, died, or hung; the worker is then closed.
        """
        return self._ask(timeout, ask="prepare", arguments={"workload": workload})

    def block(self, kind: str, steps: int, timeout: float | None = None) -> dict[str, Any]:
        """Makes the side take steps; arguments and errors as for `SideProtocol.block` and `prepare`."""
        return self._ask(timeout, ask="block", arguments={"kind": kind, "steps": steps})

    def pop_peak_memory(self) -> int | None:
        """The most host memory that the process held at a time since the last call, or its start; its children's not.

        Returns:
          Bytes of resident memory, shared libraries included; None where the system does not tell, or does not begin
          anew (other systems than Linux, some containers), and of a worker that is closed.
        """
        if self._log.closed:
            return None
        folder = f"/proc/{self.pid}"
        try:
            with open(f"{folder}/status", "rb") as file:
                peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith(b"VmHWM"))
            with open(f"{folder}/clear_refs", "wb") as file:
                file.write(_RESET_PEAK)
        except (OSError, StopIteration):
            return None
        return peak

    def close(self) -> None:
        """Ends the process: closes its standard input, and kills it if that is not enough. May be called again."""
        if self._log.closed:
            return
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._answers)
        self._log.close()

    def _ask(self, timeout: float | None, **request: Any) -> dict[str, Any]:
        if self._log.closed:
            raise SideError(self.name, "its worker was closed")
        with contextlib.suppress(BrokenPipeError):  # the worker has died: reading its answer raises
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()
        answer = json.loads(self._read_line(self._timeout if timeout is None else timeout, request["ask"]))
        if "error" in answer:
            error = SideError(self.name, answer["error"], answer["kind"])
            self.close()
            raise error
        return answer

    def _read_line(self, timeout: float, asked: str) -> bytes:
        """The next line of the answer pipe; kills the worker after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                self._process.kill()
                raise self._dead_worker_error(f"gave no answer to {asked!r} within {timeout:g} s")
            data = os.read(self._answers, 1 << 16)
            if not data:
                raise self._dead_worker_error(f"its worker died {_format_exit(self._wait())} in {asked!r}")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _wait(self) -> int:
        """The exit code of a process that has closed its answer pipe; kills it if it goes on running."""
        try:
            return self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _dead_worker_error(self, what: str) -> SideError:
        """The error for a worker that has died, with the last lines of its log; closes the worker."""
        self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        self.close()
        last = " | ".join(lines[-_QUOTED_LINES:])
        return SideError(self.name, f"{what}; the end of its log: {last}" if last else f"{what}; its log is empty")


def _format_exit(code: int) -> str:
    """Formats how a process ended; `code` as `Popen.returncode`."""
    if code != -signal.SIGKILL:
        return f"by signal {-code}" if code < 0 else f"with exit code {code}"
    return "by SIGKILL (is the machine out of memory? then try a smaller batch)"
