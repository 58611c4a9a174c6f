"""The training step as a run calls it: for one batch, or for several in one execution of its program.

With `parallel.steps_per_execution` above 1 the compiled program is a loop over the steps of that many batches. How many
of them it takes is an argument: a run ends an execution before each log row, evaluation and checkpoint, so that what
it writes, and the bits of its numbers, do not depend on where it was interrupted. The program is a loop also where
these leave one step per execution: its bits follow from the config's number being above 1 alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from inception_jax.training import step_numbers
from inception_jax.training.setup import Setup
from inception_jax.training.state import TrainState
from inception_jax.training.step import Batch, Metrics


def make_loop(
    step: Callable[[TrainState, Batch, Any], tuple[TrainState, Metrics]],
) -> Callable[[TrainState, tuple[Batch, ...], Any, jax.Array], tuple[TrainState, Metrics]]:
    """Builds a loop over a training step.

    Args:
      step: (state, batch, numbers) -> (next state, metrics), of a per-device batch.

    Returns:
      (state, batches, numbers, count) -> (state after the steps of the first `count` batches, their metrics). `count`
      is an int32 scalar, at least 1 and at most the number of batches n; the metrics of step i are at index i of
      arrays [n], which are 0 from `count` on.
    """
    traced_once = jax.jit(step, inline=True)  # for the shapes of its metrics and as the body

    def train_steps(
        state: TrainState, batches: tuple[Batch, ...], numbers: Any, count: jax.Array
    ) -> tuple[TrainState, Metrics]:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)

        def take_step(index: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = carry
            batch = jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, index, keepdims=False), stacked)
            state, values = traced_once(state, batch, numbers)
            return state, jax.tree.map(lambda row, value: row.at[index].set(value), metrics, values)

        shapes = jax.eval_shape(traced_once, state, batches[0], numbers)[1]
        metrics = jax.tree.map(lambda shape: jnp.zeros((len(batches), *shape.shape), shape.dtype), shapes)
        return lax.fori_loop(jnp.int32(0), count, take_step, (state, metrics))

    return train_steps


class TrainCall:
    """Calls the compiled training step of a run with one batch, or with several where the config says so.

    Attributes:
      limit: the most steps of a call.
    """

    def __init__(self, setup: Setup, limit: int):
        """Puts the numbers of the run on its devices.

        Args:
          setup: of the run; with `steps_per_execution` 1 the program is the step itself, without a loop.
          limit: the most steps of a call; at most `setup.steps_per_execution`.
        """
        self.limit, self._loops = limit, setup.steps_per_execution > 1
        devices = setup.devices
        self._numbers = devices.place_numbers(step_numbers.read_numbers(setup))
        # All of them now: the steps of a run must not wait for a transfer of a new count.
        self._counts = devices.replicate([np.int32(count) for count in range(1, self.limit + 1)])
        self._step = step_numbers.make_step(setup)

    def function(self) -> Callable[..., tuple[TrainState, Metrics]]:
        """The function to compile with `Devices.compile_train`."""
        return make_loop(self._step) if self._loops else self._step

    def arguments(self, state: Any, batch: dict[str, Any]) -> tuple[Any, ...]:
        """The arguments to compile it for.

        Args:
          state: arrays, or shapes with shardings.
          batch: as `state`, of one step.
        """
        if not self._loops:
            return state, batch, self._numbers
        return state, (batch,) * self.limit, self._numbers, self._counts[0]

    def __call__(
        self, compiled: Callable[..., Any], state: TrainState, batches: Sequence[Batch]
    ) -> tuple[TrainState, Metrics]:
        """Dispatches the steps of the batches, and does not wait for them.

        Args:
          compiled: `function`, compiled for `arguments`.
          state: donated.
          batches: at least 1 and at most `limit`.

        Returns:
          The next state, and the metrics: scalars, or arrays [limit] that begin with one number per batch.
        """
        if not self._loops:
            (batch,) = batches
            return compiled(state, batch, self._numbers)
        unused = self.limit - len(batches)
        return compiled(state, (*batches, *(batches[-1],) * unused), self._numbers, self._counts[len(batches) - 1])
