"""The saliency maps of predictions: each image's own class, in batches, files without an image in between."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from inception_jax.evaluation.prediction import Prediction
from inception_jax.features.explanation import explain
from inception_jax.models.outputs import InceptionOutput
from inception_jax.training import preprocess
from inception_jax.training.compilation import Programs
from inception_jax.training.parallel import Devices


class Linear(nn.Module):
    @nn.compact
    def __call__(self, images, *, train=False):
        return InceptionOutput(nn.Dense(4)(images.reshape(len(images), -1)))


def test_every_image_has_the_map_of_its_own_class():
    model, devices = Linear(), Devices("jit", 2)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 5, 5, 3)))
    kernel = np.asarray(variables["params"]["Dense_0"]["kernel"]).reshape(5, 5, 3, 4)
    network = types.SimpleNamespace(
        model=model, variables=devices.replicate(variables), devices=devices, image_size=5,
        programs=Programs(),
        input=types.SimpleNamespace(
            normalization=preprocess.get_normalization("inception"), dtype=jnp.float32, channels=3
        ),
    )  # fmt: skip
    image, probabilities = np.full((5, 5, 3), 7, np.uint8), np.array([0.6, 0.4])
    classes = [[2, 0], [], [0, 1], [3, 2], [1, 3]]
    given = [
        Prediction(str(k), ("a", "b"), np.array(two), probabilities, image=image) if two
        else Prediction(str(k), (), np.zeros(0, int), np.zeros(0), "an empty file")
        for k, two in enumerate(classes)
    ]  # fmt: skip
    found = list(explain(network, iter(given), batch_size=3))  # rounded up to two per device
    assert [one.path for one in found] == list("01234") and found[1] is given[1]
    for one in (found[0], *found[2:]):
        expected = np.abs(kernel[..., one.classes[0]]).max(-1)
        expected = np.clip(expected / np.quantile(expected, 0.99), 0, 1)
        np.testing.assert_allclose(one.saliency, expected, rtol=1e-6)
