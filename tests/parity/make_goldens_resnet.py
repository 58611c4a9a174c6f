"""Makes goldens_resnet.npz: logits of the Inception-ResNets written a second time, in PyTorch, in float64.

    python -m tests.parity.make_goldens_resnet            writes the file (needs torch, nothing of inception_jax)
    python -m tests.parity.make_goldens_resnet --check-publishers
                                                          holds what is written here beside timm's, pytorchcv's and
                                                          facenet-pytorch's networks, at full width and depth

The networks below are written from slim's inception_resnet_v2.py, from facenet's inception_resnet_v1.py and, for the
form "paper", from the paper's figures, layer by layer. They share nothing with the package but the names of the
parameters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .torch_layers import NUM_CLASSES, TorchLayers, main

FILE = Path(__file__).with_name("goldens_resnet.npz")

FACENET = {"extra_block8": True, "bottleneck": 48, "aux_heads": False}
# name of the case -> what is built. `train`: batch statistics and auxiliary logits, without dropout. `counts`: blocks
# of each kind, where a switch is tested that a few blocks show as well as all.
CASES: dict[str, dict[str, Any]] = {
    "v1": {"model": "inception_resnet_v1", "size": 299, "batch": 2, "train": True, "width": 0.125},
    "v1_facenet": {
        "model": "inception_resnet_v1", "size": 160, "batch": 3, "train": True, "width": 0.125, "counts": (1, 2, 2),
        "options": FACENET,
    },
    "v1_facenet_tf": {
        "model": "inception_resnet_v1", "size": 160, "batch": 1, "train": False, "width": 0.125, "counts": (2, 1, 1),
        "options": FACENET | {"bn_scale": False, "block35_scale": 0.3, "block17_scale": 0.2, "block8_scale": 0.1},
    },
    "v2": {
        "model": "inception_resnet_v2", "slow": True, "size": 299, "batch": 2, "train": True, "width": 0.125,
    },
    "v2_small": {
        "model": "inception_resnet_v2", "size": 299, "batch": 2, "train": True, "width": 0.125, "counts": (2, 2, 3),
    },
    "v2_paper": {
        "model": "inception_resnet_v2", "size": 139, "batch": 2, "train": False, "width": 0.125, "counts": (1, 2, 2),
        "options": {"form": "paper", "bn_epsilon": 1e-5, "aux_heads": False},
    },
    # Strides on maps of 139, 70, 35, 18 and 9 pixels: "SAME" pads even ones otherwise than odd ones.
    "v2_aligned": {
        "model": "inception_resnet_v2", "size": 139, "batch": 2, "train": False, "width": 0.125, "counts": (1, 1, 2),
        "options": {"align_feature_maps": True, "aux_heads": False},
    },
}  # fmt: skip


class Reference(TorchLayers):
    """Both versions."""

    def pool(self, x: Any) -> Any:
        """Max 3x3/2, "VALID", or TensorFlow's "SAME" where maps are aligned."""
        import torch.nn.functional as F

        return self.max_pool_same(x) if self.edge == "tf" else F.max_pool2d(x, 3, 2)

    @property
    def edge(self) -> Any:
        """The padding of what slim pads with "VALID" unless maps are aligned."""
        return "tf" if self.options.get("align_feature_maps") else 0

    def cat(self, x: Any, name: str, *branches: Any) -> Any:
        """Branches (tuples of layers, or finished maps) on `x`, one after another along the channels."""
        import torch

        return torch.cat([self.chain(x, name, *b) if isinstance(b, tuple) else b for b in branches], 1)

    def residual(self, x: Any, name: str, scale: float, relu: bool, *branches: Any) -> Any:
        import torch.nn.functional as F

        mixed = self.cat(x, name, *branches)
        up = self.variable(f"params/{name}/up/kernel", (1, 1, mixed.shape[1], x.shape[1])).permute(3, 2, 0, 1)
        x = x + scale * F.conv2d(mixed, up, self.variable(f"params/{name}/up/bias", (x.shape[1],)))
        return F.relu(x) if relu else x

    def stem(self, x: Any) -> Any:
        """To the maps of the first block35."""
        import torch.nn.functional as F

        e = self.edge
        x = self.conv(x, "conv2d_1a_3x3", 32, 3, 2, e)
        x = self.conv(x, "conv2d_2a_3x3", 32, 3, 1, e)
        x = self.conv(x, "conv2d_2b_3x3", 64, 3)
        if self.options.get("form") == "paper":
            x = self.cat(x, "mixed_3a", F.max_pool2d(x, 3, 2), (("conv_3x3", 96, 3, 2, 0),))
            x = self.cat(
                x,
                "mixed_4a",
                (("conv_3x3_reduce", 64, 1), ("conv_3x3", 96, 3, 1, 0)),
                (
                    ("conv_7x7_reduce", 64, 1),
                    ("conv_1x7", 64, (1, 7)),
                    ("conv_7x1", 64, (7, 1)),
                    ("conv_7x7_3x3", 96, 3, 1, 0),
                ),
            )
            return self.cat(x, "mixed_5a", (("conv_3x3", 192, 3, 2, 0),), F.max_pool2d(x, 3, 2))
        x = self.conv(self.pool(x), "conv2d_3b_1x1", 80, 1)
        x = self.conv(x, "conv2d_4a_3x3", 192, 3, 1, e)
        if self.case["model"] == "inception_resnet_v1":
            return self.conv(x, "conv2d_4b_3x3", 256, 3, 2, 0)
        x = self.pool(x)
        branches = self.cat(
            x,
            "mixed_5b",
            (("conv_1x1", 96, 1),),
            (("conv_5x5_reduce", 48, 1), ("conv_5x5", 64, 5)),
            (("double_3x3_reduce", 64, 1), ("double_3x3_1", 96, 3), ("double_3x3_2", 96, 3)),
        )
        pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return self.cat(pooled, "mixed_5b", branches, (("pool_proj", 64, 1),))

    def heads(self, x: Any) -> list[Any]:
        return [self.last_head(x)] if self.case["train"] and self.options.get("aux_heads", True) else []

    def trunk(self, x: Any) -> tuple[Any, list[Any]]:
        """The last map, and the logits of the auxiliary head."""
        first = self.case["model"] == "inception_resnet_v1"
        code = not first and self.options.get("form") != "paper"
        counts = self.case.get("counts", (10, 20, 10) if code else (5, 10, 5))
        scales = [self.options.get(f"block{kind}_scale", own) for kind, own in ((35, 0.17), (17, 0.1), (8, 0.2))]
        e, x = self.edge, self.stem(x)
        for i in range(counts[0]):
            x = self.residual(
                x,
                f"block35_{i + 1}",
                scales[0],
                True,
                (("conv_1x1", 32, 1),),
                (("conv_3x3_reduce", 32, 1), ("conv_3x3", 32, 3)),
                (
                    ("double_3x3_reduce", 32, 1),
                    ("double_3x3_1", 32 if first else 48, 3),
                    ("double_3x3_2", 32 if first else 64, 3),
                ),
            )
        k, l, m, n = (192, 192, 256, 384) if first else (256, 256, 384, 384)  # noqa: E741 (Table 1)
        x = self.cat(
            x,
            "mixed_6a",
            (("conv_3x3", n, 3, 2, e),),
            (("double_3x3_reduce", k, 1), ("double_3x3_1", l, 3), ("double_3x3_2", m, 3, 2, e)),
            self.pool(x),
        )
        for i in range(counts[1]):
            x = self.residual(
                x,
                f"block17_{i + 1}",
                scales[1],
                True,
                (("conv_1x1", 128 if first else 192, 1),),
                (
                    ("conv_7x7_reduce", 128, 1),
                    ("conv_1x7", 128 if first else 160, (1, 7)),
                    ("conv_7x1", 128 if first else 192, (7, 1)),
                ),
            )
        heads = self.heads(x)
        x = self.cat(
            x,
            "mixed_7a",
            (("conv_3x3_1_reduce", 256, 1), ("conv_3x3_1", 384, 3, 2, e)),
            (("conv_3x3_2_reduce", 256, 1), ("conv_3x3_2", 256 if first else 288, 3, 2, e)),
            (
                ("double_3x3_reduce", 256, 1),
                ("double_3x3_1", 256 if first else 288, 3),
                ("double_3x3_2", 256 if first else 320, 3, 2, e),
            ),
            self.pool(x),
        )
        scaled = [(scales[2], True)] * counts[2]
        if code:
            scaled[-1] = (1.0, False)
        elif self.options.get("extra_block8"):
            scaled.append((1.0, False))
        for i, (scale, relu) in enumerate(scaled):
            x = self.residual(
                x,
                f"block8_{i + 1}",
                scale,
                relu,
                (("conv_1x1", 192, 1),),
                (
                    ("conv_3x3_reduce", 192, 1),
                    ("conv_1x3", 192 if first else 224, (1, 3)),
                    ("conv_3x1", 192 if first else 256, (3, 1)),
                ),
            )
        return self.conv(x, "conv2d_7b_1x1", 1536, 1) if code else x, heads

    def logits(self, x: Any) -> list[Any]:
        x, heads = self.trunk(x)
        x = x.mean((2, 3))
        if features := self.options.get("bottleneck"):
            x = self.normalized(x @ self.variable("params/bottleneck/kernel", (x.shape[1], features)), "bottleneck")
        return [self.linear(x, "classifier", NUM_CLASSES), *heads]


def published() -> dict[str, tuple[Any, dict[str, Any]]]:
    """The publishers' networks, at full width and depth, and the cases that they are."""
    import facenet_pytorch
    import timm
    from pytorchcv.models import inceptionresnetv1, inceptionresnetv2

    full = {"size": 299, "batch": 2, "train": False, "width": 1.0}
    v1 = full | {"model": "inception_resnet_v1", "options": FACENET | {"bottleneck": 512}}
    v2 = full | {"model": "inception_resnet_v2", "options": {"aux_heads": False}}
    facenet = facenet_pytorch.InceptionResnetV1(classify=True, num_classes=NUM_CLASSES)
    training = facenet_pytorch.InceptionResnetV1(classify=True, num_classes=NUM_CLASSES, dropout_prob=0.0).train()
    return {
        "facenet-pytorch": (facenet.eval(), v1 | {"size": 160}),
        "facenet-pytorch, training": (training, v1 | {"size": 160, "train": True}),
        "pytorchcv inceptionresnetv1": (inceptionresnetv1.inceptionresnetv1(num_classes=NUM_CLASSES).eval(), v1),
        "pytorchcv inceptionresnetv2": (inceptionresnetv2.inceptionresnetv2(num_classes=NUM_CLASSES).eval(), v2),
        "timm inception_resnet_v2": (timm.create_model("inception_resnet_v2", num_classes=NUM_CLASSES).eval(), v2),
    }


if __name__ == "__main__":
    main(__doc__, FILE, CASES, Reference, published)
