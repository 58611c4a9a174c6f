"""Makes goldens_v1_v4.npz: logits of GoogLeNet and Inception-v4 written a second time, in PyTorch, in float64.

    python -m tests.parity.make_goldens_v1_v4             writes the file (needs torch, nothing of inception_jax)
    python -m tests.parity.make_goldens_v1_v4 --check-publishers
                                                          holds the Inception-v4 written here beside timm's

The networks below are written from the prototxt (BVLC models/bvlc_googlenet) and from slim's inception_v4.py, layer by
layer, and share nothing with the package but the names of the parameters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .torch_layers import NUM_CLASSES, TorchLayers, main

FILE = Path(__file__).with_name("goldens_v1_v4.npz")

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
    "v4_small": {"model": "inception_v4", "size": 107, "batch": 2, "train": False, "width": 0.125},
    "v4_aux": {"model": "inception_v4", "size": 299, "batch": 2, "train": True, "width": 0.125},
}  # fmt: skip


class Reference(TorchLayers):
    """Both networks."""

    def __init__(self, case: dict[str, Any]):
        super().__init__(case)
        self.batch_norm = case["model"] != "inception_v1"

    def logits(self, x: Any) -> list[Any]:
        return self.inception_v4(x) if self.case["model"] == "inception_v4" else self.googlenet(x)

    # GoogLeNet -------------------------------------------------------------------------------------------------

    def googlenet(self, x: Any) -> list[Any]:
        import torch
        import torch.nn.functional as F

        same = self.options.get("pool_rounding") == "same"
        lrn = (lambda x: x) if self.batch_norm else (lambda x: F.local_response_norm(x, 5, 1e-4, 0.75, 1.0))

        def pool(x: Any, window: int = 3) -> Any:
            return self.max_pool_same(x, window) if same else F.max_pool2d(x, window, 2, ceil_mode=True)

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

        chain, average = self.chain, self.average

        def cat(*maps: Any) -> Any:
            return torch.cat(maps, 1)

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
        heads = [self.last_head(x)] if self.case["train"] else []
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


def published() -> dict[str, tuple[Any, dict[str, Any]]]:
    """timm's Inception-v4, and the case that it is."""
    import timm

    return {"timm inception_v4": (timm.create_model("inception_v4", num_classes=NUM_CLASSES).eval(), CASES["v4"])}


if __name__ == "__main__":
    main(__doc__, FILE, CASES, Reference, published)
