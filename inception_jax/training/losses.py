"""Cross-entropy (of softmax or sigmoid) and top-k accuracy, one value per example, and the weighted sum of all heads.

Nothing here reduces over the batch: the step does that once, with the mask of padded rows and over all devices.
Logits may have any floating dtype; losses are computed in at least float32 (log-softmax on bfloat16 logits loses
accuracy), and in float64 where the logits are float64. Weight decay is not part of a loss here: `optimizers` adds
its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from inception_jax.errors import UserError
from inception_jax.training.device_augmentation import Labels

Integers: TypeAlias = jax.typing.ArrayLike | Sequence[Any]
"""An array of integers, or a list."""


class HasLogits(Protocol):
    """The attributes of a model's output that `inception_loss` reads."""

    logits: jax.Array
    aux_logits: tuple[jax.Array, ...]


def softmax_cross_entropy(logits: jax.Array, labels: Integers, label_smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy of softmax(logits) against smoothed one-hot targets.

    The target of a class is `(1 - label_smoothing) * [class is the label] + label_smoothing / num_classes`: the mass
    is spread over every class, the right one included (arXiv:1512.00567 section 7; `label_smoothing` of
    `tf.losses.softmax_cross_entropy`, which TF-Slim trains with).

    Args:
      logits: [..., num_classes], floating.
      labels: [...], integer class indices.
      label_smoothing: probability mass of the target that is spread, 0 <= label_smoothing < 1; a Python number, which
        under `jax.jit` is static.

    Returns:
      [...] losses in nats, at least float32. A label outside [0, num_classes) gives NaN: a label that does
      not fit the classifier must not look like a small loss.

    Raises:
      UserError: `label_smoothing` out of range, or labels that are no integers or of another shape.
    """
    _check_smoothing(label_smoothing)
    logits = jnp.asarray(logits)
    labels, num_classes = _class_indices(labels, logits), logits.shape[-1]
    # NumPy's promotion: JAX's refuses two types under strict promotion.
    logits = logits.astype(np.promote_types(logits.dtype, jnp.float32))
    # Constant per row, so that the maximum neither overflows exp nor takes part in the gradient.
    shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    log_normalizer = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))
    # A comparison instead of a gather: its backward pass is elementwise, a gather's is a scatter-add.
    label_logit = jnp.sum(jnp.where(_is_label(labels, shifted), shifted, 0.0), axis=-1)
    if label_smoothing:  # Not one formula for both cases: 0 * -inf would be NaN for a class that the caller has masked.
        target_logit = (1.0 - label_smoothing) * label_logit + label_smoothing * jnp.mean(shifted, axis=-1)
    else:
        target_logit = label_logit
    return jnp.where((labels >= 0) & (labels < num_classes), log_normalizer - target_logit, jnp.nan)


def sigmoid_cross_entropy(
    logits: jax.Array,
    targets: Integers,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> jax.Array:
    """Binary cross-entropy of sigmoid(logits) for each class by itself, the mean over the classes.

    The mean, not the sum, as in `tf.losses.sigmoid_cross_entropy` and PyTorch's `BCEWithLogitsLoss`: the loss does not
    grow with the number of classes. Smoothing is that of `tf.losses.sigmoid_cross_entropy`: the target of a class is
    `(1 - label_smoothing) * target + label_smoothing / 2`.

    Args:
      logits: [..., num_classes], floating.
      targets: [..., num_classes]: 1 where the example has the class, else 0; between them of mixed images.
      label_smoothing: 0 <= label_smoothing < 1; a Python number, as of `softmax_cross_entropy`.
      class_weights: [num_classes], factors of the classes' terms, present or absent; the mean stays over the number of
        classes. None: all 1.

    Returns:
      [...] losses in nats, at least float32.

    Raises:
      UserError: `label_smoothing` out of range, or targets or weights of another shape.
    """
    _check_smoothing(label_smoothing)
    logits, targets = jnp.asarray(logits), jnp.asarray(targets)
    if targets.shape != logits.shape:
        raise UserError(
            f"labels: shape {targets.shape} for logits of shape {logits.shape}; give 0 or 1 for each class: that shape"
        )
    logits = logits.astype(np.promote_types(logits.dtype, jnp.float32))
    targets = targets.astype(logits.dtype)
    if label_smoothing:
        targets = (1.0 - label_smoothing) * targets + 0.5 * label_smoothing
    # The formula that neither overflows nor cancels: softplus(x) - x t with softplus(x) = max(x, 0) + log1p(exp(-|x|)).
    terms = jnp.maximum(logits, 0.0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    if class_weights is not None:
        weights = _checked_weights(class_weights, terms, terms.dtype)
        terms = terms * jax.lax.broadcast_to_rank(weights, terms.ndim)
    return jnp.mean(terms, axis=-1)


def _check_smoothing(label_smoothing: float) -> None:
    if not 0.0 <= label_smoothing < 1.0:
        raise UserError(
            f"label_smoothing (config.loss.label_smoothing) = {label_smoothing}; allowed: 0 <= label_smoothing < 1"
        )


def is_multi_label(labels: jax.Array | Labels, logits: jax.Array) -> TypeGuard[jax.Array]:
    """Whether labels are those of several classes per example, [B, num_classes], and not class indices [B]."""
    return not isinstance(labels, Labels) and labels.ndim == logits.ndim


def top_k_correct(logits: jax.Array, labels: Integers, k: int) -> jax.Array:
    """Returns whether the label is among the k largest logits.

    The rank of the label is the number of classes with a strictly greater logit, plus those with an equal logit and a
    lower index: exactly k classes are ever "in the top k", and equal logits give no credit that argmax would not give.

    Args:
      logits: [..., num_classes], floating.
      labels: [...], integer class indices.
      k: at least 1; where it is num_classes or more, every finite row is correct.

    Returns:
      [...] bool. False for a row that holds a NaN and for a label outside [0, num_classes).

    Raises:
      UserError: the labels are no integers, or not one per row of logits.
    """
    if k < 1:
        raise ValueError(f"k = {k}; allowed: 1 or more")
    logits = jnp.asarray(logits)
    labels = _class_indices(labels, logits)
    is_label = _is_label(labels, logits)
    label_logit = jnp.max(jnp.where(is_label, logits, -jnp.inf), axis=-1, keepdims=True)
    ahead = (logits > label_logit) | ((logits == label_logit) & (_class_numbers(labels, logits) < labels[..., None]))
    ahead &= ~is_label  # the compiler may compute the label's own logit twice, and round it differently
    in_top_k = jnp.sum(ahead, axis=-1, dtype=jnp.int32) < k
    return in_top_k & jnp.any(is_label, axis=-1) & ~jnp.any(jnp.isnan(logits), axis=-1)


def top_k_accuracy(logits: jax.Array, labels: jax.Array | Labels, k: int) -> jax.Array:
    """`top_k_correct`; of mixed images the weights of those of their two labels that are in the top k, added."""
    if not isinstance(labels, Labels):
        return top_k_correct(logits, labels, k)
    first, second = (top_k_correct(logits, label, k).astype(labels.weight.dtype) for label in labels[:2])
    return labels.weight * first + (1.0 - labels.weight) * second


def inception_loss(
    output: HasLogits,
    labels: Integers | Labels,
    aux_weights: Sequence[float],
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    *,
    multi_label: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Adds the weighted losses of the auxiliary heads to the main loss.

    Every head is trained on the same smoothed labels (arXiv:1409.4842 section 5: weights 0.3; TF-Slim for v3 and v4:
    weight 0.4).

    Args:
      output: `.logits` [B, num_classes]; `.aux_logits`, one [B, num_classes] per head, first head first.
      labels: [B], integer class indices; of mixed images `Labels`: the target is the mean of the (smoothed) targets of
        both labels, with their weights, and so is the loss. With `multi_label` [B, num_classes].
      aux_weights: one weight per head, in the same order: `get_spec(name).aux_weights`; `()` of an output without heads
        (`aux_heads=False`, `train=False`).
      label_smoothing: see `softmax_cross_entropy` and `sigmoid_cross_entropy`.
      class_weights: [num_classes]; the loss of an example, in every head and with its smoothed labels, is multiplied by
        the weight of its class (of several labels, each class's term by its own). None: not multiplied.
      multi_label: whether an example may have several labels, 0 or 1 for each class: the loss is
        `sigmoid_cross_entropy`, with the same weights of the heads.

    Returns:
      The total [B], and the loss [B] of each head by name, without the head's weight: "main", "aux1", "aux2", ...

    Raises:
      UserError: the number of weights is not the number of heads, or shapes do not fit.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from inception_jax import InceptionOutput, inception_loss
      >>> output = InceptionOutput(jnp.zeros((2, 10)), aux_logits=(jnp.zeros((2, 10)), jnp.zeros((2, 10))))
      >>> total, heads = inception_loss(output, jnp.array([3, 7]), aux_weights=(0.3, 0.3))
      >>> [(name, round(float(loss.mean()), 3)) for name, loss in heads.items()]  # log(10)
      [('main', 2.303), ('aux1', 2.303), ('aux2', 2.303)]
      >>> round(float(total.mean()), 3)  # 1.6 log(10)
      3.684
    """
    if len(aux_weights) != len(output.aux_logits):
        raise UserError(
            f"aux_weights (config.loss.aux_weights) = {tuple(aux_weights)}: {len(aux_weights)} weights, but the model "
            f"gives {len(output.aux_logits)} auxiliary heads (none with train=False); allowed: one weight per head"
        )

    def head_loss(logits: jax.Array) -> jax.Array:
        if not isinstance(labels, Labels):
            if multi_label:
                return sigmoid_cross_entropy(logits, labels, label_smoothing, class_weights)
            return one_label_loss(logits, labels)
        first, second = one_label_loss(logits, labels.first), one_label_loss(logits, labels.second)
        weight = labels.weight.astype(first.dtype)
        return weight * first + (1.0 - weight) * second

    def one_label_loss(logits: jax.Array, labels: Integers) -> jax.Array:
        loss = softmax_cross_entropy(logits, labels, label_smoothing)
        if class_weights is None:
            return loss
        # A label outside the classes keeps its NaN: the gather clips it to a class, and NaN times any weight is NaN.
        return loss * _checked_weights(class_weights, logits, loss.dtype)[_class_indices(labels, logits)]

    total = head_loss(output.logits)
    heads = {"main": total}
    for number, (logits, weight) in enumerate(zip(output.aux_logits, aux_weights, strict=True), start=1):
        heads[f"aux{number}"] = head_loss(logits)
        factor = weight if isinstance(weight, jax.Array) else float(weight)
        total = total + factor * heads[f"aux{number}"]
    return total, heads


_ONE_HOT = ": labels.argmax(-1) of one-hot labels; of several labels per example inception_loss(…, multi_label=True)"


def _class_indices(labels: Integers, logits: jax.Array) -> jax.Array:
    """Labels in a dtype that holds the index of every class: uint8 does not hold 256, and would wrap around.

    Args:
      labels: [...], integer class indices of any width.
      logits: [..., num_classes].

    Returns:
      [...] of at least 32 bits.

    Raises:
      UserError: the labels are no integers, or not one per row of logits.
    """
    labels = jnp.asarray(labels)
    if labels.shape != logits.shape[:-1]:
        one_hot = labels.shape == logits.shape
        raise UserError(
            f"labels: shape {labels.shape} for logits of shape {logits.shape}; give class indices of shape "
            f"{logits.shape[:-1]}{_ONE_HOT if one_hot else ''}"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise UserError(f"labels: {labels.dtype}; give the indices of the classes as integers: labels.astype('int32')")
    return labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)


def _class_numbers(labels: jax.Array, logits: jax.Array) -> jax.Array:
    """[..., num_classes] with as many axes as `logits`, all but the last of size 1: 0, 1, 2, … in the labels' dtype."""
    return jax.lax.broadcast_to_rank(jnp.arange(logits.shape[-1], dtype=labels.dtype), logits.ndim)


def _is_label(labels: jax.Array, logits: jax.Array) -> jax.Array:
    """[..., num_classes] bool: one-hot of `labels`; all False where the label is out of range."""
    return labels[..., None] == _class_numbers(labels, logits)


def _checked_weights(class_weights: Sequence[float], logits: jax.Array, dtype: Any) -> jax.Array:
    """The weights of classes as an array [num_classes]; UserError unless there is one per class."""
    weights = jnp.asarray(class_weights, dtype)
    if weights.shape != logits.shape[-1:]:
        raise UserError(
            f"class_weights (config.loss.class_weights): shape {weights.shape} for {logits.shape[-1]} classes; give "
            "one per class"
        )
    return weights
