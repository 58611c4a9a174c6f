"""`TrainedNetwork`: a network with its weights, loaded from a workdir or a checkpoint for evaluation and prediction."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import jax
import numpy as np
from ml_collections import ConfigDict

from inception_jax import config as configs
from inception_jax import extension_files
from inception_jax.checkpoints.reading import load_variables_and_step
from inception_jax.config import Config
from inception_jax.data import images
from inception_jax.data.datasets import Dataset
from inception_jax.data.label_sets import NO_LABELS
from inception_jax.data.pipeline import EvalPipeline
from inception_jax.errors import UserError
from inception_jax.evaluation import extraction, image_inputs, prediction
from inception_jax.evaluation.image_inputs import Images
from inception_jax.metrics import Accumulator
from inception_jax.models import onednn, packed_kernels
from inception_jax.models.base import BaseNetwork
from inception_jax.models.checks import ModelError
from inception_jax.models.initialization import variable_shapes
from inception_jax.runs import data_record, listing, manifest, remote_workdir, run_state
from inception_jax.runs.data_record import CLASSES
from inception_jax.training import (
    augmentation_setup,
    data_setup,
    host_devices,
    network_setup,
    precise_batch_norm,
    run_length,
    warm_start,
)
from inception_jax.training.compilation import Programs
from inception_jax.training.eval_loop import evaluate
from inception_jax.training.parallel import Compiled, Devices
from inception_jax.training.step import make_eval_step
from inception_jax.tree_paths import named_leaves

Step = int | str | None  # a str is "best"; checkpoints.reading refuses any other
Weights = Literal["raw", "ema"]


def load_config(workdir: str | os.PathLike, flag: str = "--workdir") -> ConfigDict:
    """Reads the config that a workdir's run was started with.

    Args:
      workdir: of the run.
      flag: that names it, for messages; "": none does.

    Raises:
      UserError: there is no run there.
    """
    values = None if os.path.isfile(workdir) else manifest.read_config(workdir)
    if values is None:
        begun = run_state.is_run(Path(workdir))
        reason = f"no {manifest.CONFIG} in it" if begun else listing.explain_no_run(Path(workdir))
        raise UserError(f"{_named(workdir, flag)}: {reason}; the workdir of a run of train or convert is needed")
    return configs.from_dict(values, copies=Path(workdir) / extension_files.DIRECTORY)


def load_class_names(workdir: str | os.PathLike, flag: str = "--workdir") -> list[str]:
    """Reads the class names of a workdir's run; the data set itself need not be on this machine.

    Args:
      workdir: of the run.
      flag: as in `load_config`.

    Raises:
      UserError: the run ended before it wrote them.
    """
    names = data_record.read_all_class_names(Path(workdir))
    if names is None:
        raise UserError(f"{_named(workdir, flag)}: the run has not begun (no {CLASSES}); train it first")
    return names


def _named(workdir: str | os.PathLike, flag: str) -> str:
    return f"{flag}={remote_workdir.display_name(workdir)}".removeprefix("=")


def default_weights(config_dict: ConfigDict) -> Literal["raw", "ema"]:
    """Returns "ema" where the run keeps an EMA of the weights, with which the papers evaluate; else "raw"."""
    return "ema" if config_dict.ema.decay else "raw"


def warn_of_running_statistics(config_dict: ConfigDict) -> None:
    """Prints a warning where a run evaluates with batch-norm statistics of training images: only evaluations do."""
    if images := config_dict.evaluation.batch_norm_images:
        print(
            f"warning: config.evaluation.batch_norm_images = {images} is for evaluations only: the batch-norm "
            "statistics used here are the running statistics of the checkpoint",
            file=sys.stderr,
        )


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """A network with its weights on the devices: from `load_run` or `load_pretrained`.

    `model` is a Flax Linen module and `variables` are its variables, for everything that is not here.

    Attributes:
      config: of its run.
      devices: that have its weights.
      model: its definition.
      variables: "params" and "batch_stats", replicated over the devices.
      step: the training step of the weights.
      weights: "raw" or "ema".
      class_names: one per class.
      input: how images become its input, with the run's evaluation crop.
      programs: that were compiled for it.

    Example:
      `runs/digits` is the run of `configs/digits.py`.

      >>> import numpy as np
      >>> from inception_jax import TrainedNetwork, load_run
      >>> network: TrainedNetwork = load_run("runs/digits")
      >>> sorted(network.features(np.zeros((2, 8, 8, 3), np.uint8), ["inception_5b", "logits"]))
      ['inception_5b', 'logits']
      >>> network.evaluate("test[:50]").result()["count"]
      50
      >>> len([one.names[0] for one in network.predict_dataset("test[:3]")])
      3
    """

    config: Config
    devices: Devices
    model: BaseNetwork
    variables: Any
    step: int
    weights: str
    class_names: list[str]
    input: network_setup.NetworkInput
    programs: Programs = dataclasses.field(default_factory=Programs, init=False, repr=False, compare=False)

    @property
    def image_size(self) -> int:
        """Height and width of the input, in pixels."""
        return self.input.eval_image_size

    @property
    def label_columns(self) -> int | None:
        """Columns of a batch's labels, where images have several (`data.labels=multi`); None: one class number each."""
        return len(self.class_names) if self.config.data.labels == "multi" else None

    @property
    def crop(self) -> images.EvalCrop:
        """The run's evaluation crop."""
        return self.input.eval_crop

    def compile(self, batch_size: int, top_k: int = 5, *, crops: int = 1, every_class: bool = False) -> Compiled:
        """Compiles the evaluation step; the same arguments a second time give the same step.

        Args:
          batch_size: examples over all devices.
          top_k: classes per image in the step's result.
          crops: of each example; their predictions are averaged.
          every_class: whether the step's result has the probabilities of all classes, too.

        Raises:
          UserError: the network has no classifier.
        """
        if not self.class_names:
            raise _no_classifier("the network")

        def compile_program() -> Compiled:
            step = make_eval_step(
                self.model,
                self.input.normalization,
                self.input.dtype,
                devices=self.devices.count,
                top_k=top_k,
                every_class=every_class,
            )
            batch = self.devices.abstract_batch(
                batch_size,
                self.image_size,
                crops=crops,
                channels=self.input.channels,
                label_columns=self.label_columns,
            )
            return self.devices.compile_eval(
                step, self.variables, batch, prepares=packed_kernels.gains(self.model.convolution)
            )

        return self.programs.get(("evaluation", batch_size, top_k, crops, every_class), compile_program)

    def evaluate(
        self,
        data: EvalPipeline | Dataset | str | None = None,
        every_class: list[dict[str, np.ndarray]] | None = None,
    ) -> Accumulator:
        """Evaluates a split, every example once, as training does.

        With `config.evaluation.batch_norm_images`, the batch-norm statistics are first estimated from training images.

        Args:
          data: a split of the run's data set by its name, such as "test[:100]"; of another one, as
            `data.datasets.load` opens it; or a pipeline, with a protocol of its own. None: the run's evaluation split.
          every_class: gets the probabilities of all classes, as `eval_loop.evaluate` adds them; None: not computed.

        Returns:
          Sums over the whole split and the predictions of all its examples: `result()` has the metrics.

        Raises:
          UserError: the split is not there, the data has other classes, the training split is missing, the network has
            no batch norm, its batch does not divide over the devices, or the data has one label per example and the
            network was trained with several, or the other way.
        """
        if not isinstance(data, EvalPipeline):
            data = self._open(data)
        if data.dataset.label_kind == NO_LABELS:
            raise UserError(f"data {data.dataset.name}: its labels are not read (labels='none'); open it with them")
        if data.dataset.label_columns != self.label_columns:
            raise UserError(
                f"data {data.dataset.name}: config.data.labels = {data.dataset.label_kind!r}, and the network was "
                f"trained with {self.config.data.labels!r}; evaluate it on data of that kind"
            )
        if differing := data_record.class_difference(self.class_names, data.dataset.class_names):
            raise UserError(f"data {data.dataset.name}: {differing}; evaluate on data with the same classes")
        return evaluate(
            self.compile(data.batch_size, crops=data.protocol.crops, every_class=every_class is not None),
            self.devices,
            data,
            self._variables_of_evaluation(),
            len(self.class_names),
            run_length.read_fault_limits(self.config),
            every_class,
        )

    def _open(self, data: Dataset | str | None) -> EvalPipeline:
        """The pipeline of a split, with the protocol and the batch size of the run's evaluation."""
        if not isinstance(data, Dataset):
            (data,) = data_setup.load_splits(self.config, data or self.config.data.eval_split)
        return data_setup.build_eval_data(self.config, data, self.input, self.devices)

    def _variables_of_evaluation(self) -> Any:
        """The variables, with batch-norm statistics of training images where the config asks for them."""
        config, size = self.config, self.image_size
        if config.evaluation.batch_norm_images is None:
            return self.variables
        model, freezing = network_setup.freeze(config, self.model, size)
        images = network_setup.read_batch_norm_images(config, model, freezing, size)
        assert images is not None
        per_device = self.devices.check_batch("batch_size", config.batch_size)
        (source,) = data_setup.load_splits(config, config.data.train_split)
        estimator = precise_batch_norm.build(
            model,
            self.variables,
            self.devices,
            data_setup.build_train_data(config, source, self.input),
            images,
            self.input.normalization,
            freezing,
            run_length.read_fault_limits(config),
            augmentation_setup.read_device_augmentation(config, per_device),
            config.seed,
        )
        return estimator.replace_statistics(self.variables, self.step)

    def predict(self, inputs: Images, top_k: int = 5, batch_size: int = 32) -> dict[str, np.ndarray]:
        """Predicts the most probable classes of images of any size.

        Args:
          inputs: images uint8 [height, width, in_channels] (3: RGB or grey), paths of image files, their bytes, or
            images of Pillow; one or several. Of files and of Pillow's images alpha is dropped, unless in_channels is 4,
            16 bits are cut to 8, and the EXIF orientation is not applied, as in training.
          top_k: classes per image, at most; `class_names` has their names.
          batch_size: images per step; rounded up to a multiple of the devices. Fewer images are filled up to the next
            power of two.

        Returns:
          "classes" int32 [n, k] and "probabilities" [n, k], the most probable first. Of a network for several labels
          per image (`data.labels=multi`) each probability is that of a class by itself (sigmoid).

        Raises:
          UserError: the network has no classifier, a file cannot be decoded, or an image is none.
        """
        return prediction.predict(self, inputs, top_k, batch_size, self.config.data.max_pixels)

    def predict_files(
        self,
        files: prediction.Files,
        top_k: int = 5,
        batch_size: int = 32,
        *,
        keep_images: bool = False,
        max_pixels: int | None = None,
    ) -> Iterator[prediction.Prediction]:
        """Predicts the most probable classes of image files, however many there are: memory does not grow with them.

        Args:
          files: paths of image files, folders, which are walked, and patterns ("photos/**/*.jpg"), as
            `data.image_files.find` takes them; one or several. Or an iterator of the paths of files.
          top_k: classes per image, at most.
          batch_size: images per step; rounded up to a multiple of the devices. Fewer files make it the next power of
            two.
          keep_images: whether each result has the crop that the network sees.
          max_pixels: the largest image that is decoded, height times width; None: `config.data.max_pixels`.

        Returns:
          An iterator of the predictions, in the order of the files. A file that cannot be read has an `error`.

        Raises:
          UserError: a file that is not there, a folder or a pattern without an image; when it is iterated: the network
            has no classifier.
        """
        limit = self.config.data.max_pixels if max_pixels is None else max_pixels
        return prediction.predict_files(self, files, top_k, batch_size, keep_images, limit)

    def predict_dataset(
        self,
        dataset: Dataset | str,
        top_k: int = 5,
        batch_size: int = 32,
        *,
        keep_images: bool = False,
        max_pixels: int | None = None,
    ) -> Iterator[prediction.Prediction]:
        """Predicts the most probable classes of the images of a data set, in their order; labels are not read.

        Args:
          dataset: a split of the run's data set by its name; or of another one, as `data.datasets.load` opens it: with
            its `labels="none"` no label need be there.
          top_k: as in `predict_files`.
          batch_size: as in `predict_files`.
          keep_images: as in `predict_files`.
          max_pixels: as in `predict_files`.

        Returns:
          An iterator of the predictions. A record that cannot be read has an `error`.

        Raises:
          UserError: the split is not there; when it is iterated: the network has no classifier.
        """
        if isinstance(dataset, str):
            (dataset,) = data_setup.load_splits(self.config, dataset, labelled=False)
        limit = self.config.data.max_pixels if max_pixels is None else max_pixels
        return prediction.predict_dataset(self, dataset, top_k, batch_size, keep_images, limit)

    def features(
        self,
        inputs: Images,
        endpoints: str | Sequence[str] | None = None,
        *,
        pool: bool = False,
        batch_size: int = 32,
    ) -> dict[str, np.ndarray]:
        """Computes endpoints of the network for images of any size.

        Args:
          inputs: as in `predict`.
          endpoints: names, the network's own or TF-slim's, and "logits"; None: the last one before the classifier.
          pool: whether to average maps [H, W, C] over H and W, to [C].
          batch_size: images per step; rounded up to a multiple of the devices. Fewer images are filled up to the next
            power of two.

        Returns:
          {endpoint: float32 [n, ...]}, in the order of the images.

        Raises:
          UserError: an unknown endpoint (the message has the nearest name), a file that cannot be decoded, or an image
            that is none.
        """
        listed = image_inputs.as_list(inputs)
        if endpoints is None:  # found by tracing
            endpoints = self.programs.get("last endpoint", lambda: extraction.last_endpoint(self))
        names = (endpoints,) if isinstance(endpoints, str) else tuple(endpoints)
        batch_size = self.devices.choose_rows(len(listed), batch_size)
        step = self.programs.get(
            ("features", names, pool, batch_size),
            lambda: extraction.compile_step(self, names, batch_size=batch_size, pool=pool),
        )
        decoded = image_inputs.decode(listed, self.config.data.max_pixels, self.input.channels)
        batches = extraction.image_batches(decoded, batch_size, self.image_size, self.crop, self.input.channels)
        rows = extraction.features(self, batches, names, batch_size=batch_size, pool=pool, step=step)
        parts = list(rows)
        return {name: np.concatenate([part[name] for part in parts]) for name in names}


def load_run(workdir: str | os.PathLike, *, weights: str | None = None, step: Step = None) -> TrainedNetwork:
    """Loads the network of a run, or one that `python -m inception_jax.convert` has imported.

    Args:
      workdir: of the run; also an address, such as "gs://bucket/runs/a".
      weights: "raw" or "ema"; None: "ema" where the run keeps it.
      step: None for the newest checkpoint, "best", or a step.

    Returns:
      The network with its weights; `predict`, `features`, `class_names` and `config` are what is most often needed.

    Raises:
      UserError: there is no run, no such checkpoint, or no such weights.

    Example:
      `runs/digits` is the run of `configs/digits.py`.

      >>> import numpy as np
      >>> from inception_jax import load_run
      >>> network = load_run("runs/digits")
      >>> network.class_names[7]
      '7'
      >>> images = np.zeros((2, 8, 8, 3), np.uint8)  # of any size; paths of image files are fine, too
      >>> network.predict(images, top_k=3)["classes"].shape
      (2, 3)
    """
    return load_workdir(workdir, "", weights=weights, step=step)


def load_workdir(
    workdir: str | os.PathLike, flag: str, *, weights: str | None = None, step: Step = None
) -> TrainedNetwork:
    """As `load_run`, of a workdir that a command's flag names, for messages."""
    workdir = remote_workdir.local_copy(workdir)
    config = load_config(workdir, flag)
    warn_of_running_statistics(config)
    return load(config, workdir, load_class_names(workdir, flag), weights=weights, step=step)


def load(
    config_dict: ConfigDict,
    checkpoint: str | os.PathLike,
    class_names: list[str],
    *,
    weights: str | None = None,
    step: Step = None,
) -> TrainedNetwork:
    """Loads a network from a checkpoint of a run.

    Args:
      config_dict: the run's config.
      checkpoint: its workdir, or one checkpoint's directory.
      class_names: one per class.
      weights: "raw" or "ema"; None: "ema" where the run keeps it.
      step: None for the newest checkpoint, "best", or a step.

    Raises:
      UserError: no such checkpoint or weights, or weights that do not fit the config's network.
    """
    weights = weights or default_weights(config_dict)
    chosen = cast(int | Literal["best"] | None, step)
    checkpoint = Path(checkpoint)
    run_id = manifest.read_run_id(warm_start.find_workdir(checkpoint))
    variables, found = load_variables_and_step(checkpoint, cast(Weights, weights), chosen, run_id=run_id)
    return build(
        config_dict,
        variables,
        class_names,
        weights=weights,
        step=found,
        where=checkpoint,
    )


def build(
    config_dict: ConfigDict, variables: Any, class_names: list[str], *, weights: str, step: int, where: str | Path
) -> TrainedNetwork:
    """Builds a network from a config and variables in memory.

    Args:
      config_dict: the config of a run with such variables.
      variables: {"params": …, "batch_stats": …}.
      class_names: one per class.
      weights: what they are: "raw" or "ema".
      step: their training step.
      where: their origin, for messages.

    Raises:
      UserError: they do not fit the config's network.
    """
    config = Config(config_dict)
    if config.model.num_classes == 0 and class_names:
        raise _no_classifier(where)
    available = jax.device_count()
    model = _computable(network_setup.build_model(config, len(class_names)))
    if host_devices.is_split() and config.parallel.devices != host_devices.COUNT:
        # Statistics of training images are of training batches, which need not divide.
        whole = config.evaluation.batch_norm_images is not None
        if whole or (config.evaluation.batch_size or config.batch_size) < host_devices.FEWEST:
            available = 1
    devices = Devices(config.parallel.mode, min(config.parallel.devices or available, available))
    network_input = network_setup.read_input(config)
    _check_shapes(model, variables, network_input.image_size, where)
    return TrainedNetwork(
        config=config,
        devices=devices,
        model=model,
        variables=devices.share(variables),
        step=step,
        weights=weights,
        class_names=class_names,
        input=network_input,
    )


def _computable(model: BaseNetwork) -> BaseNetwork:
    """The network; where it computes by oneDNN and that is missing, by XLA: the last digits of its numbers differ."""
    if model.convolution.startswith("onednn") and jax.default_backend() == "cpu":
        try:
            onednn.load()
        except ModelError as error:
            print(f"note: XLA computes the convolutions, and the last digits may differ: {error}", file=sys.stderr)
            return model.clone(convolution="fast")
    return model


def _no_classifier(what: str | Path) -> UserError:
    return UserError(
        f"{what} has no classifier (num_classes = 0): `extract` gives its features, and `train "
        "--config.initialize.checkpoint=…` trains a classifier on them"
    )


def _check_shapes(model: BaseNetwork, variables: Any, image_size: int, checkpoint: str | Path) -> None:
    """Raises UserError where the weights are not this network's: names the first leaf that differs."""
    wanted = variable_shapes(model, image_size)
    want, have = ({name: leaf.shape for name, leaf in named_leaves(tree).items()} for tree in (wanted, variables))
    for path in sorted({*want, *have}):
        if want.get(path) != have.get(path):
            raise UserError(
                f"{checkpoint}: {path} is {have.get(path, 'missing')}, the config's network has "
                f"{want.get(path, 'none')}"
            )
