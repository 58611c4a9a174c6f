"""Names the arrays of all Keras files alike: `<layer>/<variable>`, as in `conv2d_5/kernel` or `block2_sepconv1/bias`.

Layers of a nested model have its name in front: `inception_v3/conv2d_5/kernel`. Layer names are those of the process
that saved the model: Keras counts unnamed layers per process (`conv2d_94` is the first one of the second model).

Sources: keras/src/legacy/saving/legacy_h5_format.py, keras/src/saving/saving_lib.py, keras/src/utils/naming.py; the
suffixes of Keras 1: keras 1.2, keras/layers/{convolutional,core,normalization}.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

# The order in which layers of these classes store their variables, by the name that Keras 3 gives their groups.
VARIABLES = {
    "conv2d": ("kernel", "bias"),
    "dense": ("kernel", "bias"),
    "separable_conv2d": ("depthwise_kernel", "pointwise_kernel", "bias"),
}
BATCH_NORMALIZATION = "batch_normalization"

# Keras 1 wrote `convolution2d_1_W`, `batchnormalization_1_running_std`.
_KERAS_1 = (
    ("_depthwise_kernel", "depthwise_kernel"),
    ("_pointwise_kernel", "pointwise_kernel"),
    ("_gamma", "gamma"),
    ("_beta", "beta"),
    ("_running_mean", "moving_mean"),
    ("_running_std", "moving_variance"),
    ("_W", "kernel"),
    ("_b", "bias"),
)


def from_weight_names(layer: str, weight_names: list[str]) -> list[str]:
    """Makes our names of the weights of one layer of an `.h5` file.

    TensorFlow's `:0` is removed, and so are the scopes around the variable, one of which is the layer's own name.
    Weights of several scopes belong to a nested model, and keep the last scope: it is the layer inside.

    Args:
      layer: the layer's name.
      weight_names: the names of its weights in the file.
    """
    paths = [re.sub(r":\d+$", "", name).split("/") for name in weight_names]
    if len({tuple(path[-2:-1]) for path in paths}) > 1:
        return [f"{layer}/{'/'.join(path[-2:])}" for path in paths]
    return [f"{layer}/{_keras_1(path[-1]) if len(path) == 1 else path[-1]}" for path in paths]


def _keras_1(name: str) -> str:
    """Translates a Keras 1 name."""
    return next((variable for suffix, variable in _KERAS_1 if name.endswith(suffix)), name)


def variable_names(group: str, count: int, config: dict[str, Any]) -> list[str]:
    """Returns the names of the variables of one layer of a Keras 3 file, in the file's order.

    Without a configuration, a batch norm of three variables is assumed to lack gamma, as in all published networks of
    the family. Variables of other classes keep their numbers.

    Args:
      group: the class of the layer in snake case, with or without a number.
      count: how many variables the file has for it.
      config: the layer's configuration, or an empty one where the file has none.
    """
    kind = re.sub(r"_\d+$", "", group)
    if kind == BATCH_NORMALIZATION:
        scale = config.get("scale", True) if config else count > 3
        center = config.get("center", True) if config else count > 2
        names = ["gamma"] * bool(scale) + ["beta"] * bool(center) + ["moving_mean", "moving_variance"]
    else:
        names = list(VARIABLES.get(kind, ()))[:count]
    return names if len(names) == count else [str(place) for place in range(count)]


def snake_case(name: str) -> str:
    """Returns Keras 3's group name of a class: `separable_conv2d` for `SeparableConv2D`."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def configured_layers(config: Any, path: str = "") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields the layers of a model's configuration in order: (path of the group in the file, our name, configuration).

    Keras 3 names a layer's group by its class and counts the layers of one class within each model.

    Args:
      config: the model's configuration.
      path: of the model's own group in the file, with a slash at its end.
    """
    yield from _layers(config, path, "", 0)


def _layers(config: Any, path: str, outer: str, depth: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields as `configured_layers`, with the names of nested models, `outer`, in front; at most 8 deep."""
    layers = config.get("layers") if isinstance(config, dict) else None
    if not isinstance(layers, list) or depth > 8:
        return
    seen: dict[str, int] = {}
    for layer in layers:
        if not isinstance(layer, dict) or not isinstance(layer.get("config"), dict):
            continue
        group = snake_case(str(layer.get("class_name", "")))
        count = seen[group] = seen.get(group, -1) + 1
        place = f"{path}layers/{group}_{count}" if count else f"{path}layers/{group}"
        inner = layer["config"]
        name = f"{outer}{inner.get('name', layer.get('name', group))}"
        yield place, name, inner
        yield from _layers(inner, f"{place}/", f"{name}/", depth + 1)
