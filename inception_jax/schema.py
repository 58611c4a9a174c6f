"""The fields of a config: default, meaning with its unit, and allowed values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from inception_jax import allowed_values as allowed
from inception_jax.allowed_values import Form
from inception_jax.ranges import FLOAT32_MAX, INT32_MAX, MAX_BATCH, MAX_IMAGE_PIXELS, Range


@dataclasses.dataclass(frozen=True)
class Field:
    """One leaf of the schema.

    Attributes:
      default: the value where a recipe sets none; a type instead of a value means "unset, and of that type".
      doc: meaning, with its unit.
      allowed: the range of a number, which every field of a number has; (predicate that a value must satisfy, its
        description); None: any value of the type.
      earlier: the value that a config.json without this field stands for, which an earlier version wrote; None: the
        default.
    """

    default: Any
    doc: str
    allowed: Range | Form | None = None
    earlier: Any = None

    @property
    def kind(self) -> type:
        """The type of the field's values."""
        return self.default if isinstance(self.default, type) else type(self.default)

    def refusal(self, value: Any) -> str | None:
        """What a value of the field's type must be, as it is not; None: it is allowed."""
        if isinstance(self.allowed, Range):
            return None if value in self.allowed else str(self.allowed)
        return None if self.allowed is None or self.allowed[0](value) else self.allowed[1]


SCHEMA: dict[str, Any] = {
    "seed": Field(
        0,
        "seed of the initial parameters, the data order, all augmentations and all dropout masks",
        Range(0, 2**32 - 1),
    ),
    "extensions": Field(
        (),
        "Python files (or modules) that are imported before anything is built: they register networks, data sets, "
        "optimizers, augmentations or metrics of your own",
        (lambda value: all(isinstance(name, str) and name for name in value), "paths of Python files or module names"),
    ),
    "batch_size": Field(64, "examples per step, over all devices and processes (global batch size)", allowed.BATCH),
    "num_epochs": Field(
        float, "length of the run, in passes over the training split", allowed.up_to(allowed.MAX_EPOCHS)
    ),
    "num_steps": Field(int, "length of the run, in steps; overrides num_epochs", allowed.POSITIVE_COUNT),
    "model": {
        "name": Field("inception_v1", "a name of inception_jax.model_names()"),
        "num_classes": Field(
            int,
            "classes of the classifier; unset: as many as the data set has; 0: no classifier (a workdir that "
            "convert made from weights without one)",
            Range(0, MAX_BATCH),
        ),
        "in_channels": Field(
            3,
            "channels of the images; 3: colours, a grey image is repeated; 1: grey images; others: files or "
            "arrays with so many",
            allowed.up_to(1024),
        ),
        "dtype": Field("float32", "compute dtype: activations", allowed.DTYPE),
        "param_dtype": Field("float32", "dtype of the parameters", allowed.DTYPE),
        "convolution": Field(
            str,
            "algorithm of the convolutions on CPUs; exact: direct sums; fast: also Winograd's filtering, which rounds "
            "otherwise, for weight gradients; onednn: by oneDNN, which the extra of that name installs; "
            "onednn_winograd: by oneDNN, in float32 with Winograd's filtering; unset: what the run in the workdir "
            "began with, fast in a new one",
            allowed.one_of("fast", "exact", "onednn", "onednn_winograd"),
            earlier="exact",
        ),
        "width_multiplier": Field(1.0, "scales the number of filters of every layer", allowed.up_to(1000)),
        "aux_heads": Field(True, "whether the auxiliary heads are built and trained"),
        "dropout_rate": Field(float, "dropout before the classifier; unset: the paper's", allowed.FRACTION),
        "aux_dropout_rate": Field(float, "dropout inside the auxiliary heads; unset: the paper's", allowed.FRACTION),
        "bn_initial_fraction": Field(
            float,
            "batch norm: fraction of the initial running statistics that may remain after the last step; lowers "
            "options.bn_momentum to fraction ** (1 / number of updates) where the run is short; unset: bn_momentum as "
            "it is",
            Range(0, 1, open_low=True, open_high=True),
        ),
        "options": {},  # filled with the options of the models by `default()`
    },
    "data": {
        "name": Field(
            "digits",
            "digits, fashion_mnist, imagenet2012, folder:PATH, list:FILE, webdataset:PATTERN, huggingface:PATH, "
            "synthetic, a prepared TFDS name, or a registered one",
        ),
        "data_dir": Field(str, "directory of prepared data sets; unset: TFDS_DATA_DIR, then ~/tensorflow_datasets"),
        "class_names": Field(
            str,
            "folder:PATH, list:FILE, webdataset:PATTERN, huggingface:PATH without named classes: file with a class "
            "folder (or label) per line, in the order of the labels; for integer labels with other lines, line 1 names "
            "label 0; unset: alphabetical order, or the integers",
        ),
        "image_key": Field(
            str,
            "prepared data set with several images: the feature to read, nested as outer/inner (unset: the only one); "
            "list:FILE: the column of the paths (unset: path); webdataset:PATTERN: the suffix of the images, such as "
            "left.jpg (unset: any image); huggingface:PATH: the column of the images (unset: the only one)",
        ),
        "label_key": Field(
            str,
            "prepared data set with several labels: the feature to read (unset: the set's own, or the only one); "
            "list:FILE: the column (unset: label); webdataset:PATTERN: the field of .json (unset: label); "
            "huggingface:PATH: the column (unset: the only one with named classes, or label, labels); with labels "
            "multi also a dict of bools, each a class; * for list:FILE: each column beside path and split is a class, "
            "0 or 1; for a prepared data set: each bool beside the image; for webdataset:PATTERN: each bool of .json",
        ),
        "labels": Field(
            "single",
            "single: each example has one class; multi: any number, also none (sigmoid cross-entropy, mean over the "
            "classes; mean average precision)",
            allowed.one_of("single", "multi"),
        ),
        "train_split": Field("train", "training split, such as train or train[:90%]"),
        "sampling": Field(
            "uniform",
            "training examples of a batch; uniform: each example once per epoch; balanced: each class equally often, "
            "the examples of a class in turn",
            allowed.one_of("uniform", "balanced"),
        ),
        "decode": Field(
            "exact",
            "of training JPEGs; scaled: one whose crop is at least twice the network's size is decoded at 1/2, 1/4 or "
            "1/8 of its size by its DCT, in less time, to other pixels (with rule area_aspect)",
            allowed.one_of("exact", "scaled"),
        ),
        "eval_split": Field("test", "evaluation split, such as test or validation"),
        "image_size": Field(
            int, "height and width of the network's input, in pixels; unset: the model's default", allowed.SIDE
        ),
        "normalization": Field(
            "inception",
            "normalization of uint8 pixels, on the device; a name of training/preprocess.py, or per_channel: (pixel / "
            "255 - data.mean) / data.std",
        ),
        "mean": Field(tuple, "normalization per_channel: mean of each channel, from 0 to 1", allowed.WEIGHTS),
        "std": Field(
            tuple,
            "normalization per_channel: standard deviation of each channel, from 0 to 1",
            allowed.POSITIVE_NUMBERS,
        ),
        "threads": Field(
            int,
            "decoding threads per worker process; unset: the number of cores, at most 8",
            allowed.up_to(allowed.MAX_THREADS),
        ),
        "workers": Field(
            int,
            "worker processes of the data loader; 0: threads only; unset: 0 up to 8 cores, then one per 4",
            Range(0, allowed.MAX_THREADS),
        ),
        "max_pixels": Field(
            178_956_970,
            "largest image that is decoded, height times width in pixels; the default is that of Pillow, 537 MB",
            allowed.up_to(MAX_IMAGE_PIXELS),
        ),
        "prefetch": Field(
            2, "batches that are transferred to the devices ahead of the step", allowed.up_to(allowed.MAX_THREADS)
        ),
        "cache_mb": Field(
            0,
            "decoded training images that each process keeps in memory, in MB (an image: height times width times "
            "channels, bytes): they are read and decoded once; without worker processes, also where workers is unset",
            Range(0, INT32_MAX),
        ),
    },
    "augmentation": {
        "rule": Field(
            "area_aspect",
            "training crop; area_aspect: of random area and aspect ratio; random_crop: a square at a random "
            "position, after the shorter side was resized; none: the evaluation crop; or one that is registered",
        ),
        "area": Field((0.08, 1.0), "area_aspect: smallest and largest fraction of the image's area", allowed.AREA),
        "aspect": Field(
            (3 / 4, 4 / 3), "area_aspect: smallest and largest aspect ratio, width / height", allowed.ASPECT
        ),
        "resize": Field(256, "random_crop: the shorter side before the crop, in pixels", allowed.SIDE),
        "flip": Field(True, "random horizontal flip, with probability 1/2"),
        "interpolation": Field(
            "bilinear",
            "of the training resize; random: bilinear, area, nearest or cubic, each equally likely",
            allowed.one_of("bilinear", "area", "nearest", "cubic", "random"),
        ),
        "policy": Field(
            "none",
            "operations on the cropped image, with torchvision's magnitudes; randaugment: policy_operations of 14, at "
            "one magnitude; trivialaugment_wide: one, at a random magnitude",
            allowed.one_of("none", "randaugment", "trivialaugment_wide"),
        ),
        "policy_operations": Field(2, "randaugment: operations per image", Range(1, 16)),
        "policy_magnitude": Field(9, "randaugment: strength of the operations, of 30", Range(0, 30)),
        "photometric": Field(
            "none",
            "distortion of colours, on the device; howard: brightness, contrast, colour by 0.5 to 1.5 in random order "
            "(arXiv:1312.5402); slim: TF-Slim's four orders of brightness, saturation, hue, contrast; slim_fast: its "
            "fast mode, brightness and saturation",
            allowed.one_of("none", "howard", "slim", "slim_fast"),
        ),
        "lighting": Field(
            0.0,
            "standard deviation of the noise along the principal components of ImageNet's colours, on the device "
            "(AlexNet: 0.1); 0: none",
            Range(0, 100),
        ),
        "erasing_probability": Field(
            0.0, "random erasing, on the device: probability that a rectangle is replaced", Range(0, 1)
        ),
        "erasing_area": Field((0.02, 0.4), "of that rectangle, as a fraction of the image's", allowed.AREA),
        "erasing_aspect": Field((0.3, 1 / 0.3), "of that rectangle, height / width", allowed.ASPECT),
        "erasing_fill": Field(
            "random",
            "of that rectangle; random: a random byte per pixel and channel; zero: 0 after normalization",
            allowed.one_of("random", "zero"),
        ),
        "mixup_alpha": Field(
            0.0,
            "mixup with the neighbour in the batch, on the device: both parameters of the weight's beta distribution; "
            "0: no mixup",
            allowed.ALPHA,
        ),
        "cutmix_alpha": Field(
            0.0,
            "CutMix, likewise; with both, each image takes one of them, equally likely; 0: no CutMix",
            allowed.ALPHA,
        ),
        "mix_probability": Field(1.0, "mixup, CutMix: probability that an image is mixed", Range(0, 1, open_low=True)),
    },
    "optimizer": {
        "name": Field(
            "sgd", "sgd with momentum, rmsprop (TensorFlow's), adamw, any of Optax's as optax.NAME, or a registered one"
        ),
        "options": Field(
            object,
            "optax.NAME or a registered optimizer: its own options by keyword, a mapping such as {'b1': 0.95}; unset: "
            "its defaults",
            allowed.OPTIMIZER_OPTIONS,
        ),
        "learning_rate": Field(0.01, "base learning rate of the schedule", allowed.DEVICE_NUMBER),
        "momentum": Field(0.9, "sgd, rmsprop: decay of the velocity", allowed.FRACTION),
        "nesterov": Field(False, "sgd: Nesterov momentum"),
        "decay": Field(0.9, "rmsprop: decay of the mean square", allowed.FRACTION),
        "epsilon": Field(
            float,
            "rmsprop: inside the square root, unset: 1.0; adamw: outside it, unset: 1e-8",
            allowed.POSITIVE_DEVICE_NUMBER,
        ),
        "b1": Field(0.9, "adamw: decay of the first moment", allowed.FRACTION),
        "b2": Field(0.999, "adamw: decay of the second moment", allowed.FRACTION),
        "weight_decay": Field(
            0.0, "w in ½·w·‖kernel‖² (sgd, rmsprop) or decoupled (adamw); kernels only", allowed.DEVICE_NUMBER
        ),
        "clip_norm": Field(
            float,
            "clipping by global norm: the largest norm, weight decay included; unset: no clipping",
            allowed.POSITIVE_DEVICE_NUMBER,
        ),
        "bias_learning_rate": Field(
            1.0, "multiplier of the learning rate of biases (Caffe's GoogLeNet: 2)", allowed.DEVICE_NUMBER
        ),
        "freeze": Field(
            (),
            "regular expressions for paths of frozen parameters, such as ('^conv1/', '^inception_3')",
            allowed.PATTERNS,
        ),
        "frozen_batch_norm": Field(
            "running",
            "statistics of a batch norm layer whose parameters are all frozen: "
            "running (the running statistics, which are frozen too) or batch (as in training)",
            allowed.one_of("running", "batch"),
        ),
        "learning_rate_multipliers": Field(
            (),
            "(regular expression, multiplier) pairs; the first one found in a parameter's path multiplies "
            "its learning rate; bias_learning_rate applies only where none is found",
            allowed.MULTIPLIERS,
        ),
        "accumulation": Field(1, "micro-batches per device and step (gradient accumulation)", allowed.BATCH),
    },
    "schedule": {
        "name": Field(
            "constant",
            "learning-rate schedule",
            allowed.one_of("constant", "exponential", "polynomial", "cosine"),
        ),
        "decay_rate": Field(0.94, "exponential: factor per decay_epochs", Range(0, 1, open_low=True)),
        "decay_epochs": Field(2.0, "exponential: epochs per decay_rate", Range(1e-6, allowed.MAX_EPOCHS)),
        "staircase": Field(True, "exponential: decay at whole multiples of decay_epochs, instead of continuously"),
        "power": Field(0.5, "polynomial: (1 - step / steps) ** power", allowed.POSITIVE_DEVICE_NUMBER),
        "end_learning_rate": Field(
            0.0, "learning rate; exponential: the smallest; polynomial, cosine: the last", allowed.DEVICE_NUMBER
        ),
        "warmup_epochs": Field(
            0.0,
            "length of the linear warm-up, in epochs: a multiplier of the schedule grows to 1",
            Range(0, allowed.MAX_EPOCHS),
        ),
        "warmup_start": Field(0.1, "multiplier of the schedule at step 0 of the warm-up", allowed.FRACTION),
    },
    "loss": {
        "label_smoothing": Field(
            0.0,
            "label smoothing s: probability that is spread evenly over all classes; with data.labels multi the targets "
            "are s/2 and 1 - s/2",
            allowed.FRACTION,
        ),
        "class_weights": Field(
            object,
            "factors of the loss of an example by its class; balanced: training examples / (classes * training "
            "examples of the class), whose mean over the examples is 1; or (class, factor) pairs or a mapping, as "
            "they are, 1 for the other classes (with data.labels multi the factors of each class's term); unset: 1 for "
            "all",
            allowed.CLASS_WEIGHTS,
        ),
        "aux_weights": Field(tuple, "loss weight of each auxiliary head; unset: the paper's", allowed.WEIGHTS),
    },
    "ema": {
        "decay": Field(
            0.0,
            "decay of the exponential moving average (EMA) of parameters and batch statistics; 0: no EMA",
            allowed.FRACTION,
        ),
        "num_updates": Field(True, "TensorFlow's num_updates rule: decay_t = min(decay, (1 + t) / (10 + t))"),
    },
    "initialize": {
        "checkpoint": Field(
            str, "warm start: workdir or checkpoint whose weights a new run starts from; unset: random initialization"
        ),
        "weights": Field(
            str, "weights of that checkpoint: raw or ema; unset: ema if it has them", allowed.one_of("raw", "ema")
        ),
        "step": Field(str, "checkpoint of that workdir: newest, best or a step; unset: newest"),
        "new": Field(
            (),
            "regular expressions for paths of parameters that are initialized at random nevertheless; a "
            "classifier of another number of classes always is",
            allowed.PATTERNS,
        ),
    },
    "faults": {
        "max_skipped_steps": Field(
            0,
            "consecutive steps that may be skipped (no update) because the loss or gradient is not finite "
            "or the loss is above loss_limit; one more ends the run",
            allowed.COUNT,
        ),
        "loss_limit": Field(
            float,
            "mean loss of a step above which it counts as diverged; unset: no limit",
            allowed.POSITIVE_DEVICE_NUMBER,
        ),
        "max_corrupt": Field(
            0,
            "undecodable images per run that are masked out of loss and metrics, counted per draw (a file counts in "
            "every epoch); one more ends the run",
            allowed.COUNT,
        ),
        "stall_warning_seconds": Field(
            60.0, "seconds without a batch until the log says what the input is waiting for", allowed.SECONDS
        ),
        "stall_limit_seconds": Field(
            1800.0,
            "seconds without a batch until the run saves a checkpoint and ends with exit code 7",
            allowed.SECONDS,
        ),
    },
    "parallel": {
        "mode": Field(
            "jit",
            "jit (jax.jit of jax.shard_map) or pmap (jax.pmap); the numbers are the same",
            allowed.one_of("jit", "pmap"),
        ),
        "devices": Field(int, "number of devices to use, over all processes; unset: all", allowed.POSITIVE_COUNT),
        "steps_per_execution": Field(
            1,
            "training steps that one call of the compiled program takes at most; log rows, evaluations and checkpoints "
            "keep their steps, a signal waits for the end of two calls, or of three with several processes",
            allowed.STEPS_PER_EXECUTION,
        ),
        "batch_norm": Field(
            "local",
            "examples that share batch-norm statistics: local (those of a device, as in the papers), global (all), "
            "groups:N (those of N neighbouring devices) or examples:N (N neighbouring examples, the same on any "
            "number of devices; with accumulation, of one micro-batch)",
            allowed.BATCH_NORM,
        ),
    },
    "evaluation": {
        "every_epochs": Field(
            1.0, "epochs between evaluations; the last step is always evaluated", allowed.up_to(allowed.MAX_EPOCHS)
        ),
        "batch_size": Field(
            int, "examples per evaluation step, of many crops the crops; unset: batch_size", allowed.BATCH
        ),
        "batch_norm_images": Field(
            int,
            "training images from which the batch-norm statistics are estimated before every evaluation, rounded up to "
            "whole batches; unset: the running statistics",
            allowed.POSITIVE_COUNT,
        ),
        "image_size": Field(
            int,
            "height and width of the network's input in evaluations, in pixels; unset: data.image_size",
            allowed.SIDE,
        ),
        "protocol": Field(
            "single",
            "crops of an image whose predictions are averaged: single (the crop below), flip (it and its mirror "
            "image), 10-crop, 12-crop or 144-crop",
        ),
        "crop": Field(
            "center",
            "center: the shorter side resized, then the center crop; torchvision: the same, with the offsets "
            "of torchvision and timm; squash: both sides resized, aspect ratio not kept, then the center crop "
            "(Caffe, pytorch-fid); central_fraction: TensorFlow's, the central crop_fraction of each side, "
            "then resized",
            allowed.one_of("center", "torchvision", "squash", "central_fraction"),
        ),
        "crop_fraction": Field(
            0.875,
            "center, torchvision, squash: sides are resized to image_size / crop_fraction before the crop (1: the "
            "crop is the whole shorter side), unless resize is set; central_fraction: what is kept of each side",
            Range(0, 1, open_low=True),
        ),
        "resize": Field(
            int,
            "center, torchvision, squash: the side before the crop, in pixels, instead of "
            "crop_fraction; unset: image_size / crop_fraction",
            allowed.SIDE,
        ),
        "interpolation": Field(
            "bilinear",
            "of the evaluation resize: OpenCV's bilinear, area, nearest or cubic; "
            "pil_bilinear, pil_bicubic: Pillow's, with antialiasing (torchvision, timm); tf_bilinear: "
            "TensorFlow 1's",
            allowed.one_of("bilinear", "area", "nearest", "cubic", "pil_bilinear", "pil_bicubic", "tf_bilinear"),
        ),
    },
    "checkpoint": {
        "every_epochs": Field(
            1.0, "epochs between checkpoints; the last step is always saved", allowed.up_to(allowed.MAX_EPOCHS)
        ),
        "keep": Field(
            2,
            "number of latest checkpoints that are kept, beside the best one",
            Range(2, INT32_MAX),
        ),
        "best_metric": Field(
            str,
            "evaluation metric by which the best checkpoint is chosen: loss, top1, top5, balanced_accuracy, macro_f1, "
            "expected_calibration_error, or one that is registered; with data.labels multi: loss, "
            "mean_average_precision, micro_f1, macro_f1, exact_match; unset: top1 or mean_average_precision",
        ),
    },
    "stop": {
        "patience": Field(
            int,
            "evaluations in a row without a better checkpoint.best_metric (of the EMA weights where there are any) "
            "after which the run ends, finished; unset: it never ends early",
            allowed.POSITIVE_COUNT,
        ),
        "min_improvement": Field(
            0.0, "difference from the best value that counts as better, in the metric's own unit", allowed.DEVICE_NUMBER
        ),
        "target": Field(
            float,
            "value that target_metric is to reach, at least (at most, where lower is better), such as 0.97; what the "
            "run needed to reach it is written into result.json; unset: no target",
            Range(-FLOAT32_MAX, FLOAT32_MAX),
        ),
        "target_metric": Field(
            str,
            "evaluation metric of the target (of the EMA weights where there are any); unset: checkpoint.best_metric",
        ),
        "at_target": Field(
            True, "whether the run ends, finished, at the evaluation that reaches the target; False: it goes on"
        ),
    },
    "logging": {
        "every_steps": Field(10, "steps between rows of metrics.jsonl", allowed.POSITIVE_COUNT),
        "tensorboard": Field(True, "also write TensorBoard events"),
        "sinks": Field(
            (),
            "services to which rows, config, plots and result are copied as well: wandb, mlflow, tensorboard, or ones "
            "that are registered",
            (lambda value: all(isinstance(name, str) for name in value), "names"),
        ),
        "pictures": Field(
            True,
            "draw images of the first batch, and at the end plots: learning curves, confusion matrix, predictions, "
            "activations, first-layer filters",
        ),
    },
}


def fields(schema: Mapping[str, Any] = SCHEMA, prefix: str = "") -> Iterator[tuple[str, Field]]:
    """Yields (dotted path, field) of every leaf of the schema, without the options of the models."""
    for name, entry in schema.items():
        if isinstance(entry, Field):
            yield f"{prefix}{name}", entry
        else:
            yield from fields(entry, f"{prefix}{name}.")
