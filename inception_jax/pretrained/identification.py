"""Identifies the network and the publisher of a file's arrays, by their names and shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from inception_jax.pretrained.publishers import registry
from inception_jax.pretrained.variants import FileArrays, Variant, is_aux_leaf, is_classifier_leaf

_MIN_SCORE = 0.1  # arrays that fit less than this are another network's


def identify(
    arrays: Mapping[str, np.ndarray], variants: Iterable[Variant] | None = None
) -> list[tuple[float, Variant]]:
    """Finds the variants that a file's arrays may belong to.

    A variant's names alone give the largest fraction that can fit. Shapes, for which a network is traced, are compared
    in the order of these bounds, and only as long as a variant may still be as good as the best one before it.

    Args:
      arrays: {publisher's name: array}, as in the file.
      variants: that are compared; None: all.

    Returns:
      (fraction of the names that fit, with the right shape; variant) of the variants whose shapes were compared, best
      first; none with a fraction below 0.1.
    """
    arrays = FileArrays.of(arrays)
    scores: list[tuple[float, Variant]] = []
    for limit, variant in bounds(arrays, variants):
        if limit <= _MIN_SCORE or (scores and limit < max(fraction for fraction, _ in scores)):
            break
        scores.append((score(variant, arrays), variant))
    return sorted((pair for pair in scores if pair[0] > _MIN_SCORE), key=lambda pair: -pair[0])


def bounds(arrays: Mapping[str, np.ndarray], variants: Iterable[Variant] | None = None) -> list[tuple[float, Variant]]:
    """Returns (largest fraction of names and shapes that can fit, by the names alone; variant), the largest first.

    Args:
      arrays: as for `identify`.
      variants: as for `identify`.
    """
    arrays = FileArrays.of(arrays)
    variants = registry.all_variants() if variants is None else variants
    return sorted(((bound(variant, arrays), variant) for variant in variants), key=lambda pair: -pair[0])


def bound(variant: Variant, arrays: FileArrays) -> float:
    """Returns the largest `score` that a variant can have, from the names alone; no network is traced.

    Args:
      variant: the publisher's variant.
      arrays: of the file.
    """
    weights, layers = arrays.weights(variant), variant.possible_names
    known = frozenset().union(*layers.values())
    missing = sum(names.isdisjoint(weights) for layer, names in layers.items() if not layer.startswith("aux"))
    return sum(name in known for name in weights) / max(1, len(weights) + missing)


def score(variant: Variant, arrays: FileArrays) -> float:
    """Returns the fraction of names that fit, of those in the file and those of the trunk that the file lacks.

    Args:
      variant: the publisher's variant.
      arrays: of the file.
    """
    weights = arrays.weights(variant)
    shapes: dict[str, tuple[int, ...] | None] = {}
    missing = 0
    for path, shape in variant.leaves(aux_heads=True, num_classes=variant.num_classes).items():
        theirs = variant.source_array(path, shape)
        shapes[theirs.name] = None if is_classifier_leaf(path) else theirs.layout.shape(shape)
        missing += theirs.name not in weights and not is_aux_leaf(path)
    fitting = sum(name in shapes and shapes[name] in (None, np.shape(array)) for name, array in weights.items())
    return fitting / max(1, len(weights) + missing)
