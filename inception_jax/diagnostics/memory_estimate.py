"""Estimates the memory of a training step from shapes alone; the compiler's own plan needs a compilation."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from inception_jax.training import losses, preprocess
from inception_jax.training.freezing import merge
from inception_jax.training.setup import Setup
from inception_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device during a training step.

    Attributes:
      state: parameters, statistics, optimizer state and EMA.
      gradients: in at least float32; twice with gradient accumulation.
      activations: what the forward pass of a micro-batch keeps for the backward pass. The compiler keeps less where it
        recomputes or fuses, and needs workspace beside it.
    """

    state: int
    gradients: int
    activations: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.state + self.gradients + self.activations


def estimate(setup: Setup, state: TrainState) -> MemoryEstimate:
    """Estimates the memory of a run's step; traces its forward pass, and compiles nothing.

    On a CPU it was 0.89 to 1.14 of the compiler's plan (inception_v1, inception_v1_bn and inception_v3 on the digits).

    Args:
      setup: of the run.
      state: its shapes.
    """
    objective, devices = setup.objective, setup.devices
    trained, _ = objective.freezing.split(state.params)
    gradients = sum(leaf.size * max(4, leaf.dtype.itemsize) for leaf in jax.tree.leaves(trained))
    micro_batch = setup.config.batch_size // devices.count // objective.accumulation
    return MemoryEstimate(
        state=count_bytes(state),
        gradients=gradients * (2 if objective.accumulation > 1 else 1),
        activations=_activations(setup, state, micro_batch),
    )


def count_bytes(tree: Any) -> int:
    """Bytes of the arrays of a tree, or of their shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _activations(setup: Setup, state: TrainState, examples: int) -> int:
    """Bytes that the forward pass of so many examples keeps for the backward pass, without the parameters."""
    objective, model = setup.objective, setup.model
    if getattr(model, "bn_axis_name", None):  # statistics are small, however many devices share them
        model = model.clone(bn_axis_name=None, bn_axis_index_groups=None)

    def residuals(trained: Any, frozen: Any, batch_stats: Any, batch: dict[str, jax.Array], seed: jax.Array) -> Any:
        def loss(trained: Any) -> jax.Array:
            inputs = preprocess.preprocess(batch["image"], normalization=objective.normalization, dtype=objective.dtype)
            variables = {"params": merge(trained, frozen), "batch_stats": batch_stats}
            keys = jax.vmap(jax.random.key)(seed + jnp.arange(examples))
            output: Any
            output, _ = model.apply(variables, inputs, train=True, example_keys=keys, mutable=["batch_stats"])
            total, _ = losses.inception_loss(
                output, batch["label"], objective.aux_weights, multi_label=columns is not None
            )
            return jnp.sum(total)

        return jax.vjp(loss, trained)[1]

    size, columns = setup.input.image_size, setup.data.train.dataset.label_columns
    batch = {
        "image": jax.ShapeDtypeStruct((examples, size, size, setup.input.channels), jnp.uint8),
        "label": jax.ShapeDtypeStruct((examples,), jnp.int32)
        if columns is None
        else jax.ShapeDtypeStruct((examples, columns), jnp.uint8),
    }
    kept = jax.eval_shape(
        residuals,
        *objective.freezing.split(state.params),
        state.batch_stats,
        batch,
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    return max(0, count_bytes(kept) - count_bytes(state.params))
