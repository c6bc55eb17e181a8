"""The presets on known rows: the released one is dead where the specification says so."""

from __future__ import annotations

import math

import pytest
import torch

from toolkit.errors import ConfigError
from toolkit.methods.med_disseg.regularizer import preset_check, preset_distances


def test_on_long_unit_variance_rows_the_released_preset_is_dead() -> None:
    torch.manual_seed(0)
    table = preset_check(torch.randn(16, 65536)).set_index("preset")
    assert table.loc["released", "loss"] == pytest.approx(math.log(1e-8), abs=1e-4)
    assert table.loc["released", "gradient_norm"] == 0
    assert table.loc["released", "status"] == "dead"
    assert table.loc["default", "loss"] == pytest.approx(-2.53, abs=0.02)
    assert table.loc["default", "gradient_norm"] == pytest.approx(1.7e-3, rel=0.1)
    assert (table.loc[["original", "default", "default-cosine"], "status"] == "ok").all()


def test_distances_are_in_units_of_each_presets_tau_and_layout() -> None:
    features = torch.tensor([[[3.0, 5.0]], [[0.0, 0.0]]])  # (2, 1, 2): pooled rows 4 and 0
    assert preset_distances(features, "released").item() == pytest.approx(math.sqrt(34) / 0.5)
    assert preset_distances(features, "original").item() == pytest.approx(34 / 2)
    assert preset_distances(features, "default").item() == pytest.approx(16 / 0.5)


def test_one_image_has_no_pairs() -> None:
    with pytest.raises(ConfigError, match="two images"):
        preset_check(torch.randn(1, 4))
