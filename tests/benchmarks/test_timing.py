"""Times of blocks: warm-up is not counted, a recompilation is an error, percentiles lie between blocks."""

import jax
import jax.numpy as jnp
import pytest

from inception_jax.benchmarks import timing
from inception_jax.training.compilation import Recompiled


class Machine:
    """A clock, and steps that take what the test says."""

    def __init__(self, seconds=0.02, first=0.0):
        self.now, self.seconds, self.first, self.calls = 0.0, seconds, first, []

    def run(self, steps):
        self.calls.append(steps)
        self.now += self.first + steps * self.seconds
        self.first = 0.0

    def clock(self):
        return self.now


def test_what_the_first_steps_cost_is_in_no_block():
    machine = Machine(seconds=0.02, first=1000.0)
    taken = timing.time_steps(machine.run, seconds=5.0, blocks=10, clock=machine.clock)
    assert taken.blocks == pytest.approx([0.02] * len(taken.blocks))
    assert taken.median == pytest.approx(0.02)
    assert taken.steps * 0.02 == pytest.approx(0.5, rel=0.1)  # a block is long enough to weigh its ends
    assert sum(taken.blocks) * taken.steps == pytest.approx(5.0, rel=0.1)


def test_long_steps_are_blocks_of_one():
    machine = Machine(seconds=7.0)
    taken = timing.time_steps(machine.run, seconds=5.0, blocks=4, clock=machine.clock)
    assert taken.steps == 1
    assert len(taken.blocks) == 4


@pytest.mark.parametrize("seconds", [7.0, 0.02, 1e-6])
def test_blocks_are_of_whole_calls(seconds):
    machine = Machine(seconds=seconds)
    taken = timing.time_steps(machine.run, seconds=1.0, blocks=4, unit=8, clock=machine.clock)
    assert taken.steps % 8 == 0 and all(steps % 8 == 0 for steps in machine.calls)
    assert taken.blocks == pytest.approx([seconds] * len(taken.blocks))


def test_short_steps_are_not_taken_for_the_clock():
    """A thousand steps of a microsecond: the block's length comes from many steps, not from one reading."""
    machine = Machine(seconds=1e-6)
    taken = timing.time_steps(machine.run, seconds=1.0, blocks=10, clock=machine.clock)
    assert taken.steps == pytest.approx(1e5, rel=0.01)


def test_a_recompilation_between_blocks_is_an_error():
    sizes = iter(range(1, 1000))

    def run(steps):
        for _ in range(steps):
            jax.jit(lambda x: 2 * x)(jnp.zeros(next(sizes))).block_until_ready()

    with pytest.raises(Recompiled, match="compiled after the first step"):
        timing.time_steps(run, seconds=0.1, blocks=2, block_seconds=0.001)


def test_percentiles_lie_between_blocks():
    taken = timing.BlockTiming(blocks=(3.0, 1.0, 2.0, 5.0, 4.0), steps=2)
    assert (taken.percentile(0), taken.median, taken.percentile(100)) == (1.0, 3.0, 5.0)
    assert taken.percentile(10) == pytest.approx(1.4)
    content = taken.to_json(examples=6)
    assert content["step_seconds"] == {"median": 3.0, "p10": pytest.approx(1.4), "p90": pytest.approx(4.6)}
    assert content["images_per_second"] == 2.0
    assert content["blocks"] == [3.0, 1.0, 2.0, 5.0, 4.0]
