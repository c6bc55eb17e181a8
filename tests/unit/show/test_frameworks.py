"""The drawings of the two frameworks: something is drawn, every arrow joins two boxes, and no box covers another."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from toolkit.methods.med_disseg import MedDisSeg
from toolkit.show import frameworks

DRAWINGS = {
    "cooperative_training": (frameworks._COOPERATIVE, frameworks._COOPERATIVE_ARROWS),
    "med_disseg_stages": (frameworks._STAGES, frameworks._STAGE_ARROWS),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_picture_with_colour_and_a_white_border(name: str) -> None:
    values = np.asarray(Image.open(io.BytesIO(getattr(frameworks, name)())).convert("RGB"), dtype=int)
    assert values.shape[1] > 900
    assert 0.05 < (values < 250).any(axis=2).mean() < 0.6
    assert (values.max(axis=2) - values.min(axis=2)).max() > 80
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    assert (border == 255).all(), "something is cut off"


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_arrow_joins_two_boxes(name: str) -> None:
    boxes, arrows = DRAWINGS[name]
    assert {end for first, second, _ in arrows for end in (first, second)} <= set(boxes)
    assert len(set(arrows)) == len(arrows)


@pytest.mark.parametrize("name", DRAWINGS)
def test_no_box_covers_another(name: str) -> None:
    boxes, _ = DRAWINGS[name]
    width, height = frameworks._SIZE
    for (first, a), (second, b) in itertools.combinations(boxes.items(), 2):
        apart = abs(a[0] - b[0]) >= width or abs(a[1] - b[1]) >= height
        assert apart, f"{first} and {second}"


def test_a_hard_example_starts_at_each_code() -> None:
    hard = [arrow[:2] for arrow in frameworks._COOPERATIVE_ARROWS if arrow[2] == frameworks._HARD]
    assert {("z_i", "masked image"), ("z_s", "masked shape")} <= set(hard)


def test_the_parts_are_those_of_the_network() -> None:
    parts = {name for name, _ in MedDisSeg(in_channels=1, width=16, encoder_width=4).named_children()}
    drawn = set(frameworks._STAGES)
    for level in (1, 2, 3, 4):
        assert (f"cdfa{level}" in parts) == (f"cdfa {level}" in drawn)
        assert (f"dconv{level}" in parts) == (f"dilated {level}" in drawn)
    assert {name.removeprefix("decoder_") for name in parts if name.startswith("decoder_")} <= drawn
