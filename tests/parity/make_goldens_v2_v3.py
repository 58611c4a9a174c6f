"""Makes goldens_v2_v3.npz: logits of BN-Inception and Inception-v3 written a second time, in PyTorch, in float64.

    python -m tests.parity.make_goldens_v2_v3            writes the file (needs torch, nothing of inception_jax)
    python -m tests.parity.make_goldens_v2_v3 --check-publishers
                                                         holds what is written here beside torchvision's, timm's,
                                                         pytorch-fid's and Cadene's networks, at full width

The networks below are written from slim's inception_v2.py and inception_v3.py and from caffe-googlenet-bn's
train_val.prototxt, layer by layer, and share nothing with the package but the names of the parameters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .torch_layers import NUM_CLASSES, TorchLayers, main, same_padding

FILE = Path(__file__).with_name("goldens_v2_v3.npz")

CADENE = {
    "table": "paper", "stem": "dense", "conv_bias": True, "bn_epsilon": 1e-5, "count_include_pad": True,
    "conv1_padding": "caffe", "reduction_padding": "caffe", "pool_rounding": "caffe", "aux_heads": False,
}  # fmt: skip
# name of the case -> what is built. `train`: batch statistics and auxiliary logits, without dropout.
CASES: dict[str, dict[str, Any]] = {
    "v2": {"model": "inception_v2", "size": 224, "batch": 2, "train": True, "width": 0.25},
    # Odd maps all the way down: 97, 49, 25, 13, 7, 4.
    "v2_slim": {
        "model": "inception_v2", "size": 97, "batch": 2, "train": False, "width": 0.25,
        "options": {"stem_batch_norm": False, "bn_scale": False, "aux_heads": False},
    },
    "v2_cadene": {"model": "inception_v2", "size": 96, "batch": 2, "train": False, "width": 0.25, "options": CADENE},
    "v3": {"model": "inception_v3", "size": 299, "batch": 2, "train": True, "width": 0.125},
    "v3_torchvision": {
        "model": "inception_v3", "size": 139, "batch": 2, "train": False, "width": 0.125,
        "options": {"count_include_pad": True, "aux_heads": False},
    },
    "v3_fid": {
        "model": "inception_v3", "size": 139, "batch": 2, "train": False, "width": 0.125,
        "options": {"last_pool": "max", "bn_scale": False, "aux_heads": False},
    },
}  # fmt: skip


class Reference(TorchLayers):
    """Both networks."""

    def logits(self, x: Any) -> list[Any]:
        return self.inception_v3(x) if self.case["model"] == "inception_v3" else self.bn_inception(x)

    # BN-Inception ----------------------------------------------------------------------------------------------

    def bn_inception(self, x: Any) -> list[Any]:
        import torch
        import torch.nn.functional as F

        def caffe(switch: str) -> bool:
            return self.options.get(switch) == "caffe"

        def pool(x: Any) -> Any:
            return F.max_pool2d(x, 3, 2, ceil_mode=True) if caffe("pool_rounding") else self.max_pool_same(x)

        def module(x: Any, name: str, one: int, r3: int, three: int, rd: int, double: int, proj: int) -> Any:
            name = f"inception_{name}"
            halving = (2, 1 if caffe("reduction_padding") else "tf") if one == 0 else ()
            branches = [] if halving else [self.chain(x, name, ("conv_1x1", one, 1))]
            branches += [
                self.chain(x, name, ("conv_3x3_reduce", r3, 1), ("conv_3x3", three, 3, *halving)),
                self.chain(
                    x,
                    name,
                    ("double_3x3_reduce", rd, 1),
                    ("double_3x3_1", double, 3),
                    ("double_3x3_2", double, 3, *halving),
                ),
            ]
            if halving:
                return torch.cat([*branches, pool(x)], 1)
            pooled = F.max_pool2d(x, 3, 1, 1) if name == "inception_5b" else self.average(x)
            return torch.cat([*branches, self.chain(pooled, name, ("pool_proj", proj, 1))], 1)

        heads = []
        x = self.v2_stem(x, caffe("conv1_padding"))
        x = self.conv(self.conv(pool(x), "conv2_reduce", 64, 1), "conv2", 192, 3)
        x = module(pool(x), "3a", 64, 64, 64, 64, 96, 32)
        x = module(x, "3b", 64, 64, 96, 64, 96, 64)
        x = module(x, "3c", 0, 128, 160, 64, 96, 0)
        if self.case["train"]:
            heads.append(self.v2_head(x, "aux1"))
        projection = 128 if self.options.get("table") == "paper" else 96
        x = module(x, "4a", 224, 64, 96, 96, 128, 128)
        x = module(x, "4b", 192, 96, 128, 96, 128, 128)
        x = module(x, "4c", 160, 128, 160, 128, 160, projection)
        x = module(x, "4d", 96, 128, 192, 160, 192, projection)
        x = module(x, "4e", 0, 128, 192, 192, 256, 0)
        if self.case["train"]:
            heads.append(self.v2_head(x, "aux2"))
        x = module(x, "5a", 352, 192, 320, 160, 224, 128)
        x = module(x, "5b", 352, 192, 320, 192, 224, 128)
        return [self.linear(x.mean((2, 3)), "classifier", NUM_CLASSES), *heads]

    def v2_stem(self, x: Any, caffe_padding: bool) -> Any:
        """conv1; slim's separable convolution has min(out / 3, 8) maps of each colour between its two halves."""
        import torch.nn.functional as F

        if self.options.get("stem") == "dense":
            return self.conv(x, "conv1", 64, 7, 2, 3 if caffe_padding else "tf")
        out, maps = self.width(64), min(self.width(64) // 3, 8)
        depthwise = self.variable("params/conv1/depthwise_kernel", (7, 7, 3, maps)).permute(2, 3, 0, 1)
        pointwise = self.variable("params/conv1/pointwise_kernel", (1, 1, 3 * maps, out)).permute(3, 2, 0, 1)
        pads = [*same_padding(x.shape[3], 7, 2), *same_padding(x.shape[2], 7, 2)]
        x = F.conv2d(F.pad(x, pads), depthwise.reshape(3 * maps, 1, 7, 7), stride=2, groups=3)
        x = F.conv2d(x, pointwise)
        if self.options.get("stem_batch_norm", True):
            return F.relu(self.normalized(x, "conv1"))
        return F.relu(x + self.variable("params/conv1/bias", (out,))[:, None, None])

    def v2_head(self, x: Any, name: str) -> Any:
        import torch.nn.functional as F

        x = self.conv(F.avg_pool2d(x, 5, 3, ceil_mode=True), f"{name}/conv", 128, 1)
        x = x.permute(0, 2, 3, 1).flatten(1)
        x = x @ self.variable(f"params/{name}/fc/kernel", (x.shape[1], self.width(1024)))
        x = F.relu(self.normalized(x, f"{name}/fc"))
        return self.linear(x, f"{name}/classifier", NUM_CLASSES)

    # Inception-v3 ----------------------------------------------------------------------------------------------

    def inception_v3(self, x: Any) -> list[Any]:
        import torch
        import torch.nn.functional as F

        chain, heads = self.chain, []
        x = self.conv(x, "conv2d_1a_3x3", 32, 3, 2, 0)
        x = self.conv(x, "conv2d_2a_3x3", 32, 3, 1, 0)
        x = F.max_pool2d(self.conv(x, "conv2d_2b_3x3", 64, 3), 3, 2)
        x = self.conv(x, "conv2d_3b_1x1", 80, 1)
        x = F.max_pool2d(self.conv(x, "conv2d_4a_3x3", 192, 3, 1, 0), 3, 2)
        for name, projection in (("mixed_5b", 32), ("mixed_5c", 64), ("mixed_5d", 64)):
            x = torch.cat(
                [
                    chain(x, name, ("conv_1x1", 64, 1)),
                    chain(x, name, ("conv_5x5_reduce", 48, 1), ("conv_5x5", 64, 5)),
                    chain(x, name, ("double_3x3_reduce", 64, 1), ("double_3x3_1", 96, 3), ("double_3x3_2", 96, 3)),
                    chain(self.average(x), name, ("pool_proj", projection, 1)),
                ],
                1,
            )
        x = torch.cat(
            [
                chain(x, "mixed_6a", ("conv_3x3", 384, 3, 2, 0)),
                chain(
                    x, "mixed_6a", ("double_3x3_reduce", 64, 1), ("double_3x3_1", 96, 3), ("double_3x3_2", 96, 3, 2, 0)
                ),
                F.max_pool2d(x, 3, 2),
            ],
            1,
        )
        for name, c in (("mixed_6b", 128), ("mixed_6c", 160), ("mixed_6d", 160), ("mixed_6e", 192)):
            x = torch.cat(
                [
                    chain(x, name, ("conv_1x1", 192, 1)),
                    chain(x, name, ("conv_7x7_reduce", c, 1), ("conv_1x7", c, (1, 7)), ("conv_7x1", 192, (7, 1))),
                    chain(
                        x,
                        name,
                        ("double_7x7_reduce", c, 1),
                        ("double_7x1_1", c, (7, 1)),
                        ("double_1x7_1", c, (1, 7)),
                        ("double_7x1_2", c, (7, 1)),
                        ("double_1x7_2", 192, (1, 7)),
                    ),
                    chain(self.average(x), name, ("pool_proj", 192, 1)),
                ],
                1,
            )
        if self.case["train"]:
            heads.append(self.last_head(x))
        x = torch.cat(
            [
                chain(x, "mixed_7a", ("conv_3x3_reduce", 192, 1), ("conv_3x3", 320, 3, 2, 0)),
                chain(
                    x,
                    "mixed_7a",
                    ("conv_7x7_reduce", 192, 1),
                    ("conv_1x7", 192, (1, 7)),
                    ("conv_7x1", 192, (7, 1)),
                    ("conv_7x7_3x3", 192, 3, 2, 0),
                ),
                F.max_pool2d(x, 3, 2),
            ],
            1,
        )
        x = self.v3_last(self.v3_last(x, "mixed_7b", "avg"), "mixed_7c", self.options.get("last_pool", "avg"))
        return [self.linear(x.mean((2, 3)), "classifier", NUM_CLASSES), *heads]

    def v3_last(self, x: Any, name: str, pool: str) -> Any:
        """A module of the 8x8 grid."""
        import torch
        import torch.nn.functional as F

        one = self.chain(x, name, ("conv_1x1", 320, 1))
        short = self.chain(x, name, ("conv_3x3_reduce", 384, 1))
        short = [self.chain(short, name, part) for part in (("conv_1x3", 384, (1, 3)), ("conv_3x1", 384, (3, 1)))]
        long = self.chain(x, name, ("double_3x3_reduce", 448, 1), ("double_3x3", 384, 3))
        long = [self.chain(long, name, part) for part in (("double_1x3", 384, (1, 3)), ("double_3x1", 384, (3, 1)))]
        pooled = F.max_pool2d(x, 3, 1, 1) if pool == "max" else self.average(x)
        return torch.cat([one, *short, *long, self.chain(pooled, name, ("pool_proj", 192, 1))], 1)


# The publishers' own networks ----------------------------------------------------------------------------------------


def fid_network() -> Any:
    """pytorch-fid's network for the FID, without its weights."""
    from pytorch_fid import inception

    network = inception._inception_v3(num_classes=NUM_CLASSES, aux_logits=False, weights=None)
    for name, channels, features in (("Mixed_5b", 192, 32), ("Mixed_5c", 256, 64), ("Mixed_5d", 288, 64)):
        setattr(network, name, inception.FIDInceptionA(channels, pool_features=features))
    for name, inside in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        setattr(network, name, inception.FIDInceptionC(768, channels_7x7=inside))
    network.Mixed_7b, network.Mixed_7c = inception.FIDInceptionE_1(1280), inception.FIDInceptionE_2(2048)
    return network


def published() -> dict[str, tuple[Any, dict[str, Any]]]:
    """The publishers' networks, at full width, and the cases that they are."""
    import timm
    import torchvision
    from pretrainedmodels.models.bninception import BNInception

    full = {"batch": 2, "train": False, "width": 1.0}
    v3, exclude = {"model": "inception_v3", "size": 299, **full}, {"aux_heads": False}
    tv = torchvision.models.inception_v3(weights=None, num_classes=NUM_CLASSES, init_weights=False)
    training = torchvision.models.inception_v3(weights=None, num_classes=NUM_CLASSES, init_weights=False).train()
    training.dropout.p = 0.0
    tv.aux_logits, tv.AuxLogits = False, None
    padded = v3 | {"options": exclude | {"count_include_pad": True}}
    return {
        "torchvision inception_v3": (tv.eval(), padded),
        "torchvision inception_v3, training": (training, padded | {"train": True}),
        "timm inception_v3": (timm.create_model("inception_v3", num_classes=NUM_CLASSES).eval(), padded),
        "pytorch-fid": (fid_network().eval(), v3 | {"options": exclude | {"last_pool": "max"}}),
        "Cadene bninception": (
            BNInception(NUM_CLASSES).eval(),
            {"model": "inception_v2", "size": 224, **full, "options": CADENE},
        ),
    }


if __name__ == "__main__":
    main(__doc__, FILE, CASES, Reference, published)
