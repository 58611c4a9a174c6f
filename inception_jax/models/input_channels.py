"""The first convolution of a network for another number of input channels: which kernel it is, and its new values."""

from __future__ import annotations

import flax.linen as nn
import numpy as np

from inception_jax.models.initialization import trace_variables

_REPEATABLE = (1, 3)  # input channels of a kernel that can be repeated


def find_input_kernel(model: nn.Module, image_size: int) -> str | None:
    """Returns the path of the kernel that reads the image, such as "conv1/kernel", if it can be adapted.

    Args:
      model: a network.
      image_size: height and width in pixels.

    Returns:
      None where no such kernel can be adapted: a depthwise convolution, which the default stem of BN-Inception is, or
      a layer that is not of this package.
    """
    path = find_image_kernel(model, image_size)
    return path if path and path.rpartition("/")[2] == "kernel" else None


def find_image_kernel(model: nn.Module, image_size: int) -> str | None:
    """Returns the path of the kernel that reads the image, that of a depthwise convolution ("depthwise_kernel") too.

    Args:
      model: a network.
      image_size: height and width in pixels.

    Returns:
      None where the first layer is not of this package.
    """
    declared = (leaf for leaf in trace_variables(model, image_size)[0] if leaf.collection == "params")
    first = next((leaf for leaf in declared if len(leaf.shape) == 4), None)
    if first is None or first.shape[2] != getattr(model, "in_channels", 3):
        return None
    return "/".join((*first.path, first.name))


def adapt_input_kernel(kernel: np.ndarray, in_channels: int) -> np.ndarray:
    """Makes a kernel for another number of input channels.

    The rule is timm's (`adapt_input_conv` in timm/models/_manipulate.py). For one channel the kernel is summed over its
    input channels: on a grey image the result is that of the kernel on the image repeated, where the normalization is
    the same for all channels. For more channels it is repeated in turn (red, green, blue, red, …) and multiplied by old
    / new, so that the sums keep their size.

    Args:
      kernel: [height, width, C, out].
      in_channels: of the result.

    Returns:
      [height, width, in_channels, out], of the same dtype, rounded once; `kernel` itself where it fits.

    Raises:
      ValueError: several channels from another number than 1 or 3: no rule is known.
    """
    found = kernel.shape[2]
    if found == in_channels:
        return kernel
    wide = np.asarray(kernel).astype(np.float64)
    if in_channels == 1:
        return wide.sum(axis=2, keepdims=True).astype(kernel.dtype)
    if found not in _REPEATABLE:
        raise ValueError(f"a kernel of {found} input channels can become one of 1, not of {in_channels}")
    return (wide[:, :, np.arange(in_channels) % found] * (found / in_channels)).astype(kernel.dtype)


def describe_adaptation(found: int, in_channels: int) -> str:
    """Says in a few words what `adapt_input_kernel` does."""
    if in_channels == 1:
        return f"summed over {found} input channels"
    return f"{found} input channels repeated to {in_channels}, times {found}/{in_channels}"


def fits_but_for_channels(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Returns whether the shapes of two kernels differ in their input channels alone."""
    return len(found) == len(wanted) == 4 and (*found[:2], found[3]) == (*wanted[:2], wanted[3]) and found != wanted


def has_rule(found: int, in_channels: int) -> bool:
    """Returns whether `adapt_input_kernel` has a rule for these numbers of channels."""
    return in_channels in (1, found) or found in _REPEATABLE
