"""Evaluation protocols: which crops of an image are looked at, and how their predictions become one."""

from __future__ import annotations

import dataclasses

import numpy as np

from inception_jax.data.images import EvalCrop
from inception_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How one image is judged.

    Attributes:
      name: as `evaluation.protocol` and `--protocol` have it.
      views: the crops of an image, in order. "center" is the run's own evaluation crop
        (`evaluation.crop`, `evaluation.crop_fraction`).
      source: where the protocol is published.
    """

    name: str
    views: tuple[str, ...]
    source: str

    def crops(self, center: EvalCrop) -> tuple[EvalCrop, ...]:
        """The crops to evaluate, one pass over the split for each.

        Args:
          center: the run's own evaluation crop.
        """
        return tuple({"center": center}[view] for view in self.views)

    def average(self, probabilities: np.ndarray) -> np.ndarray:
        """One prediction from those of all crops: the arithmetic mean of the softmax probabilities.

        Section 7 of arXiv:1409.4842: "The softmax probabilities are averaged over multiple crops and over all the
        individual classifiers to obtain the final prediction", which they found better than a maximum over crops.

        Args:
          probabilities: float [crops, ..., num_classes], one array per crop in the order of `crops`.

        Returns:
          float64 [..., num_classes].

        Raises:
          ValueError: another number of crops than the protocol has.
        """
        if len(probabilities) != len(self.views):
            raise ValueError(f"protocol {self.name!r} has {len(self.views)} crops, not {len(probabilities)}")
        return np.mean(np.asarray(probabilities, np.float64), axis=0)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (Protocol("single", ("center",), "one centre crop: first row of Table 3 of arXiv:1409.4842"),)
}


def get_protocol(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
      UserError: there is no such protocol; the message lists those that there are.
    """
    if name not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise UserError(f"unknown evaluation protocol {name!r}{nearest(name, PROTOCOLS)}; protocols: {known}")
    return PROTOCOLS[name]
