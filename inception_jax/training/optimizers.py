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
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from inception_jax.errors import UserError
from inception_jax.training.gradient_transformations import (
    Multipliers,
    Tree,
    add_decay,
    at_least_float32,
    clip_by_norm,
    compile_multipliers,
    decayed_parameters,
    scale_by_adam,
    scale_by_learning_rate,
    scale_by_rms,
)

# name -> {option: its default}. "sgd": Caffe's solvers of bvlc_googlenet. "rmsprop": arXiv:1512.00567 section 8 (decay
# 0.9, epsilon 1.0) and Google's inception_train.py (momentum 0.9). "adamw": arXiv:1412.6980 section 2.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "nesterov": False},
    "rmsprop": {"decay": 0.9, "epsilon": 1.0, "momentum": 0.9},
    "adamw": {"b1": 0.9, "b2": 0.999, "epsilon": 1e-8},
}
OPTIONS: dict[str, tuple[str, ...]] = {name: tuple(defaults) for name, defaults in _DEFAULTS.items()}
"""The options that each optimizer reads, beside those that all read."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer whose numbers may be arguments of a compiled step.

    Attributes:
      name: one of `OPTIONS`.
      numbers: {name: value} of what its arithmetic uses. A number that is not in use (a momentum of 0) is absent: the
        names decide the program, the values do not.
      nesterov: as in `specify`.
      multipliers: of the learning rate, by pattern.
    """

    name: str
    numbers: Mapping[str, float]
    nesterov: bool
    multipliers: list[tuple[re.Pattern[str], float]]

    def build(
        self, learning_rate: float | Callable[[jax.Array], jax.Array], numbers: Mapping[str, Any] | None = None
    ) -> optax.GradientTransformation:
        """Makes the transformation.

        Args:
          learning_rate: a number, or a schedule of the int32 number of updates so far.
          numbers: values in the place of `numbers`, such as the arguments of a traced function.

        Returns:
          A transformation whose `update` needs the parameters; its updates have their types, for `optax.apply_updates`.
          `init` raises UserError for a pattern that matches no parameter (or that earlier patterns leave none).
        """
        numbers = self.numbers if numbers is None else numbers
        l2, decoupled = numbers.get("weight_decay"), None
        if self.name == "adamw":
            l2, decoupled = None, l2
        rate = scale_by_learning_rate(learning_rate, self.multipliers)
        return in_float32(
            _rule(self.name, numbers, self.nesterov, decoupled, rate),
            l2=l2,
            clip_norm=numbers.get("clip_norm"),
            decays="weight_decay" in numbers,
        )


def specify(
    name: str,
    *,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    learning_rate_multipliers: Multipliers = (),
    **options: float | bool | None,
) -> Optimizer:
    """Specifies an optimizer, all but its learning rate.

    * "sgd": v = momentum * v + lr * g; w -= v (nesterov: w -= momentum * v + lr * g with the new v, as Caffe's).
    * "rmsprop", TF's: ms = decay * ms + (1 - decay) * g^2, ms starting at ones;
      v = momentum * v + lr * g / sqrt(ms + epsilon); w -= v.
    * "adamw": arXiv:1711.05101 Algorithm 2 with the decay multiplied by the learning rate, as Optax and PyTorch do.

    The schema of the config has the ranges of all values.

    Args:
      name: one of `OPTIONS`.
      weight_decay: strength of the L2 (sgd, rmsprop) or decoupled (adamw) decay of the kernels; 0: none.
      clip_norm: largest global norm of the gradients, all parameters together (arXiv:1512.00567 section 8: 2.0);
        None: no clipping. A norm that is not finite makes every update NaN, as TF's `clip_by_global_norm`.
      learning_rate_multipliers: (pattern, factor on everything that the parameter receives, decay included) pairs
        (Caffe's `lr_mult`: ("(^|/)bias$", 2.0); 0 freezes). Patterns are regular expressions, searched for in a
        parameter's path, such as "inception_3a/conv_1x1/kernel". The first that matches counts; parameters that match
        none have 1.
      **options: those of `OPTIONS`; None: the default in this module. momentum: 0 keeps no velocity. nesterov:
        Nesterov's momentum. decay: of RMSProp's mean square. epsilon: added to the mean square under the root
        (rmsprop), or to the root (adamw). b1, b2: decay of Adam's first and second moment.

    Raises:
      UserError: Nesterov's momentum without momentum, or a pattern that is not a regular expression.
    """
    values = _DEFAULTS[name] | {option: value for option, value in options.items() if value is not None}
    if values.get("nesterov") and not values["momentum"]:
        raise UserError(f"config.optimizer.momentum = {values['momentum']!r}; allowed: more than 0 with nesterov")
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
        compile_multipliers(learning_rate_multipliers),
    )


def in_float32(
    rule: optax.GradientTransformation,
    *,
    l2: Any = None,
    clip_norm: Any = None,
    decays: bool = False,
) -> optax.GradientTransformation:
    """Puts what comes first before a rule: at least float32, L2 weight decay, clipping by the global norm.

    Args:
      rule: from clipped gradients to updates.
      l2: strength of the L2 decay, a number or a scalar; None or the number 0: none.
      clip_norm: as in `specify`, or a scalar.
      decays: whether the kernels decay, by L2 or in the rule: then there must be one.
    """

    def init(params: Tree) -> optax.OptState:
        if decays:
            decayed_parameters(params)
        return rule.init(at_least_float32(params))

    def update(gradients: Tree, state: optax.OptState, params: Tree | None = None) -> tuple[Tree, optax.OptState]:
        if params is None:
            raise ValueError("update needs the parameters: optimizer.update(gradients, state, params)")
        updates, precise = at_least_float32(gradients), at_least_float32(params)
        if _is_used(l2):
            updates = add_decay(updates, precise, l2)
        if _is_used(clip_norm):
            updates = clip_by_norm(updates, clip_norm)
        updates, state = rule.update(updates, state, precise)
        return jax.tree.map(lambda update, parameter: update.astype(parameter.dtype), updates, params), state

    return optax.GradientTransformation(init, update)


def _is_used(number: Any) -> bool:
    """Whether a step computes with a number: a traced one always, None and 0 never."""
    return number is not None and (isinstance(number, jax.Array) or bool(number))


def _rule(
    name: str,
    numbers: Mapping[str, Any],
    nesterov: bool,
    decoupled_decay: Any,
    learning_rate: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """From clipped gradients to updates: scaling, decoupled decay, learning rate and momentum."""
    chain: list[optax.GradientTransformation] = []
    if name == "rmsprop":
        chain.append(scale_by_rms(numbers))
    if name == "adamw":
        chain.append(scale_by_adam(numbers))
    if decoupled_decay is not None:
        chain.append(optax.stateless(lambda updates, params: add_decay(updates, params, decoupled_decay)))
    chain.append(learning_rate)
    if "momentum" in numbers:
        chain.append(optax.trace(numbers["momentum"], nesterov=nesterov))
    return optax.chain(*chain)
