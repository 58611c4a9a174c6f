"""GoogLeNet with the two modules of nine that have the heads: every kind of layer, small programs.

`python two_modules.py …` is `python -m inception_jax.benchmark …` that knows `--model=two_modules`.
"""

import dataclasses
import functools

from inception_jax import benchmark, command_line
from inception_jax.models import registry
from inception_jax.models.inception_v1 import MODULES

NAME = "two_modules"


def register():
    googlenet = registry.get_spec("inception_v1")
    few = functools.partial(googlenet.constructor, modules={module: MODULES[module] for module in ("4a", "4d")})
    registry.add(
        dataclasses.replace(googlenet, name=NAME, constructor=few, parameters=0, parameters_with_aux=0, macs=0)
    )


if __name__ == "__main__":
    register()
    command_line.run(benchmark.main)
