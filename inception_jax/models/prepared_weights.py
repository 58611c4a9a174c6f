"""Divides a computation into what depends on its weights alone, which is computed once, and the rest.

In an evaluation the weights are the same for every batch. What is computed from them alone need not be computed for
each: the coefficients of batch norm, kernels of another dtype, kernels in the layouts of oneDNN (`packed_kernels.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

from inception_jax.models.packed_kernels import PACKS_KERNELS

_INNER = {
    "jit": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "remat2": "jaxpr",  # of `jax.checkpoint`
}
"""Operations that only call a program, and the parameter that is it: it is divided as if it were in their place."""


class _Part(enum.IntEnum):
    """What a value depends on, and so which part of the program computes it: both what depends on nothing."""

    NOTHING = 0
    WEIGHTS = 1
    BATCH = 2


@dataclasses.dataclass(eq=False)
class _Value:
    """A value of the program.

    Attributes:
      part: that computes it.
      array: it; None: the other part computes it.
      known: whether both parts have it, or will.
      place: of a weight among all; None: it is no weight.
    """

    part: _Part
    array: Any = None
    known: bool = False
    place: int | None = None


class PreparedFunction:
    """A function of weights and a batch in two parts: it is `compute(select(weights), prepare(weights), batch)`.

    Both are to be compiled, within `TRACED_FOR`: the forms for several platforms are not divided. An operation on
    weights whose result is larger than they stays with the batch, but for packed kernels. Of a program with side
    effects (prints, references that it writes to) nothing is prepared. Operations that name an axis of devices stay
    with the batch, so `prepare` can be called outside a `jax.shard_map` in which it was traced. There are no gradients.
    """

    def __init__(self, function: Callable[[Any, Any], Any], batch: Any):
        """Takes the function. The first call traces it, and both parts are of that program; `prepare` comes first.

        Args:
          function: of two trees of arrays, weights and a batch.
          batch: shapes and dtypes of the second.
        """
        self._function = function
        self._batch = batch
        self._traced: tuple[core.ClosedJaxpr, Any] | None = None
        self._read: set[int] = set()  # places of the weights that `compute` takes

    def prepare(self, weights: Any) -> list[jax.Array]:
        """Computes what `compute` takes beside weights."""
        prepared: list[jax.Array] = []
        if self._traced is None:
            with PACKS_KERNELS(True):
                self._traced = jax.make_jaxpr(self._function, return_shape=True)(weights, self._batch)
        leaves = jax.tree.leaves(weights)
        self._run(_Part.WEIGHTS, leaves, self._batch, lambda value: prepared.append(value.array))
        return prepared

    @property
    def read(self) -> tuple[int, ...]:
        """The places, among the leaves of the weights, of those that `compute` takes; after `prepare`."""
        return tuple(sorted(self._read))

    def select(self, weights: Any) -> list[Any]:
        """Returns the leaves that `compute` takes: few, as most of what it needs is prepared."""
        leaves = jax.tree.leaves(weights)
        return [leaves[place] for place in self.read]

    def compute(self, selected: Sequence[Any], prepared: Sequence[jax.Array], batch: Any) -> Any:
        """Computes the function, of what `select` and `prepare` returned for the same weights."""
        assert self._traced is not None, "prepare comes first"
        left = iter(prepared)

        def take(value: _Value) -> None:
            value.array = next(left)

        places = dict(zip(self.read, selected, strict=True))
        count = len(self._traced[0].jaxpr.invars) - len(jax.tree.leaves(batch))
        return self._run(_Part.BATCH, [places.get(place) for place in range(count)], batch, take)

    def _run(self, part: _Part, leaves: Sequence[Any], batch: Any, carry: Callable[[_Value], None]) -> Any:
        """Runs one part; calls `carry` with each value that the second takes from the first, in order."""
        assert self._traced is not None
        program, shapes = self._traced

        def bring(value: _Value) -> Any:
            if value.place is not None:
                self._read.add(value.place)
            if value.part == _Part.WEIGHTS and not value.known:
                value.known = True
                carry(value)
            return value.array

        # JAX counts a use of the devices' axis as a side effect.
        is_divided = all(type(effect).__name__ == "NamedAxisEffect" for effect in program.effects)
        owner = _Part.WEIGHTS if is_divided else _Part.BATCH
        inputs = [_Value(owner, leaf, known=True, place=place) for place, leaf in enumerate(leaves)]
        inputs += [_Value(_Part.BATCH, leaf) for leaf in jax.tree.leaves(batch)]
        outputs = _evaluate(program.jaxpr, program.consts, inputs, part, bring)
        return jax.tree.unflatten(jax.tree.structure(shapes), [bring(value) for value in outputs])


def _evaluate(
    program: core.Jaxpr,
    consts: Sequence[Any],
    inputs: Sequence[_Value],
    part: _Part,
    bring: Callable[[_Value], Any],
) -> list[_Value]:
    """Evaluates the operations of one part; `bring` gives the array of a value to an operation on the batch."""
    constants = [_Value(_Part.NOTHING, const) for const in consts]
    values = dict(zip([*program.constvars, *program.invars], [*constants, *inputs], strict=True))

    def read(atom: Any) -> _Value:
        return _Value(_Part.NOTHING, atom.val) if isinstance(atom, core.Literal) else values[atom]

    for equation in program.eqns:
        operands = [read(atom) for atom in equation.invars]
        with _name_scope(equation):
            if (inner := equation.params.get(_INNER.get(equation.primitive.name, ""))) is not None:
                closed = inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ())
                results = _evaluate(closed.jaxpr, closed.consts, operands, part, bring)
            else:
                results = _evaluate_one(equation, operands, part, bring)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in program.outvars]


def _evaluate_one(
    equation: core.JaxprEqn, operands: list[_Value], part: _Part, bring: Callable[[_Value], Any]
) -> list[_Value]:
    owner = max((operand.part for operand in operands), default=_Part.NOTHING)
    if equation.effects:  # of a use of the devices' axis: others are not divided
        owner = _Part.BATCH
    if owner == _Part.WEIGHTS and equation.primitive.name != "ffi_call":
        weights = [atom for atom, operand in zip(equation.invars, operands, strict=True) if operand.part == owner]
        if _count_bytes(equation.outvars) > _count_bytes(weights):
            owner = _Part.BATCH
    arrays = [bring(operand) if owner == _Part.BATCH else operand.array for operand in operands]
    if owner not in (_Part.NOTHING, part):
        return [_Value(owner) for _ in equation.outvars]
    results = equation.primitive.bind(*arrays, **equation.params)
    return [_Value(owner, array) for array in (results if equation.primitive.multiple_results else [results])]


def _count_bytes(atoms: Sequence[Any]) -> int:
    return sum(atom.aval.size * atom.aval.dtype.itemsize for atom in atoms)


def _name_scope(equation: core.JaxprEqn) -> contextlib.AbstractContextManager[Any]:
    """The names of the layers that an operation is of, for profiles."""
    names = str(equation.source_info.name_stack)
    return jax.named_scope(names) if names else contextlib.nullcontext()
