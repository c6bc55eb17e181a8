"""Figures of the dispersive loss: what they draw is what they were given, worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from toolkit.errors import ResultError
from toolkit.measure.collapse import Collapse
from toolkit.methods.med_disseg.regularizer import preset_check
from toolkit.show.compose_checks import active_band, collapses
from toolkit.show.compose_data import qualitative
from toolkit.show.draw import plotly_figure, static_figure
from toolkit.show.panels import Figure, Image, Intervals, Lines

PAIR = torch.tensor([[[3.0, 5.0]], [[0.5, -0.1]]])  # two images of one channel and two positions


def result(layer: str = "bottleneck", **values: float) -> Collapse:
    return Collapse(
        layer=layer,
        values={"effective_rank": 2.0, "mean_cosine": 0.9, "uniformity": -2.5, **values},
        histogram=torch.tensor([1.0, 3.0]),
        edges=torch.tensor([0.0, 2.0, 4.0]),
        tau=0.5,
        rows=4,
        channels=8,
        provenance={"weights": "ab" * 32},
    )


def case(name: str, channels: int = 1) -> Any:
    label = torch.zeros(12, 16, dtype=torch.uint8)
    label[2:6, 4:8] = 1
    return SimpleNamespace(id=name, image=torch.rand(channels, 12, 16), label=label)


def band() -> Figure:
    return active_band(PAIR, preset_check(PAIR), note="a batch of two")


def both_networks() -> Figure:
    return collapses([result(), result(effective_rank=6.0, mean_cosine=-0.2)], ["plain", "dispersive"])


def contours() -> Figure:
    half = np.zeros((12, 16), dtype=int)
    half[2:6, 4:6] = 1
    cases = [case("one"), case("two", channels=3)]
    return qualitative(cases, {"plain": [half, half], "empty": [0 * half, 0 * half]})


def test_every_preset_has_a_panel_with_its_distances() -> None:
    panels = {panel.title.split(":")[0]: panel for panel in band().panels()}
    assert list(panels) == ["released", "original", "default", "default-cosine"]
    # whole maps differ by (2.5, 5.1), pooled ones by 3.8; both in units of tau = 0.5, the second squared
    for name, distance, inside in (("released", math.hypot(2.5, 5.1) / 0.5, "100%"), ("default", 3.8**2 / 0.5, "0%")):
        panel = panels[name]
        assert isinstance(panel, Lines)
        (series,) = panel.series
        x, y = np.asarray(series.x), np.asarray(series.y)
        (filled,) = np.flatnonzero(y)
        assert y[filled] == 1
        assert abs(x[filled] - distance) <= (x[1] - x[0]) / 2
        assert f"{inside} of pairs in reach" in panel.note
        assert (panel.x_label, panel.y_label) == ("distance / tau", "share of pairs")
        ((reach, _),) = panel.marks
        assert reach == pytest.approx(-math.log(1e-8), abs=0.03)


def test_collapse_draws_shares_of_pairs_and_ranks_over_channels() -> None:
    histograms, numbers = both_networks().panels()
    assert isinstance(histograms, Lines)
    assert isinstance(numbers, Intervals)
    for series in histograms.series:
        np.testing.assert_allclose(series.x, [1.0, 3.0])
        np.testing.assert_allclose(series.y, [0.25, 0.75])
    drawn = {one.name: dict(zip(one.y, one.x, strict=True)) for one in numbers.series}
    assert drawn["plain"]["effective rank / channels"] == pytest.approx(2 / 8)
    assert drawn["dispersive"]["effective rank / channels"] == pytest.approx(6 / 8)
    assert drawn["dispersive"]["mean cosine"] == -0.2
    assert numbers.x_range is not None
    assert numbers.x_range[0] < -0.2
    assert (numbers.x_label, histograms.x_label) == ("value", "Euclidean distance")


def test_what_one_network_lacks_is_drawn_for_none() -> None:
    two = [result(uniformity=-0.5, linear_probe=0.7), result(linear_probe=math.nan)]
    figure = collapses(two, ["a", "b"])
    numbers = figure.panels()[1]
    assert isinstance(numbers, Intervals)
    assert [list(one.y) for one in numbers.series] == [["effective rank / channels", "mean cosine"]] * 2
    assert "a \N{MINUS SIGN}0.5, b \N{MINUS SIGN}2.5" in numbers.note


def test_diagnostics_of_different_layers_are_refused() -> None:
    with pytest.raises(ResultError, match="one layer"):
        collapses([result(), result("head_input")], ["a", "b"])
    with pytest.raises(ResultError, match="named networks"):
        collapses([result()], ["a", "b"])
    with pytest.raises(ResultError):
        collapses([], [])


def test_qualitative_shows_every_prediction_with_its_dice() -> None:
    figure = contours()
    assert [len(row) for row in figure.rows] == [4, 4]
    for row, name in zip(figure.rows, ("one", "two"), strict=True):
        picture, plain, empty, reference = row
        assert isinstance(picture, Image)
        assert isinstance(plain, Image)
        assert isinstance(empty, Image)
        assert isinstance(reference, Image)
        assert [picture.title, plain.title, empty.title] == [name, "plain", "empty"]
        assert picture.labels is None
        # 8 of 16 pixels found and none beyond: 2 * 8 / (8 + 16)
        assert (plain.note, empty.note) == ("Dice 0.67", "Dice 0.00")
        assert plain.labels is not None
        assert reference.labels is not None
        assert (plain.labels.sum(), reference.labels.sum()) == (8, 16)
        assert plain.height / plain.width == pytest.approx(12 / 16, abs=0.01)
    assert figure.panels()[0].pixels.shape == (12, 16)  # type: ignore[attr-defined]
    assert figure.panels()[4].pixels.shape == (12, 16, 3)  # type: ignore[attr-defined]
    assert "one, two" in figure.subtitle


def test_a_prediction_without_a_contour_says_so() -> None:
    everywhere = qualitative([case("one")], {"plain": [np.ones((12, 16), dtype=int)]}).rows[0][1]
    assert isinstance(everywhere, Image)
    assert everywhere.note.endswith(", all foreground")


def test_nothing_to_find_has_no_dice_and_missing_maps_are_refused() -> None:
    blank = case("blank")
    blank.label[:] = 0
    figure = qualitative([blank], {"plain": [np.zeros((12, 16), dtype=int)]})
    assert figure.rows[0][1] is not None
    assert figure.rows[0][1].note == "nothing to find"
    with pytest.raises(ResultError, match="one label map a case"):
        qualitative([blank, blank], {"plain": [np.zeros((12, 16), dtype=int)]})


@pytest.mark.parametrize("figure", [band, both_networks, contours])
def test_both_backends_draw_every_panel(figure: Any, tmp_path: Path) -> None:
    made = figure()
    assert static_figure(made, tmp_path / "figure.png", dpi=60).read_bytes().startswith(b"\x89PNG")
    page = plotly_figure(made)
    texts = " ".join(note.text for note in page.layout.annotations)
    assert all(panel.title in texts for panel in made.panels())
    assert len({trace.xaxis for trace in page.data}) == len(made.panels())


def test_a_millimetre_bar_and_true_proportions_where_the_spacing_is_known() -> None:
    known = case("one")
    known.spacing, known.classes = (2.0, 1.0), {0: "none", 1: "gland"}
    figure = qualitative([known], {"plain": [np.asarray(known.label)]})
    first = figure.panels()[0]
    assert isinstance(first, Image)
    assert (first.height, first.width) == (130, round(130 * 16 / 24)), "12 rows of 2 mm, 16 columns of 1 mm"
    assert first.scale_bar() == (5.0, "5 mm")
    assert figure.key() == {1: "gland"}
