"""The plot of one image's activations: which channels it shows, of which blocks."""

import numpy as np
import pytest

from inception_jax.runs import activation_plot

IMAGE = np.zeros((16, 16, 3), np.uint8)


def test_the_strongest_channels_of_each_block(tmp_path):
    random = np.random.default_rng(0)
    maps = {"conv1": random.normal(size=(8, 8, 20)), "inception_3a": random.normal(size=(4, 4, 3))}
    maps["conv1"][2, 3, 17] = 50.0
    path = tmp_path / "activations.png"
    (axes,) = activation_plot.activations(IMAGE, maps, path, title="digits, test: 3").axes
    image, *shown = axes.images
    assert image.get_array().shape == (16, 16, 3) and path.stat().st_size > 1000
    assert len(shown) == 8 + 3  # a block with fewer channels shows all
    np.testing.assert_allclose(shown[0].get_array(), maps["conv1"][..., 17], rtol=1e-6)
    maxima = [one.get_array().max() for one in shown]
    assert maxima[:8] == sorted(maxima[:8], reverse=True) and maxima[8:] == sorted(maxima[8:], reverse=True)
    texts = [text.get_text() for text in axes.figure.texts]
    assert "digits, test: 3" in texts and "conv1\n8×8×20" in texts and "inception_3a\n4×4×3" in texts


def test_of_many_blocks_some_are_shown_the_first_and_the_last_among_them(tmp_path):
    maps = {f"block{number}": np.ones((2, 2, 1)) for number in range(40)}
    figure = activation_plot.activations(IMAGE, maps, tmp_path / "a.png")
    names = [text.get_text().partition("\n")[0] for text in figure.texts if "\n" in text.get_text()]
    assert len(names) == 24 and (names[0], names[-1]) == ("block0", "block39")
    assert any("activations of 24 of 40 blocks" in text.get_text() for text in figure.texts)
    figure = activation_plot.activations(IMAGE, dict(list(maps.items())[:15]), tmp_path / "all.png")  # as of GoogLeNet
    names = [text.get_text().partition("\n")[0] for text in figure.texts if "\n" in text.get_text()]
    assert names == list(maps)[:15]
    assert any("activations of each block" in text.get_text() for text in figure.texts)
    # Not a square: it keeps its proportions, in the middle of its place.
    (axes,) = activation_plot.activations(
        IMAGE, {"a": np.ones((4, 2, 1)), "b": np.ones((4, 4, 1))}, tmp_path / "c.png"
    ).axes
    (left, right, bottom, top), square = (image.get_extent() for image in axes.images[1:])
    assert bottom - top == pytest.approx(2 * (right - left)) == pytest.approx(square[1] - square[0])
    assert left + right == pytest.approx(square[0] + square[1])
    with pytest.raises(ValueError, match="no activations"):
        activation_plot.activations(IMAGE, {}, tmp_path / "b.png")


def test_colours_span_a_map_and_one_value_is_not_dark(tmp_path):
    """The strongest channels of a small map often have one value everywhere, or values far from 0."""
    maps = {"conv1": np.full((2, 2, 1), 3.0), "conv2": np.zeros((2, 2, 1)), "logits": np.array([[[-1.0], [2.0]]])}
    maps |= {"conv3": np.array([[[8.0], [9.0]]]), "conv4": np.full((2, 2, 1), -2.0)}
    (axes,) = activation_plot.activations(IMAGE, maps, tmp_path / "a.png").axes
    assert [image.get_clim() for image in axes.images[1:]] == [(0, 3), (0, 1), (-1, 2), (8, 9), (-2, 0)]
