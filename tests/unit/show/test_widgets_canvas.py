"""The composed picture: tiles, blending, areas that can be clicked, and its size in bytes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from canvases import centre_of
from PIL import Image

from toolkit.show.widgets.canvas import Area, Canvas, enlarged, fitted, grey, heated, outlined, over


def test_a_click_finds_its_cell() -> None:
    area = Area("grid", 10, 20, 40, 30, rows=3, columns=4)
    assert area.cell(10, 20) == (0, 0)
    assert area.cell(49.9, 49.9) == (2, 3)
    assert area.cell(50, 20) is None
    assert area.cell(9.9, 30) is None
    for row in range(3):
        for column in range(4):
            assert area.cell(*centre_of(area, row, column)) == (row, column)


def test_the_newest_area_is_hit_first() -> None:
    canvas = Canvas(100, 100)
    canvas.area(Area("below", 0, 0, 100, 100))
    canvas.area(Area("above", 40, 40, 10, 10))
    assert canvas.hit(45, 45) == ("above", 0, 0)
    assert canvas.hit(5, 5) == ("below", 0, 0)
    assert canvas.hit(200, 5) is None


def test_enlarging_repeats_pixels() -> None:
    small = np.array([[1, 2], [3, 4]])
    assert (enlarged(small, (4, 6)) == np.kron(small, np.ones((2, 3), dtype=int))).all()
    assert (enlarged(enlarged(small, (4, 4)), (2, 2)) == small).all()


def test_blending_is_the_weighted_mean() -> None:
    below = np.full((1, 1, 3), 100, np.uint8)
    colours = np.array([[[200, 0, 100, 51]]], np.uint8)  # alpha 0.2
    assert over(below, colours).tolist() == [[[120, 80, 100]]]
    assert over(below, colours, 0.5).tolist() == [[[110, 90, 100]]]
    assert over(below, colours, 0.0).tolist() == [[[100, 100, 100]]]


@pytest.mark.parametrize("factor", [2, 3])
def test_blending_before_or_after_enlarging_is_the_same(factor: int) -> None:
    random = np.random.default_rng(0)
    picture = grey(random.normal(size=(12, 12)))
    values = random.normal(size=(4, 4))
    size = (12 * factor, 12 * factor)
    early = heated(picture, size, values, (-1, 1))
    late = heated(enlarged(picture, size), size, values, (-1, 1))
    assert (early == late).all()


def test_contours_stay_on_the_edge_of_the_class() -> None:
    labels = np.zeros((8, 8), dtype=int)
    labels[2:6, 2:6] = 1
    drawn = outlined(np.zeros((8, 8, 3), np.uint8), labels)
    coloured = drawn.any(axis=2)
    assert coloured[2, 2:6].all()
    assert not coloured[labels == 0].any()
    assert not coloured[4, 4]


def test_tiles_keep_their_proportions() -> None:
    assert fitted((96, 96), 1.0, 200) == (200, 200)
    assert fitted((50, 100), 1.0, 200) == (100, 200)
    assert fitted((100, 100), 0.5, 200) == (100, 200)


def test_a_picture_that_is_too_large_becomes_a_jpeg() -> None:
    canvas = Canvas(1000, 700)
    canvas.paste(np.random.default_rng(0).integers(0, 256, (700, 1000, 3)).astype(np.uint8), 0, 0)
    data, form = canvas.encode()
    assert form == "jpeg"
    assert len(data) < 500_000
    assert Image.open(io.BytesIO(data)).size == (1000, 700)
    data, form = Canvas(1000, 700).encode()
    assert form == "png"
    assert Image.open(io.BytesIO(data)).size == (1000, 700)


def test_thicker_contours_stay_inside_the_class() -> None:
    labels = np.zeros((40, 40), dtype=int)
    labels[10:30, 10:30] = 1
    for thickness in (1, 2, 5):
        drawn = outlined(np.zeros((40, 40, 3), np.uint8), labels, thickness=thickness).any(axis=2)
        assert not drawn[labels == 0].any()
        sides = (drawn[20, 10:20], drawn[20, 20:30], drawn[10:20, 20], drawn[20:30, 20])
        assert [int(side.sum()) for side in sides] == [thickness] * 4, "closed, and as thick on every side"


def test_a_lens_shows_a_part_at_any_resolution() -> None:
    fine = np.arange(64).reshape(8, 8)
    assert (enlarged(fine, (4, 4), (0.5, 0.25, 0.5, 0.5)) == fine[4:8, 2:6]).all()
    coarse = np.arange(4).reshape(2, 2)
    assert (enlarged(coarse, (4, 4), (0.5, 0.0, 0.5, 0.5)) == 2).all()
