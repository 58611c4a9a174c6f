"""slim's names of the endpoints lead to ours: to maps of slim's sizes, in slim's order."""

import jax
import jax.numpy as jnp
import pytest

from inception_jax.models.registry import create_model, get_spec

# What the end_points of each slim network are called, with the sides and channels that its comments give them.
V1 = """
Conv2d_1a_7x7 112 64 | MaxPool_2a_3x3 56 64 | Conv2d_2b_1x1 56 64 | Conv2d_2c_3x3 56 192 | MaxPool_3a_3x3 28 192 |
Mixed_3b 28 256 | Mixed_3c 28 480 | MaxPool_4a_3x3 14 480 | Mixed_4b 14 512 | Mixed_4c 14 512 | Mixed_4d 14 512 |
Mixed_4e 14 528 | Mixed_4f 14 832 | MaxPool_5a_2x2 7 832 | Mixed_5b 7 832 | Mixed_5c 7 1024 |
AvgPool_0a_7x7 1 1024 | global_pool 1 1024
"""
V2 = """
Conv2d_1a_7x7 112 64 | MaxPool_2a_3x3 56 64 | Conv2d_2b_1x1 56 64 | Conv2d_2c_3x3 56 192 | MaxPool_3a_3x3 28 192 |
Mixed_3b 28 256 | Mixed_3c 28 320 | Mixed_4a 14 576 | Mixed_4b 14 576 | Mixed_4c 14 576 | Mixed_4d 14 576 |
Mixed_4e 14 576 | Mixed_5a 7 1024 | Mixed_5b 7 1024 | Mixed_5c 7 1024 | AvgPool_1a 1 1024
"""
V3 = """
Conv2d_1a_3x3 149 32 | Conv2d_2a_3x3 147 32 | Conv2d_2b_3x3 147 64 | MaxPool_3a_3x3 73 64 | Conv2d_3b_1x1 73 80 |
Conv2d_4a_3x3 71 192 | MaxPool_5a_3x3 35 192 | Mixed_5b 35 256 | Mixed_5c 35 288 | Mixed_5d 35 288 | Mixed_6a 17 768 |
Mixed_6b 17 768 | Mixed_6c 17 768 | Mixed_6d 17 768 | Mixed_6e 17 768 | Mixed_7a 8 1280 | Mixed_7b 8 2048 |
Mixed_7c 8 2048 | AvgPool_1a 1 2048 | PreLogits 1 2048
"""
V4 = """
Conv2d_1a_3x3 149 32 | Conv2d_2a_3x3 147 32 | Conv2d_2b_3x3 147 64 | Mixed_3a 73 160 | Mixed_4a 71 192 |
Mixed_5a 35 384 | Mixed_5b 35 384 | Mixed_5c 35 384 | Mixed_5d 35 384 | Mixed_5e 35 384 | Mixed_6a 17 1024 |
Mixed_6b 17 1024 | Mixed_6c 17 1024 | Mixed_6d 17 1024 | Mixed_6e 17 1024 | Mixed_6f 17 1024 | Mixed_6g 17 1024 |
Mixed_6h 17 1024 | Mixed_7a 8 1536 | Mixed_7b 8 1536 | Mixed_7c 8 1536 | Mixed_7d 8 1536 | AvgPool_1a 1 1536 |
PreLogitsFlatten 1 1536
"""


@pytest.mark.parametrize(
    ("name", "table"), [("inception_v1", V1), ("inception_v2", V2), ("inception_v3", V3), ("inception_v4", V4)]
)
def test_every_name_leads_to_a_map_of_slims_size(name, table):
    expected = [(row[0], int(row[1]), int(row[2])) for row in map(str.split, table.split("|"))]
    model, size = create_model(name, aux_heads=False), get_spec(name).image_size
    order = []

    def run(images):
        output = model.init_with_output(jax.random.key(0), images)[0]
        order.extend(output.endpoints)
        return output

    output = jax.eval_shape(run, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    assert set(output.aliases) == {alias for alias, _, _ in expected}
    found = []
    for alias, _, _ in expected:
        shape = output.endpoint(alias).shape
        found.append((alias, shape[1] if len(shape) == 4 else 1, shape[-1]))
    assert found == expected
    # Each name leads to an endpoint of its own, in the order in which they run; only the pooled vector has two names.
    led_to = list(dict.fromkeys(output.aliases[alias] for alias, _, _ in expected))
    assert led_to == [endpoint for endpoint in order if not endpoint.startswith("norm")]
    assert len(expected) - len(led_to) == ("PreLogits" in table or "global_pool" in table)
    assert output.endpoint(order[0]) is output.endpoints[order[0]]
