"""Commands without the seconds that their imports take: a fork server.

One process imports what the commands import, and starts nothing: no JAX backend, no thread. For each command it forks
a child, which sets its environment and its outputs and then does what `python -m inception_jax.<name>` does, exit
functions included. What a child has that `python -m` has not is modules that are imported already.

The `forkserver` of `multiprocessing` is not used: its children share one resource tracker, so the shared memory of a
command that was killed stays until the server ends, and only private attributes change that. It is also one server per
process, and runs no exit functions in its children: a process that relays requests and an end by hand would take as
many lines as are here.

    with Launcher(environment, directory) as launcher:
        command = launcher.start("train", "--config=configs/digits.py", "--workdir=runs/digits")
        out, err = command.communicate(timeout=60)
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path

# What is left out: it needs PyTorch or TensorFlow, or brings Optuna into a process that trains.
_LEFT_OUT = ("inception_jax.benchmarks.torch_", "inception_jax.sweeps.", "inception_jax.parity.references.")
# What the commands import late, or only sometimes.
_COMMANDS_IN_PACKAGES = ("inception_jax.data.prepare", "inception_jax.data.show")
_LATE = ("cv2", "grain", "matplotlib.pyplot", "tensorboardX", "tensorflow_datasets", "jax.experimental.multihost_utils")


class Launcher:
    """Starts commands; leaving the `with` block kills what still runs."""

    def __init__(self, environment: Mapping[str, str], directory: str | os.PathLike):
        """Starts the server, and does not wait for its imports.

        Args:
          environment: of the server, and so of every command.
          directory: the working directory of the commands; the package is imported from there.
        """
        self._outputs = tempfile.TemporaryDirectory()
        self._commands: list[Command] = []
        self._control, theirs = socket.socketpair()
        with theirs:
            # A session of its own: Ctrl-C is for whoever runs the tests, and the end of this socket ends the server.
            self._server = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                cwd=directory,
                env=dict(environment),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *exception: object) -> None:
        self._control.close()
        self._server.wait()
        for command in self._commands:
            command.close()
        self._outputs.cleanup()

    def start(
        self,
        name: str | Path,
        *arguments: object,
        environment: Mapping[str, str] | None = None,
        new_session: bool = False,
    ) -> Command:
        """Starts `python -m inception_jax.<name> arguments…`, or `python <name> arguments…`.

        Args:
          name: of the command, or of a Python file.
          arguments: after the name; made into text.
          environment: variables that differ from the server's.
          new_session: makes the command the leader of a session and a process group, as `subprocess.Popen` does.

        Raises:
          ValueError: a variable that the interpreter or the linker read when the server started.
        """
        environment = dict(environment or {})
        if fixed := [variable for variable in environment if variable.startswith(("PYTHON", "LD_"))]:
            raise ValueError(f"{fixed[0]}: the server has read it already; give it to Launcher, or start python -m")
        outputs = [Path(self._outputs.name, f"{len(self._commands)}.{stream}") for stream in ("out", "err")]
        request = {
            "name": str(name),
            "arguments": [*map(str, arguments)],
            "environment": environment,
            "new_session": new_session,
        }
        with open(outputs[0], "wb") as out, open(outputs[1], "wb") as err:
            reader, writer = os.pipe()
            try:
                passed = [out.fileno(), err.fileno(), writer]
                socket.send_fds(self._control, [json.dumps(request).encode() + b"\n"], passed)
            except BrokenPipeError:
                raise RuntimeError(f"the fork server has ended with exit code {self._server.wait()}") from None
            finally:
                os.close(writer)
        self._commands.append(Command([str(name), *request["arguments"]], outputs, reader))
        return self._commands[-1]


class Command:
    """A command that was started, with the methods of `subprocess.Popen` that tests use.

    Its outputs go to files, so that a command that nobody listens to is never held up.
    """

    def __init__(self, args: list[str], outputs: list[Path], status: int):
        """Waits for the server to start it.

        Args:
          args: its name and arguments.
          outputs: where its stdout and stderr go.
          status: the end of a pipe from which its process id can be read, and its exit code when there is one.
        """
        self.args, self._outputs = args, outputs
        self._status = os.fdopen(status, "rb", buffering=0)
        self.returncode: int | None = None
        self.pid = int(self._line())

    def poll(self) -> int | None:
        """The exit code, minus the number of the signal that ended it, or None: it runs."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = int(self._line())
            self.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, when there is one.

        Raises:
          subprocess.TimeoutExpired: it still runs after `timeout` seconds.
        """
        if self.returncode is None and not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.poll()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """(stdout, stderr), when it has ended; raises as `wait`."""
        self.wait(timeout)
        return self.written()

    def written(self) -> tuple[str, str]:
        """(stdout, stderr) up to now."""
        out, err = (path.read_text() for path in self._outputs)
        return out, err

    def send_signal(self, number: int) -> None:
        """Does nothing when it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Lets its exit code go unread."""
        self._status.close()

    def _line(self) -> bytes:
        line = self._status.readline()
        if not line:
            raise RuntimeError("the fork server has ended; its last output is on stderr")
        return line


def _import_everything() -> None:
    """Imports all of the package but the commands, which run as `__main__`, once per child."""
    package = importlib.import_module("inception_jax")
    for module in pkgutil.walk_packages(package.__path__, "inception_jax."):
        if module.name.startswith(_LEFT_OUT):
            continue
        if module.ispkg or (module.name.count(".") > 1 and module.name not in _COMMANDS_IN_PACKAGES):
            importlib.import_module(module.name)
    for name in _LATE:
        importlib.import_module(name)
    # What is there now is never freed: a collection in a child would copy its pages for nothing.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _serve(control: socket.socket) -> dict | None:
    """Forks a child per request and tells how each ended, until the socket's other end is closed.

    Returns:
      In a child: its request. In the server, at the end: None.
    """
    running: dict[int, int] = {}  # the pipe that waits for the exit code, by process
    ended, wakes = socket.socketpair()
    with control, ended, wakes:
        wakes.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
        while True:
            ready, _, _ = select.select([control, ended], [], [])
            if ended in ready:
                ended.recv(4096)
                _tell(running)
            if control not in ready:
                continue
            request, descriptors = _receive(control)
            if request is None:
                for process in running:
                    os.kill(process, signal.SIGKILL)
                return None
            with warnings.catch_warnings():
                # Python 3.12 warns of a fork beside threads: OpenBLAS has some, and its own handlers for a fork.
                warnings.filterwarnings("ignore", message=r".*use of fork\(\)", category=DeprecationWarning)
                process = os.fork()
            if process == 0:
                signal.set_wakeup_fd(-1)
                break
            out, err, running[process] = descriptors
            os.close(out)
            os.close(err)
            os.write(running[process], b"%d\n" % process)
    for descriptor in running.values():
        os.close(descriptor)
    _become(request, descriptors)
    return request


def _receive(control: socket.socket) -> tuple[dict | None, list[int]]:
    text, descriptors = b"", []
    while not text.endswith(b"\n"):
        part, passed, _, _ = socket.recv_fds(control, 65536, 3)
        if not part:
            return None, []
        text, descriptors = text + part, [*descriptors, *passed]
    return json.loads(text), descriptors


def _tell(running: dict[int, int]) -> None:
    """Reaps every child that has ended, and writes its exit code to its pipe."""
    while running:
        process, status = os.waitpid(-1, os.WNOHANG)
        if not process:
            return
        descriptor = running.pop(process)
        with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
            os.write(descriptor, b"%d\n" % os.waitstatus_to_exitcode(status))
        os.close(descriptor)


def _become(request: dict, descriptors: list[int]) -> None:
    """Gives this process, a child of the server, the outputs, signals and environment of a new one."""
    for target, descriptor in enumerate(descriptors[:2], start=1):
        os.dup2(descriptor, target)
    for descriptor in descriptors:
        os.close(descriptor)
    if request["new_session"]:
        os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.update(request["environment"])
    import jax

    for variable, text in request["environment"].items():
        # JAX read its variables when the server imported it.
        if hasattr(jax.config, option := variable.lower()):
            known = getattr(jax.config, option)
            value = text.lower() in ("1", "true", "yes", "on") if isinstance(known, bool) else text
            jax.config.update(option, int(value) if type(known) is int else value)


def _run(name: str) -> None:
    """Does what `python -m` does: the module, threads, exit functions. Then the process ends, and frees nothing.

    That takes Python a third of a second, of every module that is imported. What is no plain exit code (an exception, a
    message) is left to Python.
    """
    code = 0
    try:
        if name.endswith(".py"):
            runpy.run_path(name, run_name="__main__")
        else:
            runpy.run_module(f"inception_jax.{name}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        code = end.code or 0
    threading._shutdown()  # as the interpreter does: waits for threads that are no daemons, ends those of executors
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # as `python -m` has it, in place of this file's directory
    _import_everything()
    if _request := _serve(socket.socket(fileno=int(sys.argv[1]))):
        sys.argv = [_request["name"], *_request["arguments"]]
        _run(_request["name"])
