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

from inception_jax.errors import UserError, must_be_one_of
from inception_jax.training.gradient_transformations import (
    add_decay,
    at_least_float32,
    clip_by_norm,
    scale_by_adam,
    scale_by_learning_rate,
    scale_by_rms,
)
from inception_jax.training.parameter_patterns import (
    KERNELS,
    Multipliers,
    Tree,
    check_value,
    compile_field,
    compile_multipliers,
    decayed_parameters,
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
        check_value(learning_rate >= 0, "learning_rate", learning_rate, "0 or more")
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
        rate = scale_by_learning_rate(learning_rate, self.multipliers)
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
    check_value(weight_decay >= 0, "weight_decay", weight_decay, "0 or more")
    check_value(clip_norm is None or clip_norm >= 0, "clip_norm", clip_norm, "more than 0, or 0 for none")
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
        compile_field(weight_decay_mask, "weight_decay_mask"),
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
    mask = decayed or compile_field(KERNELS, "weight_decay_mask")

    def init(params: Tree) -> optax.OptState:
        if decayed:
            decayed_parameters(params, decayed)
        return rule.init(at_least_float32(params))

    def update(gradients: Tree, state: optax.OptState, params: Tree | None = None) -> tuple[Tree, optax.OptState]:
        if params is None:
            raise ValueError("update needs the parameters: optimizer.update(gradients, state, params)")
        updates, precise = at_least_float32(gradients), at_least_float32(params)
        if _is_used(l2):
            updates = add_decay(updates, precise, l2, mask)
        if _is_used(clip_norm):
            updates = clip_by_norm(updates, clip_norm)
        updates, state = rule.update(updates, state, precise)
        return jax.tree.map(lambda update, parameter: update.astype(parameter.dtype), updates, params), state

    return optax.GradientTransformation(init, update)


def _is_used(number: Any) -> bool:
    """Whether a step computes with a number: a traced one always, None and 0 never."""
    return number is not None and (isinstance(number, jax.Array) or bool(number))


def _options(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options of optimizer `name`: its defaults, overridden by the given ones, checked."""
    if name not in _DEFAULTS:
        raise UserError(f"config.optimizer.name = {name!r}: {must_be_one_of(name, _DEFAULTS)}")
    for option in given:
        if option not in _DEFAULTS[name]:
            raise UserError(
                f"config.optimizer.{option} is not read by optimizer {name!r}; its options: {', '.join(OPTIONS[name])}"
            )
    options = {**_DEFAULTS[name], **given}
    for option in ("momentum", "decay", "b1", "b2"):
        if option in options:
            check_value(0 <= options[option] < 1, option, options[option], "0 <= value < 1")
    if "epsilon" in options:
        check_value(options["epsilon"] > 0, "epsilon", options["epsilon"], "more than 0")
    if options.get("nesterov"):
        check_value(options["momentum"] > 0, "momentum", options["momentum"], "more than 0 with nesterov")
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
        chain.append(scale_by_rms(numbers))
    if name == "adamw":
        chain.append(scale_by_adam(numbers))
    if decoupled_decay is not None:
        chain.append(optax.stateless(lambda updates, params: add_decay(updates, params, decoupled_decay, mask)))
    chain.append(learning_rate)
    if "momentum" in numbers:
        chain.append(optax.trace(numbers["momentum"], nesterov=nesterov))
    return optax.chain(*chain)
