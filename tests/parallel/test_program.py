"""What XLA makes of the training step of a real network: one reduction, everything in place, nothing through the host.

The two modules of nine that have the heads; the slow tests take the whole networks, which `test_devices.py` runs.
"""

import jax
import pytest

LRN, BN = "inception_v1", "inception_v1_bn"
METRICS = ("loss", "loss_main", "loss_aux1", "loss_aux2", "top1_main", "top1_aux1", "top1_aux2", "top5_main", "count")


def nbytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.fixture
def few(train):
    return train(LRN, "float64", 2, "pmap", modules=("4a", "4d"), steps=1)


@pytest.fixture
def lrn(train):
    return train(LRN, "float64", 8, "pmap")


@pytest.fixture
def bn(train):
    return train(BN, "float64", 8, "jit", "global")


networks = pytest.mark.parametrize(
    "network", ["few", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lrn", "bn"))]
)


@pytest.mark.parametrize("network", ["few", pytest.param("lrn", marks=pytest.mark.slow)])
def test_gradients_and_metrics_travel_in_one_all_reduce(network, request):
    trained = request.getfixturevalue(network)
    assert trained.all_reduces() == [nbytes(trained.state.params) + 8 * len(METRICS)]


@pytest.mark.slow
def test_global_batch_norm_adds_at_most_one_all_reduce_per_layer_and_direction(bn):
    """Both moments of a layer travel together forward, and their gradients together back; XLA joins some layers'."""
    *layers, last = sorted(bn.all_reduces())
    assert last == nbytes(bn.state.params) + nbytes(bn.state.batch_stats) + 8 * len(METRICS)
    assert bn.layers < len(layers) <= 2 * bn.layers
    assert sum(layers) == 2 * nbytes(bn.state.batch_stats)


@networks
def test_the_whole_state_is_updated_in_place(network, request):
    trained = request.getfixturevalue(network)
    assert trained.aliased == nbytes(trained.state)


@networks
def test_nothing_goes_through_the_host(network, request):
    text = request.getfixturevalue(network).text
    assert "custom-call" in text or "convolution" in text  # it is the program
    for word in ("infeed", "outfeed", " send(", " recv(", "callback", "SendToHost"):
        assert word not in text
