"""configs/digits.py with the two modules of GoogLeNet that have heads: a start traces a third of the program.

Every kind of layer is there, and what a resumed run must repeat: dropout, random crops, momentum and EMA.
"""

import functools
import runpy
from pathlib import Path

import inception_jax
from inception_jax.models.inception_v1 import MODULES, InceptionV1

NAME = "two_modules"

inception_jax.register_model(
    NAME,
    functools.partial(InceptionV1, modules={name: MODULES[name] for name in ("4a", "4d")}),
    image_size=32,
    min_image_size=32,
    aux_weights=(0.3, 0.3),
)


def get_config():
    """Returns the recipe of the digits with this network."""
    file = Path(__file__).resolve()
    config = runpy.run_path(str(file.parents[2] / "configs" / "digits.py"))["get_config"]()
    config.extensions = (str(file),)
    config.model.name = NAME
    return config
