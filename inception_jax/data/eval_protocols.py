"""Evaluation protocols: which crops of an image are classified, and how their predictions are averaged."""

from __future__ import annotations

import dataclasses

import numpy as np

from inception_jax.data.images import EvalCrop
from inception_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The crops of an image to classify, and the average of their predictions.

    Attributes:
      name: the value of `evaluation.protocol` and `--protocol`.
      views: the crops of an image, in order. "center" is the run's own evaluation crop
        (`evaluation.crop`, `evaluation.crop_fraction`).
      source: where the protocol is published.
    """

    name: str
    views: tuple[str, ...]
    source: str

    def crops(self, center: EvalCrop) -> tuple[EvalCrop, ...]:
        """The crops to evaluate; each takes one pass over the split.

        Args:
          center: the run's own evaluation crop.
        """
        return tuple({"center": center}[view] for view in self.views)

    def average(self, probabilities: np.ndarray) -> np.ndarray:
        """Averages the predictions of all crops: the arithmetic mean of the softmax probabilities.

        Section 7 of arXiv:1409.4842: "The softmax probabilities are averaged over multiple crops and over all the
        individual classifiers to obtain the final prediction", which they found better than a maximum over crops.

        Args:
          probabilities: float [crops, ..., num_classes], one array per crop in the order of `crops`.

        Returns:
          float64 [..., num_classes].

        Raises:
          ValueError: the number of crops is not the protocol's.
        """
        if len(probabilities) != len(self.views):
            raise ValueError(f"protocol {self.name!r} has {len(self.views)} crops, not {len(probabilities)}")
        return np.mean(np.asarray(probabilities, np.float64), axis=0)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (Protocol("single", ("center",), "one center crop: first row of Table 3 of arXiv:1409.4842"),)
}


def get_protocol(name: str) -> Protocol:
    """Returns the protocol called `name`.

    Raises:
      UserError: there is no such protocol; the message lists all.
    """
    if name not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise UserError(f"unknown evaluation protocol {name!r}{nearest(name, PROTOCOLS)}; protocols: {known}")
    return PROTOCOLS[name]
