"""A CPU is two devices for inference alone, and only where nobody has chosen their number."""

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from inception_jax import benchmark, command_line, evaluate, extract, predict
from inception_jax.benchmarks import paired, versus_command, versus_report
from inception_jax.config import Config
from inception_jax.data import datasets
from inception_jax.errors import UserError
from inception_jax.evaluation import trained_network
from inception_jax.training import data_setup, host_devices, network_setup
from inception_jax.training.parallel import Devices

CHILDREN = """
import importlib.machinery, json, os, sys
import jax
from inception_jax.training import host_devices

def count(main, examples, environment, cores, devices, started):
    sys.modules["__main__"].__spec__ = main and importlib.machinery.ModuleSpec(main, None)
    os.environ.update(environment)
    os.sched_getaffinity = lambda pid: set(range(cores))
    if devices:
        jax.config.update("jax_num_cpu_devices", devices)  # as JAX_NUM_CPU_DEVICES does
    if started:
        jax.devices()
    host_devices.use_two(examples)
    return [jax.device_count(), host_devices.is_split()]

found = []
for case in json.load(sys.stdin):
    reader, writer = os.pipe()
    if not os.fork():  # JAX's backend has not started here
        os.write(writer, json.dumps(count(**case)).encode())
        os._exit(0)
    os.close(writer)
    found.append(json.loads(os.read(reader, 100)))
print(json.dumps(found))
"""

USUAL = {
    "main": "inception_jax.evaluate",
    "examples": None,
    "environment": {},
    "cores": 2,
    "devices": 0,
    "started": False,
}
CASES = [
    ({}, [2, True]),
    ({"cores": 64}, [2, True]),
    ({"examples": 4}, [2, True]),
    ({"examples": 3}, [1, False]),
    ({"cores": 1}, [1, False]),
    ({"environment": {"NPROC": "1"}}, [1, False]),
    ({"environment": {"NPROC": "1", "PJRT_NPROC": "2"}}, [2, True]),
    ({"main": None}, [1, False]),  # a session of Python
    ({"main": "pytest.__main__"}, [1, False]),
    ({"environment": {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}}, [3, False]),
    ({"devices": 1}, [1, False]),
    ({"devices": 4}, [4, False]),
    ({"started": True}, [1, False]),
]


def test_number_of_devices():
    environment = {
        name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILDREN],
        input=json.dumps([USUAL | case for case, _ in CASES]),
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [expected for _, expected in CASES]


def test_a_command_evaluates_on_two_and_finds_what_training_found(start_command, small_run):
    process = start_command("evaluate", f"--workdir={small_run}", "--json", environment={"NPROC": "2"})
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    found, metrics = json.loads(out), json.loads((small_run / "result.json").read_text())["metrics"]
    trained = metrics[found["split"]][found["weights"]]
    assert found["environment"]["device"]["count"] == 2
    assert found["top1"] == trained["top1"] and found["count"] == trained["count"]
    assert found["loss"] == pytest.approx(trained["loss"], rel=1e-5)


def test_no_batch_is_refused_for_devices_that_nobody_asked_for(small_run, monkeypatch):
    recipe = trained_network.load_config(small_run)
    recipe.batch_size = 25
    config = Config(recipe)
    given = config, datasets.load("digits", "test"), network_setup.read_input(config), Devices("jit", 2)
    with pytest.raises(UserError, match="does not divide over 2 devices"):
        data_setup.build_eval_data(*given)
    monkeypatch.setattr(host_devices, "is_split", lambda: True)
    assert data_setup.build_eval_data(*given).batch_size == 26
    # Statistics of training images are of training batches on one device; a batch of 1 would be filled up to 2.
    counts = []
    for images, batch, devices in ((None, None, None), (64, None, None), (None, 1, None), (None, 3, 2), (64, None, 2)):
        recipe.evaluation.batch_norm_images, recipe.evaluation.batch_size = images, batch
        recipe.parallel.devices = devices
        loaded = trained_network.load(recipe, small_run, trained_network.load_class_names(small_run))
        counts.append(loaded.devices.count)
    assert counts == [8, 1, 1, 2, 2]


@pytest.mark.parametrize("verb", [evaluate, extract, predict])
def test_a_number_of_devices_that_is_asked_for_is_there_or_an_error(verb, small_run, tmp_path, monkeypatch):
    image = tmp_path / "a.png"
    cv2.imwrite(str(image), np.zeros((8, 8, 3), np.uint8))
    arguments = {
        evaluate: [f"--workdir={small_run}"],
        extract: [f"--workdir={small_run}", f"--output={tmp_path / 'a.npz'}", str(image)],
        predict: [f"--workdir={small_run}", str(image)],
    }[verb]
    asked = []
    monkeypatch.setattr(host_devices, "use_two", lambda examples=None: asked.append(examples))
    with pytest.raises(UserError, match=r"^--devices=9: there are 8 \(cpu\); JAX_NUM_CPU_DEVICES=9 divides a CPU"):
        verb.main([*arguments, "--devices=9"])
    assert asked == [None]  # two devices, however few images there are
    monkeypatch.setattr(command_line, "check_devices", lambda count: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        verb.main([*arguments, "--devices=1"])
    assert asked == [None]


@pytest.mark.parametrize(("flags", "devices"), [(["--batch_size=8"], 2), (["--batch_size=7"], 1)])
def test_a_comparison_of_inference_says_how_many_devices_are_ours(flags, devices, monkeypatch):
    found = []
    monkeypatch.setattr(versus_command, "_backend", lambda: "cpu")
    monkeypatch.setattr(paired, "compare", lambda workload, sides, **options: found.extend([workload, sides]) or {})
    monkeypatch.setattr(host_devices, "gains", lambda examples: True)
    monkeypatch.setattr(versus_report, "format_text", lambda result: "")
    monkeypatch.setattr(versus_report, "find_problems", lambda result: [])
    assert benchmark.main(["--model=inception_v1_bn", "--vs=onnxruntime", "--what=inference", *flags]) == 0
    workload, (ours, other) = found
    assert workload["devices"] == devices
    assert ours.environment.get("JAX_NUM_CPU_DEVICES", "1") == str(devices)
    assert "JAX_NUM_CPU_DEVICES" not in other.environment
    note = versus_report._note_devices(workload["devices"])
    assert note.startswith(
        "our forward pass: 2 JAX devices" if devices == 2 else "our forward pass is of one JAX device"
    )
