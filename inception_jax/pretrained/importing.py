"""Imports a publisher's arrays as variables of our networks: uses every array, or reports what does not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from flax.traverse_util import unflatten_dict

from inception_jax.errors import UserError, nearest
from inception_jax.models import input_channels
from inception_jax.models.registry import get_spec
from inception_jax.pretrained import identification
from inception_jax.pretrained.publishers import registry
from inception_jax.pretrained.variants import FileArrays, SourceArray, Variant, is_aux_leaf, is_classifier_leaf

Background = Literal["keep", "drop"]
_MAX_NAMES = 5  # of a longer list, a message shows this many names


@dataclasses.dataclass(frozen=True)
class ImportedWeights:
    """Imported variables and what is known about them.

    Attributes:
      variant: the publisher's variant.
      options: of `create_model`, for the network that the variables belong to.
      variables: {"params": …, "batch_stats": …}: nested dictionaries of NumPy arrays.
      num_classes: outputs of the classifier, after `background`; 0: no classifier.
      background_dropped: whether a background class was cut off.
      defaulted: paths of the leaves that the file did not have and that were set to a constant.
      adapted: {path of a kernel that was made for another number of input channels: how}.
    """

    variant: Variant
    options: dict[str, Any]
    variables: dict[str, Any]
    num_classes: int
    background_dropped: bool
    defaulted: tuple[str, ...]
    adapted: Mapping[str, str] = dataclasses.field(default_factory=dict)


def import_weights(
    model_name: str,
    arrays: Mapping[str, np.ndarray],
    *,
    source: str,
    background: Background = "keep",
    dtype: Any = np.float32,
    **options: Any,
) -> dict[str, Any]:
    """Converts a publisher's arrays to a network's variables.

    Args:
      model_name: a name of `model_names()`.
      arrays: {publisher's name: array}, as in the publisher's file; any floating dtype, any strides.
      source: the publisher, a name of `pretrained.publishers.registry.source_names()`.
      background: "keep" all classes, or "drop" class 0 of weights whose first of 1001 classes is the background.
      dtype: of the result. float16 and bfloat16 become float32 without loss, float64 is rounded to the nearest.
      **options: of `create_model`, for weights that differ from the published variant (a width, a switch).
        `aux_heads=False` skips the arrays of the auxiliary heads, `True` requires them. `num_classes=0` skips the
        classifiers, whether or not the arrays have them (Keras's "no-top" files have none). `in_channels=N`: the first
        kernel of a file of 3 channels is summed (1) or repeated (others), as `input_channels.adapt_input_kernel` says.

    Returns:
      {"params": …, "batch_stats": …} of NumPy arrays, for `create_model(model_name, **variant_options(…))`. Without
      the option `aux_heads` the auxiliary heads are there exactly if the arrays have them.

    Raises:
      UserError: an unknown source or one without this network; arrays that are unexpected, missing, or of another
        shape (the message names them, and the network and source that would fit); values that cannot be weights.

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
    """Returns the options of `create_model` with which our network computes the same function as the publisher's.

    The number of classes is not among them. A publisher without auxiliary heads has `aux_heads=False`.

    Args:
      model_name: a name of `model_names()`.
      source: the publisher, a name of `registry.source_names()`.

    Raises:
      UserError: as `registry.get_variant`.

    Example:
      >>> from inception_jax import create_model, variant_options
      >>> options = variant_options("inception_v3", "torchvision")
      >>> options["count_include_pad"]
      True
      >>> model = create_model("inception_v3", **options)
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
    """Imports weights like `import_weights`, for a variant; returns them with their options and classes.

    Args:
      variant: the publisher's variant.
      arrays: as for `import_weights`.
      background: as for `import_weights`.
      dtype: as for `import_weights`.
      **options: as for `import_weights`.

    Raises:
      UserError: as `import_weights`.
    """
    if background not in ("keep", "drop"):
        raise UserError(f"background = {background!r}: 'keep' or 'drop'")
    dtype, drop, arrays = _float_dtype(dtype), background == "drop", FileArrays.of(arrays)
    weights = arrays.weights(variant)
    if not weights:
        raise UserError(f"no arrays: {variant.source}'s {variant.model} was expected")
    options = dict(options)
    num_classes, aux_heads = options.pop("num_classes", None), options.pop("aux_heads", None)
    if num_classes == 0:
        weights, aux_heads = _without_classifier(variant, weights, drop), _refuse_heads(aux_heads)
    else:
        num_classes = _count_classes(variant, arrays, drop, num_classes)
    aux_heads, weights = _choose_heads(variant, weights, aux_heads, options)
    leaves = variant.leaves(aux_heads=aux_heads, num_classes=num_classes, **options)
    expected = {path: (variant.source_array(path, shape), shape) for path, shape in leaves.items()}
    input_kernel = _find_other_input(variant, expected, weights, options)
    problems = [*_name_problems(expected, weights), *_shape_problems(expected, weights, input_kernel)]
    if problems:
        raise _mismatch_error(variant, arrays, "; ".join(problems))
    flat, defaulted, adapted = {}, [], {}
    for path, (theirs, shape) in expected.items():
        if theirs.name not in weights:
            array = np.full(shape, theirs.default, dtype)
            defaulted.append(path)
        else:
            array = theirs.layout.to_ours(_check_values(np.asarray(weights[theirs.name]), theirs.name, path, dtype))
        if path == input_kernel:
            adapted[path] = input_channels.describe_adaptation(array.shape[2], shape[2])
            array = input_channels.adapt_input_kernel(array, shape[2])
        flat[path] = np.ascontiguousarray(array[..., 1:] if drop and is_classifier_leaf(path) else array)
    num_classes -= drop
    options = {**variant.options, **options, "num_classes": num_classes, "aux_heads": aux_heads}
    return ImportedWeights(
        variant, options, unflatten_dict(flat, sep="/"), num_classes, drop, tuple(defaulted), adapted
    )


def classifier_kernel(variant: Variant) -> SourceArray:
    """The publisher's array with the classifier's kernel."""
    # Its name and layout do not depend on the number of features, so that any number does.
    return variant.source_array("params/classifier/kernel", (1, variant.num_classes))


def _count_classes(variant: Variant, arrays: FileArrays, drop: bool, num_classes: int | None) -> int:
    """Counts the classes of the arrays' classifier.

    Args:
      variant: the publisher's variant.
      arrays: of the file.
      drop: whether the background class is to be cut off.
      num_classes: the number that the caller requests, without the background class; None: any.

    Raises:
      UserError: there is no classifier, it is not a fully connected layer, or it has another number of classes.
    """
    theirs, weights = classifier_kernel(variant), arrays.weights(variant)
    if theirs.name not in weights:
        known = frozenset().union(*variant.possible_names.values())
        foreign = [name for name in weights if name not in known]
        others = f", and {_format_names(foreign)} {'are' if len(foreign) > 1 else 'is'} not its own" if foreign else ""
        flags = "--set=num_classes=0" + (" and --ignore=PATTERN" if foreign else "")
        raise _mismatch_error(
            variant,
            arrays,
            f"the classifier {theirs.name!r} is missing{others}; num_classes=0 imports without a classifier "
            f"(convert: {flags})",
        )
    array = np.asarray(weights[theirs.name])
    try:
        found = theirs.layout.to_ours(array).shape[-1]
    except ValueError:
        raise UserError(f"{theirs.name}: shape {array.shape} is not a {theirs.layout.name}") from None
    if found == 0:
        raise UserError(f"{theirs.name}: shape {array.shape}, a classifier without classes")
    if drop and found != 1001:
        raise UserError(f"background = 'drop': {found} classes; only weights of 1001 classes have a background class")
    if num_classes not in (None, found - drop):
        raise UserError(f"num_classes = {num_classes}: the classifier {theirs.name!r} gives {found - drop}")
    return found


def has_classifier(variant: Variant, arrays: Mapping[str, Any]) -> bool:
    """Returns whether a file's arrays have a classifier under the variant's name, of whatever shape."""
    return classifier_kernel(variant).name in FileArrays.of(arrays).weights(variant)


def _without_classifier(variant: Variant, weights: Mapping[str, Any], drop: bool) -> dict[str, Any]:
    """The weights of the trunk and of the auxiliary heads."""
    if drop:
        raise UserError("num_classes = 0 and background = 'drop': without a classifier there is no background class")
    leaves = variant.leaves(aux_heads=False, num_classes=variant.num_classes)
    names = {variant.source_array(path, shape).name for path, shape in leaves.items() if is_classifier_leaf(path)}
    return {name: array for name, array in weights.items() if name not in names}


def _refuse_heads(aux_heads: bool | None) -> bool:
    """Returns False; raises UserError where auxiliary heads were requested."""
    if aux_heads:
        raise UserError("num_classes = 0 and aux_heads = True: without classes there are no auxiliary heads")
    return False


def _choose_heads(
    variant: Variant, weights: Mapping[str, Any], aux_heads: bool | None, options: Mapping[str, Any]
) -> tuple[bool, Mapping[str, Any]]:
    """Returns whether to import auxiliary heads (None: if there are any), and the weights without skipped heads."""
    if aux_heads and not variant.aux_heads:
        raise UserError(f"aux_heads = True: {variant.source}'s {variant.model} has no auxiliary heads")
    if not variant.aux_heads:
        return False, weights
    leaves = variant.leaves(aux_heads=True, num_classes=variant.num_classes, **options)
    names = {variant.source_array(path, shape).name for path, shape in leaves.items() if is_aux_leaf(path)}
    if aux_heads is False:
        return False, {name: array for name, array in weights.items() if name not in names}
    return aux_heads or any(name in names for name in weights), weights


def _name_problems(expected: Mapping[str, tuple[SourceArray, Any]], weights: Mapping[str, Any]) -> list[str]:
    names = {theirs.name for theirs, _ in expected.values()}
    missing = [theirs.name for theirs, _ in expected.values() if theirs.name not in weights and not theirs.optional]
    unexpected = [name for name in weights if name not in names]
    hint = nearest(unexpected[0], missing) if missing and unexpected else "; leave them out (convert: --ignore=PATTERN)"
    return [f"missing: {_format_names(missing)}"] * bool(missing) + [
        f"unexpected: {_format_names(unexpected)}{hint}"
    ] * bool(unexpected)


def _shape_problems(
    expected: Mapping[str, tuple[SourceArray, tuple[int, ...]]], weights: Mapping[str, Any], adapted: str | None
) -> list[str]:
    wrong, hint = [], ""
    for path, (theirs, shape) in expected.items():
        right = theirs.layout.shape(shape)
        if theirs.name in weights and path != adapted and np.shape(weights[theirs.name]) != right:
            wrong.append(f"{theirs.name} is {np.shape(weights[theirs.name])}, expected {right}")
            hint = hint or _channels_hint(theirs, shape, np.shape(weights[theirs.name]))
    return [f"wrong shapes: {_format_names(wrong)}{hint}"] * bool(wrong)


def _channels_hint(theirs: SourceArray, shape: tuple[int, ...], found: tuple[int, ...]) -> str:
    """What may be meant where a kernel has other input channels, and nothing else."""
    for channels in range(1, 17):
        wanted = (*shape[:2], channels, shape[3]) if len(shape) == 4 else ()
        if wanted and found == theirs.layout.shape(wanted):
            if channels == 3:
                return "; no rule adapts this first layer to other in_channels"
            return f"; in_channels={channels} imports it as it is (convert: --set=in_channels={channels})"
    return ""


def _find_other_input(
    variant: Variant, expected: Mapping[str, tuple[SourceArray, Any]], weights: Mapping[str, Any], options: Any
) -> str | None:
    """The path of the kernel that reads the image, where the file has it for 3 channels and others are wanted."""
    if options.get("in_channels", 3) == 3:
        return None
    model = variant.create(aux_heads=False, **options)
    found = input_channels.find_input_kernel(model, get_spec(variant.model).min_image_size)
    if found is None:
        return None
    path = f"params/{found}"
    theirs, shape = expected[path]
    colours = theirs.layout.shape((*shape[:2], 3, shape[3]))
    return path if theirs.name in weights and np.shape(weights[theirs.name]) == colours else None


def _mismatch_error(variant: Variant, arrays: FileArrays, why: str) -> UserError:
    message = f"these arrays are not {variant.source}'s {variant.model}: {why}"
    best = identification.identify(arrays)
    # Some publishers' arrays are the same (timm's are Cadene's or torchvision's): then the publisher is not the fault.
    if best and best[0][0] > identification.score(variant, arrays):
        score, other = best[0]
        message += f". They look like {other.source}'s {other.model} ({int(100 * score)} % of the names and shapes fit)"
    return UserError(message)


def _format_names(names: Iterable[str]) -> str:
    names = list(names)
    rest = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def _float_dtype(dtype: Any) -> np.dtype:
    try:
        found = np.dtype(dtype)
    except TypeError:
        raise UserError(f"dtype = {dtype!r}: float32, float64, float16 or bfloat16") from None
    if not _is_float(found):
        raise UserError(f"dtype = {found}: float32, float64, float16 or bfloat16")
    return found


def _is_float(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"  # whose kind is V in NumPy


def _check_values(array: np.ndarray, name: str, path: str, dtype: np.dtype) -> np.ndarray:
    """Converts an array to `dtype`, or raises UserError if its values cannot be weights."""
    if not _is_float(array.dtype):
        raise UserError(f"{name}: {array.dtype} values; weights are floating-point numbers")
    wide = array.astype(np.float32) if array.dtype.itemsize < 4 else array
    if not np.isfinite(wide).all():
        raise UserError(f"{name}: {int((~np.isfinite(wide)).sum())} of {wide.size} values are not finite")
    if path.startswith("batch_stats/") and path.endswith("/var") and (wide < 0).any():
        raise UserError(f"{name}: a running variance below 0 ({wide.min():g})")
    with np.errstate(over="ignore"):
        result = wide.astype(dtype)
    if not np.isfinite(result.astype(np.float32) if dtype.itemsize < 4 else result).all():
        raise UserError(f"{name}: values up to {np.abs(wide).max():g} are too large for {dtype}")
    return result
