"""Writes goldens/ops.npz: pooling, normalization and convolution as PyTorch computes them, in float64.

Run with PyTorch installed (2.13 made the file); the tests read the file and need none:
    python tests/models/make_goldens_ops.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

MAX_POOLS = {  # name: window, stride, padding, ceil_mode
    "max_caffe_even": (3, 2, 0, True),
    "max_padded": (3, 1, 1, False),
    "max_valid": (3, 2, 0, False),
}
AVERAGE_POOLS = {  # name: window, stride, padding, ceil_mode, count_include_pad
    "avg_include": (3, 1, 1, False, True),
    "avg_exclude": (3, 1, 1, False, False),
    "avg_ceil": (3, 2, 0, True, True),
    "avg_aux": (5, 3, 0, False, True),
}
NORMS = {"lrn_caffe": (5, 1e-4, 0.75, 1.0), "lrn_strong": (5, 2.0, 0.75, 0.5), "lrn_root": (3, 1.0, 0.5, 2.0)}
CONVOLUTIONS = {"conv_3x3": (3, 3, 1, 1), "conv_7x7_2": (7, 7, 2, 3), "conv_1x7": (1, 7, 1, (0, 3))}  # kh, kw, s, pad


def with_gradients(function, *arrays):
    """The output and the gradients of sum(output * cosines), channels last again."""
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    output = function(*tensors)
    weights = torch.cos(torch.arange(output.numel(), dtype=torch.float64)).reshape(output.shape)
    output.backward(weights)
    return [output.detach().numpy(), weights.numpy(), *(tensor.grad.numpy() for tensor in tensors)]


def main() -> None:
    rng = np.random.default_rng(0)
    x = np.round(rng.normal(size=(2, 3, 9, 8)), 1)  # NCHW; rounded, so that maxima tie
    goldens = {"x": x}

    def keep(name, values):
        for part, value in zip(("y", "weights", "dx", "dkernel"), values, strict=False):
            goldens[f"{name}/{part}"] = value

    for name, (window, stride, padding, ceil) in MAX_POOLS.items():
        keep(name, with_gradients(lambda t, a=(window, stride, padding, 1, ceil): functional.max_pool2d(t, *a), x))
    for name, arguments in AVERAGE_POOLS.items():
        keep(name, with_gradients(lambda t, a=arguments: functional.avg_pool2d(t, *a), x))
    for name, arguments in NORMS.items():
        keep(name, with_gradients(lambda t, a=arguments: functional.local_response_norm(t, *a), x))
    for name, (height, width, stride, padding) in CONVOLUTIONS.items():
        kernel = rng.normal(size=(2, 3, height, width))
        goldens[f"{name}/kernel"] = kernel
        keep(name, with_gradients(lambda t, k, a=(None, stride, padding): functional.conv2d(t, k, *a), x, kernel))
    path = Path(__file__).parent / "goldens" / "ops.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **goldens)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
