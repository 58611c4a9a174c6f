"""Slots: a device or a block of cores for each worker, shared only where there are too few."""

import contextlib

import pytest

from inception_jax.errors import UserError
from inception_jax.sweeps import resources
from inception_jax.sweeps.resources import MachineResources

GPUS = MachineResources("gpu", ("0", "1"), tuple(range(8)))
TPUS = MachineResources("tpu", ("0", "1", "2", "3"), tuple(range(8)))
CPU = MachineResources("cpu", (), (0, 1, 2, 3, 4))


def test_a_worker_has_a_gpu_of_its_own():
    made, wanted = resources.make_slots(GPUS, None, None)
    assert wanted == 2 and [slot.environment for slot in made] == [{"CUDA_VISIBLE_DEVICES": id_} for id_ in "01"]
    made, wanted = resources.make_slots(GPUS, 1, None)
    assert wanted == 1 and len(made) == 2, "one of the two, whichever is free"
    made, wanted = resources.make_slots(GPUS, None, ["1"])
    assert [slot.name for slot in made] == ["gpu 1"] and wanted == 1


def test_workers_that_share_a_gpu_share_its_memory():
    made, _ = resources.make_slots(GPUS, 4, None)
    assert [slot.name for slot in made] == ["gpu 0 (1 of 2)", "gpu 1 (1 of 2)", "gpu 0 (2 of 2)", "gpu 1 (2 of 2)"]
    assert {slot.environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] for slot in made} == {"0.450"}


def test_a_tpu_chip_is_for_one_process():
    made, wanted = resources.make_slots(TPUS, None, None)
    assert wanted == 4
    assert made[2].environment == {
        "TPU_VISIBLE_CHIPS": "2",
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }
    with pytest.raises(UserError, match="a TPU chip serves one process"):
        resources.make_slots(TPUS, 5, None)


def test_workers_on_a_cpu_have_their_own_cores():
    made, _ = resources.make_slots(CPU, 2, None)
    assert [slot.cores for slot in made] == [(0, 1), (2, 3, 4)]
    assert [slot.name for slot in made] == ["cores 0-1", "cores 2-4"]
    assert [slot.cores for slot in resources.make_slots(CPU, None, None)[0]] == [None]
    assert [slot.cores for slot in resources.make_slots(CPU, 6, None)[0]] == [None] * 6, (
        "more workers than cores share all"
    )


@pytest.mark.parametrize(
    ("machine", "workers", "devices", "message"),
    [
        (CPU, None, ["0"], "no accelerator was found"),
        (GPUS, None, ["2"], "no device '2'; devices: 0, 1"),
        (GPUS, None, ["1", "1"], "named twice"),
        (CPU, 0, None, "--workers=0"),
    ],
)
def test_unavailable_resources_are_errors(machine, workers, devices, message):
    with pytest.raises(UserError, match=message):
        resources.make_slots(machine, workers, devices)


def test_two_drivers_of_one_machine_take_different_slots(tmp_path):
    made, _ = resources.make_slots(GPUS, None, None)
    messages = []
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        one = resources.claim_slots(tmp_path, made, 1, first, messages.append)
        other = resources.claim_slots(tmp_path, made, 1, second, messages.append)
        assert [slot.name for slot in one + other] == ["gpu 0", "gpu 1"] and not messages
        with contextlib.ExitStack() as third:
            assert len(resources.claim_slots(tmp_path, made, 2, third, messages.append)) == 2
        assert len(messages) == 1 and "gpu 0, gpu 1" in messages[0] and "share" in messages[0]
    with contextlib.ExitStack() as again:
        assert [slot.name for slot in resources.claim_slots(tmp_path, made, 1, again, messages.append)] == ["gpu 0"]
    assert len(messages) == 1


def test_the_devices_are_found_without_jax(monkeypatch):
    monkeypatch.setattr(resources, "_gpus", lambda: ("0", "1", "2"))
    monkeypatch.setattr(resources, "_tpus", lambda: ("0",))
    assert resources.detect({}).devices == ("0", "1", "2")
    assert resources.detect({"CUDA_VISIBLE_DEVICES": "2, GPU-1234"}).devices == ("2", "GPU-1234")
    assert resources.detect({"CUDA_VISIBLE_DEVICES": ""}).kind == "tpu"
    assert resources.detect({"JAX_PLATFORMS": "cpu"}).kind == "cpu"
    assert resources.detect({"JAX_PLATFORMS": "tpu,cpu"}).kind == "tpu"
    monkeypatch.setattr(resources, "_tpus", tuple)
    assert resources.detect({"CUDA_VISIBLE_DEVICES": "-1"}) == resources.detect({"JAX_PLATFORMS": "cpu"})


def test_nvidia_smi_is_understood(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\necho '  MIG 1g.10gb Device 0: (UUID: x)'\n"
        "echo 'GPU 1: NVIDIA H100 (UUID: GPU-2)'\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert resources.detect({}).devices == ("0", "1")
    tool.write_text("#!/bin/sh\necho 'no devices were found'\nexit 6\n")
    assert resources.detect({"JAX_PLATFORMS": "cuda"}).kind == "cpu"
