"""What the makers of the goldens share: seeded variables and images, and layers in PyTorch on NCHW maps, in float64.

It shares nothing with the package but the names of the parameters. Weights and images are not stored: each is drawn by
NumPy from a seed made of its name, in the makers and in test_goldens.py alike.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NUM_CLASSES = 10


def seeded(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter or statistic in float64, from its name alone: sizes that keep every map of a deep network alive."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    leaf = name.rpartition("/")[2]
    if leaf == "kernel":
        return random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
    if leaf in ("scale", "var"):
        return random.uniform(0.5, 1.5, shape)
    return random.standard_normal(shape) * 0.1


def make_images(batch: int, size: int) -> np.ndarray:
    """[batch, size, size, 3], values of about ±30: large enough that response normalization does something."""
    return np.random.RandomState(2).standard_normal((batch, size, size, 3)) * 30


def same_padding(size: int, window: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "SAME" padding of an axis, before and after."""
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


class TorchLayers:
    """Layers of a network, with a list of every variable that was asked for.

    Attributes:
      case: what is built: "model", "size", "batch", "train" (batch statistics and auxiliary logits, without dropout),
        "width", and "options", the switches of the model.
      batch_norm: whether a convolution is followed by batch norm.
      shapes: {name of a variable: its shape}, in the order of creation.
    """

    batch_norm = True

    def __init__(self, case: dict[str, Any]):
        self.case = case
        self.options = case.get("options", {})
        self.shapes: dict[str, list[int]] = {}

    def logits(self, x: Any) -> list[Any]:
        """The logits of the classifier, then of the auxiliary heads, of maps [B, 3, H, W]."""
        raise NotImplementedError

    def run(self) -> list[np.ndarray]:
        """The logits of the case's images."""
        import torch

        x = torch.from_numpy(make_images(self.case["batch"], self.case["size"])).permute(0, 3, 1, 2)
        return [output.numpy() for output in self.logits(x)]

    def width(self, filters: int) -> int:
        return filters if self.case["width"] == 1 else max(int(filters * self.case["width"]), 16)

    def variable(self, name: str, shape: tuple[int, ...]) -> Any:
        import torch

        self.shapes[name] = list(shape)
        return torch.from_numpy(np.ascontiguousarray(seeded(name, shape)))

    def conv(self, x: Any, name: str, filters: int, kernel: Any, stride: int = 1, pad: Any = "same") -> Any:
        """Convolution, batch norm, ReLU; `pad`: "same" (stride 1), pixels, or "tf" (TensorFlow's)."""
        import torch.nn.functional as F

        high, wide = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        out = self.width(filters)
        weight = self.variable(f"params/{name}/kernel", (high, wide, x.shape[1], out)).permute(3, 2, 0, 1)
        bias = None
        if self.options.get("conv_bias", not self.batch_norm):
            bias = self.variable(f"params/{name}/bias", (out,))
        if pad == "tf":
            x, pad = F.pad(x, [*same_padding(x.shape[3], wide, stride), *same_padding(x.shape[2], high, stride)]), 0
        elif pad == "same":
            pad = (high // 2, wide // 2)
        x = F.conv2d(x, weight, bias, stride, pad)
        return F.relu(self.normalized(x, name) if self.batch_norm else x)

    def normalized(self, x: Any, name: str) -> Any:
        import torch.nn.functional as F

        shape = (x.shape[1],)
        mean, var = (self.variable(f"batch_stats/{name}/bn/{leaf}", shape) for leaf in ("mean", "var"))
        scale = self.variable(f"params/{name}/bn/scale", shape) if self.options.get("bn_scale", True) else None
        bias = self.variable(f"params/{name}/bn/bias", shape)
        epsilon = self.options.get("bn_epsilon", 1e-3)
        return F.batch_norm(x, mean, var, scale, bias, training=self.case["train"], eps=epsilon)

    def chain(self, x: Any, prefix: str, *layers: tuple[Any, ...]) -> Any:
        for name, filters, kernel, *rest in layers:
            x = self.conv(x, f"{prefix}/{name}", filters, kernel, *rest)
        return x

    def linear(self, x: Any, name: str, outputs: int) -> Any:
        weight = self.variable(f"params/{name}/kernel", (x.shape[1], outputs))
        return x @ weight + self.variable(f"params/{name}/bias", (outputs,))

    def average(self, x: Any) -> Any:
        import torch.nn.functional as F

        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=self.options.get("count_include_pad", False))

    def max_pool_same(self, x: Any, window: int = 3) -> Any:
        """Max pooling of stride 2 with TensorFlow's "SAME" padding."""
        import torch.nn.functional as F

        pads = [pad for size in (x.shape[3], x.shape[2]) for pad in same_padding(size, window, 2)]
        return F.max_pool2d(F.pad(x, pads, value=-np.inf), window, 2)

    def last_head(self, x: Any) -> Any:
        """The logits of the auxiliary head of Inception-v3, v4 and the Inception-ResNets."""
        import torch.nn.functional as F

        x = self.conv(F.avg_pool2d(x, 5, 3), "aux/conv_1x1", 128, 1)
        x = self.conv(x, "aux/conv_5x5", 768, 5, 1, 0)
        return self.linear(x.flatten(1), "aux/classifier", NUM_CLASSES)


def main(
    doc: str,
    file: Path,
    cases: dict[str, dict[str, Any]],
    reference: type[TorchLayers],
    published: Callable[[], dict[str, tuple[Any, dict[str, Any]]]],
) -> None:
    """The command line of a maker: writes its file, or prints how far the publishers' networks are from its own.

    Args:
      doc: of the maker.
      file: the goldens.
      cases: {name: case}.
      reference: the networks.
      published: gives {name: (a publisher's network, the case that it is)}.
    """
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--check-publishers", action="store_true")
    if parser.parse_args().check_publishers:
        for name, (network, case) in published().items():
            _check_published(name, network, reference(case))
        return
    arrays: dict[str, np.ndarray] = {}
    for name, case in cases.items():
        layers = reference(case)
        outputs = layers.run()
        arrays |= {f"{name}/{i}": output for i, output in enumerate(outputs)}
        arrays[f"{name}/shapes"] = np.frombuffer(json.dumps(layers.shapes).encode(), np.uint8)
        print(name, len(layers.shapes), [float(np.abs(o).max()) for o in outputs])
    np.savez_compressed(file, **arrays)
    print(file.name, file.stat().st_size, "bytes")


def _check_published(name: str, network: Any, reference: TorchLayers) -> None:
    """Prints the distance of a publisher's logits from the reference's, with the same weights."""
    import torch

    expected, case = reference.run(), reference.case
    _hand_over(reference, network.double())
    with torch.no_grad():
        given = network(torch.from_numpy(make_images(case["batch"], case["size"])).permute(0, 3, 1, 2))
    given = given if isinstance(given, tuple) else (given,)
    for ours, theirs in zip(expected, given, strict=len(given) > 1):
        print(name, "relative distance", np.abs(theirs.numpy() - ours).max() / np.abs(ours).max())


def _hand_over(reference: TorchLayers, network: Any) -> None:
    """Fills a publisher's network with the reference's weights, one after another: both make them in one order."""
    import torch

    ours: dict[str, list[str]] = {}
    for name in reference.shapes:
        ours.setdefault(name.rpartition("/")[2] + ("/bn" if "/bn/" in name else ""), []).append(name)
    kinds = {"running_mean": "mean/bn", "running_var": "var/bn"}
    modules = dict(network.named_modules())
    for name, value in network.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        normalizes = isinstance(modules[owner], torch.nn.BatchNorm1d | torch.nn.BatchNorm2d)
        plain = {"weight": "scale/bn" if normalizes else "kernel", "bias": "bias/bn" if normalizes else "bias"}
        mine = ours[kinds.get(leaf) or plain[leaf]].pop(0)
        array = torch.from_numpy(seeded(mine, tuple(reference.shapes[mine])))
        value.copy_(array.permute(3, 2, 0, 1) if array.ndim == 4 else array.T if array.ndim == 2 else array)
    assert not any(ours.values()), ours
