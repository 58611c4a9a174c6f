"""Checks of the installation and the machine: each with what is wrong, without changing either."""

import argparse
import importlib.util
import socket

import pytest

from inception_jax import command_line
from inception_jax.diagnostics import environment
from inception_jax.diagnostics.findings import Status, run_check


def flags(*words):
    parser = argparse.ArgumentParser()
    command_line.add_processes(parser)
    return parser.parse_args(words)


def test_the_versions_of_this_environment(monkeypatch):
    monkeypatch.setattr(environment, "_tested_versions", dict)  # these tests may run with other versions
    found = environment.check_versions()
    assert found.status == Status.OK and "jax 0." in found.text and found.text.startswith("Python 3.")


@pytest.mark.parametrize(
    ("versions", "status", "text"),
    [
        ({"jax": "0.4.30"}, Status.FAIL, "needed: jax>=0.10 (installed: 0.4.30)"),
        ({"flax": None}, Status.FAIL, "needed: flax>=0.12 (installed: none)"),
        ({"jaxlib": "99.0"}, Status.FAIL, "jaxlib 99.0 is newer than jax"),
        ({"optax": "99.0"}, Status.WARN, "optax 99.0 (tested: 0."),
    ],
)
def test_versions_that_are_wrong(versions, status, text, monkeypatch):
    real = environment._version
    monkeypatch.setattr(environment, "_version", lambda name: versions[name] if name in versions else real(name))
    found = environment.check_versions()
    assert found.status == status and text in found.text and "constraints.txt" in found.remedy
    assert status == Status.FAIL or found.text.startswith("not the tested ones: ")


@pytest.mark.parametrize(
    ("variables", "plugin", "remedy"),
    [
        ({}, False, "pip install 'inception_jax[gpu]'"),
        ({}, True, "nvidia-smi"),
        ({"JAX_PLATFORMS": "cpu"}, False, "unset JAX_PLATFORMS, which is 'cpu'"),
    ],
)
def test_an_accelerator_that_jax_does_not_see(variables, plugin, remedy, monkeypatch):
    assert environment.check_devices({}).status == Status.OK
    monkeypatch.setattr(environment, "_accelerators", lambda: ("GPU", 2))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: plugin or None)
    found = environment.check_devices(variables)
    assert found.status == Status.WARN and "this machine has 2 GPUs that JAX does not use" in found.text
    assert remedy in found.remedy


def test_no_device_at_all(monkeypatch):
    monkeypatch.setattr(command_line, "device_problem", lambda: "JAX_PLATFORMS=cuda: no device can be used")
    assert environment.check_devices().status == Status.FAIL


def test_little_memory(monkeypatch):
    assert "core" in environment.check_host().text
    monkeypatch.setattr(environment, "available_memory", lambda: 1 << 29)
    found = environment.check_host()
    assert found.status == Status.WARN and "512.0 MiB of memory available" in found.text


def test_the_limit_of_a_control_group_counts(monkeypatch):
    values = {"memory.max": 1 << 30, "memory.current": 1 << 29}
    monkeypatch.setattr(environment, "_read_number", lambda path: values.get(path.name))
    assert environment.available_memory() == 1 << 29
    values.clear()
    assert environment.available_memory() > 1 << 29


def test_processes():
    def check(*words, **variables):
        return run_check(
            "processes", lambda: environment.check_processes(flags(*words), variables), remedy="correct that"
        )

    assert check().text == "one process"
    assert "found by SLURM" in check(SLURM_STEP_NODELIST="a,b", SLURM_NTASKS="2").text
    missing = check("--num_processes=2")
    assert missing.status == Status.FAIL and "go together" in missing.text
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"--coordinator_address=127.0.0.1:{listener.getsockname()[1]}"
        busy = check(address, "--num_processes=2", "--process_id=0")
        assert busy.status == Status.FAIL and "cannot listen" in busy.text and "free port" in busy.remedy
        assert check(address, "--num_processes=2", "--process_id=1").status == Status.OK  # another one listens there
    free = check(address, "--num_processes=2", "--process_id=0")
    assert free.status == Status.OK and "process 0 of 2" in free.text
    other = check(address, "--num_processes=2", "--process_id=1", SLURM_NTASKS="4")
    assert other.status == Status.WARN and "SLURM_NTASKS=4" in other.text
    nowhere = check("--coordinator_address=:99999", "--num_processes=2", "--process_id=0")
    assert nowhere.status == Status.FAIL and nowhere.remedy


def test_optional_packages(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if name in ("onnx", "optuna") else None)
    monkeypatch.setattr(environment, "_version", lambda name: "1" if name == "onednn-devel-cpu-gomp" else None)
    found = environment.check_extras()
    assert found.status == Status.OK and found.text.startswith(
        "installed: onnx, onednn; not installed: gpu (NVIDIA GPUs), "
    )
    assert "convert (Keras's weights)" in found.text  # one of its two packages is not enough
