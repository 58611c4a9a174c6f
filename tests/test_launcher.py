"""A command of the fork server is the command of `python -m`: outputs, exit codes, environment, signals."""

import os
import signal
import subprocess
import sys
import time

import pytest

from .conftest import ROOT
from .launcher import Launcher


def test_the_same_output_and_exit_code_as_python_m(start_command, command_environment):
    for arguments, code in ((["summary", "inception_v1", "--image_size=64"], 0), (["train", "--wrokdir=a"], 2)):
        command = [sys.executable, "-m", f"inception_jax.{arguments[0]}", *arguments[1:]]
        true = subprocess.run(command, cwd=ROOT, env=command_environment, capture_output=True, text=True)
        process = start_command(*arguments)
        assert process.communicate(timeout=60) == (true.stdout, true.stderr)
        assert process.returncode == true.returncode == code


@pytest.fixture
def probes(command_environment, tmp_path):
    """A fork server beside a package whose commands tell where they are."""
    package = tmp_path / "inception_jax"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "probe.py").write_text(
        "import atexit, json, os, sys\n"
        "import jax\n"
        "if __name__ == '__main__':\n"
        "    atexit.register(lambda: print('the end', file=sys.stderr))\n"
        "    print(json.dumps([sys.argv[1:], os.getcwd(), jax.local_device_count(), jax.config.jax_enable_x64,\n"
        "                      os.getpgid(0) == os.getpid(), __spec__.name]))\n"
        "    sys.exit(7)\n"
    )
    (package / "sleeper.py").write_text("import time\nprint('asleep', flush=True)\ntime.sleep(60)\n")
    environment = {name: value for name, value in command_environment.items() if name != "PYTHONPATH"}
    with Launcher(environment, tmp_path) as launcher:
        yield launcher


def test_environment_signals_and_end(probes, tmp_path):
    other = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3", "JAX_ENABLE_X64": "1"}
    plain, wide = probes.start("probe", "a b", "é"), probes.start("probe", environment=other, new_session=True)
    name, place = '"inception_jax.probe"', f'"{tmp_path}"'
    assert plain.communicate(timeout=60) == (f'[["a b", "\\u00e9"], {place}, 1, false, false, {name}]\n', "the end\n")
    assert wide.communicate(timeout=60) == (f"[[], {place}, 3, true, true, {name}]\n", "the end\n")
    assert plain.returncode == wide.returncode == 7
    with pytest.raises(ValueError, match="PYTHONHASHSEED"):
        probes.start("probe", environment={"PYTHONHASHSEED": "1"})

    sleepers = [probes.start("sleeper") for _ in range(4)]
    for number, sleeper in zip((signal.SIGTERM, signal.SIGKILL), sleepers, strict=False):
        assert sleeper.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            sleeper.wait(0.01)
        sleeper.send_signal(number)
        assert sleeper.wait(10) == sleeper.poll() == -number
        sleeper.kill()  # it has ended: nothing happens
    while sleepers[2].written()[0] != "asleep\n":
        time.sleep(0.01)
    sleepers[2].send_signal(signal.SIGINT)  # a new process has Python's own handler, whatever the server's parent had
    assert sleepers[2].wait(10) == -signal.SIGINT and "KeyboardInterrupt" in sleepers[2].written()[1]
    probes.__exit__()
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{sleepers[3].pid}") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{sleepers[3].pid}")  # the end of the server is the end of its commands
