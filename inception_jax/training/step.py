"""The training step and the evaluation step, as pure functions of a per-device batch.

`parallel.py` compiles them over the devices; here collectives only name their axis. All PRNG keys come from (seed,
step, row of the global batch), so that the numbers do not depend on how the rows are split over devices, or on the
number of micro-batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from inception_jax.training import crop_averaging, gradient_transformations, losses, preprocess
from inception_jax.training import ema as ema_lib
from inception_jax.training.device_augmentation import NO_AUGMENTATION, DeviceAugmentation, Labels, augment
from inception_jax.training.freezing import Freezing, merge
from inception_jax.training.state import TrainState

AXIS = "data"
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """The options of a training step, apart from model and optimizer.

    Attributes:
      normalization: of uint8 pixels, to the network's input.
      dtype: the network's compute dtype.
      aux_weights: loss weight of each auxiliary head, first head first.
      label_smoothing: probability that is spread evenly over all classes.
      class_weights: factor of the loss of an example, by its class [num_classes]; None: 1 for all. The mean is over the
        number of examples, not over the sum of their weights.
      seed: of the dropout masks: an integer, or the words of its key.
      accumulation: micro-batches per device and step (gradient accumulation).
      ema_decay: decay of the EMA; unused if the state has none.
      ema_num_updates: TensorFlow's num_updates rule, see `ema.update`.
      ema_new_weight: `ema.new_weight(ema_decay)`, as an argument of the step; None: it is computed.
      skip_non_finite: whether a step whose loss or gradient is not finite changes nothing but the step and the count of
        the schedule; otherwise it updates the state, and its metrics are not finite.
      loss_limit: with `skip_non_finite`, the mean loss above which a step is skipped, too; None: no limit.
      freezing: the frozen parameters and batch statistics.
      augmentation: of a batch, on the device; where images are mixed, a micro-batch has an even number of rows.
    """

    normalization: preprocess.Normalization
    dtype: Any
    aux_weights: Sequence[float]
    label_smoothing: float = 0.0
    class_weights: Sequence[float] | None = None
    seed: Any = 0
    accumulation: int = 1
    ema_decay: float = 0.0
    ema_num_updates: bool = True
    ema_new_weight: Any = None
    skip_non_finite: bool = False
    loss_limit: float | None = None
    freezing: Freezing = dataclasses.field(default_factory=Freezing)
    augmentation: DeviceAugmentation = NO_AUGMENTATION


def example_keys(seed: Any, step: jax.Array, rows: jax.Array) -> jax.Array:
    """Makes one PRNG key per example, a function of (seed, step, row of the global batch) alone.

    Args:
      seed: the run's seed, or the words of its key, uint32.
      step: int32 scalar.
      rows: int [b], rows of the global batch.

    Returns:
      Typed keys [b].
    """
    key = jax.random.key(seed) if jnp.ndim(seed) == 0 else jax.random.wrap_key_data(seed)
    key = jax.random.fold_in(key, step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)


def make_input(
    batch: Batch,
    keys: jax.Array,
    augmentation: DeviceAugmentation,
    normalization: preprocess.Normalization,
    dtype: jax.typing.DTypeLike,
) -> tuple[jax.Array, jax.Array | Labels]:
    """Augments a micro-batch on the device and normalizes it.

    Args:
      batch: "image" uint8 [b, H, W, C], "label" int [b] (uint8 [b, num_classes] of several labels), "mask" bool [b].
      keys: typed keys [b], from `example_keys`.
      augmentation: on the device.
      normalization: of uint8 pixels, to the network's input.
      dtype: of the network's input.

    Returns:
      The network's input [b, H, W, C], and the labels; `Labels` where images are mixed.
    """
    if not augmentation:
        return preprocess.preprocess(batch["image"], normalization=normalization, dtype=dtype), batch["label"]
    pixels, labels = augment(
        batch["image"],
        batch["label"],
        batch["mask"],
        keys,
        augmentation,
        mean=normalization.rgb_mean,
        dtype=np.promote_types(dtype, jnp.float32),
    )
    return preprocess.normalize(pixels, normalization=normalization, dtype=dtype), labels


def make_train_step(
    model: nn.Module, optimizer: optax.GradientTransformation, objective: Objective, *, devices: int
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Builds the training step for a per-device batch.

    The step maps (state, batch) to (next state, metrics). `batch` holds "image" uint8 [b, H, W, C], "label" int32 [b],
    or uint8 [b, num_classes] of 0 and 1 where examples have several labels (`data.labels=multi`), and "mask" bool [b];
    rows whose mask is False are left out of loss and gradient. Metrics are float scalars,
    already reduced over all devices: sums over the unmasked examples of the global batch under their names ("loss",
    "loss_main", "loss_aux1", …, "top1_main", "top5_main", …; of mixed images by their mixed labels), "count", and
    "gradient_norm", the global norm of the mean gradient before weight decay and clipping. With a leaf "stop" in the
    batch (bool or float [1], whether this process got a signal; `parallel.Devices.flag`) there is "stop", its sum over
    all devices. With `objective.skip_non_finite` there is "skipped": 1 for a skipped step, whose other sums are 0.

    Args:
      model: a network; with batch norm, its axis name and groups must be set.
      optimizer: its updates are added to the parameters.
      objective: options of the step.
      devices: size of the axis `AXIS` that the step will be compiled over.
    """

    freezing = objective.freezing

    def loss_fn(trained, frozen, batch_stats, batch, keys):
        images, labels = make_input(batch, keys, objective.augmentation, objective.normalization, objective.dtype)
        variables = {"params": merge(trained, frozen), "batch_stats": batch_stats}
        output, updates = model.apply(variables, images, train=True, example_keys=keys, mutable=["batch_stats"])
        total, heads = losses.inception_loss(
            output,
            labels,
            objective.aux_weights,
            objective.label_smoothing,
            objective.class_weights,
            multi_label=losses.is_multi_label(labels, output.logits),
        )
        metrics = _sums(output, total, heads, labels, batch["mask"])
        return metrics["loss"], (updates.get("batch_stats", {}), metrics)

    def gradients_and_sums(*arguments):
        # Of parameters in 16 bits, too: gradients are added over micro-batches and devices.
        sums, gradients = jax.value_and_grad(loss_fn, has_aux=True)(*arguments)
        return sums, gradient_transformations.at_least_float32(gradients)

    def gradients_of(state: TrainState, batch: Batch, keys: jax.Array) -> tuple[Any, Any, Metrics]:
        """(gradient of the summed loss, new batch statistics, metric sums), over all micro-batches."""
        params = freezing.split(state.params)
        if objective.accumulation == 1:
            (_, (batch_stats, metrics)), gradients = gradients_and_sums(*params, state.batch_stats, batch, keys)
            return gradients, batch_stats, metrics

        def add_micro_batch(carry, micro_batch):
            gradients, batch_stats, metrics = carry
            (_, (batch_stats, new_metrics)), new_gradients = gradients_and_sums(*params, batch_stats, *micro_batch)
            return (_add(gradients, new_gradients), batch_stats, _add(metrics, new_metrics)), None

        micro_batches = jax.tree.map(lambda x: x.reshape(objective.accumulation, -1, *x.shape[1:]), (batch, keys))
        first = jax.tree.map(lambda x: x[0], micro_batches)
        metric_shapes = jax.eval_shape(loss_fn, *params, state.batch_stats, *first)[1][1]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (params[0], metric_shapes))
        start = (gradient_transformations.at_least_float32(zeros[0]), state.batch_stats, zeros[1])
        (gradients, batch_stats, metrics), _ = lax.scan(add_micro_batch, start, micro_batches)
        return gradients, batch_stats, metrics

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        per_device = batch["label"].shape[0]
        rows = lax.axis_index(AXIS) * per_device + jnp.arange(per_device, dtype=jnp.int32)
        keys = example_keys(objective.seed, state.step, rows)
        examples = {name: leaf for name, leaf in batch.items() if name != "stop"}
        gradients, batch_stats, metrics = gradients_of(state, examples, keys)
        batch_stats, frozen_stats = freezing.split_statistics(batch_stats)  # frozen ones are equal on all devices
        if "stop" in batch:
            metrics["stop"] = jnp.sum(batch["stop"].astype(metrics["loss"].dtype))
        gradients, batch_stats, metrics = sum_over_devices((gradients, batch_stats, metrics), devices)
        # A batch of padding alone must have a gradient of zero, not 0 / 0.
        count = jnp.maximum(metrics["count"], 1)
        gradients = jax.tree.map(lambda g: g / count.astype(g.dtype), gradients)
        batch_stats = merge(jax.tree.map(lambda s: s / devices, batch_stats), frozen_stats)
        metrics["gradient_norm"] = gradient_transformations.global_norm(gradients)

        trained, frozen = freezing.split(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        params = merge(optax.apply_updates(trained, updates), frozen)
        ema = state.ema
        if ema is not None:
            weight = objective.ema_new_weight
            weight = ema_lib.new_weight(objective.ema_decay) if weight is None else weight
            rule = objective.ema_num_updates
            ema = ema_lib.update(ema, params, batch_stats, weight=weight, step=state.step + 1, num_updates_rule=rule)
        next_state = TrainState(state.step + 1, params, batch_stats, opt_state, ema)
        if objective.skip_non_finite:
            next_state, metrics = _skip_if_bad(state, next_state, metrics, objective.loss_limit)
        return next_state, metrics

    return train_step


def make_eval_step(
    model: nn.Module,
    normalization: preprocess.Normalization,
    dtype: Any,
    *,
    devices: int,
    top_k: int = 5,
    every_class: bool = False,
) -> Callable[[Any, Batch], tuple[Metrics, Batch]]:
    """Builds the evaluation step for a per-device batch.

    The step maps (variables, batch) to (sums, predictions): sums over the unmasked examples of the global batch: "loss"
    (cross-entropy in nats, without label smoothing), "top1", "top5" and "count"; and, for the device's own rows,
    "classes" int32 [b, k] and "probabilities" [b, k], the most probable first. Where the images of a batch are crops,
    [b, crops, H, W, C], all of this is of the mean of their softmax probabilities.

    With labels uint8 [b, num_classes] (several per example) the loss is `losses.sigmoid_cross_entropy`, there are no
    "top1" and "top5", probabilities are those of sigmoid, and "every_class" is always there.

    Args:
      model: a network of this package.
      normalization: of uint8 pixels, to the network's input.
      dtype: the network's compute dtype.
      devices: size of the axis `AXIS` that the step will be compiled over.
      top_k: number of classes per example in "classes"; at most all.
      every_class: whether the predictions also have "every_class", the log of all probabilities [b, num_classes].
    """

    def eval_step(variables: Any, batch: Batch) -> tuple[Metrics, Batch]:
        def classify(images: jax.Array) -> jax.Array:
            images = preprocess.preprocess(images, normalization=normalization, dtype=dtype)
            output: Any = model.apply(variables, images, train=False)
            return output.logits

        images, labels = batch["image"], batch["label"]
        several = labels.ndim == 2
        if images.ndim == 4:
            logits = classify(images)
        else:
            logits = crop_averaging.classify_crops(classify, images, several)
        if several:
            loss = losses.sigmoid_cross_entropy(logits, labels)
            sums = {"loss": loss, "count": batch["mask"]}
        else:
            loss = losses.softmax_cross_entropy(logits, labels, 0.0)
            sums = {
                "loss": loss,
                "top1": losses.top_k_correct(logits, labels, 1),
                "top5": losses.top_k_correct(logits, labels, 5),
                "count": batch["mask"],
            }
        sums = {name: _masked_sum(values, batch["mask"], loss.dtype) for name, values in sums.items()}
        # By the logits: two of them may have one probability, and "top1" would then count another class.
        _, classes = lax.top_k(logits, min(top_k, logits.shape[-1]))
        activation = jax.nn.sigmoid if several else jax.nn.softmax
        probabilities = jnp.take_along_axis(activation(logits), classes, axis=-1)
        rows = {"classes": classes, "probabilities": probabilities}
        if every_class or several:
            rows["every_class"] = (jax.nn.log_sigmoid if several else jax.nn.log_softmax)(logits)
        return sum_over_devices(sums, devices), rows

    return eval_step


def sum_over_devices(tree: Any, devices: int) -> Any:
    """Sums every leaf over the axis `AXIS`, in one all-reduce per dtype.

    All leaves of a dtype are reduced as one vector: hundreds of small all-reduces would each cost their latency.

    Args:
      tree: arrays, one device's summands.
      devices: size of the axis; with 1 the tree is returned unchanged.
    """
    if devices == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    by_dtype: dict[Any, list[int]] = {}
    for place, leaf in enumerate(leaves):
        by_dtype.setdefault(leaf.dtype, []).append(place)
    for places in by_dtype.values():
        total = lax.psum(jnp.concatenate([leaves[place].ravel() for place in places]), AXIS)
        start = 0
        for place in places:
            leaf = leaves[place]
            leaves[place] = lax.dynamic_slice_in_dim(total, start, leaf.size).reshape(leaf.shape)
            start += leaf.size
    return jax.tree.unflatten(structure, leaves)


def _skip_if_bad(
    before: TrainState, after: TrainState, metrics: Metrics, loss_limit: float | None
) -> tuple[TrainState, Metrics]:
    """Selects the state after the step, or, if that is bad, the state before it with the next step number.

    Args:
      before: the state before the step.
      after: the state after it.
      metrics: already reduced over all devices, so that all decide the same.
      loss_limit: as in `Objective`.
    """
    loss = metrics["loss"]
    good = jnp.isfinite(loss) & jnp.isfinite(metrics["gradient_norm"])
    if loss_limit is not None:
        good &= loss <= loss_limit * metrics["count"]

    def select(new: Any, old: Any) -> Any:
        if isinstance(new, schedule_states):
            return new  # the schedule is a function of the step, skipped or not
        return jnp.where(good, new, old)

    schedule_states = (gradient_transformations.LearningRateState, optax.ScaleByScheduleState)
    is_schedule = lambda node: isinstance(node, schedule_states)  # noqa: E731
    selected = jax.tree.map(select, after, before, is_leaf=is_schedule).replace(step=after.step)
    metrics = {name: value if name == "stop" else jnp.where(good, value, 0) for name, value in metrics.items()}
    metrics["skipped"] = 1 - good.astype(loss.dtype)
    return selected, metrics


def _sums(
    output: Any, total: jax.Array, heads: dict[str, jax.Array], labels: jax.Array | Labels, mask: jax.Array
) -> Metrics:
    """The training metrics of a micro-batch, as sums over its unmasked examples."""
    logits = dict(zip(heads, (output.logits, *output.aux_logits), strict=True))
    values = {"loss": total}
    several = losses.is_multi_label(labels, output.logits)
    for head, loss in heads.items():
        values[f"loss_{head}"] = loss
        if not several:
            values[f"top1_{head}"] = losses.top_k_accuracy(logits[head], labels, 1)
    if not several:
        values["top5_main"] = losses.top_k_accuracy(output.logits, labels, 5)
    values["count"] = mask
    return {name: _masked_sum(value, mask, total.dtype) for name, value in values.items()}


def _masked_sum(values: jax.Array, mask: jax.Array, dtype: Any) -> jax.Array:
    return jnp.sum(jnp.where(mask, values.astype(dtype), 0))


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)
