"""The drawing and acquisition blocks of the phantoms against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.data.phantoms.fields import (
    Scanner,
    Stream,
    acquire,
    average_down,
    blur,
    contrast_curve,
    paint,
    rician,
    shading,
    smooth_field,
    smooth_step,
    soft_inside,
    stamp_disc,
)


def test_uniform_draws_are_the_top_bits_of_the_raw_words():
    raw = np.random.PCG64(np.random.SeedSequence([3, 1, 4])).random_raw(5)
    expected = [int(word) // 2048 / 2**53 for word in raw]
    assert Stream(3, 1, 4).uniforms(5).tolist() == expected


def test_normal_draws_have_the_moments_of_a_sum_of_four_uniforms():
    draws = Stream(5).normals(400_000)
    assert abs(draws.mean()) < 0.006
    assert draws.std() == pytest.approx(1.0, abs=0.004)
    assert np.abs(draws).max() <= np.sqrt(12) + 1e-3
    # Excess kurtosis of n summed uniforms is -6/(5n).
    assert (draws**4).mean() - 3 == pytest.approx(-0.3, abs=0.03)
    assert np.corrcoef(draws[:-1], draws[1:])[0, 1] == pytest.approx(0.0, abs=0.006)


def test_integers_cover_both_ends_evenly():
    stream = Stream(11)
    counts = np.bincount([stream.integer(6, 8) for _ in range(3000)], minlength=9)[6:]
    assert counts.sum() == 3000
    assert counts.min() > 900


def test_a_soft_disc_has_the_area_of_the_disc():
    at = np.arange(64) + 0.5 - 32
    distance = np.sqrt(at[:, None] ** 2 + at[None, :] ** 2)
    assert soft_inside(distance - 20.3, 1.0).sum() == pytest.approx(np.pi * 20.3**2, rel=1e-3)
    mask = np.zeros((64, 64))
    stamp_disc(mask, 30.2, 33.7, 9.4, 1.0, 0.5)
    assert mask.sum() == pytest.approx(0.5 * np.pi * 9.4**2, rel=5e-3)
    stamp_disc(mask, -40.0, 10.0, 5.0, 1.0)
    assert mask.max() == 0.5


@pytest.mark.parametrize("sigma", [0.3, 0.6, 1.0, 1.7])
def test_blur_spreads_a_point_with_the_given_variance(sigma):
    point = np.zeros((41, 31))
    point[20, 15] = 1.0
    spread = blur(point, (sigma, 0.0))
    at = np.arange(41) - 20.0
    assert spread.sum() == pytest.approx(1.0)
    assert (spread.sum(1) * at**2).sum() == pytest.approx(sigma**2)
    assert spread[:, :15].sum() == 0.0
    assert np.allclose(blur(np.full((5, 6, 7), 2.5), (sigma, 0.4, 0.8)), 2.5)


def test_averaging_down_is_the_mean_of_blocks():
    values = np.arange(4 * 6 * 6, dtype=float).reshape(4, 6, 6) ** 1.5
    expected = values.reshape(2, 2, 2, 3, 6, 1).mean((1, 3, 5))
    assert np.allclose(average_down(values, (2, 3, 1)), expected)


def test_smooth_fields_have_unit_deviation_and_no_jumps():
    values = np.array([smooth_field(Stream(k), (40, 50), (5, 4)) for k in range(120)])
    assert values.std() == pytest.approx(1.0, abs=0.05)
    assert values.mean() == pytest.approx(0.0, abs=0.06)
    # The spline's mean squared slope is 1 per cell (8 pixels), the field is scaled by the root of 20/11 along an axis.
    assert np.diff(values, axis=1).std() == pytest.approx(np.sqrt(20 / 11) / 8, rel=0.05)
    assert smooth_field(Stream(1), (7, 8, 9), (2, 2, 3)).shape == (7, 8, 9)


def test_painting_mixes_by_opacity():
    canvas = np.array([1.0, 1.0, 1.0])
    paint(canvas, 3.0, np.array([0.0, 0.5, 1.0]))
    assert canvas.tolist() == [1.0, 2.0, 3.0]
    assert smooth_step(np.array([0.0, 2.0, 3.0, 4.0, 9.0]), 2.0, 4.0).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_rician_noise_has_rayleigh_background_and_gaussian_foreground():
    empty = rician(Stream(2), np.zeros((300, 300)), 0.05)
    assert empty.mean() == pytest.approx(0.05 * np.sqrt(np.pi / 2), rel=0.01)
    # The draws' light tails leave the spread a few percent short.
    assert empty.std() == pytest.approx(0.05 * np.sqrt(2 - np.pi / 2), rel=0.05)
    bright = rician(Stream(2), np.ones((300, 300)), 0.05)
    assert bright.std() == pytest.approx(0.05, rel=0.02)
    assert (bright**2).mean() == pytest.approx(1 + 2 * 0.05**2, rel=1e-3)


def test_the_contrast_curve_keeps_its_ends_and_bends_the_middle():
    values = np.array([0.0, 0.5, 1.0])
    assert np.allclose(contrast_curve(values, 1.0), values)
    assert np.allclose(contrast_curve(values, 3.0), [0.0, 0.25, 1.0])
    # The curve of c undoes the curve of 1/c.
    grid = np.linspace(0, 1, 11)
    assert np.allclose(contrast_curve(contrast_curve(grid, 2.7), 1 / 2.7), grid)


def test_shading_is_brighter_towards_the_coil():
    field = shading(Stream(4), (32, 32), Scanner(coil=1.0, coil_direction=(0.0, -1.0)))
    assert (np.diff(field.mean(0)) <= 0).all()
    assert field[0, 0] > 1.5 * field[0, -1]
    assert np.allclose(field, field[:1])
    flat = shading(Stream(4), (6, 8, 8), Scanner(coil_direction=(0.0, 0.0, 0.0)))
    assert np.allclose(flat, 1.0)


def test_acquired_images_are_whole_twelve_bit_numbers():
    image = acquire(Stream(6), np.linspace(0, 3, 64).reshape(8, 8), np.ones((8, 8)), Scanner(gain=3500.0))
    assert image.dtype == np.float32
    assert np.array_equal(image, np.rint(image))
    assert image.min() >= 0
    assert image.max() == 4095
