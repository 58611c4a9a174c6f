"""Builds the input pipelines of a run from its config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from inception_jax.config import Config, ConfigError
from inception_jax.data import datasets, eval_protocols
from inception_jax.data.label_sets import NO_LABELS
from inception_jax.data.pipeline import EvalPipeline, TrainPipeline
from inception_jax.errors import UserError
from inception_jax.runs import data_record
from inception_jax.training import augmentation_setup, crop_averaging, host_devices, memory_check, split_checks
from inception_jax.training.network_setup import NetworkInput
from inception_jax.training.parallel import Devices


@dataclasses.dataclass(frozen=True)
class RunData:
    """The input pipelines of a run.

    Attributes:
      train: batches of the training split.
      eval: one pass over the evaluation split.
      class_names: one per class.
      identity: of the data, as it is recorded in data.json.
      prefetch: batches that are transferred to the devices ahead of the step.
      problems: why the accuracy will not be that on new images of what is trained on (`split_checks`), a line each.
    """

    train: TrainPipeline
    eval: EvalPipeline
    class_names: list[str]
    identity: dict[str, Any]
    prefetch: int
    problems: tuple[str, ...] = ()


def load_splits(
    config: Config | ConfigDict, *splits: str, other: Mapping[str, str] | None = None, labelled: bool = True
) -> list[datasets.Dataset]:
    """Opens splits of the config's data set, or of another one.

    Args:
      config: its section `data` is read.
      *splits: as in `datasets.load`.
      other: fields of another data set, as `OtherData.named` takes them; `data.data_dir` and `data.labels` hold for it,
        too.
      labelled: whether the labels are read; False: they need not be there.

    Raises:
      UserError: as `datasets.load`.
    """
    fields = config.data
    labels = fields.labels if labelled else NO_LABELS
    chosen = OtherData.of(config) if other is None else OtherData.named(config, other)
    try:
        return datasets.load_splits(
            chosen.name, splits, fields.data_dir, chosen.class_names, chosen.image_key, chosen.label_key, labels
        )
    except UserError as error:
        if other is None:
            raise
        raise UserError(error.naming_flags("class_names", "image_key", "label_key")) from None


@dataclasses.dataclass(frozen=True)
class OtherData:
    """A data set that flags of a command name, beside that of a config.

    Attributes:
      name: as `config.data.name`.
      class_names: as `config.data.class_names`.
      image_key: as `config.data.image_key`.
      label_key: as `config.data.label_key`.
    """

    name: str
    class_names: str | None = None
    image_key: str | None = None
    label_key: str | None = None

    @classmethod
    def named(cls, config: Config | ConfigDict, fields: Mapping[str, str]) -> OtherData:
        """The data set of these fields; where it is the config's own, its other fields are the config's."""
        own = cls.of(config)
        return dataclasses.replace(own, **fields) if own.name == fields["name"] else cls(**fields)

    @classmethod
    def of(cls, config: Config | ConfigDict) -> OtherData:
        """The data set of a config."""
        return cls(*(getattr(config.data, field.name) for field in dataclasses.fields(cls)))

    def set_in(self, config: ConfigDict) -> None:
        """Makes it the data set of a config."""
        for field in dataclasses.fields(self):
            config.data[field.name] = getattr(self, field.name)


def build_train_data(
    config: Config, dataset: datasets.Dataset, network_input: NetworkInput, devices: Devices | None = None
) -> TrainPipeline:
    """Builds the pipeline of a training split.

    Args:
      config: of the run.
      dataset: the split.
      network_input: of the network.
      devices: of the run; for described ones this machine's memory is not checked.

    Raises:
      UserError: a value of the augmentation that does not fit, or more batches or decoded images than the memory holds.
    """
    if not (devices and devices.described):
        memory_check.refuse_cache(config.data.cache_mb)
    pipeline = TrainPipeline(
        dataset,
        batch_size=config.batch_size,
        image_size=network_input.image_size,
        seed=config.seed,
        augmentation=augmentation_setup.read_crop(config, network_input.eval_crop),
        policy=augmentation_setup.read_policy(config),
        sampling=config.data.sampling,
        decode=config.data.decode,
        cache_mb=config.data.cache_mb,
        channels=network_input.channels,
        **_reading_options(config),
    )
    if not (devices and devices.described):
        memory_check.refuse_many_batches(pipeline)
    return pipeline


def build_eval_data(
    config: Config, dataset: datasets.Dataset, network_input: NetworkInput, devices: Devices
) -> EvalPipeline:
    """Builds the pipeline of an evaluation split, every example once.

    Raises:
      UserError: an unknown protocol, a batch size that does not divide over the devices, or more batches than the
        memory holds.
    """
    protocol = eval_protocols.get_protocol(config.evaluation.protocol)
    batch_size = config.evaluation.batch_size or config.batch_size
    if host_devices.is_split():  # nobody asked for several devices: no batch size is refused for them
        batch_size = devices.round_up(batch_size)
    devices.check_batch("evaluation.batch_size" if config.evaluation.batch_size else "batch_size", batch_size)
    # The batch size is that of the network: with several crops of an image a batch has fewer examples.
    per_device = max(1, batch_size // devices.count // crop_averaging.crops_per_pass(protocol.crops))
    pipeline = EvalPipeline(
        dataset,
        batch_size=per_device * devices.count,
        image_size=network_input.eval_image_size,
        crop=network_input.eval_crop,
        protocol=protocol,
        channels=network_input.channels,
        **_reading_options(config),
    )
    if not devices.described:
        memory_check.refuse_many_batches(pipeline)
    return pipeline


def build_data(
    config: Config,
    train_split: datasets.Dataset,
    eval_split: datasets.Dataset,
    network_input: NetworkInput,
    devices: Devices,
) -> RunData:
    """Builds the pipelines of both splits.

    Raises:
      UserError: as the two builders above, or the splits have other classes.
    """
    train = build_train_data(config, train_split, network_input, devices)
    if eval_split.class_names != train_split.class_names:
        raise ConfigError(
            f"config.data.eval_split = {eval_split.split!r}: its classes are not those of {train_split.split!r}"
        )
    evaluation = build_eval_data(config, eval_split, network_input, devices)
    identity = data_record.describe(train_split, eval_split)
    problems = tuple(split_checks.compare_splits(train_split, eval_split))
    return RunData(train, evaluation, train_split.class_names, identity, config.data.prefetch, problems)


def _reading_options(config: Config) -> dict[str, Any]:
    """The options of both pipelines: threads and workers, this process's rows of a batch, undecodable images."""
    return {
        **config.data.read("threads", "workers", "max_pixels"),
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "skip_corrupt": config.faults.max_corrupt > 0,
    }
