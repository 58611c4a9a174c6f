"""Makes goldens_v1_v4.npz: logits of GoogLeNet and Inception-v4 written a second time, in PyTorch, in float64.

    python tests/parity/make_goldens_v1_v4.py              writes the file (needs torch, nothing of inception_jax)
    python tests/parity/make_goldens_v1_v4.py --check-timm  first holds the Inception-v4 written here beside timm's

The networks below are written from the prototxt (BVLC models/bvlc_googlenet) and from slim's inception_v4.py, layer by
layer, and share nothing with the package but the names of the parameters. Weights and images are not stored: each is
drawn by NumPy from a seed made of its name, here and in test_goldens.py alike.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import zlib
from typing import Any

import numpy as np

FILE = pathlib.Path(__file__).with_name("goldens_v1_v4.npz")

# name of the case -> what is built. `train`: batch statistics and auxiliary logits, without dropout. `only`: the
# modules that the network has, where a switch is tested that a few modules show as well as nine.
CASES: dict[str, dict[str, Any]] = {
    "v1": {"model": "inception_v1", "size": 224, "batch": 1, "train": True, "width": 1.0},
    "v1_bn": {"model": "inception_v1_bn", "size": 224, "batch": 2, "train": True, "width": 0.25},
    "v1_slim": {
        "model": "inception_v1_bn", "size": 97, "batch": 2, "train": False, "width": 0.25,
        "only": ["3a", "3b", "4e", "5a"],
        "options": {
            "five_by_five": 3, "pool4_window": 2, "conv1_padding": "same", "pool_rounding": "same", "bn_scale": False,
            "aux_heads": False,
        },
    },
    "v1_naive": {
        "model": "inception_v1", "size": 97, "batch": 2, "train": False, "width": 0.25,
        "only": ["3a", "3b", "4e", "5a"],
        "options": {"module": "naive", "conv2_reduce": False, "aux_heads": False},
    },
    "v4": {"model": "inception_v4", "slow": True, "size": 299, "batch": 1, "train": False, "width": 1.0},
    "v4_aux": {"model": "inception_v4", "size": 299, "batch": 2, "train": True, "width": 0.125},
}  # fmt: skip
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


class Reference:
    """Layers in PyTorch on NCHW maps, with a list of every variable that was asked for."""

    def __init__(self, case: dict[str, Any]):
        self.case = case
        self.options = case.get("options", {})
        self.batch_norm = case["model"] != "inception_v1"
        self.shapes: dict[str, list[int]] = {}

    def width(self, filters: int) -> int:
        return filters if self.case["width"] == 1 else max(int(filters * self.case["width"]), 16)

    def variable(self, name: str, shape: tuple[int, ...]) -> Any:
        import torch

        self.shapes[name] = list(shape)
        return torch.from_numpy(np.ascontiguousarray(seeded(name, shape)))

    def conv(self, x: Any, name: str, filters: int, kernel: Any, stride: int = 1, pad: Any = "same") -> Any:
        """Convolution, then bias or batch norm, then ReLU; `pad`: "same" (stride 1), pixels, or "tf" (TensorFlow's)."""
        import torch.nn.functional as F

        high, wide = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        out = self.width(filters)
        weight = self.variable(f"params/{name}/kernel", (high, wide, x.shape[1], out)).permute(3, 2, 0, 1)
        if pad == "tf":
            x, pad = F.pad(x, [*_tf_pad(x.shape[3], wide, stride), *_tf_pad(x.shape[2], high, stride)]), 0
        elif pad == "same":
            pad = (high // 2, wide // 2)
        if not self.batch_norm:
            return F.relu(F.conv2d(x, weight, self.variable(f"params/{name}/bias", (out,)), stride, pad))
        x = F.conv2d(x, weight, None, stride, pad)
        mean = self.variable(f"batch_stats/{name}/bn/mean", (out,))
        var = self.variable(f"batch_stats/{name}/bn/var", (out,))
        scale = self.variable(f"params/{name}/bn/scale", (out,)) if self.options.get("bn_scale", True) else None
        bias = self.variable(f"params/{name}/bn/bias", (out,))
        return F.relu(F.batch_norm(x, mean, var, scale, bias, training=self.case["train"], eps=1e-3))

    def linear(self, x: Any, name: str, outputs: int) -> Any:
        weight = self.variable(f"params/{name}/kernel", (x.shape[1], outputs))
        return x @ weight + self.variable(f"params/{name}/bias", (outputs,))

    # GoogLeNet -------------------------------------------------------------------------------------------------

    def googlenet(self, x: Any) -> list[Any]:
        import torch
        import torch.nn.functional as F

        same = self.options.get("pool_rounding") == "same"
        lrn = (lambda x: x) if self.batch_norm else (lambda x: F.local_response_norm(x, 5, 1e-4, 0.75, 1.0))

        def pool(x: Any, window: int = 3) -> Any:
            if not same:
                return F.max_pool2d(x, window, 2, ceil_mode=True)
            pads = [*_tf_pad(x.shape[3], window, 2), *_tf_pad(x.shape[2], window, 2)]
            return F.max_pool2d(F.pad(x, pads, value=-np.inf), window, 2)

        def module(x: Any, name: str, one: int, r3: int, three: int, r5: int, five: int, proj: int) -> Any:
            if name not in self.case.get("only", [name]):
                return x
            name = f"inception_{name}"
            size = self.options.get("five_by_five", 5)
            pooled = F.max_pool2d(x, 3, 1, 1)
            first = self.conv(x, f"{name}/conv_1x1", one, 1)
            if self.options.get("module") == "naive":
                x3, x5 = self.conv(x, f"{name}/conv_3x3", three, 3), self.conv(x, f"{name}/conv_5x5", five, size)
                return torch.cat([first, x3, x5, pooled], 1)
            x3 = self.conv(self.conv(x, f"{name}/conv_3x3_reduce", r3, 1), f"{name}/conv_3x3", three, 3)
            x5 = self.conv(self.conv(x, f"{name}/conv_5x5_reduce", r5, 1), f"{name}/conv_5x5", five, size)
            return torch.cat([first, x3, x5, self.conv(pooled, f"{name}/pool_proj", proj, 1)], 1)

        def head(x: Any, name: str) -> Any:
            x = self.conv(F.avg_pool2d(x, 5, 3), f"{name}/conv", 128, 1)
            x = F.relu(self.linear(x.permute(0, 2, 3, 1).flatten(1), f"{name}/fc", self.width(1024)))
            return self.linear(x, f"{name}/classifier", NUM_CLASSES)

        heads = []
        x = self.conv(x, "conv1", 64, 7, 2, "tf" if self.options.get("conv1_padding") == "same" else 3)
        x = lrn(pool(x))
        if self.options.get("conv2_reduce", True):
            x = self.conv(x, "conv2_reduce", 64, 1)
        x = pool(lrn(self.conv(x, "conv2", 192, 3)))
        x = module(x, "3a", 64, 96, 128, 16, 32, 32)
        x = pool(module(x, "3b", 128, 128, 192, 32, 96, 64))
        x = module(x, "4a", 192, 96, 208, 16, 48, 64)
        if self.case["train"]:
            heads.append(head(x, "aux1"))
        x = module(x, "4b", 160, 112, 224, 24, 64, 64)
        x = module(x, "4c", 128, 128, 256, 24, 64, 64)
        x = module(x, "4d", 112, 144, 288, 32, 64, 64)
        if self.case["train"]:
            heads.append(head(x, "aux2"))
        x = pool(module(x, "4e", 256, 160, 320, 32, 128, 128), self.options.get("pool4_window", 3))
        x = module(x, "5a", 256, 160, 320, 32, 128, 128)
        x = module(x, "5b", 384, 192, 384, 48, 128, 128)
        return [self.linear(x.mean((2, 3)), "classifier", NUM_CLASSES), *heads]

    # Inception-v4 ----------------------------------------------------------------------------------------------

    def inception_v4(self, x: Any) -> list[Any]:
        import torch
        import torch.nn.functional as F

        def chain(x: Any, prefix: str, *layers: tuple[Any, ...]) -> Any:
            for name, filters, kernel, *rest in layers:
                x = self.conv(x, f"{prefix}/{name}", filters, kernel, *rest)
            return x

        def cat(*maps: Any) -> Any:
            return torch.cat(maps, 1)

        def average(x: Any) -> Any:
            return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

        x = self.conv(x, "conv2d_1a_3x3", 32, 3, 2, 0)
        x = self.conv(x, "conv2d_2a_3x3", 32, 3, 1, 0)
        x = self.conv(x, "conv2d_2b_3x3", 64, 3)
        x = cat(F.max_pool2d(x, 3, 2), chain(x, "mixed_3a", ("conv_3x3", 96, 3, 2, 0)))
        x = cat(
            chain(x, "mixed_4a", ("conv_3x3_reduce", 64, 1), ("conv_3x3", 96, 3, 1, 0)),
            chain(
                x,
                "mixed_4a",
                ("conv_7x7_reduce", 64, 1),
                ("conv_1x7", 64, (1, 7)),
                ("conv_7x1", 64, (7, 1)),
                ("conv_7x7_3x3", 96, 3, 1, 0),
            ),
        )
        x = cat(chain(x, "mixed_5a", ("conv_3x3", 192, 3, 2, 0)), F.max_pool2d(x, 3, 2))
        for name in ("mixed_5b", "mixed_5c", "mixed_5d", "mixed_5e"):
            x = cat(
                chain(x, name, ("conv_1x1", 96, 1)),
                chain(x, name, ("conv_3x3_reduce", 64, 1), ("conv_3x3", 96, 3)),
                chain(x, name, ("double_3x3_reduce", 64, 1), ("double_3x3_1", 96, 3), ("double_3x3_2", 96, 3)),
                chain(average(x), name, ("pool_proj", 96, 1)),
            )
        x = cat(
            chain(x, "mixed_6a", ("conv_3x3", 384, 3, 2, 0)),
            chain(
                x, "mixed_6a", ("double_3x3_reduce", 192, 1), ("double_3x3_1", 224, 3), ("double_3x3_2", 256, 3, 2, 0)
            ),
            F.max_pool2d(x, 3, 2),
        )
        for name in ("mixed_6b", "mixed_6c", "mixed_6d", "mixed_6e", "mixed_6f", "mixed_6g", "mixed_6h"):
            x = cat(
                chain(x, name, ("conv_1x1", 384, 1)),
                chain(x, name, ("conv_7x7_reduce", 192, 1), ("conv_1x7", 224, (1, 7)), ("conv_7x1", 256, (7, 1))),
                chain(
                    x,
                    name,
                    ("double_7x7_reduce", 192, 1),
                    ("double_7x1_1", 192, (7, 1)),
                    ("double_1x7_1", 224, (1, 7)),
                    ("double_7x1_2", 224, (7, 1)),
                    ("double_1x7_2", 256, (1, 7)),
                ),
                chain(average(x), name, ("pool_proj", 128, 1)),
            )
        heads = [self.v4_head(x)] if self.case["train"] else []
        x = cat(
            chain(x, "mixed_7a", ("conv_3x3_reduce", 192, 1), ("conv_3x3", 192, 3, 2, 0)),
            chain(
                x,
                "mixed_7a",
                ("conv_7x7_reduce", 256, 1),
                ("conv_1x7", 256, (1, 7)),
                ("conv_7x1", 320, (7, 1)),
                ("conv_7x7_3x3", 320, 3, 2, 0),
            ),
            F.max_pool2d(x, 3, 2),
        )
        for name in ("mixed_7b", "mixed_7c", "mixed_7d"):
            one = chain(x, name, ("conv_1x1", 256, 1))
            short = chain(x, name, ("conv_3x3_reduce", 384, 1))
            short = cat(chain(short, name, ("conv_1x3", 256, (1, 3))), chain(short, name, ("conv_3x1", 256, (3, 1))))
            long = chain(
                x, name, ("double_3x3_reduce", 384, 1), ("double_3x1_1", 448, (3, 1)), ("double_1x3_1", 512, (1, 3))
            )
            long = cat(
                chain(long, name, ("double_1x3_2", 256, (1, 3))), chain(long, name, ("double_3x1_2", 256, (3, 1)))
            )
            x = cat(one, short, long, chain(average(x), name, ("pool_proj", 256, 1)))
        return [self.linear(x.mean((2, 3)), "classifier", NUM_CLASSES), *heads]

    def v4_head(self, x: Any) -> Any:
        import torch.nn.functional as F

        x = self.conv(F.avg_pool2d(x, 5, 3), "aux/conv_1x1", 128, 1)
        x = self.conv(x, "aux/conv_5x5", 768, 5, 1, 0)
        return self.linear(x.flatten(1), "aux/classifier", NUM_CLASSES)

    def run(self) -> list[np.ndarray]:
        """Logits of the classifier, then of the auxiliary heads."""
        import torch

        x = torch.from_numpy(make_images(self.case["batch"], self.case["size"])).permute(0, 3, 1, 2)
        outputs = self.inception_v4(x) if self.case["model"] == "inception_v4" else self.googlenet(x)
        return [output.numpy() for output in outputs]


def _tf_pad(size: int, window: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def check_timm(reference: Reference, logits: np.ndarray) -> None:
    """Runs timm's Inception-v4 with the same weights, handed over in the order of creation, and prints the distance."""
    import timm
    import torch

    network = timm.create_model("inception_v4", pretrained=False, num_classes=NUM_CLASSES).double().eval()
    state = network.state_dict()
    kinds = {"weight": "kernel", "running_mean": "mean", "running_var": "var"}
    ours = {kind: [n for n in reference.shapes if n.endswith(f"/{kind}")] for kind in ("kernel", "mean", "var")}
    ours |= {"scale": [n for n in reference.shapes if n.endswith("/scale")]}
    ours |= {"bias": [n for n in reference.shapes if n.endswith("/bias")]}
    for name, value in state.items():
        leaf = name.rpartition(".")[2]
        if leaf == "num_batches_tracked":
            continue
        kind = "scale" if leaf == "weight" and value.ndim == 1 else kinds.get(leaf, leaf)
        mine = ours[kind].pop(0)
        array = torch.from_numpy(seeded(mine, tuple(reference.shapes[mine])))
        value.copy_(array.permute(3, 2, 0, 1) if array.ndim == 4 else array.T if array.ndim == 2 else array)
    assert not any(ours.values()), ours
    x = torch.from_numpy(make_images(1, 299)).permute(0, 3, 1, 2)
    theirs = network(x).detach().numpy()
    print("timm", timm.__version__, "relative distance", np.abs(theirs - logits).max() / np.abs(logits).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check-timm", action="store_true")
    args = parser.parse_args()
    arrays: dict[str, np.ndarray] = {}
    for name, case in CASES.items():
        reference = Reference(case)
        outputs = reference.run()
        arrays |= {f"{name}/{i}": output for i, output in enumerate(outputs)}
        arrays[f"{name}/shapes"] = np.frombuffer(json.dumps(reference.shapes).encode(), np.uint8)
        print(name, len(reference.shapes), [float(np.abs(o).max()) for o in outputs])
        if name == "v4" and args.check_timm:
            check_timm(reference, outputs[0])
    np.savez_compressed(FILE, **arrays)
    print(FILE.name, FILE.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
