"""The search for the largest batch: its result, and the sizes that it tries."""

import jax
import pytest

from inception_jax.benchmarks import memory, workload


@pytest.mark.parametrize("unit", [1, 8])
@pytest.mark.parametrize("most", [1, 7, 8, 100, 1000, 12_345])
def test_the_largest_batch_within_a_sixteenth(most, unit):
    asked = []

    def fits(size):
        asked.append(size)
        return size <= most

    found = memory.largest_batch(fits, unit)
    assert found <= most
    assert found + max(unit, found // 16) >= most // unit * unit
    assert all(size % unit == 0 for size in asked)
    assert len(asked) == len(set(asked)) <= 2 + 2 * max(most, 2).bit_length()


def test_nothing_fits():
    assert memory.largest_batch(lambda size: False, 4) == 0


def test_a_search_ends():
    assert memory.largest_batch(lambda size: True, 2) >= 2**20


def test_format_bytes():
    assert memory.format_bytes(3 * 2**30) == "3.00 GiB"
    assert memory.format_bytes(2.5 * 2**20) == "2.5 MiB"


class FakeBench:
    """A network whose plan is a MiB per example, and whose device has memory for 50 examples."""

    def __init__(self, setup, batches):
        self.size = setup.config.batch_size

    def compile(self, kind):
        return self.size

    def run(self, kind, steps):
        if self.size > 50:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")


@pytest.mark.parametrize(("available", "expected"), [(20 * 2**20, 18), (2**40, 50)])
def test_a_batch_fits_by_the_plan_on_a_cpu_and_by_trying(available, expected, monkeypatch):
    """Nine tenths of what is available count; beyond the plan, what the device says when it is tried."""
    monkeypatch.setattr(memory, "Bench", FakeBench)
    monkeypatch.setattr(memory, "program_memory", lambda size: {"total": size * 2**20})
    monkeypatch.setattr(memory, "memory_limit", lambda device: available)
    recipe = workload.config_of_model("inception_v1", 10)
    workload.set_fields(recipe, {"data.image_size": 32, "parallel.devices": 1})
    said = []
    fits = memory.make_training_fits(recipe, said.append)
    assert [fits(size) for size in (1, expected, expected + 1)] == [True, True, False]
    assert said[0] == "batch 1: fits, 1.0 MiB planned"
    assert said[2].startswith(f"batch {expected + 1}: ") and ("out of memory" in said[2] or said[2].endswith(": no"))
