"""A network without jax: its classes are the colours red, green and blue, its logits the means of an image."""

import dataclasses

import numpy as np

from inception_jax.config import Config
from inception_jax.config import default as default_config
from inception_jax.evaluation import prediction
from inception_jax.training import network_setup, parallel


class FakeDevices:
    count = 1

    def round_up(self, size):
        return max(1, size)

    def choose_rows(self, examples, batch_size):
        return parallel.Devices.choose_rows(self, examples, batch_size)

    def put(self, batch):
        return batch

    def get(self, outputs):
        return outputs


@dataclasses.dataclass
class FakeNetwork:
    class_names: list[str] = dataclasses.field(default_factory=lambda: ["red", "green", "blue"])
    image_size: int = 32
    variables: object = None
    label_columns: int | None = None
    devices: FakeDevices = dataclasses.field(default_factory=FakeDevices)
    batches: list[int] = dataclasses.field(default_factory=list)  # images in each batch that was computed
    compiled: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        recipe = default_config()
        recipe.model.name, recipe.data.image_size = "inception_v1", self.image_size
        self.config = Config(recipe)
        self.input = network_setup.read_input(self.config)

    def compile(self, batch_size, top_k=5):
        self.compiled.append((batch_size, top_k))

        def step(variables, batch):
            assert batch["image"].shape == (batch_size, self.image_size, self.image_size, 3)
            self.batches.append(int(batch["mask"].sum()))
            means = batch["image"].mean((1, 2)) / 255
            classes = np.argsort(-means, axis=1, kind="stable")[:, :top_k].astype(np.int32)
            return {}, {"classes": classes, "probabilities": np.take_along_axis(means, classes, 1)}

        return step

    def predict_files(self, files, top_k=5, batch_size=32, *, keep_images=False, max_pixels=None):
        limit = max_pixels or self.config.data.max_pixels
        return prediction.predict_files(self, files, top_k, batch_size, keep_images, limit)

    def predict_dataset(self, dataset, top_k=5, batch_size=32, *, keep_images=False, max_pixels=None):
        limit = max_pixels or self.config.data.max_pixels
        return prediction.predict_dataset(self, dataset, top_k, batch_size, keep_images, limit)
