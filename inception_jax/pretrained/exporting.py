"""From our variables to a publisher's arrays: the inverse of `import_weights`, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from inception_jax.errors import UserError
from inception_jax.pretrained import sources


def export_weights(
    model_name: str, variables: Mapping[str, Any], *, source: str, **options: Any
) -> dict[str, np.ndarray]:
    """A network's variables as a publisher's arrays: what `import_weights` takes, and the publisher's code loads.

    Args:
      model_name: a name of `model_names()`.
      variables: {"params": …, "batch_stats": …}, of a network with the switches of `form_options(model_name, source)`.
      source: the publisher, a name of `pretrained.sources.source_names()`.
      **options: of `create_model`, as for `import_weights`: where the variables are of another form than was published.
        `num_classes=0` says that they have no classifier.

    Returns:
      {publisher's name: array}, in the order of the network; contiguous, dtypes as they are.

    Raises:
      UserError: an unknown source, or variables that are not this form's: the message names the leaves.
    """
    form = sources.get_form(model_name, source)
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(variables, sep="/").items()}
    kernel = flat.get("params/classifier/kernel")
    if kernel is None and options.get("num_classes") != 0:
        raise UserError("variables: no params/classifier/kernel; a whole network is needed, or num_classes=0")
    found = {
        "num_classes": 0 if kernel is None else kernel.shape[-1],
        "aux_heads": any(path.split("/")[1].startswith("aux") for path in flat),
    }
    for name, value in found.items():
        if options.setdefault(name, value) != value:
            raise UserError(f"{name} = {options[name]}: the variables have {value}")
    leaves = form.leaves(**options)
    wrong = [path for path in {**leaves, **flat} if path not in leaves or path not in flat]
    if wrong:
        whose = "the variables have" if wrong[0] in flat else f"{source}'s form has"
        raise UserError(
            f"variables: {len(wrong)} leaves differ from {source}'s {model_name}: {whose} {wrong[0]}, "
            f"the other has not; create the network with form_options({model_name!r}, {source!r})"
        )
    arrays = {}
    for path, shape in leaves.items():
        theirs = form.counterpart(path, shape)
        if flat[path].shape != shape:
            raise UserError(f"variables: {path} is {flat[path].shape}, {source}'s {model_name} has {shape}")
        arrays[theirs.name] = np.ascontiguousarray(theirs.layout.to_theirs(flat[path]))
    return arrays
