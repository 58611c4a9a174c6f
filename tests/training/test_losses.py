"""Losses and accuracies against NumPy."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.training import losses

top_k_correct = jax.jit(losses.top_k_correct, static_argnums=2)


def reference(logits, labels, label_smoothing):
    """(losses [B], gradient of their sum [B, C]) in float64, from the definition with explicit targets."""
    logits = np.asarray(logits, np.float64)
    num_classes = logits.shape[1]
    targets = np.full(logits.shape, label_smoothing / num_classes)
    targets[np.arange(len(labels)), labels] += 1 - label_smoothing
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    return -(targets * np.log(probabilities)).sum(axis=1), probabilities - targets


def example(seed=0, batch=7, num_classes=11):
    rng = np.random.default_rng(seed)
    return 4.0 * rng.normal(size=(batch, num_classes)), rng.integers(0, num_classes, batch).astype(np.int32)


def value_and_gradient(logits, labels, label_smoothing):
    def summed(logits):
        value = losses.softmax_cross_entropy(logits, labels, label_smoothing)
        return value.sum(), value

    gradient, value = jax.jit(jax.grad(summed, has_aux=True))(logits)
    return value, gradient


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_and_its_gradient_in_float64(x64, label_smoothing):
    logits, labels = example()
    value, gradient = value_and_gradient(jnp.asarray(logits), jnp.asarray(labels), label_smoothing)
    assert value.dtype == gradient.dtype == jnp.float64
    expected_value, expected_gradient = reference(logits, labels, label_smoothing)
    np.testing.assert_allclose(value, expected_value, rtol=1e-12)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("dtype", "gradient_tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 4e-3)])
def test_cross_entropy_is_computed_in_float32(dtype, gradient_tolerance):
    logits, labels = example(1)
    logits = jnp.asarray(logits, dtype)
    value, gradient = value_and_gradient(logits, jnp.asarray(labels), 0.1)
    assert value.dtype == jnp.float32 and gradient.dtype == dtype
    expected_value, expected_gradient = reference(logits.astype(jnp.float32), labels, 0.1)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)  # bfloat16's own arithmetic would be off by 1e-2
    np.testing.assert_allclose(gradient.astype(jnp.float32), expected_gradient, atol=gradient_tolerance)


def test_cross_entropy_of_extreme_logits():
    logits = jnp.asarray([[3e38, -3e38, 0.0], [1e4, 0.0, -jnp.inf]])
    value, gradient = value_and_gradient(logits, jnp.asarray([0, 1]), 0.0)
    np.testing.assert_array_equal(value, [0.0, 1e4])
    np.testing.assert_array_equal(gradient, [[0, 0, 0], [1, -1, 0]])


def test_a_label_outside_the_classes_is_loud():
    logits, _ = example()
    labels = jnp.asarray([0, -1, 11, 10, 1, 2, 3])
    value, _ = value_and_gradient(jnp.asarray(logits, jnp.float32), labels, 0.1)
    assert np.isnan(value).tolist() == [False, True, True, False, False, False, False]
    assert top_k_correct(jnp.asarray(logits, jnp.float32), labels, 20).tolist()[1:3] == [False, False]


@pytest.mark.parametrize("num_classes", [200, 300, 1000])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16])
def test_labels_of_few_bits(x64, dtype, num_classes):
    logits = np.random.default_rng(num_classes).normal(size=(6, num_classes))
    largest = min(np.iinfo(dtype).max, num_classes - 1)
    labels = np.array([0, 1, 100, 127, largest, largest - 1], dtype)
    expected, _ = reference(logits, labels.astype(int), 0.1)
    given = jnp.asarray(labels)
    np.testing.assert_allclose(losses.softmax_cross_entropy(jnp.asarray(logits), given, 0.1), expected, rtol=1e-12)
    output = types.SimpleNamespace(logits=jnp.asarray(logits), aux_logits=())
    weights = np.linspace(0.5, 2, num_classes)
    total, _ = losses.inception_loss(output, given, (), 0.1, weights.tolist())
    np.testing.assert_allclose(total, weights[labels] * expected, rtol=1e-12)
    mixed = losses.Labels(given, given[::-1], jnp.full(6, 0.25))
    other, _ = reference(logits, labels[::-1].astype(int), 0.1)
    found, _ = losses.inception_loss(output, mixed, (), 0.1)
    np.testing.assert_allclose(found, 0.25 * expected + 0.75 * other, rtol=1e-12)
    for k in (1, 5, num_classes // 2):
        right = [label in row[:k] for label, row in zip(labels, np.argsort(-logits, axis=1), strict=True)]
        assert top_k_correct(jnp.asarray(logits), given, k).tolist() == right


def test_labels_that_are_no_integers():
    for function in (losses.softmax_cross_entropy, lambda logits, labels: losses.top_k_correct(logits, labels, 1)):
        with pytest.raises(UserError, match=r"^labels: float32; .* labels\.astype\('int32'\)$"):
            function(jnp.zeros((2, 3)), jnp.zeros(2))


@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (1, 10), (3, 10), (10,)])
def test_labels_of_another_shape(shape):
    logits, labels = jnp.zeros((3, 10)), jnp.zeros(shape, jnp.int32)
    output = types.SimpleNamespace(logits=logits, aux_logits=())
    text = rf"^labels: shape {re.escape(str(shape))} for logits of shape \(3, 10\); give "
    one_hot = ": labels.argmax.*multi_label=True" if shape == (3, 10) else ""
    for refused in (
        lambda: losses.inception_loss(output, labels, ()),
        lambda: losses.softmax_cross_entropy(logits, labels),
        lambda: losses.top_k_correct(logits, labels, 1),
    ):
        with pytest.raises(UserError, match=text + r"class indices of shape \(3,\)" + one_hot):
            refused()
    if shape != (3, 10):
        with pytest.raises(UserError, match=text + "0 or 1 for each class"):
            losses.inception_loss(output, labels, (), multi_label=True)


def test_labels_in_lists():
    output = types.SimpleNamespace(logits=jnp.zeros((3, 10)), aux_logits=())
    total, _ = losses.inception_loss(output, [3, 0, 9], ())
    np.testing.assert_allclose(total, np.log(10), rtol=1e-6)
    assert losses.top_k_correct(output.logits, [3, 0, 9], 1).tolist() == [False, True, False]
    several, _ = losses.inception_loss(output, [[0, 1] * 5] * 3, (), multi_label=True)
    np.testing.assert_allclose(several, np.log(2), rtol=1e-6)


@pytest.mark.parametrize("multi_label", [False, True])
def test_class_weights_of_another_length(multi_label):
    output = types.SimpleNamespace(logits=jnp.zeros((3, 10)), aux_logits=())
    labels = jnp.zeros((3, 10) if multi_label else 3, jnp.int32)
    with pytest.raises(UserError, match=r"^class_weights .*: shape \(1,\) for 10 classes; give one per class"):
        losses.inception_loss(output, labels, (), class_weights=[2.0], multi_label=multi_label)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_label_smoothing_out_of_range(value):
    with pytest.raises(UserError, match=r"label_smoothing \(config\.loss\.label_smoothing\) = .*allowed"):
        losses.softmax_cross_entropy(jnp.zeros((1, 2)), jnp.zeros(1, jnp.int32), value)


@pytest.mark.parametrize("k", [1, 2, 5, 11, 50])
def test_top_k_is_the_place_in_a_stable_sort(k):
    rng = np.random.default_rng(k)
    logits = rng.integers(0, 4, size=(200, 11)).astype(np.float32)  # few values: most rows have ties
    labels = rng.integers(0, 11, 200).astype(np.int32)
    order = np.argsort(-logits, axis=1, kind="stable")
    expected = [label in row[:k] for label, row in zip(labels, order, strict=True)]
    correct = top_k_correct(jnp.asarray(logits), jnp.asarray(labels), k)
    assert correct.dtype == jnp.bool_
    np.testing.assert_array_equal(correct, expected)
    if k == 1:
        np.testing.assert_array_equal(correct, np.argmax(logits, axis=1) == labels)


def test_top_k_of_broken_logits():
    logits = jnp.asarray([[1.0, jnp.nan, 0.0], [jnp.nan] * 3, [0.0, jnp.inf, 1.0], [-jnp.inf] * 3], jnp.bfloat16)
    correct = top_k_correct(logits, jnp.asarray([0, 0, 1, 0]), 3)
    assert correct.tolist() == [False, False, True, True]
    with pytest.raises(ValueError, match="k = 0"):
        top_k_correct(logits, jnp.zeros(4, jnp.int32), 0)


def test_inception_loss_adds_the_weighted_heads(x64):
    main, labels = example(0)
    heads = example(1)[0], example(2)[0]
    output = types.SimpleNamespace(logits=jnp.asarray(main), aux_logits=tuple(map(jnp.asarray, heads)))

    total, parts = losses.inception_loss(output, jnp.asarray(labels), (0.3, 0.5), 0.1)

    expected = [reference(logits, labels, 0.1)[0] for logits in (main, *heads)]
    assert list(parts) == ["main", "aux1", "aux2"]
    for part, value in zip(parts.values(), expected, strict=True):
        np.testing.assert_allclose(part, value, rtol=1e-12)
    np.testing.assert_allclose(total, expected[0] + 0.3 * expected[1] + 0.5 * expected[2], rtol=1e-12)


def test_class_weights_multiply_every_head_and_the_smoothed_labels(x64):
    main, labels = example(0)
    head = example(1)[0]
    output = types.SimpleNamespace(logits=jnp.asarray(main), aux_logits=(jnp.asarray(head),))
    weights = np.random.default_rng(5).uniform(0, 3, main.shape[1])
    total, parts = losses.inception_loss(output, jnp.asarray(labels), (0.3,), 0.1, tuple(weights))
    expected = [weights[labels] * reference(logits, labels, 0.1)[0] for logits in (main, head)]
    for part, value in zip(parts.values(), expected, strict=True):
        np.testing.assert_allclose(part, value, rtol=1e-12)
    np.testing.assert_allclose(total, expected[0] + 0.3 * expected[1], rtol=1e-12)
    outside, _ = losses.inception_loss(output, jnp.full(len(labels), -1), (0.3,), 0.1, (0.0,) * main.shape[1])
    assert np.isnan(outside).all()  # a label that is no class is loud whatever its weight


def test_inception_loss_without_heads_is_the_main_loss():
    main, labels = example()
    output = types.SimpleNamespace(logits=jnp.asarray(main, jnp.float32), aux_logits=())
    total, parts = jax.jit(lambda: losses.inception_loss(output, jnp.asarray(labels), (), 0.0))()
    assert list(parts) == ["main"]
    np.testing.assert_array_equal(total, parts["main"])


def test_inception_loss_wants_one_weight_per_head():
    logits = jnp.zeros((2, 3))
    output = types.SimpleNamespace(logits=logits, aux_logits=(logits, logits))
    with pytest.raises(UserError, match=r"aux_weights \(config\.loss\.aux_weights\) = \(0\.4,\): 1 weights, .* 2 aux"):
        losses.inception_loss(output, jnp.zeros(2, jnp.int32), (0.4,), 0.0)
