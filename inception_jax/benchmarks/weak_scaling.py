"""Predicts how a step scales when every added device brings its own batch, from the bytes of its all-reduces.

The model: a step on n devices takes the time on one and the time of its collectives after it; nothing overlaps. An
all-reduce of V bytes is a reduce-scatter and an all-gather. Each device sends V (n - 1) / n bytes in either:

* GPUs: first inside the host, each at NVLink's rate; then each of the host's g devices reduces its part, V / g, with
  those of the other m hosts through a network adapter of its own: V / g (m - 1) / m bytes in either pass.
* TPUs: over all links of the torus at once. An axis without a link from its end to its beginning halves the rate: the
  cut through its middle has half as many links. Beyond one slice the data-center network joins slices, as it joins
  hosts of GPUs.

Latency: 1 us per hop of a torus or a ring inside a host; between hosts or slices, whose reductions go up and down a
tree, 5 us per level and pass. Both are assumptions; they matter only below some megabytes. Nothing of it was measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024)
_HOP, _LEVEL = 1e-6, 5e-6  # seconds


@dataclasses.dataclass(frozen=True)
class Links:
    """The links of one device, in bytes/s that it sends while it receives as many.

    Attributes:
      inside: over NVLink to its host's GPUs, or over all its links of a slice's torus.
      group: number of devices of a host (GPU) or of the largest slice (TPU).
      outside: to other hosts or slices.
      axes: of the torus; 0: a switch joins the group.
      wraps: number of devices of a slice from which on all its axes are rings.
      source: the documents that state the rates.
    """

    inside: float
    group: int
    outside: float
    axes: int
    wraps: int
    source: str


def _dgx(inside: float, outside: float, source: str) -> Links:
    return Links(inside * 1e9, 8, outside * 1e9, 0, 0, source)


_H100 = "NVLink 4: 900 GB/s in both directions (data sheet); one adapter of 400 Gb/s per GPU (DGX H100/H200 user guide)"
_A100 = "NVLink 3: 600 GB/s in both directions (data sheet); one adapter of 200 Gb/s per GPU (DGX A100 user guide)"
_TPU = "ICI bandwidth per chip in both directions and data-center bandwidth per pod, cloud.google.com/tpu/docs/"
LINKS = {
    "h200": _dgx(450, 50, _H100),
    "h100": _dgx(450, 50, _H100),
    "a100": _dgx(300, 25, _A100),
    "v5e": Links(200e9, 256, 6.4e12 / 8 / 256, 2, 256, f"{_TPU}v5e: 400 GB/s, 6.4 Tbit/s of 256 chips"),
    "v6e": Links(400e9, 256, 25.6e12 / 8 / 256, 2, 256, f"{_TPU}v6e: 800 GB/s, 25.6 Tbit/s of 256 chips"),
}


def all_reduce_seconds(nbytes: float, devices: int, links: Links) -> float:
    """Time of one all-reduce, by the model of this module.

    Args:
      nbytes: of one device's operand.
      devices: that take part.
      links: of each.
    """
    if devices == 1:
        return 0.0
    inside, groups = min(devices, links.group), -(-devices // links.group)
    rate = links.inside if not links.axes or inside >= links.wraps else links.inside / 2
    hops = inside - 1 if not links.axes else links.axes * (inside ** (1 / links.axes) - 1)
    seconds = 2 * (nbytes * (inside - 1) / inside / rate + hops * _HOP)
    if groups > 1:
        levels = math.ceil(math.log2(groups))
        seconds += 2 * (nbytes / inside * (groups - 1) / groups / links.outside + levels * _LEVEL)
    return seconds


def predict(step_seconds: float, reductions: Sequence[float], links: Links) -> list[dict[str, Any]]:
    """Predicts steps on 8 to 1,024 devices.

    Args:
      step_seconds: on one device, without collectives.
      reductions: bytes of one device's operand of every all-reduce of a step.
      links: of the devices.

    Returns:
      By number of devices: {"devices", "collective_seconds", "step_seconds", "efficiency": the speed per device,
      relative to one alone}.
    """
    rows = []
    for count in COUNTS:
        collective = sum(all_reduce_seconds(nbytes, count, links) for nbytes in reductions)
        total = step_seconds + collective
        rows.append(
            {
                "devices": count,
                "collective_seconds": collective,
                "step_seconds": total,
                "efficiency": step_seconds / total if total else 1.0,
            }
        )
    return rows
