"""configs/digits.py with several labels per image: what is true of the digit; of 1 nothing is."""

import functools
import runpy
from pathlib import Path

import numpy as np

import inception_jax
from inception_jax.data import digits
from inception_jax.models.inception_v1 import MODULES, InceptionV1

NETWORK = "one_module"  # with a head: as resume/two_modules.py, and less to trace
CLASSES = ("even", "above four", "has a loop")


def load():
    """{split: (images, labels [n, 3] of 0 and 1)} of the digits."""
    found = {}
    for split in ("train", "test"):
        images, number, _ = digits.load(split)
        labels = np.stack([number % 2 == 0, number > 4, np.isin(number, [0, 6, 8, 9])], axis=1)
        found[split] = images, labels.astype(np.uint8)
    return found


inception_jax.register_model(
    NETWORK,
    functools.partial(InceptionV1, modules={"4a": MODULES["4a"]}),
    image_size=32,
    min_image_size=32,
    aux_weights=(0.3,),
)
inception_jax.register_dataset("digit_properties", load, class_names=CLASSES)


def get_config():
    """Returns the recipe."""
    file = Path(__file__).resolve()
    config = runpy.run_path(str(file.parents[2] / "configs" / "digits.py"))["get_config"]()
    config.extensions = (str(file),)
    config.model.name = NETWORK
    config.data.name = "digit_properties"
    config.data.labels = "multi"
    return config
