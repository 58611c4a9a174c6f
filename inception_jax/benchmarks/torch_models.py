"""PyTorch networks that ours are compared with: torchvision's, timm's, and a GoogLeNet with LRN. Imports no JAX."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

# Table 1 of arXiv:1409.4842: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj. The same as in
# models/inception_v1.py, which imports JAX and so cannot be imported here; a test compares the parameter counts.
_MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def build(model: str, num_classes: int, options: Mapping[str, Any]) -> nn.Module:
    """Builds the equivalent of one of our networks, on the default device.

    Args:
      model: one of `equivalents.EQUIVALENTS`.
      num_classes: outputs of every classifier.
      options: from `equivalents.matching_options`.

    Returns:
      A module that takes float images [B, 3, H, W]; `head_logits` reads its output.
    """
    if model == "inception_v1":
        return GoogLeNet(num_classes, options)
    if model == "inception_v1_bn":
        import torchvision

        return torchvision.models.googlenet(
            weights=None,
            num_classes=num_classes,
            aux_logits=options.get("aux_heads", True),
            transform_input=False,
            dropout=options["dropout_rate"],
            dropout_aux=options.get("aux_dropout_rate", 0.0),
            # Batch norm makes the kernels' scale irrelevant, and torchvision's initialization takes seconds.
            init_weights=False,
        )
    if model == "inception_v3":
        import torchvision

        return torchvision.models.inception_v3(
            weights=None,
            num_classes=num_classes,
            aux_logits=options.get("aux_heads", True),
            transform_input=False,
            dropout=options["dropout_rate"],
            init_weights=False,
        )
    import timm

    name = {"xception": "legacy_xception"}.get(model, model)
    return timm.create_model(name, pretrained=False, num_classes=num_classes, drop_rate=options["dropout_rate"])


def head_logits(output: Any) -> list[torch.Tensor]:
    """Logits [B, num_classes] of the classifier, then of the auxiliary heads, first head first."""
    if isinstance(output, torch.Tensor):
        return [output]
    if hasattr(output, "aux_logits1"):  # torchvision's tuple has the second head before the first
        return [output.logits, output.aux_logits1, output.aux_logits2]
    return list(output)


def count_macs(model: nn.Module, image_size: int) -> int:
    """Multiply-adds of convolutions and fully connected layers per image, for a forward pass in training.

    A copy on the "meta" device runs, which takes no time and no memory; the model is not changed.
    """
    meta_model, total, batch = copy.deepcopy(model).to("meta").train(), 0, 2

    def count(layer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        # A kernel [out, in, ...] computes the out channels at one position of the output.
        total += layer.weight.numel() * output.numel() // (output.shape[1] * batch)

    for layer in meta_model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    meta_model(torch.empty(batch, 3, image_size, image_size, device="meta"))
    return total


class GoogLeNet(nn.Module):
    """GoogLeNet as bvlc_googlenet: biases, LRN, pools that round up, true 5x5, two auxiliary heads."""

    def __init__(self, num_classes: int, options: Mapping[str, Any]):
        """Builds the network.

        Args:
          num_classes: outputs of every classifier.
          options: "dropout_rate", and "aux_dropout_rate" unless "aux_heads" is False.
        """
        super().__init__()
        self.conv1 = _ConvRelu(3, 64, 7, 2)
        self.conv2_reduce, self.conv2 = _ConvRelu(64, 64, 1), _ConvRelu(64, 192, 3)
        self.norm = nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception, channels = nn.ModuleDict(), 192
        self.aux = nn.ModuleDict()
        for name, widths in _MODULES.items():
            self.inception[name] = _InceptionModule(channels, *widths)
            channels = widths[0] + widths[2] + widths[4] + widths[5]
            if name in ("4a", "4d") and options.get("aux_heads", True):
                self.aux[name] = _AuxHead(channels, num_classes, options["aux_dropout_rate"])
        self.dropout, self.classifier = nn.Dropout(options["dropout_rate"]), nn.Linear(channels, num_classes)
        _initialize_as_caffe(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Images [B, 3, H, W] to logits [B, num_classes]; in training a list, with the logits of the heads if any."""
        x = self.norm(self.pool(self.conv1(x)))
        x = self.pool(self.norm(self.conv2(self.conv2_reduce(x))))
        aux = []
        for name, module in self.inception.items():
            x = module(x)
            if self.training and name in self.aux:
                aux.append(self.aux[name](x))
            if name in ("3b", "4e"):
                x = self.pool(x)
        logits = self.classifier(self.dropout(x.mean((2, 3))))
        return [logits, *aux] if aux else logits


class _ConvRelu(nn.Conv2d):
    """A convolution with "same" padding and bias, then ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1):
        super().__init__(inputs, outputs, size, stride, size // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(super().forward(x), inplace=True)


class _InceptionModule(nn.Module):
    """Four branches, concatenated: 1x1; 1x1 and 3x3; 1x1 and 5x5; max pool and 1x1."""

    def __init__(self, inputs: int, one: int, reduce3: int, three: int, reduce5: int, five: int, proj: int):
        super().__init__()
        self.one = _ConvRelu(inputs, one, 1)
        self.three = nn.Sequential(_ConvRelu(inputs, reduce3, 1), _ConvRelu(reduce3, three, 3))
        self.five = nn.Sequential(_ConvRelu(inputs, reduce5, 1), _ConvRelu(reduce5, five, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), _ConvRelu(inputs, proj, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


class _AuxHead(nn.Module):
    """An auxiliary classifier: average pool to 4x4, 1x1 convolution, two fully connected layers."""

    def __init__(self, inputs: int, num_classes: int, dropout: float):
        super().__init__()
        self.conv, self.fc = _ConvRelu(inputs, 128, 1), nn.Linear(2048, 1024)
        self.dropout, self.classifier = nn.Dropout(dropout), nn.Linear(1024, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The sizes from which a 5x5/3 pool makes 4.
        fixed_window = all(14 <= size <= 16 for size in x.shape[2:])
        x = self.conv(F.avg_pool2d(x, 5, 3) if fixed_window else F.adaptive_avg_pool2d(x, 4))
        return self.classifier(self.dropout(F.relu(self.fc(x.flatten(1)), inplace=True)))


def _initialize_as_caffe(model: nn.Module) -> None:
    """Initializes as bvlc_googlenet does: Caffe's xavier, biases of 0.2, and of 0 in the classifiers."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = math.sqrt(3 / layer.weight[0].numel())
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.constant_(layer.bias, 0.0 if name.endswith("classifier") else 0.2)
