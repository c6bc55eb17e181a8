"""Normalisation against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from golden_cases import golden_case

from toolkit.data.normalise import normalise
from toolkit.errors import ConfigError

IMAGE = np.random.default_rng(0).gamma(2.0, 300.0, size=(2, 12, 15)).astype(np.float32)


def test_zscore_clip_is_per_channel():
    result = normalise(IMAGE)
    for channel, expected in zip(result, IMAGE.astype(np.float64), strict=True):
        clipped = np.clip(expected, *np.percentile(expected, (0.5, 99.5)))
        np.testing.assert_allclose(channel, (clipped - clipped.mean()) / clipped.std(), atol=1e-4)
    assert result.dtype == np.float32


def test_other_rules():
    wide = IMAGE.astype(np.float64)
    expected = (wide - wide.mean((1, 2), keepdims=True)) / wide.std((1, 2), keepdims=True)
    np.testing.assert_allclose(normalise(IMAGE, "zscore"), expected, atol=1e-4)
    np.testing.assert_array_equal(normalise(IMAGE, "none"), IMAGE)
    np.testing.assert_allclose(normalise(IMAGE, "window:100,500"), (np.clip(wide, 100, 500) - 100) / 400, atol=1e-6)
    scaled = normalise(IMAGE, "range")
    assert scaled.min() == 0
    assert scaled.max() == 1


def test_result_does_not_depend_on_the_unit_of_intensity():
    np.testing.assert_allclose(normalise(IMAGE * 1000 + 5), normalise(IMAGE), atol=2e-4)


@pytest.mark.parametrize("rule", ["zscore-clip", "zscore", "range"])
@pytest.mark.parametrize("value", [0.0, 7.0, -1e6])
def test_constant_images_become_zero(rule, value):
    np.testing.assert_array_equal(normalise(np.full((1, 4, 4), value), rule), 0)


def test_rare_foreground_survives_the_percentiles():
    image = np.zeros((1, 100, 100), np.float32)
    image[0, 3, 4] = 9
    assert normalise(image)[0, 3, 4] > 1


def test_the_input_is_not_changed():
    before = IMAGE.copy()
    normalise(IMAGE)
    np.testing.assert_array_equal(IMAGE, before)


@pytest.mark.parametrize("rule", ["z", "window:5,1", "window:a,b", "window:1"])
def test_unknown_rules_are_refused(rule):
    with pytest.raises(ConfigError, match=r"normalisation|window"):
        normalise(IMAGE, rule)


def test_percentiles_of_a_volume_and_extremes_of_a_slice_as_published() -> None:
    volume = golden_case("latent_augmentation", "normalise_volume_percentile").numbers()
    got = normalise(volume["volume"][None], "range:2,98")[0]
    np.testing.assert_allclose(got, volume["normalised"], rtol=0, atol=1e-5)
    slices = golden_case("latent_augmentation", "normalise_slice_minmax").numbers()
    for image, expected in zip(slices["batch"], slices["normalised"], strict=True):
        np.testing.assert_allclose(normalise(image, "range:0,100"), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", ["range:98,2", "range:-1,50", "range:2", "range:a,b", "range:0,101"])
def test_percentiles_that_cannot_be(rule: str) -> None:
    with pytest.raises(ConfigError, match="range:2,98"):
        normalise(np.zeros((1, 3, 3)), rule)


def test_rules_for_colours_follow_torchvision_and_opencv():
    colours = np.random.default_rng(1).integers(0, 256, (3, 5, 6)).astype(np.float32)
    # What torchvision documents for its pre-trained weights: mean and std of values in [0, 1].
    for channel, mean, deviation, seen in zip(
        colours, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), normalise(colours, "imagenet"), strict=True
    ):
        np.testing.assert_allclose(seen, (channel / 255 - mean) / deviation, rtol=1e-5, atol=1e-6)
    bgr = normalise(colours, "bgr")
    assert bgr.flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(bgr, np.stack([colours[2], colours[1], colours[0]]) / 255, rtol=1e-6)
    grey = np.broadcast_to(colours[:1], (3, 5, 6))  # a grey picture whose channel is only repeated
    assert len({float(channel[0, 0]) for channel in normalise(grey, "imagenet")}) == 3
    assert normalise(np.zeros((3, 2, 2), np.float32), "bgr").max() == 0


@pytest.mark.parametrize("rule", ["imagenet", "bgr"])
@pytest.mark.parametrize(
    "image", [np.ones((1, 4, 4)), np.full((3, 4, 4), 300.0), np.full((3, 4, 4), -1.0), np.full((3, 4, 4), 0.25)]
)
def test_rules_for_colours_refuse_other_images(rule, image):
    with pytest.raises(ConfigError, match="three channels from 0 to 255"):
        normalise(image, rule)
