"""Chooses the features of a prepared data set that hold the image and the label or labels of an example."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inception_jax.data.example_records import LabelForm
from inception_jax.data.label_sets import COLUMNS, Wanted
from inception_jax.data.prepared_sets import load_tfds
from inception_jax.errors import UserError, nearest

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_ONE_LABEL = "one image and one class label per example are read"
_SEVERAL = (
    "with config.data.labels = 'multi' a Sequence of ClassLabel, a Tensor [classes] of 0 and 1 or a dict of bools (or "
    "of integers 0 and 1), one for each class, is read; '*': each bool beside the image"
)


def read_features(name: str, info: tfds.core.DatasetInfo, wanted: Wanted) -> tuple[str, str, list[str]]:
    """Chooses the features to read: by the keys, else the only one, else that of the set's supervised keys.

    Args:
      name: of the data set, for messages.
      info: of the data set.
      wanted: the features with its keys, where the user has chosen them. Several labels are those of a Sequence of
        ClassLabel (also inside a Sequence of objects, as "objects/label"), of a Tensor [classes] of 0 and 1, whose
        classes are named by their numbers, or of a dict that has a bool for each class (or an integer 0 or 1, where it
        is chosen by its key).

    Returns:
      The key of the image, that of the label (both as in the records: "outer/inner" for a nested one), and the names of
      the classes; those of a dict are its keys in the order of features.json, which is that of their characters.

    Raises:
      UserError: there is no such feature, none, or more than one to choose from; with the keys.
    """
    flat = dict(_flatten(info.features))
    image_key = image_feature(name, info, wanted)
    kinds: list[Callable[[Any], bool]] = [_is_label_set, _has_bools] if wanted.several else [_is_label]
    label_key = _choose(name, info, flat, "labels" if wanted.several else "label", kinds, wanted.label_key)
    label = flat[label_key]
    if (columns := _label_vector(label)) is not None:
        return image_key, label_key, [str(number) for number in range(columns)]
    if (class_names := _flags(label)) is not None:
        return image_key, label_key, class_names
    label = label.feature if wanted.several else label
    return image_key, label_key, [label.int2str(i) for i in range(label.num_classes)]


def image_feature(name: str, info: tfds.core.DatasetInfo, wanted: Wanted) -> str:
    """The key of the image, chosen as in `read_features`.

    Args:
      name: as in `read_features`.
      info: as in `read_features`.
      wanted: as in `read_features`.

    Raises:
      UserError: there is no such feature, none, or more than one to choose from; with the keys.
    """
    flat = dict(_flatten(info.features))
    key = _choose(name, info, flat, "image", [_is_image], wanted.image_key)
    if (dtype := flat[key].np_dtype) != np.uint8:
        raise UserError(f"data set {name!r}: images {key!r} of {dtype}; uint8 is needed")
    return key


def label_form(info: tfds.core.DatasetInfo, label_key: str) -> LabelForm | None:
    """How the records hold the labels of a feature that `read_features` has chosen; None: one class number."""
    feature = dict(_flatten(info.features))[label_key]
    if (columns := _label_vector(feature)) is not None:
        return LabelForm(columns, is_table=True)
    if (class_names := _flags(feature)) is not None:
        above = "" if label_key == COLUMNS else f"{label_key}/"
        return LabelForm(len(class_names), is_table=True, keys=tuple(above + name for name in class_names))
    return LabelForm(feature.feature.num_classes, is_table=False) if _is_label_set(feature) else None


def _is_image(feature: Any) -> bool:
    return type(feature) is load_tfds().features.Image


def _is_label(feature: Any) -> bool:
    return type(feature) is load_tfds().features.ClassLabel


def _is_label_set(feature: Any) -> bool:
    sequence = type(feature) is load_tfds().features.Sequence and _is_label(feature.feature)
    return sequence or _label_vector(feature) is not None


def _label_vector(feature: Any) -> int | None:
    """The number of classes of a Tensor [classes]; None: it is another feature."""
    if type(feature) is not load_tfds().features.Tensor or len(feature.shape) != 1 or not feature.shape[0]:
        return None
    return int(feature.shape[0])


def _is_scalar(feature: Any, kinds: str) -> bool:
    """Whether it is a number whose type is of one of these kinds of NumPy (b: bool, i, u: integers)."""
    features = load_tfds().features
    return (
        type(feature) in (features.Tensor, features.Scalar)
        and feature.shape == ()
        and np.dtype(feature.np_dtype).kind in kinds
    )


def _flags(feature: Any) -> list[str] | None:
    """The keys of a dict that has a bool or an integer for each class; None: it is another feature."""
    if not isinstance(feature, load_tfds().features.FeaturesDict) or not len(feature):
        return None
    # TFDS reads features.json into a map without an order; in the file the keys are sorted.
    return sorted(feature) if all(_is_scalar(one, "biu") for one in feature.values()) else None


def _has_bools(feature: Any) -> bool:
    return _flags(feature) is not None and all(_is_scalar(one, "b") for one in feature.values())


def _flatten(features: Any) -> Iterator[tuple[str, Any]]:
    """Yields (key, feature) of all features, with the keys of the records; and `COLUMNS` where there are any."""
    yield from _flatten_below(features)
    bools = {key: feature for key, feature in features.items() if _is_scalar(feature, "b")}
    if bools:
        yield COLUMNS, load_tfds().features.FeaturesDict(bools)


def _flatten_below(features: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    for key, feature in features.items():
        features = load_tfds().features
        if isinstance(feature, features.FeaturesDict):
            yield f"{above}{key}", feature
            yield from _flatten_below(feature, f"{above}{key}/")
        elif type(feature) is features.Sequence and isinstance(feature.feature, features.FeaturesDict):
            for inner, one in _flatten_below(feature.feature, f"{above}{key}/"):
                if _is_label(one):  # the labels of objects; other sequences in sequences are not read
                    yield inner, features.Sequence(one)
            yield f"{above}{key}", feature
        else:
            yield f"{above}{key}", feature


def _choose(
    name: str,
    info: tfds.core.DatasetInfo,
    flat: dict[str, Any],
    role: str,
    kinds: Sequence[Callable[[Any], bool]],
    chosen: str | None,
) -> str:
    """The key of the image or of the label; see `read_features`. Without a choice the first of `kinds` that it has."""
    field = f"config.data.{role.removesuffix('s')}_key"
    needed = _SEVERAL if role == "labels" else _ONE_LABEL
    by_kind = [sorted(key for key, one in flat.items() if key != COLUMNS and is_kind(one)) for is_kind in kinds]
    sets = sorted(key for key, one in flat.items() if _is_label_set(one) or _flags(one) is not None)
    if chosen is not None:
        allowed = sets if role == "labels" else by_kind[0]
        if chosen in allowed:
            return chosen
        what = f"a feature {_one_line(flat[chosen])}" if chosen in flat else f"no feature{nearest(chosen, allowed)}"
        if role == "label" and chosen in sets:
            what += " (several labels per example are read with --config.data.labels=multi)"
        raise UserError(
            f"data set {name!r}: {field} = {chosen!r}: {what}; {needed}"
            + (f"; it has {', '.join(map(repr, allowed))}" if allowed else f"; it has {_one_line(info.features)}")
        )
    keys = next(filter(None, by_kind), [])
    top = [key for key in keys if key in info.features] or keys
    if len(top) > 1:
        top = [key for key in info.supervised_keys or () if key in top]
    if len(top) == 1:
        return top[0]
    if not keys:
        sure = sorted(key for key, feature in flat.items() if _is_label_set(feature) or _has_bools(feature))
        hint = ""
        if role == "label" and sure:
            hint = f" (several labels per example are read with --config.data.labels=multi: {', '.join(sure)})"
        wanted = needed if role == "labels" else "one image and one class label are needed"
        raise UserError(f"data set {name!r}: {wanted}{hint}; it has {_one_line(info.features)}")
    names = ", ".join(map(repr, keys))
    raise UserError(f"data set {name!r}: {role.removesuffix('s')}s {names}; choose one: --{field}={keys[0]}")


def _one_line(features: Any) -> str:
    return " ".join(str(features).split())
