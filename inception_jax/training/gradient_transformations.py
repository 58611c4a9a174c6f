"""The parts of the optimizers, as Optax gradient transformations: scaling, decay, learning rate, clipping.

Their state is named tuples of trees, in at least float32 whatever the parameters' type. It is not packed into vectors:
that would save host dispatch time (milliseconds at thousands of leaves, hidden behind the device's step), but a
checkpoint would not show which parameter a value belongs to. Regular expressions for paths say which parameters weight
decay and learning-rate multipliers act on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from inception_jax import patterns
from inception_jax.errors import UserError
from inception_jax.tree_paths import leaf_paths

Tree = Any
Multipliers = Sequence[tuple[str, float]]

KERNELS = r"(^|/)kernel$"
"""Paths of convolution and fully connected kernels: not biases, nor batch norm's scale and offset."""

BIASES = r"(^|/)bias$"
"""Paths of biases, on which `optimizer.bias_learning_rate` acts."""

_MULTIPLIERS = "config.optimizer.learning_rate_multipliers"


def compile_multipliers(multipliers: Multipliers) -> list[tuple[re.Pattern[str], float]]:
    """Compiles the patterns of `learning_rate_multipliers`; raises UserError."""
    return [(patterns.compile_pattern(pattern, _MULTIPLIERS), float(factor)) for pattern, factor in multipliers]


def decayed_parameters(params: Tree) -> Tree:
    """Tree of bool: the parameters that weight decay acts on, the kernels; raises UserError where there is none."""
    paths = leaf_paths(params)
    decayed = jax.tree.map(lambda path: re.search(KERNELS, path) is not None, paths)
    if not any(jax.tree.leaves(decayed)):
        raise _none_trained("weight_decay", "kernel", 0)
    return decayed


def factors(params: Tree, multipliers: list[tuple[re.Pattern[str], float]]) -> Tree:
    """Tree of float: each parameter's factor on the learning rate; raises UserError for a pattern without a match."""
    paths = leaf_paths(params)
    found: dict[str, float] = {}
    for pattern, factor in multipliers:
        others = [path for path in jax.tree.leaves(paths) if path not in found]
        matches = patterns.search(pattern, others, _MULTIPLIERS)
        if not matches and pattern.pattern == BIASES:
            raise _none_trained("bias_learning_rate", "bias", 1)
        if not matches:
            raise UserError(
                f"{_MULTIPLIERS}: {pattern.pattern!r} matches no path of a trained parameter (that no earlier pattern "
                f"matches); an example of a path: {jax.tree.leaves(paths)[0]!r}"
            )
        found |= dict.fromkeys(matches, factor)
    return jax.tree.map(lambda path: found.get(path, 1.0), paths)


def _none_trained(field: str, what: str, without: int) -> UserError:
    return UserError(
        f"config.optimizer.{field}: no {what} is trained that no earlier pattern matches (all are frozen, or the "
        f"network has none); set it to {without}"
    )


class LearningRateState(NamedTuple):
    """The step count of the learning-rate schedule."""

    # int32 scalar: updates so far. Its name hides tuple.count, and is that of earlier checkpoints.
    count: jax.Array  # type: ignore[assignment]


def at_least_float32(tree: Tree) -> Tree:
    """Casts 16-bit leaves to float32; the others stay as they are."""
    return jax.tree.map(lambda leaf: leaf.astype(np.promote_types(leaf.dtype, jnp.float32)), tree)


def global_norm(tree: Tree) -> jax.Array:
    """Euclidean norm of all entries of all leaves, summed in at least float32."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(at_least_float32(tree))))


def add_decay(updates: Tree, params: Tree, weight_decay: float) -> Tree:
    """Adds weight_decay * w to the updates of the parameters that decay."""
    return jax.tree.map(
        lambda update, parameter, decays: update + weight_decay * parameter if decays else update,
        updates,
        params,
        decayed_parameters(params),
    )


def clip_by_norm(updates: Tree, clip_norm: float) -> Tree:
    """Scales the updates to a global norm of at most `clip_norm`; a norm that is not finite makes them NaN."""
    norm = global_norm(updates)
    # An infinite norm would give a factor of 0, an update of zero that nobody notices; NaN is noticed.
    factor = jnp.where(jnp.isfinite(norm), clip_norm / jnp.maximum(norm, clip_norm), jnp.nan)
    return jax.tree.map(lambda update: update * factor.astype(update.dtype), updates)


def scale_by_learning_rate(
    learning_rate: float | Callable[[jax.Array], jax.Array], multipliers: list[tuple[re.Pattern[str], float]]
) -> optax.GradientTransformation:
    """`update -> -learning_rate(count) * factor * update`."""

    def init(params: Tree) -> LearningRateState:
        factors(params, multipliers)
        return LearningRateState(count=jnp.zeros((), jnp.int32))

    def update(updates: Tree, state: LearningRateState, params: Tree | None = None) -> tuple[Tree, LearningRateState]:
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        scaled = jax.tree.map(
            lambda update, factor: -jnp.asarray(rate, update.dtype) * factor * update,
            updates,
            factors(params, multipliers),
        )
        return scaled, LearningRateState(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def scale_by_rms(numbers: Mapping[str, Any]) -> optax.GradientTransformation:
    """TF's RMS scaling: the mean square starts at ones, and epsilon is under the root.

    `optax.scale_by_rms` forms 1 - decay itself, in float32 where the decay is an argument of the step.
    """

    def init(params: Tree) -> optax.ScaleByRmsState:
        return optax.ScaleByRmsState(nu=jax.tree.map(jnp.ones_like, params))

    def update(
        gradients: Tree, state: optax.ScaleByRmsState, params: Tree | None = None
    ) -> tuple[Tree, optax.ScaleByRmsState]:
        decay, complement, epsilon = (numbers[name] for name in ("decay", "1 - decay", "epsilon"))
        nu = jax.tree.map(lambda g, v: complement * jnp.square(g) + decay * v, gradients, state.nu)
        return jax.tree.map(lambda v, g: jax.lax.rsqrt(v + epsilon) * g, nu, gradients), optax.ScaleByRmsState(nu=nu)

    return optax.GradientTransformation(init, update)


def scale_by_adam(numbers: Mapping[str, Any]) -> optax.GradientTransformation:
    """Adam (arXiv:1412.6980 Algorithm 1) before its learning rate.

    `optax.scale_by_adam` fails under strict dtype promotion (float ** int32), and its 1 - 0.999^1 is off by 5e-5 of
    itself in float32.
    """

    def init(params: Tree) -> optax.ScaleByAdamState:
        first, second = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return optax.ScaleByAdamState(count=jnp.zeros((), jnp.int32), mu=first, nu=second)

    def update(
        gradients: Tree, state: optax.ScaleByAdamState, params: Tree | None = None
    ) -> tuple[Tree, optax.ScaleByAdamState]:
        count = optax.safe_increment(state.count)
        b1, b2, other1, other2 = (numbers[name] for name in ("b1", "b2", "1 - b1", "1 - b2"))
        mu = jax.tree.map(lambda m, g: b1 * m + other1 * g, state.mu, gradients)
        nu = jax.tree.map(lambda v, g: b2 * v + other2 * jnp.square(g), state.nu, gradients)

        def bias_correction(name: str, dtype: Any) -> jax.Array:  # 1 - decay ^ count
            return -jnp.expm1(count.astype(dtype) * numbers[f"log {name}"])

        def scale(m: jax.Array, v: jax.Array) -> jax.Array:
            root = jnp.sqrt(v / bias_correction("b2", v.dtype))
            return m / bias_correction("b1", m.dtype) / (root + numbers["epsilon"])

        return jax.tree.map(scale, mu, nu), optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)
