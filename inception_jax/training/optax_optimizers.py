"""Optimizers by Optax's names, and those that a recipe registered, with their own options checked.

They stand in the order of `optimizers`: cast to at least float32 -> L2 weight decay, where the optimizer has none ->
clipping by the global norm -> the optimizer, with its learning rate -> per-parameter multipliers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from inception_jax import extensions
from inception_jax.errors import UserError, nearest
from inception_jax.training import optimizers
from inception_jax.training.gradient_transformations import (
    Multipliers,
    Tree,
    compile_multipliers,
    decayed_parameters,
    factors,
)

# Arguments that other fields of the config set: their names in Optax's factories.
_RATE, _DECAY, _MASKS = "learning_rate", "weight_decay", ("mask", "weight_decay_mask")


def make_optimizer(
    name: str,
    *,
    learning_rate: Callable[[jax.Array], jax.Array],
    options: Mapping[str, Any],
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    learning_rate_multipliers: Multipliers = (),
) -> optax.GradientTransformation:
    """Makes an optimizer of Optax, or one that was registered.

    The weight decay acts on kernels alone: the optimizer's own where it takes `weight_decay` and a mask of the
    parameters, otherwise L2, which adds weight_decay * w to the gradient. Multipliers scale the finished update of a
    parameter. A schedule's count goes on where the step is skipped (`step._skip_if_bad`).

    Args:
      name: "optax.NAME", such as "optax.lamb" or "optax.contrib.prodigy", or a registered name.
      learning_rate: a schedule of the int32 number of updates so far.
      options: {name: value} of the optimizer's own arguments.
      weight_decay: strength; 0: none, also where the optimizer's own default is another.
      clip_norm: as in `optimizers.specify`.
      learning_rate_multipliers: as there.

    Raises:
      UserError: an unknown optimizer, or one that needs more than gradients and parameters; an option that it does not
        have, that another field sets, or that it refuses.
    """
    factory = _find(name)
    known = _parameters(name, factory)
    _check_options(name, options, known)
    arguments = dict(options)
    mask_argument = next((argument for argument in _MASKS if argument in known), None)
    own_decay = _DECAY in known and mask_argument is not None
    if _DECAY in known and mask_argument is not None:
        arguments |= {_DECAY: weight_decay, mask_argument: decayed_parameters}
    elif _DECAY in known:
        arguments.setdefault(_DECAY, 0.0)
        if weight_decay:
            raise UserError(
                f"config.optimizer.weight_decay = {weight_decay}: the decay of {name!r} has no mask and would act on "
                f"biases and batch norm, too; set it in config.optimizer.options = {{'weight_decay': …}} if it shall"
            )
    with jax.numpy_dtype_promotion("standard"):
        try:
            rule = factory(learning_rate=learning_rate, **arguments)
        except Exception as error:  # whatever a factory raises for a value
            raise UserError(f"config.optimizer.name = {name!r}: {type(error).__name__}: {error}") from error
    if not isinstance(rule, optax.GradientTransformation):
        raise UserError(
            f"config.optimizer.name = {name!r}: it returns {type(rule).__name__}, not an optax.GradientTransformation"
        )
    _try_out(name, optimizers.in_float32(_standard_promotion(rule)))
    return optimizers.in_float32(
        _standard_promotion(optax.chain(rule, _scaled(learning_rate_multipliers))),
        l2=0.0 if own_decay else weight_decay,
        clip_norm=clip_norm,
        decays=bool(weight_decay),
    )


def _find(name: str) -> Callable[..., Any]:
    if name in extensions.OPTIMIZERS:
        return extensions.OPTIMIZERS[name]
    place: Any = optax
    *modules, last = name.removeprefix("optax.").split(".")
    for module in modules:
        place = getattr(place, module, None)
    factory: Any = getattr(place, last, None) if not last.startswith("_") else None
    if not _takes_rate(factory):
        known = sorted(_names(place)) if place is not None else []
        why = "is unknown" if factory is None else "is no optimizer with a learning_rate"
        raise UserError(f"config.optimizer.name = {name!r} {why}{nearest(last, known)}; in Optax: {', '.join(known)}")
    return factory


def _names(module: Any) -> list[str]:
    """The optimizers of a module of Optax: its functions that take a learning rate."""
    return [name for name, value in vars(module).items() if not name.startswith("_") and _takes_rate(value)]


def _takes_rate(value: Any) -> bool:
    if not callable(value) or inspect.isclass(value):
        return False
    try:
        return _RATE in inspect.signature(value).parameters
    except (TypeError, ValueError):
        return False


def _parameters(name: str, factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError) as error:
        raise UserError(f"config.optimizer.name = {name!r}: {factory!r} has no signature: {error}") from None
    if _RATE not in parameters:
        raise UserError(f"config.optimizer.name = {name!r}: it takes no argument {_RATE!r}, which the schedule sets")
    return dict(parameters)


def _check_options(name: str, options: Mapping[str, Any], known: Mapping[str, inspect.Parameter]) -> None:
    own = [option for option in known if option not in (_RATE, *_MASKS)]
    if _DECAY in known and any(mask in known for mask in _MASKS):
        own.remove(_DECAY)
    own = [option for option in own if known[option].kind is not inspect.Parameter.VAR_KEYWORD]
    takes_any = len(own) < len(known) and any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    for option in options:
        if option in (_RATE, _DECAY) and option not in own:
            raise UserError(
                f"config.optimizer.options: {option!r} is set by config.optimizer.{option}, which {name!r} gets"
            )
        if option not in own and not takes_any:
            raise UserError(
                f"config.optimizer.options: {name!r} has no option {option!r}{nearest(option, own)}; its options: "
                f"{', '.join(own) or 'none'}"
            )
    missing = [
        option
        for option in own
        if known[option].default is inspect.Parameter.empty
        and known[option].kind is not inspect.Parameter.VAR_POSITIONAL
        and option not in options
    ]
    if missing:
        raise UserError(f"config.optimizer.options: {name!r} needs {', '.join(map(repr, missing))}")


def _scaled(learning_rate_multipliers: Multipliers) -> optax.GradientTransformation:
    """Multiplies the updates by each parameter's factor."""
    multipliers = compile_multipliers(learning_rate_multipliers)
    if not multipliers:
        return optax.identity()

    def init(params: Tree) -> optax.EmptyState:
        factors(params, multipliers)
        return optax.EmptyState()

    def update(updates: Tree, state: optax.EmptyState, params: Tree | None = None) -> tuple[Tree, optax.EmptyState]:
        return jax.tree.map(lambda u, factor: factor * u, updates, factors(params, multipliers)), state

    return optax.GradientTransformation(init, update)


def _standard_promotion(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Traces a rule under JAX's standard dtype promotion: several of Optax's do not trace under the strict one."""

    def init(params: Tree) -> optax.OptState:
        with jax.numpy_dtype_promotion("standard"):
            return rule.init(params)

    def update(gradients: Tree, state: optax.OptState, params: Tree | None = None) -> tuple[Tree, optax.OptState]:
        with jax.numpy_dtype_promotion("standard"):
            return rule.update(gradients, state, params)

    return optax.GradientTransformation(init, update)


def _try_out(name: str, rule: optax.GradientTransformation) -> None:
    """Traces one update of two parameters, so that what a rule needs beside gradients is known before the first step.

    Raises:
      UserError: the rule raises.
    """
    params = {"kernel": jax.ShapeDtypeStruct((2, 2), jnp.float32), "bias": jax.ShapeDtypeStruct((2,), jnp.float32)}

    def step(params: Tree) -> Any:
        return rule.update(params, rule.init(params), params)

    try:
        jax.eval_shape(step, params)
    except Exception as error:
        raise UserError(
            f"config.optimizer.name = {name!r}: it cannot make an update from gradients and parameters alone "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
