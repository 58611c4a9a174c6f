"""Class weights: factors of the loss of an example by its class, for data sets with classes of different sizes."""

from __future__ import annotations

import numpy as np

from inception_jax.config import Config, ConfigError
from inception_jax.data.datasets import Dataset
from inception_jax.errors import nearest


def read_class_weights(config: Config, dataset: Dataset) -> tuple[float, ...] | None:
    """Reads `config.loss.class_weights`.

    "balanced" is scikit-learn's rule, n / (C * n_c) for the n_c of n training examples in one of the C classes that
    have any: the mean weight of a training example is 1, so that the learning rate keeps its meaning. A class without
    training examples gets 1, which no loss is multiplied by.

    With several labels per example a weight is that of a class's own term, and "balanced" is not defined.

    Args:
      config: `loss.class_weights`, `data.labels` and `data.sampling` are read.
      dataset: the training split.

    Returns:
      One factor per class; None where the field is unset.

    Raises:
      ConfigError: a class that the data set does not have, weights that are all 0, or two corrections for one
        imbalance.
    """
    value = config.loss.class_weights
    if value is None:
        return None
    if value == "balanced":
        if dataset.label_kind == "multi":
            raise ConfigError(
                "config.loss.class_weights = 'balanced': it is defined for one label per example, and "
                "config.data.labels = 'multi'; give pairs of a class and its factor"
            )
        if config.data.sampling == "balanced":
            raise ConfigError(
                "config.loss.class_weights = 'balanced': with config.data.sampling = 'balanced' the classes are "
                "equally frequent already, and the weights would count the rare ones twice; set one of the two"
            )
        return balanced_weights(dataset.class_counts())
    weights = dict.fromkeys(dataset.class_names, 1.0)
    names = [name for name, _ in value]
    for name, weight in value:
        if names.count(name) > 1:
            raise ConfigError(
                f"config.loss.class_weights: class {name!r} has {names.count(name)} weights; one is needed"
            )
        if name not in weights:
            raise ConfigError(
                f"config.loss.class_weights: {dataset.name!r} has no class {name!r}{nearest(name, weights)}; "
                f"classes: {', '.join(dataset.class_names[:10])}{', …' * (dataset.num_classes > 10)}"
            )
        weights[name] = float(weight)
    if not any(weights.values()):
        raise ConfigError("config.loss.class_weights: every class has weight 0, nothing would be trained")
    return tuple(weights.values())


def balanced_weights(counts: np.ndarray) -> tuple[float, ...]:
    """The weights of "balanced" from the number of training examples of each class, int [C]."""
    present = counts > 0
    weights = np.ones(len(counts))
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return tuple(weights.tolist())
