"""Schematics are pictures with something drawn on them, and name every block."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from toolkit.methods.selfreg.unet import self_reg_unet
from toolkit.show import schematics


@pytest.mark.parametrize("name", ["asymmetric_supervision", "self_regularization"])
def test_a_picture_with_colour(name: str) -> None:
    picture = Image.open(io.BytesIO(getattr(schematics, name)())).convert("RGB")
    values = np.asarray(picture, dtype=int)
    assert picture.width > 600
    assert 0.02 < (values < 250).any(axis=2).mean() < 0.6
    assert (values.max(axis=2) - values.min(axis=2)).max() > 80


def test_the_blocks_are_those_of_the_network() -> None:
    assert tuple(schematics._BLOCKS) == self_reg_unet(1, 2, width=4).attention_layers
