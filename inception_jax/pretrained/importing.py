"""From a publisher's arrays to our variables: every array used, or an error that says what is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from flax.traverse_util import unflatten_dict

from inception_jax.errors import UserError, nearest
from inception_jax.pretrained.publishers import registry
from inception_jax.pretrained.variants import SourceArray, Variant

Background = Literal["keep", "drop"]
_NAMED = 5  # of a longer list, so many names stand in a message


@dataclasses.dataclass(frozen=True)
class ImportedWeights:
    """Weights in our tree, and what they are.

    Attributes:
      variant: the publisher's variant.
      options: of `create_model`, for the network that they belong to.
      variables: {"params": …, "batch_stats": …}: nested dictionaries of NumPy arrays.
      num_classes: outputs of the classifier, after `background`.
      background_dropped: whether a background class was cut off.
      defaulted: leaves that the file did not have and that took a constant.
    """

    variant: Variant
    options: dict[str, Any]
    variables: dict[str, Any]
    num_classes: int
    background_dropped: bool
    defaulted: tuple[str, ...]


def import_weights(
    model_name: str,
    arrays: Mapping[str, np.ndarray],
    *,
    source: str,
    background: Background = "keep",
    dtype: Any = np.float32,
    **options: Any,
) -> dict[str, Any]:
    """A network's variables from a publisher's arrays.

    Args:
      model_name: a name of `model_names()`.
      arrays: {publisher's name: array}, as in the publisher's file; any floating dtype, any strides.
      source: the publisher, a name of `pretrained.publishers.registry.source_names()`.
      background: "keep" all classes, or "drop" class 0 of weights whose first of 1001 classes is the background.
      dtype: of the result. float16 and bfloat16 become float32 without loss, float64 is rounded to the nearest.
      **options: of `create_model`, for weights of another variant than was published (a width, a switch).
        `aux_heads=False` leaves the arrays of the auxiliary heads aside, `True` demands them. `num_classes=0` leaves
        the classifiers aside, whether or not the arrays have them (Keras's "no-top" files have none).

    Returns:
      {"params": …, "batch_stats": …} of NumPy arrays, for `create_model(model_name, **variant_options(…))`. Without the
      option `aux_heads` the auxiliary heads are there exactly if the arrays have them.

    Raises:
      UserError: an unknown source or one without this network; arrays left over, missing, or of another shape (the
        message names them, and the network and source that would fit); values that are no weights.

    Example:
      Here the arrays come from a network of this package under Caffe's names.

      >>> import jax
      >>> from inception_jax import create_model, import_weights, init_variables
      >>> from inception_jax.pretrained.exporting import export_weights
      >>> options = {"num_classes": 10, "width_multiplier": 0.1, "aux_heads": False}
      >>> model = create_model("inception_v1", **options)
      >>> variables = init_variables(model, jax.random.key(0), image_size=32)
      >>> arrays = export_weights("inception_v1", variables, source="caffe", **options)
      >>> arrays["conv1/7x7_s2/0"].shape  # Caffe's names and order: out, in, height, width
      (16, 3, 7, 7)
      >>> imported = import_weights("inception_v1", arrays, source="caffe", **options)
      >>> imported["params"]["conv1"]["kernel"].shape  # ours: height, width, in, out
      (7, 7, 3, 16)
    """
    return import_variant(
        registry.get_variant(model_name, source), arrays, background=background, dtype=dtype, **options
    ).variables


def variant_options(model_name: str, source: str) -> dict[str, Any]:
    """The options of `create_model` with which our network computes what the publisher's does.

    The number of classes is not among them. A publisher without auxiliary heads has `aux_heads=False`.

    Raises:
      UserError: as `registry.get_variant`.
    """
    variant = registry.get_variant(model_name, source)
    return dict(variant.options) | ({} if variant.aux_heads else {"aux_heads": False})


def import_variant(
    variant: Variant,
    arrays: Mapping[str, np.ndarray],
    *,
    background: Background = "keep",
    dtype: Any = np.float32,
    **options: Any,
) -> ImportedWeights:
    """`import_weights` with all that is known about the result; arguments and errors as there."""
    if background not in ("keep", "drop"):
        raise UserError(f"background = {background!r}: 'keep' or 'drop'")
    dtype, drop = _float_dtype(dtype), background == "drop"
    given = variant.weights(arrays)
    if not given:
        raise UserError(f"no arrays: {variant.source}'s {variant.model} was expected")
    options = dict(options)
    asked, aux_heads = options.pop("num_classes", None), options.pop("aux_heads", None)
    if asked == 0:
        given, num_classes, aux_heads = _without_classifier(variant, given, drop), 0, _no_heads(aux_heads)
    else:
        num_classes = _count_classes(variant, arrays, drop, asked)
    aux_heads, given = _choose_heads(variant, given, aux_heads, options)
    leaves = variant.leaves(aux_heads=aux_heads, num_classes=num_classes, **options)
    wanted = {path: (variant.source_array(path, shape), shape) for path, shape in leaves.items()}
    problems = [*_name_problems(wanted, given), *_shape_problems(wanted, given)]
    if problems:
        raise _mismatch_error(variant, arrays, "; ".join(problems))
    flat, defaulted = {}, []
    for path, (theirs, shape) in wanted.items():
        if theirs.name not in given:
            array = np.full(shape, theirs.default, dtype)
            defaulted.append(path)
        else:
            array = theirs.layout.to_ours(_check_values(np.asarray(given[theirs.name]), theirs.name, path, dtype))
        flat[path] = np.ascontiguousarray(array[..., 1:] if drop and is_classifier_leaf(path) else array)
    num_classes -= drop
    made = {**variant.options, **options, "num_classes": num_classes, "aux_heads": aux_heads}
    return ImportedWeights(variant, made, unflatten_dict(flat, sep="/"), num_classes, drop, tuple(defaulted))


def is_classifier_leaf(path: str) -> bool:
    """Whether a leaf belongs to a classifier, the network's or an auxiliary head's: its last axis is the classes."""
    return path.split("/")[-2] == "classifier"


def identify(arrays: Mapping[str, np.ndarray]) -> list[tuple[float, Variant]]:
    """Whose arrays these may be: (the part of names that fit, with the right shape), best first; none below a tenth.

    Where the arrays have some variant's classifier, only such variants are scored: others would cost a trace each.
    """
    variants = registry.all_variants()
    likely = [variant for variant in variants if _classifier(variant).name in variant.weights(arrays)]
    found = [(_score(variant, arrays), variant) for variant in likely or variants]
    return sorted(((score, variant) for score, variant in found if score > 0.1), key=lambda pair: -pair[0])


def _score(variant: Variant, arrays: Mapping[str, Any]) -> float:
    """The part of names that fit, of those given and those that the variant's trunk lacks."""
    given = variant.weights(arrays)
    shapes: dict[str, tuple[int, ...] | None] = {}
    missing = 0
    for path, shape in variant.leaves(aux_heads=True, num_classes=variant.num_classes).items():
        theirs = variant.source_array(path, shape)
        shapes[theirs.name] = None if is_classifier_leaf(path) else theirs.layout.shape(shape)
        missing += theirs.name not in given and not _is_aux_leaf(path)
    fitting = sum(name in shapes and shapes[name] in (None, np.shape(array)) for name, array in given.items())
    return fitting / max(1, len(given) + missing)


def _is_aux_leaf(path: str) -> bool:
    return path.split("/")[1].startswith("aux")


def _classifier(variant: Variant) -> SourceArray:
    # Its name and layout do not depend on how many features it reads.
    return variant.source_array("params/classifier/kernel", (1, variant.num_classes))


def _count_classes(variant: Variant, arrays: Mapping[str, Any], drop: bool, asked: int | None) -> int:
    """As many as the classifier of the arrays has; `asked`, after the background is gone, may only say the same."""
    theirs, given = _classifier(variant), variant.weights(arrays)
    if theirs.name not in given:
        raise _mismatch_error(
            variant, arrays, f"the classifier {theirs.name!r} is missing (num_classes=0 does without one)"
        )
    array = np.asarray(given[theirs.name])
    try:
        found = theirs.layout.to_ours(array).shape[-1]
    except ValueError:
        raise UserError(f"{theirs.name}: shape {array.shape} is no {theirs.layout.name}") from None
    if found == 0:
        raise UserError(f"{theirs.name}: shape {array.shape}, a classifier without classes")
    if drop and found != 1001:
        raise UserError(f"background = 'drop': {found} classes; only the first of 1001 is a background")
    if asked not in (None, found - drop):
        raise UserError(f"num_classes = {asked}: the classifier {theirs.name!r} gives {found - drop}")
    return found


def has_classifier(variant: Variant, arrays: Mapping[str, Any]) -> bool:
    """Whether a file's arrays have one under the variant's name: no shape is looked at."""
    return _classifier(variant).name in variant.weights(arrays)


def _without_classifier(variant: Variant, given: Mapping[str, Any], drop: bool) -> dict[str, Any]:
    """The arrays of the trunk and of the heads."""
    if drop:
        raise UserError("num_classes = 0 and background = 'drop': without a classifier there is no background")
    leaves = variant.leaves(aux_heads=False, num_classes=variant.num_classes)
    names = {variant.source_array(path, shape).name for path, shape in leaves.items() if is_classifier_leaf(path)}
    return {name: array for name, array in given.items() if name not in names}


def _no_heads(asked: bool | None) -> bool:
    if asked:
        raise UserError("num_classes = 0 and aux_heads = True: without classes there are no auxiliary heads")
    return False


def _choose_heads(
    variant: Variant, given: dict[str, Any], asked: bool | None, options: Mapping[str, Any]
) -> tuple[bool, dict[str, Any]]:
    """Whether with auxiliary heads, and the arrays without those of heads that are not wanted."""
    if asked and not variant.aux_heads:
        raise UserError(f"aux_heads = True: {variant.source}'s {variant.model} has no auxiliary heads")
    if not variant.aux_heads:
        return False, given
    leaves = variant.leaves(aux_heads=True, num_classes=variant.num_classes, **options)
    heads = {variant.source_array(path, shape).name for path, shape in leaves.items() if _is_aux_leaf(path)}
    if asked is False:
        return False, {name: array for name, array in given.items() if name not in heads}
    return asked or any(name in heads for name in given), given


def _name_problems(wanted: Mapping[str, tuple[SourceArray, Any]], given: Mapping[str, Any]) -> list[str]:
    names = {theirs.name for theirs, _ in wanted.values()}
    missing = [theirs.name for theirs, _ in wanted.values() if theirs.name not in given and not theirs.optional]
    left = [name for name in given if name not in names]
    hint = nearest(left[0], missing) if left else ""
    return [f"missing: {_format_names(missing)}"] * bool(missing) + [f"left over: {_format_names(left)}{hint}"] * bool(
        left
    )


def _shape_problems(wanted: Mapping[str, tuple[SourceArray, Any]], given: Mapping[str, Any]) -> list[str]:
    wrong = []
    for theirs, shape in wanted.values():
        expected = theirs.layout.shape(shape)
        if theirs.name in given and np.shape(given[theirs.name]) != expected:
            wrong.append(f"{theirs.name} is {np.shape(given[theirs.name])}, {expected} is wanted")
    return [f"other shapes: {_format_names(wrong)}"] * bool(wrong)


def _mismatch_error(variant: Variant, arrays: Mapping[str, Any], why: str) -> UserError:
    message = f"these arrays are not {variant.source}'s {variant.model}: {why}"
    # The arrays as they came: under the names that `variant` gives them, no other variant may know its own.
    best = identify(arrays)
    # Some publishers' arrays are alike (timm's are Cadene's or torchvision's): then it is not the publisher.
    if best and best[0][0] > _score(variant, arrays):
        score, other = best[0]
        message += f". They look like {other.source}'s {other.model} ({100 * score:.0f} % of the names and shapes fit)"
    return UserError(message)


def _format_names(names: Iterable[str]) -> str:
    names = list(names)
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _float_dtype(dtype: Any) -> np.dtype:
    try:
        found = np.dtype(dtype)
    except TypeError:
        raise UserError(f"dtype = {dtype!r}: float32, float64, float16 or bfloat16") from None
    if not _is_float(found):
        raise UserError(f"dtype = {found}: float32, float64, float16 or bfloat16")
    return found


def _is_float(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"  # whose kind NumPy gives as V


def _check_values(array: np.ndarray, name: str, path: str, dtype: np.dtype) -> np.ndarray:
    """The array in `dtype`, if its values can be weights."""
    if not _is_float(array.dtype):
        raise UserError(f"{name}: {array.dtype} values; weights are floating-point numbers")
    wide = array.astype(np.float32) if array.dtype.itemsize < 4 else array
    if not np.isfinite(wide).all():
        raise UserError(f"{name}: {int((~np.isfinite(wide)).sum())} of {wide.size} values are not finite")
    if path.startswith("batch_stats/") and path.endswith("/var") and (wide < 0).any():
        raise UserError(f"{name}: a running variance below 0 ({wide.min():g})")
    with np.errstate(over="ignore"):
        made = wide.astype(dtype)
    if not np.isfinite(made.astype(np.float32) if dtype.itemsize < 4 else made).all():
        raise UserError(f"{name}: values up to {np.abs(wide).max():g} are too large for {dtype}")
    return made
