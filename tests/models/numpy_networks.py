"""Xception, AlexNet, VGG-16 and Network in Network for a second time: in NumPy, in evaluation, from the same variables.

Written from the publishers' definitions (Keras's xception.py; Caffe's bvlc_alexnet and nin_imagenet; Table 1 of
arXiv:1409.1556), sharing nothing with the package but the names of the parameters.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def padded(x, low, high, value=0.0):
    return np.pad(x, ((0, 0), (low, high), (low, high), (0, 0)), constant_values=value)


def windows(x, size, stride):
    """[B, H', W', C, size, size]"""
    return sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]


def conv(x, unit, stride=1, pad=0):
    """A dense convolution with a bias or with nothing."""
    kernel = np.asarray(unit["kernel"])
    y = np.einsum("bhwcij,ijcn->bhwn", windows(padded(x, pad, pad), kernel.shape[0], stride), kernel, optimize=True)
    return y + np.asarray(unit.get("bias", 0.0))


def separable(x, unit):
    depthwise, pointwise = np.asarray(unit["depthwise_kernel"])[..., 0], np.asarray(unit["pointwise_kernel"])[0, 0]
    return np.einsum("bhwcij,ijc->bhwc", windows(padded(x, 1, 1), 3, 1), depthwise, optimize=True) @ pointwise


def relu(x):
    return np.maximum(x, 0)


def norm(x, unit, statistics):
    bn = {name: np.asarray(leaf) for name, leaf in {**unit["bn"], **statistics["bn"]}.items()}
    return (x - bn["mean"]) / np.sqrt(bn["var"] + 1e-3) * bn["scale"] + bn["bias"]


def pool_up(x, size, stride):
    """Caffe's max pool: one window more where the last one does not reach the edge."""
    missing = -(x.shape[1] - size) % stride
    return windows(padded(x, 0, missing, -np.inf), size, stride).max((-1, -2))


def to_grid(x, cells):
    """Means over cells as PyTorch lays them, vectors in the order height, width, channels."""
    edges = [(i * x.shape[1] // cells, -(-(i + 1) * x.shape[1] // cells)) for i in range(cells)]
    grid = [[x[:, a:b, c:d].mean((1, 2)) for c, d in edges] for a, b in edges]
    return np.stack([np.stack(row, 1) for row in grid], 1).reshape(len(x), -1)


def dense(x, unit):
    return x @ np.asarray(unit["kernel"]) + np.asarray(unit["bias"])


def xception(variables, x, pool="same"):
    params, stats = variables["params"], variables["batch_stats"]

    def step(x, block, name):
        return norm(separable(x, params[block][name]), params[block][name], stats[block][name])

    for name, stride in (("block1_conv1", 2), ("block1_conv2", 1)):
        x = relu(norm(conv(x, params[name], stride), params[name], stats[name]))
    for number in (2, 3, 4, *range(5, 13), 13):
        block, middle = f"block{number}", 5 <= number <= 12
        y = x if number == 2 else relu(x)
        y = relu(step(y, block, "sepconv1"))
        y = step(y, block, "sepconv2")
        if middle:
            x = x + step(relu(y), block, "sepconv3")
            continue
        unit, statistics = params[block]["shortcut"], stats[block]["shortcut"]
        low = 0 if pool == "same" and y.shape[1] % 2 == 0 else 1
        y = windows(padded(y, low, 1, -np.inf), 3, 2).max((-1, -2))
        x = norm(conv(x, unit, 2), unit, statistics) + y
    x = relu(step(x, "block14", "sepconv1"))
    x = relu(step(x, "block14", "sepconv2"))
    return dense(x.mean((1, 2)), params["classifier"])


def lrn(x):
    squares = np.pad(x * x, ((0, 0),) * 3 + ((2, 2),))
    return x * (1 + 1e-4 / 5 * sliding_window_view(squares, 5, 3).sum(-1)) ** -0.75


def halves(x, units, pad):
    middle = x.shape[-1] // 2
    parts = conv(x[..., :middle], units["tower_1"], 1, pad), conv(x[..., middle:], units["tower_2"], 1, pad)
    return relu(np.concatenate(parts, -1))


def alexnet(variables, x):
    params = variables["params"]
    x = pool_up(lrn(relu(conv(x, params["conv1"], 4))), 3, 2)
    x = pool_up(lrn(halves(x, params["conv2"], 2)), 3, 2)
    x = relu(conv(x, params["conv3"], 1, 1))
    x = pool_up(halves(halves(x, params["conv4"], 1), params["conv5"], 1), 3, 2)
    x = relu(dense(relu(dense(to_grid(x, 6), params["fc6"])), params["fc7"]))
    return dense(x, params["classifier"])


def vgg16(variables, x):
    params = variables["params"]
    for block, convolutions in enumerate((2, 2, 3, 3, 3), 1):
        for number in range(1, convolutions + 1):
            x = relu(conv(x, params[f"block{block}"][f"conv{number}"], 1, 1))
        side = x.shape[1] // 2 * 2
        x = windows(x[:, :side, :side], 2, 2).max((-1, -2))
    x = relu(dense(relu(dense(to_grid(x, 7), params["fc6"])), params["fc7"]))
    return dense(x, params["classifier"])


def network_in_network(variables, x):
    params = variables["params"]
    for block, (stride, pad) in enumerate(((4, 0), (1, 2), (1, 1), (1, 1)), 1):
        units = params[f"mlpconv{block}"]
        x = relu(conv(x, units["conv"], stride, pad))
        x = relu(conv(x, units["cccp1"]))
        if block < 4:
            x = pool_up(relu(conv(x, units["cccp2"])), 3, 2)
    return relu(conv(x, params["classifier"])).mean((1, 2))
