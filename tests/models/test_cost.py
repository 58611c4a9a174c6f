"""Shapes, parameters and multiply-adds of every block, beside tables counted from the published definitions."""

import functools

import pytest

from inception_jax.models.cost import count_cost
from inception_jax.models.inception_v1 import MODULES
from inception_jax.models.registry import create_model, get_spec

# Table 1 of arXiv:1409.4842 with 1000 classes at 224 pixels: block, output, parameters (biases included), MACs.
V1 = """
conv1         112 112 64       9472  118013952
pool1          56  56 64          0          0
norm1          56  56 64          0          0
conv2_reduce   56  56 64       4160   12845056
conv2          56  56 192    110784  346816512
norm2          56  56 192         0          0
pool2          28  28 192         0          0
inception_3a   28  28 256    163696  128049152
inception_3b   28  28 480    388736  304267264
pool3          14  14 480         0          0
inception_4a   14  14 512    376176   73608192
aux1            1   1 1000  3188840    4169728
inception_4b   14  14 512    449160   87908352
inception_4c   14  14 512    510104   99850240
inception_4d   14  14 528    605376  118515712
aux2            1   1 1000  3190888    4202496
inception_4e   14  14 832    868352  169996288
pool4           7   7 832         0          0
inception_5a    7   7 832   1043456   51079168
inception_5b    7   7 1024  1444080   70697984
pool5           1   1 1024        0          0
classifier      1   1 1000  1025000    1024000
"""
# slim's inception_v4.py at 299 pixels; parameters are the kernels' and two numbers per channel of batch norm.
V4 = """
conv2d_1a_3x3  149 149 32       928   19181664
conv2d_2a_3x3  147 147 32      9280  199148544
conv2d_2b_3x3  147 147 64     18560  398297088
mixed_3a        73  73 160    55488  294672384
mixed_4a        71  71 192   189312  972218368
mixed_5a        35  35 384   332160  406425600
mixed_5b        35  35 384   317632  387609600
mixed_5c        35  35 384   317632  387609600
mixed_5d        35  35 384   317632  387609600
mixed_5e        35  35 384   317632  387609600
mixed_6a        17  17 1024 2306112 1097164800
mixed_6b        17  17 1024 2936256  847264768
mixed_6c        17  17 1024 2936256  847264768
mixed_6d        17  17 1024 2936256  847264768
mixed_6e        17  17 1024 2936256  847264768
mixed_6f        17  17 1024 2936256  847264768
mixed_6g        17  17 1024 2936256  847264768
mixed_6h        17  17 1024 2936256  847264768
aux              1   1 1000 3359464    6502400
mixed_7a         8   8 1536 2747392  511098880
mixed_7b         8   8 1536 4553088  290979840
mixed_7c         8   8 1536 4553088  290979840
mixed_7d         8   8 1536 4553088  290979840
global_pool      1   1 1536       0          0
classifier       1   1 1000 1537000    1536000
"""


def rows(table):
    for line in table.strip().splitlines():
        name, *numbers = line.split()
        yield name, tuple(map(int, numbers))


@functools.cache
def counted(name, size=None, **options):
    return count_cost(create_model(name, **options), size or get_spec(name).image_size)


@pytest.mark.parametrize(("name", "table"), [("inception_v1", V1), ("inception_v4", V4)])
def test_every_block(name, table):
    ours = [(b.name, (*b.output, b.parameters, b.macs)) for b in counted(name).blocks]
    assert ours == list(rows(table))


def test_batch_norm_moves_the_biases_into_shifts_and_adds_factors():
    plain = {b.name: b for b in counted("inception_v1").blocks}
    for block in counted("inception_v1_bn").blocks:
        channels = {"classifier": 0, "aux1": 128, "aux2": 128}.get(block.name)
        if channels is None and block.name.startswith("inception_"):
            channels = sum(MODULES[block.name.removeprefix("inception_")])
        elif channels is None:
            channels = block.output[2] if block.parameters else 0
        assert block.parameters == plain[block.name].parameters + channels, block.name
        assert block.output == plain[block.name].output
    assert "norm1" not in {b.name for b in counted("inception_v1_bn").blocks}


def test_a_network_without_heads_has_no_blocks_for_them():
    total = counted("inception_v1", aux_heads=False)
    assert not any(block.auxiliary for block in total.blocks)
    assert total.parameters == total.parameters_with_aux == 6_998_552
    assert total.macs == total.macs_with_aux


def test_sizes_and_widths():
    small = counted("inception_v1", 64, width_multiplier=0.25, num_classes=10)
    outputs = {block.name: block.output for block in small.blocks}
    assert outputs["conv1"] == (32, 32, 16)
    assert outputs["inception_4a"] == (4, 4, 48 + 52 + 16 + 16)
    assert outputs["classifier"] == outputs["aux1"] == (1, 1, 10)
    # Figure 2(a): the pool passes all its input on, so a module adds to what it was given.
    naive = {b.name: b.output for b in counted("inception_v1", 64, module="naive").blocks}
    assert naive["inception_3a"] == (8, 8, 64 + 128 + 32 + 192)
    assert naive["inception_3b"] == (8, 8, 128 + 192 + 96 + 416)


def test_layers_of_flax_and_what_is_not_counted(registrations):
    """A registered network may use any layer: those with a kernel that is not counted are named."""
    import flax.linen as nn
    import jax.numpy as jnp

    from inception_jax import InceptionOutput, register_model
    from inception_jax.models.base import BaseNetwork

    class Mixed(BaseNetwork):
        batch_norm: bool = False

        @nn.compact
        def __call__(self, images, *, train=False, example_keys=None):
            x = nn.Conv(6, (3, 3), feature_group_count=3, name="grouped")(images)
            x = nn.BatchNorm(use_running_average=True, name="norm")(x)
            y = nn.Dense(4, name="per_pixel")(x)
            x = nn.ConvTranspose(6, (2, 2), name="up")(x).mean((1, 2))
            scale = self.param("scale", nn.initializers.ones, (6,))
            return InceptionOutput(
                nn.Dense(self.num_classes, name="out")(x * scale + jnp.pad(y.mean((1, 2)), ((0, 0), (0, 2))))
            )

    register_model("mixed", Mixed, image_size=10)
    cost = count_cost(create_model("mixed", num_classes=5), 10)
    assert {block.name: (block.output, block.parameters, block.macs) for block in cost.blocks} == {
        "grouped": ((10, 10, 6), 9 * 6 + 6, 100 * 9 * 6),
        "norm": ((10, 10, 6), 12, 0),
        "per_pixel": ((10, 10, 4), 28, 100 * 24),
        "up": ((10, 10, 6), 4 * 36 + 6, 0),
        "scale": ((1, 1, 1), 6, 0),
        "out": ((1, 1, 5), 35, 30),
    }
    assert cost.uncounted == ("up/kernel",)


@pytest.mark.parametrize("name", ["inception_v1", "inception_v1_bn", "xception", "alexnet"])
def test_of_the_packages_networks_everything_is_counted(name):
    assert count_cost(create_model(name), get_spec(name).image_size).uncounted == ()
