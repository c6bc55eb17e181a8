"""Figures of a sequence: the points drawn are the transfers' own numbers, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from toolkit.errors import ResultError
from toolkit.explain.mask_result import MaskedLatent
from toolkit.measure.classifier_variability import ClassifierVariability
from toolkit.measure.transfer import Transfer, transfer_metrics
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.show.compose import stacked
from toolkit.show.compose_checks import classifier_variabilities
from toolkit.show.compose_drift import forward_transfer, transfer_scatter
from toolkit.show.draw import plotly_figure, static_figure
from toolkit.show.panels import Bars, Image, Intervals, Lines, Scatter

SITES = ["A", "B", "C"]


def transfer(lift: float = 0.0, tasks: list[str] = SITES) -> Transfer:
    scores = np.array([[0.8, 0.5, 0.4], [0.7, 0.8, 0.5], [0.6, 0.7, 0.9]]) + lift
    return transfer_metrics(scores, tasks, single_task=[0.8, 0.9, 0.9])


PAIRS = {"sequential": ([transfer(), transfer(0.02)], [transfer(0.1), transfer(0.1)])}


def test_forward_transfer_by_hand() -> None:
    figure = forward_transfer(PAIRS)
    (panel,) = figure.panels()
    assert isinstance(panel, Lines)
    without, with_ = panel.series
    assert (without.dash, with_.dash, without.colour) == (1, 0, with_.colour)
    assert list(without.x) == [2, 3]
    # R[A, B] - S_B = 0.5 - 0.9 and R[B, C] - S_C = 0.5 - 0.9, the second seed 0.02 higher
    np.testing.assert_allclose(without.y, [-0.39, -0.39])
    assert without.low is not None
    np.testing.assert_allclose(without.low, [-0.4, -0.4])
    np.testing.assert_allclose(with_.y, [-0.3, -0.3])
    assert SegReg.caveat in figure.caption
    assert "B" in panel.x_label


def test_one_seed_has_no_band_and_says_so() -> None:
    figure = forward_transfer({"sequential": ([transfer()], [transfer()])}, method="rehearsal")
    (panel,) = figure.panels()
    assert isinstance(panel, Lines)
    assert all(one.low is None for one in panel.series)
    assert "single seed" in figure.subtitle
    assert SegReg.caveat not in figure.caption


def test_two_sites_are_rows_and_not_a_line_of_one_point() -> None:
    def two(lift: float) -> Transfer:
        return transfer_metrics(np.array([[0.8, 0.5], [0.7, 0.8]]) + lift, ["A", "B"], single_task=[0.8, 0.9])

    figure = forward_transfer({"sequential": ([two(0.0), two(0.02)], [two(0.1), two(0.1)])})
    (panel,) = figure.panels()
    assert isinstance(panel, Intervals)
    assert [(one.name, list(one.y)) for one in panel.series] == [
        ("without", ["sequential"]),
        ("with SegReg", ["sequential"]),
    ]
    # 0.5 - 0.9 and 0.52 - 0.9: mean -0.39, deviation 0.01; with 0.1 added -0.3
    np.testing.assert_allclose([panel.series[0].x[0], panel.series[1].x[0]], [-0.39, -0.3])
    assert panel.series[0].low is not None
    np.testing.assert_allclose(panel.series[0].low, [-0.4])
    assert "Dashed" not in figure.subtitle
    assert plotly_figure(figure).data


def test_scatter_by_hand() -> None:
    forward, backward = transfer_scatter(PAIRS).panels()
    assert isinstance(forward, Scatter)
    assert isinstance(backward, Scatter)
    (series,) = backward.series
    # backward transfer: mean of 0.6 - 0.8 and 0.7 - 0.8; Dice: mean of 0.6, 0.7, 0.9, and 0.01 more over two seeds
    np.testing.assert_allclose(series.x, [-0.15, -0.15], atol=1e-12)
    np.testing.assert_allclose(series.y, [2.2 / 3 + 0.01, 2.2 / 3 + 0.1])
    assert forward.x_range is not None
    assert forward.x_range[0] < min(forward.series[0].x) < max(forward.series[0].x) < forward.x_range[1]


def test_a_difference_of_a_thousandth_does_not_fill_the_panel() -> None:
    alike = {"sequential": ([transfer()], [transfer(0.001)])}
    for panel in transfer_scatter(alike).panels():
        assert isinstance(panel, Scatter)
        assert panel.y_range is not None
        assert panel.y_range[1] - panel.y_range[0] > 0.03


def test_other_tasks_are_refused() -> None:
    with pytest.raises(ResultError, match="same tasks"):
        forward_transfer({"sequential": ([transfer()], [transfer(tasks=["A", "C", "B"])])})
    with pytest.raises(ResultError, match="same tasks"):
        transfer_scatter({})
    one = transfer_metrics([[0.5]], ["A"])
    with pytest.raises(ResultError, match="two tasks"):
        transfer_scatter({"sequential": ([one], [one])})


def variability(angle: float) -> ClassifierVariability:
    return ClassifierVariability(
        layer="head_input",
        weights=torch.zeros(2, 2, 3),
        biases=torch.zeros(2, 2),
        classes=[0, 1],
        class_names=["background", "LV"],
        angles=torch.tensor([angle, 3 * angle]),
        source_disagreement=0.1,
        target_disagreement=0.2,
        source_accuracy=0.9,
        target_accuracy=0.7,
        provenance={},
    )


def test_refitted_heads_side_by_side() -> None:
    figure = classifier_variabilities([variability(5.0), variability(2.0)], ["plain", "SegReg"])
    angles, disagreement, accuracy = figure.panels()
    assert isinstance(angles, Bars)
    assert isinstance(disagreement, Bars)
    assert isinstance(accuracy, Bars)
    np.testing.assert_allclose(angles.series[1].y, [2.0, 6.0])
    assert "plain 10, SegReg 4" in angles.note
    assert list(disagreement.series[0].y) == [0.1, 0.2]
    assert list(accuracy.series[0].y) == [0.9, 0.7]
    assert SegReg.caveat in figure.caption


def masked(weights: str) -> MaskedLatent:
    label = torch.zeros(1, 8, 8, dtype=torch.long)
    label[:, 2:4, 2:4] = 1
    return MaskedLatent(
        input=torch.ones(1, 1, 8, 8),
        image=None,
        segmentation=(label, label),
        entropy=(label.float(), label.float()),
        mask=torch.ones(1, 4, 1, 1),
        image_mask=None,
        label=label[:, None],
        cases=["case"],
        classes={0: "background", 1: "LV"},
        scheme="channel",
        fraction=0.3,
        soft=True,
        skips="keep",
        layer="bottleneck",
        bn_mode="eval",
        temperature=1.0,
        against="label",
        provenance={"weights": weights},
    )


def test_stacked_names_every_row_and_keeps_every_panel() -> None:
    figure = stacked([masked("one"), masked("two")], ["plain", "SegReg"], side=80)
    assert len(figure.rows) == 4
    first = [row[0] for row in figure.rows]
    assert all(isinstance(panel, Image) for panel in first)
    assert [panel.title.split(":")[0] for panel in first if panel] == ["plain", "plain", "SegReg", "SegReg"]
    assert "plain: weights one" in figure.provenance
    with pytest.raises(ResultError, match="one kind"):
        stacked([masked("one"), variability(1.0)], ["a", "b"])


def test_both_backends_draw_them(tmp_path: Path) -> None:
    for number, figure in enumerate((forward_transfer(PAIRS), transfer_scatter(PAIRS))):
        assert len(plotly_figure(figure).data) >= 2
        assert static_figure(figure, tmp_path / f"{number}.png", dpi=60).stat().st_size > 1000
