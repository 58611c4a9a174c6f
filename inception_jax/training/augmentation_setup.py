"""Reads a config's augmentations: the crop and the policy, for the host, and those that are made on the device."""

from __future__ import annotations

from inception_jax.config import Config, ConfigError
from inception_jax.data import images
from inception_jax.data.channels import COLOURS
from inception_jax.data.policies import Policy
from inception_jax.training.device_augmentation import DeviceAugmentation, Erasing
from inception_jax.training.mixing import Mixing


def read_crop(
    config: Config, eval_crop: images.EvalCrop
) -> images.Augmentation | images.CustomAugmentation | images.EvalCrop:
    """Reads the training crop and flip, or a registered augmentation; without augmentation the evaluation crop."""
    fields = config.augmentation
    if fields.rule in images.CUSTOM:
        return images.CUSTOM[fields.rule]
    if fields.rule == "none":
        return eval_crop
    options = ("area", "aspect") if fields.rule == "area_aspect" else ("resize",)
    return images.Augmentation(**fields.read("rule", "flip", "interpolation", *options))


def read_policy(config: Config) -> Policy | None:
    """Reads the policy of operations on the cropped image; None: there is none."""
    fields = config.augmentation
    if fields.policy == "none":
        return None
    if fields.policy == "randaugment":
        return Policy(fields.policy, fields.policy_operations, fields.policy_magnitude)
    return Policy(fields.policy)


def read_device_augmentation(config: Config, micro_batch: int) -> DeviceAugmentation:
    """Reads the augmentations that are made on the device.

    Args:
      config: of the run.
      micro_batch: examples that one device takes at once.

    Raises:
      ConfigError: images are mixed in pairs, and the micro-batch is odd; or an augmentation of colours for a network of
        other channels.
    """
    fields = config.augmentation
    for name, off in (("photometric", "none"), ("lighting", 0.0)):
        if config.model.in_channels != COLOURS and (value := getattr(fields, name)) != off:
            raise ConfigError(
                f"config.augmentation.{name} = {value!r}: it is defined for colours; with config.model.in_channels = "
                f"{config.model.in_channels} leave it {off!r}"
            )
    erasing = mixing = None
    if fields.erasing_probability:
        names = ("probability", "area", "aspect", "fill")
        erasing = Erasing(*(getattr(fields, f"erasing_{name}") for name in names))
    if fields.mixup_alpha or fields.cutmix_alpha:
        mixing = Mixing(fields.mixup_alpha, fields.cutmix_alpha, fields.mix_probability)
        if micro_batch % 2:
            name = "mixup_alpha" if fields.mixup_alpha else "cutmix_alpha"
            raise ConfigError(
                f"config.augmentation.{name} = {getattr(fields, name)!r}: images are mixed in pairs, and one device "
                f"takes {micro_batch} at once (batch_size {config.batch_size}, accumulation "
                f"{config.optimizer.accumulation}); choose a batch_size that makes this even"
            )
    method = None if fields.photometric == "none" else fields.photometric
    return DeviceAugmentation(method, fields.lighting, erasing, mixing)
