"""The papers' optimizers, as Optax gradient transformations.

One order for all: cast to at least float32 -> L2 weight decay (SGD, RMSProp) -> clipping by the global norm ->
[RMS or Adam scaling] -> [decoupled weight decay, AdamW] -> learning rate and per-parameter multipliers -> [momentum].

* **The velocity holds the learning rate**: v = momentum * v + learning_rate * gradient, w = w - v. So do Caffe's
  SGDSolver (`ComputeUpdateValue`) and TF's `ApplyRMSProp`; when the learning rate drops, old gradients keep the
  learning rate of their own step. `optax.sgd`, `torch.optim.SGD` and `tf.train.MomentumOptimizer` multiply the
  velocity by the learning rate instead; at a constant rate the two are equal.
* **L2 weight decay** adds weight_decay * w to the gradient, which is the gradient of weight_decay * |w|^2 / 2 (Caffe's
  `decay_mult`, TF-Slim's `l2_regularizer`), on the kernels of convolutions and fully connected layers only. It comes
  before clipping: TF clips the gradient of the whole loss, regularization included. (Caffe clips first and then adds
  the decay; its GoogLeNet solvers do not clip.) AdamW's is decoupled (arXiv:1711.05101), and is never clipped.
* **State** is named tuples of trees, in at least float32 whatever the parameters' type. It is not packed into vectors:
  that would save host dispatch time (milliseconds at thousands of leaves, hidden behind the device's step), but a
  checkpoint would not show which parameter a value belongs to.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from inception_jax import patterns
from inception_jax.errors import UserError, nearest
from inception_jax.tree_paths import leaf_paths

KERNELS = r"(^|/)kernel$"
"""Paths of convolution and fully connected kernels: not biases, nor batch norm's scale and offset."""

BIASES = r"(^|/)bias$"
"""Paths of biases, on which `optimizer.bias_learning_rate` acts."""

# {pattern that no field holds: (the field that stands for it, what it acts on, the value without it)}
_OWN_PATTERNS = {BIASES: ("bias_learning_rate", "bias", 1), KERNELS: ("weight_decay", "kernel", 0)}

# name -> {option: its default}. "sgd": Caffe's solvers of bvlc_googlenet. "rmsprop": arXiv:1512.00567 section 8 (decay
# 0.9, epsilon 1.0) and Google's inception_train.py (momentum 0.9). "adamw": arXiv:1412.6980 section 2.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "nesterov": False},
    "rmsprop": {"decay": 0.9, "epsilon": 1.0, "momentum": 0.9},
    "adamw": {"b1": 0.9, "b2": 0.999, "epsilon": 1e-8},
}
OPTIONS: dict[str, tuple[str, ...]] = {name: tuple(defaults) for name, defaults in _DEFAULTS.items()}
"""The options that each optimizer reads, beside those that all read."""

Tree = Any
Multipliers = Mapping[str, float] | Sequence[tuple[str, float]]


class LearningRateState(NamedTuple):
    """The step count of the learning-rate schedule."""

    # int32 scalar: updates so far. Its name hides tuple.count, and is that of earlier checkpoints.
    count: jax.Array  # type: ignore[assignment]


def make_optimizer(
    name: str,
    *,
    learning_rate: float | Callable[[jax.Array], jax.Array],
    weight_decay: float = 0.0,
    weight_decay_mask: str = KERNELS,
    clip_norm: float | None = None,
    learning_rate_multipliers: Multipliers = (),
    momentum: float | None = None,
    nesterov: bool | None = None,
    decay: float | None = None,
    epsilon: float | None = None,
    b1: float | None = None,
    b2: float | None = None,
) -> optax.GradientTransformation:
    """Makes an optimizer for a tree of parameters.

    * "sgd": v = momentum * v + lr * g; w -= v (nesterov: w -= momentum * v + lr * g with the new v, as Caffe's).
    * "rmsprop", TF's: ms = decay * ms + (1 - decay) * g^2, ms starting at ones;
      v = momentum * v + lr * g / sqrt(ms + epsilon); w -= v.
    * "adamw": arXiv:1711.05101 Algorithm 2 with the decay multiplied by the learning rate, as Optax and PyTorch do.

    Patterns are regular expressions, searched for in a parameter's path, such as "inception_3a/conv_1x1/kernel".
    Options left at None take the defaults in this module.

    Args:
      name: one of `OPTIONS`.
      learning_rate: a number, or a schedule of the int32 number of updates so far.
      weight_decay: strength of the L2 (sgd, rmsprop) or decoupled (adamw) decay; 0: none.
      weight_decay_mask: pattern of the parameters that decay.
      clip_norm: largest global norm of the gradients, all parameters together (arXiv:1512.00567 section 8: 2.0);
        None or 0: no clipping. A norm that is not finite makes every update NaN, as TF's `clip_by_global_norm`.
      learning_rate_multipliers: pattern -> factor on everything that the parameter receives, decay included
        (Caffe's `lr_mult`: {"(^|/)bias$": 2.0}; 0 freezes), or pairs, since a ConfigDict takes no dots in its keys.
        The first pattern that matches counts; parameters that match none have 1.
      momentum: 0 <= momentum < 1; 0 keeps no velocity.
      nesterov: Nesterov's momentum.
      decay: decay of RMSProp's mean square.
      epsilon: added to the mean square under the root (rmsprop), or to the root (adamw).
      b1: decay of Adam's first moment.
      b2: decay of Adam's second moment.

    Returns:
      A transformation whose `update` needs the parameters; its updates have their types, for `optax.apply_updates`.
      `init` raises UserError for a pattern that matches no parameter (or that earlier patterns leave none).

    Raises:
      UserError: an unknown name, an option that this optimizer does not read, or a value out of range.
    """
    if not callable(learning_rate):
        _check(learning_rate >= 0, "learning_rate", learning_rate, "0 or more")
    options = {"momentum": momentum, "nesterov": nesterov, "decay": decay, "epsilon": epsilon, "b1": b1, "b2": b2}
    return specify(
        name,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        clip_norm=clip_norm,
        learning_rate_multipliers=learning_rate_multipliers,
        **options,
    ).build(learning_rate)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer whose numbers may be arguments of a compiled step.

    Attributes:
      name: one of `OPTIONS`.
      numbers: {name: value} of what its arithmetic uses. A number that is not in use (a momentum of 0) is absent: the
        names decide the program, the values do not.
      nesterov: as in `make_optimizer`.
      mask: pattern of the parameters that decay.
      multipliers: of the learning rate, by pattern.
    """

    name: str
    numbers: Mapping[str, float]
    nesterov: bool
    mask: re.Pattern[str]
    multipliers: list[tuple[re.Pattern[str], float]]

    def build(
        self, learning_rate: float | Callable[[jax.Array], jax.Array], numbers: Mapping[str, Any] | None = None
    ) -> optax.GradientTransformation:
        """Makes the transformation.

        Args:
          learning_rate: as in `make_optimizer`.
          numbers: values in the place of `numbers`, such as the arguments of a traced function.
        """
        numbers = self.numbers if numbers is None else numbers
        l2, decoupled = numbers.get("weight_decay"), None
        if self.name == "adamw":
            l2, decoupled = None, l2
        rate = _scale_by_learning_rate(learning_rate, self.multipliers)
        return in_float32(
            _rule(self.name, numbers, self.nesterov, decoupled, self.mask, rate),
            l2=l2,
            clip_norm=numbers.get("clip_norm"),
            decayed=self.mask if "weight_decay" in numbers else None,
        )


def specify(
    name: str,
    *,
    weight_decay: float = 0.0,
    weight_decay_mask: str = KERNELS,
    clip_norm: float | None = None,
    learning_rate_multipliers: Multipliers = (),
    **options: float | bool | None,
) -> Optimizer:
    """Checks the options of `make_optimizer`, all but the learning rate, and computes an optimizer's numbers.

    Raises:
      UserError: as `make_optimizer`.
    """
    values = _options(name, {option: value for option, value in options.items() if value is not None})
    _check(weight_decay >= 0, "weight_decay", weight_decay, "0 or more")
    _check(clip_norm is None or clip_norm >= 0, "clip_norm", clip_norm, "more than 0, or 0 for none")
    numbers = {"weight_decay": weight_decay, "clip_norm": clip_norm or 0.0, "momentum": values.get("momentum", 0.0)}
    numbers = {option: value for option, value in numbers.items() if value}
    if "epsilon" in values:
        numbers["epsilon"] = values["epsilon"]
    for option in ("decay", "b1", "b2"):
        if option in values:  # in Python: in float32, 1 - 0.999 is off by 5e-5 of itself
            value = values[option]
            numbers |= {option: value, f"1 - {option}": 1 - value}
            if option != "decay":
                numbers[f"log {option}"] = math.log(value) if value else -math.inf
    return Optimizer(
        name,
        {option: float(value) for option, value in numbers.items()},
        bool(values.get("nesterov", False)),
        _compile(weight_decay_mask, "weight_decay_mask"),
        compile_multipliers(learning_rate_multipliers),
    )


def in_float32(
    rule: optax.GradientTransformation,
    *,
    l2: Any = None,
    clip_norm: Any = None,
    decayed: re.Pattern[str] | None = None,
) -> optax.GradientTransformation:
    """Puts what comes first before a rule: at least float32, L2 weight decay, clipping by the global norm.

    Args:
      rule: from clipped gradients to updates.
      l2: strength of the L2 decay, a number or a scalar; None or the number 0: none.
      clip_norm: as in `make_optimizer`, or a scalar.
      decayed: pattern of the parameters that decay, by L2 or in the rule; None: none do.
    """
    mask = decayed or _compile(KERNELS, "weight_decay_mask")

    def init(params: Tree) -> optax.OptState:
        if decayed:
            decayed_parameters(params, decayed)
        return rule.init(at_least_float32(params))

    def update(gradients: Tree, state: optax.OptState, params: Tree | None = None) -> tuple[Tree, optax.OptState]:
        if params is None:
            raise ValueError("update needs the parameters: optimizer.update(gradients, state, params)")
        updates, precise = at_least_float32(gradients), at_least_float32(params)
        if _is_used(l2):
            updates = _add_decay(updates, precise, l2, mask)
        if _is_used(clip_norm):
            updates = _clip(updates, clip_norm)
        updates, state = rule.update(updates, state, precise)
        return jax.tree.map(lambda update, parameter: update.astype(parameter.dtype), updates, params), state

    return optax.GradientTransformation(init, update)


def _is_used(number: Any) -> bool:
    """Whether a step computes with a number: a traced one always, None and 0 never."""
    return number is not None and (isinstance(number, jax.Array) or bool(number))


def at_least_float32(tree: Tree) -> Tree:
    """Casts 16-bit leaves to float32; the others stay as they are."""
    return jax.tree.map(lambda leaf: leaf.astype(np.promote_types(leaf.dtype, jnp.float32)), tree)


def global_norm(tree: Tree) -> jax.Array:
    """Euclidean norm of all entries of all leaves, summed in at least float32."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(at_least_float32(tree))))


def _options(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options of optimizer `name`: its defaults, overridden by the given ones, checked."""
    if name not in _DEFAULTS:
        raise UserError(
            f"config.optimizer.name = {name!r} is unknown{nearest(name, _DEFAULTS)}; optimizers: {', '.join(_DEFAULTS)}"
        )
    for option in given:
        if option not in _DEFAULTS[name]:
            raise UserError(
                f"config.optimizer.{option} is not read by optimizer {name!r}; its options: {', '.join(OPTIONS[name])}"
            )
    options = {**_DEFAULTS[name], **given}
    for option in ("momentum", "decay", "b1", "b2"):
        if option in options:
            _check(0 <= options[option] < 1, option, options[option], "0 <= value < 1")
    if "epsilon" in options:
        _check(options["epsilon"] > 0, "epsilon", options["epsilon"], "more than 0")
    if options.get("nesterov"):
        _check(options["momentum"] > 0, "momentum", options["momentum"], "more than 0 with nesterov")
    return options


def _rule(
    name: str,
    numbers: Mapping[str, Any],
    nesterov: bool,
    decoupled_decay: Any,
    mask: re.Pattern[str],
    learning_rate: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """From clipped gradients to updates: scaling, decoupled decay, learning rate and momentum."""
    chain: list[optax.GradientTransformation] = []
    if name == "rmsprop":
        chain.append(_scale_by_rms(numbers))
    if name == "adamw":
        chain.append(_scale_by_adam(numbers))
    if decoupled_decay is not None:
        chain.append(optax.stateless(lambda updates, params: _add_decay(updates, params, decoupled_decay, mask)))
    chain.append(learning_rate)
    if "momentum" in numbers:
        chain.append(optax.trace(numbers["momentum"], nesterov=nesterov))
    return optax.chain(*chain)


def _check(holds: bool, field: str, value: object, allowed: str) -> None:
    if not holds:  # `not (NaN >= 0)` is true: NaN is refused too.
        raise UserError(f"config.optimizer.{field} = {value!r}; allowed: {allowed}")


def _compile(pattern: str, field: str) -> re.Pattern[str]:
    return patterns.compile_pattern(pattern, f"config.optimizer.{field}")


def compile_multipliers(multipliers: Multipliers) -> list[tuple[re.Pattern[str], float]]:
    """The patterns and factors of `learning_rate_multipliers`, checked; raises UserError."""
    pairs = multipliers.items() if isinstance(multipliers, Mapping) else multipliers
    for _, factor in pairs:
        _check(0 <= factor < math.inf, "learning_rate_multipliers", factor, "factors of 0 or more")
    return [(_compile(pattern, "learning_rate_multipliers"), float(factor)) for pattern, factor in pairs]


def _no_match(field: str, pattern: re.Pattern[str], paths: Tree) -> UserError:
    if pattern.pattern in _OWN_PATTERNS:
        field, what, without = _OWN_PATTERNS[pattern.pattern]
        return UserError(
            f"config.optimizer.{field}: no {what} is trained that no earlier pattern matches (all are frozen, or the "
            f"network has none); set it to {without}"
        )
    return UserError(
        f"config.optimizer.{field}: {pattern.pattern!r} matches no path of a trained parameter (that no earlier "
        f"pattern matches); an example of a path: {jax.tree.leaves(paths)[0]!r}"
    )


def decayed_parameters(params: Tree, mask: re.Pattern[str]) -> Tree:
    """Tree of bool: the parameters that weight decay acts on."""
    paths = leaf_paths(params)
    found = set(patterns.search(mask, jax.tree.leaves(paths), "config.optimizer.weight_decay_mask"))
    decayed = jax.tree.map(lambda path: path in found, paths)
    if not any(jax.tree.leaves(decayed)):
        raise _no_match("weight_decay_mask", mask, paths)
    return decayed


def _add_decay(updates: Tree, params: Tree, weight_decay: float, mask: re.Pattern[str]) -> Tree:
    return jax.tree.map(
        lambda update, parameter, decays: update + weight_decay * parameter if decays else update,
        updates,
        params,
        decayed_parameters(params, mask),
    )


def factors(params: Tree, multipliers: list[tuple[re.Pattern[str], float]]) -> Tree:
    """Tree of float: each parameter's factor on the learning rate."""
    paths = leaf_paths(params)
    found: dict[str, float] = {}
    for pattern, factor in multipliers:
        others = [path for path in jax.tree.leaves(paths) if path not in found]
        matches = patterns.search(pattern, others, "config.optimizer.learning_rate_multipliers")
        if not matches:
            raise _no_match("learning_rate_multipliers", pattern, paths)
        found |= dict.fromkeys(matches, factor)
    return jax.tree.map(lambda path: found.get(path, 1.0), paths)


def _scale_by_learning_rate(
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


def _scale_by_rms(numbers: Mapping[str, Any]) -> optax.GradientTransformation:
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


def _scale_by_adam(numbers: Mapping[str, Any]) -> optax.GradientTransformation:
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


def _clip(updates: Tree, clip_norm: float) -> Tree:
    norm = global_norm(updates)
    # An infinite norm would give a factor of 0, an update of zero that nobody notices; NaN is noticed.
    factor = jnp.where(jnp.isfinite(norm), clip_norm / jnp.maximum(norm, clip_norm), jnp.nan)
    return jax.tree.map(lambda update: update * factor.astype(update.dtype), updates)
