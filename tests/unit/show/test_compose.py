"""Composers: every result class becomes panels that state their range, and the numbers drawn are the result's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import toolkit as tk
from tests.unit.show.test_compose_explain import CLASSES, GENERATOR, PROVENANCE, cam_result, masked_result, random
from toolkit.errors import ResultError
from toolkit.measure.collapse import Collapse
from toolkit.measure.drift import Drift
from toolkit.measure.layer_similarity import LayerSimilarity
from toolkit.measure.projection import Projection
from toolkit.measure.similarity import ChannelSimilarity
from toolkit.measure.statistics import Comparison
from toolkit.measure.transfer import Transfer
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.show.captions import credits
from toolkit.show.compose_compare import transfer_matrices
from toolkit.show.compose_drift import drifts
from toolkit.show.compose_explain import grad_cams
from toolkit.show.compose_measure import channel_similarities, projections
from toolkit.show.compose_training import curve_columns, scores_by_site, training_curves
from toolkit.show.draw import plotly_figure, static_figure
from toolkit.show.figures import compose
from toolkit.show.panels import Bars, Heatmap, Intervals, Lines, Scatter


def similarity_result(form: str = "cosine", sign: float = 1.0) -> ChannelSimilarity:
    matrix = torch.eye(6, dtype=torch.float64) * (1 - 0.4 * sign) + 0.4 * sign
    return ChannelSimilarity(
        layer="bottleneck",
        form=form,
        matrices={form: matrix},
        scores={form: {"all": torch.tensor([0.4 * sign])}},
        channels=torch.arange(6),
        dead=torch.tensor([6]),
        dead_per_image=torch.tensor([1]),
        provenance=PROVENANCE,
    )


def projection_result(basis: str = "shared", stages: int = 2) -> Projection:
    labels = torch.arange(60) % 3
    return Projection(
        layer="head_input",
        method="pca",
        basis=basis,
        coordinates=[random(60, 2) + k for k in range(stages)],
        classes=[labels] * stages,
        class_names=CLASSES,
        cases=[labels] * stages,
        case_names=["a", "b", "c"],
        explained=torch.tensor([[0.6, 0.25]] * stages),
        axes=torch.zeros(stages, 2, 8),
        provenance=PROVENANCE,
    )


def drift_result(value: float = 0.5) -> Drift:
    rows = [
        {
            "measure": measure,
            "kind": kind,
            "class": name,
            "from": start,
            "to": end,
            "value": value,
            "low": value / 2,
            "high": 2 * value,
            "null_low": 0.0,
            "null_high": value / 4 if kind == "raw" else np.nan,
            "rows": 9,
            "clusters": 3,
            "status": "ok",
        }
        for measure, kind in (("frechet", "raw"), ("linear_cka", "rotation-free"))
        for name in ("pooled", "LV")
        for start, end in ((0, 1), (1, 2))
    ]
    return Drift(layer="head_input", numbers=pd.DataFrame(rows), means=pd.DataFrame(), provenance=PROVENANCE)


def other_results() -> list[Any]:
    numbers = pd.DataFrame(
        {
            "method": ["plain", "segreg"],
            "mean": [0.8, 0.82],
            "low": [0.7, 0.72],
            "high": [0.9, 0.92],
            "difference": [np.nan, 0.02],
            "difference_low": [np.nan, -0.01],
            "difference_high": [np.nan, 0.05],
            "patients": 8,
            "seeds": 1,
        }
    )
    transfer = pd.DataFrame(
        {"metric": ["bwt", "fwt_untrained"], "task": ["mean", "mean"], "value": [-0.1, np.nan], "sd": 0.0}
    )
    return [
        LayerSimilarity(
            method="linear_cka",
            layers_a=["a", "b"],
            layers_b=["encoder.1.conv", "c"],
            matrix=torch.eye(2),
            rows=9,
            batch=9,
            provenance=PROVENANCE,
        ),
        Collapse(
            layer="bottleneck",
            values={"mean_cosine": 0.2, "uniformity": -2.0, "effective_rank": 4.0, "silhouette": np.nan},
            histogram=torch.tensor([1.0, 3.0]),
            edges=torch.tensor([0.0, 1.0, 2.0]),
            tau=0.5,
            rows=9,
            channels=8,
            provenance=PROVENANCE,
        ),
        Comparison(baseline="plain", metric="dice", numbers=numbers, provenance=PROVENANCE),
        Transfer(
            tasks=["A", "B"], scores=np.array([[0.9, np.nan], [0.7, 0.9]]), numbers=transfer, provenance=PROVENANCE
        ),
    ]


def every_result() -> list[Any]:
    return [
        cam_result(),
        cam_result((8, 16, 16), layers=2),
        masked_result(torch.rand(1, 12, 1, 1, generator=GENERATOR)),
        masked_result(torch.rand(1, 1, 4, 4, generator=GENERATOR), decoded=True),
        similarity_result(),
        projection_result(),
        projection_result(stages=1),
        drift_result(),
        *other_results(),
    ]


@pytest.mark.parametrize("result", every_result(), ids=lambda result: type(result).__name__)
def test_every_result_is_drawn_twice_with_range_and_provenance(result: Any, tmp_path: Path) -> None:
    figure = compose(result, note="network trained with SegReg")
    assert "weights abababababab" in figure.provenance
    assert "weights" not in figure.caption, "the caption says how good the networks are, not what made the figure"
    assert SegReg.caveat in figure.caption
    for panel in figure.panels():
        assert panel.note or isinstance(panel, (Intervals, Scatter)), f"{panel.title} does not state its range"
    texts = " ".join(note.text for note in plotly_figure(result).layout.annotations)
    assert "weights abababababab" in texts
    assert static_figure(result, tmp_path / "figure.png", dpi=60).stat().st_size > 2000


def test_an_unknown_class_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(ResultError, match="GradCamResult"):
        compose(3)


def test_a_measure_of_similarity_has_one_range_whatever_its_values() -> None:
    positive, negative = similarity_result(), similarity_result("pearson", sign=-0.3)
    assert [p.scale for p in compose(positive).panels() if isinstance(p, Heatmap)] == ["diverging"]
    both = channel_similarities([[positive], [negative]], ["a", "b"]).panels()
    assert {(p.scale, p.limits) for p in both if isinstance(p, Heatmap)} == {("diverging", (-1.0, 1.0))}
    assert "redundancy 0.40" in both[0].note
    assert "1 dead" in both[0].note


def test_like_channels_stand_side_by_side() -> None:
    """Two groups of channels that alternate in the network are two squares in the figure."""
    result = similarity_result()
    group = np.arange(12) % 2
    result.matrices[result.form] = torch.from_numpy(np.where(group[:, None] == group, 0.9, 0.1) + 0.1 * np.eye(12))
    (panel,) = compose(result).panels()
    assert isinstance(panel, Heatmap)
    values = np.asarray(panel.values)
    assert (values[:6, :6] > 0.8).all()
    assert (values[6:, 6:] > 0.8).all()
    assert (values[:6, 6:] < 0.2).all()


def scored(dice: float, name: str = "a/plain") -> dict[str, object]:
    network = {"name": name, "steps": 600, "seed": 1, "dice": dice, "patients": 8, "sites": "A", "floor": 0.75}
    return {**PROVENANCE, "network": network}


def test_a_network_below_its_floor_is_stamped_and_an_unknown_score_is_not_claimed() -> None:
    good, bad, unknown = cam_result(), cam_result(), cam_result()
    good.provenance, bad.provenance = scored(0.91), scored(0.41, "a/bad")
    assert compose(unknown).stamp == compose(good).stamp == ""
    assert "Dice" not in compose(unknown).caption
    assert "600 steps, seed 1: a/plain test Dice 0.91 (n = 8 of A)" in compose(good).caption
    assert compose(bad).stamp == "untrained"
    assert "below the floor of 0.75" in compose(bad).caption
    both = grad_cams([good, bad], ["plain", "short"])
    assert both.stamp == "untrained: short"
    assert "600 steps, seed 1: plain test Dice 0.91 (n = 8 of A); short test Dice 0.41" in both.caption
    assert any(note.text == "<b>untrained: short</b>" for note in plotly_figure(both).layout.annotations)


def test_tables_of_scores_and_histories_know_their_networks_and_so_do_figures_of_them() -> None:
    """Whatever a figure is made of, it is the network that is told: no figure says less than another."""
    network = tk.load_trained("phantom-cardiac/plain", seed=0)
    cases = tk.load_task("phantom-cardiac").cases("test", site="A", patients=2)
    scores, dice = tk.evaluate(network, cases, metrics=("dice",)), network.scores.set_index("site")["dice"]["A"]
    told = f"600 steps, seed 0: {{}} test Dice {dice:.2f} (n = 8 of A)"
    by_arm, card = told.format("plain"), told.format("phantom-cardiac/plain")
    assert by_arm in tk.figures.scores_by_site({"plain": scores}).caption
    assert by_arm in tk.figures.training_curves({"plain": network.history.drop(columns="event")}).caption
    assert (
        by_arm in tk.figures.transfer_matrices({"plain": np.eye(2)}, ["A", "B"], provenance={"plain": network}).caption
    )
    assert by_arm in tk.figures.credits({"plain": network})["caption"]
    for figure in (tk.figures.score_boxes, tk.figures.score_table):
        assert figure({"plain, A": {"A": scores}, "plain, again": {"A": scores}}).caption == card, "told once"
    both = pd.concat([scores.assign(method=name, seed=0) for name in ("plain", "same")], ignore_index=True)
    compared = tk.show(tk.compare_methods(both, "plain"), provenance={"plain": network}, static=True).figure
    mean = scores["value"].mean()
    assert f"Dice: plain {mean:.2f}, same {mean:.2f} (n = 2 patients, 1 seed)" in compared.caption
    assert card in compared.caption
    assert "With one seed" in compared.subtitle


def test_the_score_of_every_stage_is_found_in_nested_provenance() -> None:
    result = projection_result()
    result.provenance = {"stages": [scored(0.9, "a/1"), scored(0.8, "a/2")]}
    figure = compose(result)
    assert figure.caption.endswith("a/1 test Dice 0.90 (n = 8 of A); a/2 test Dice 0.80 (n = 8 of A)")
    assert figure.stamp == ""


def test_stages_of_a_projection_share_limits() -> None:
    figure = projections([projection_result()], [""], stages=["A", "B"])
    clouds = [panel for panel in figure.panels() if isinstance(panel, Scatter) and not panel.joined]
    assert [panel.title for panel in clouds] == ["A", "B"]
    assert len({(panel.x_range, panel.y_range) for panel in clouds}) == 1
    assert clouds[0].x_label == "PC 1 (60 %)"


def test_centroids_are_the_class_means() -> None:
    result = projection_result()
    paths = compose(result).panels()[-1]
    assert isinstance(paths, Scatter)
    assert paths.joined
    lv = next(series for series in paths.series if series.name == "LV")
    expected = [float(c[k == 2, 0].mean()) for c, k in zip(result.coordinates, result.classes, strict=True)]
    assert np.allclose(lv.x, expected)


def test_rotating_bases_say_so() -> None:
    assert "drift cannot be read off" in projections([projection_result("per_stage")], [""]).subtitle


def test_points_are_voxels_only_if_they_are() -> None:
    one = projection_result()
    assert "One point is one voxel" in projections([one], [""]).subtitle
    one.provenance = {"stages": [{"parameters": {"pool": "per-class"}}] * 2}
    assert "One point is one row of per-class features" in projections([one], [""]).subtitle


def test_drift_leaves_the_distance_to_the_reference_out() -> None:
    panels = drifts([drift_result(), drift_result(2.0)], ["plain", "SegReg"]).panels()
    assert [panel.note for panel in panels] == ["raw", "rotation-free"]
    series = [s for s in panels[0].series if "null" not in s.name]  # type: ignore[attr-defined]
    assert [s.name for s in series] == ["plain", "SegReg"]
    assert [list(s.x) for s in series] == [[0.5, 0.5], [2.0, 2.0]]
    with pytest.raises(ResultError, match="none of these"):
        drifts([drift_result()], [""], measures=["mmd2"])


def test_a_null_that_all_networks_share_is_drawn_once() -> None:
    nulls = [
        [s.name for s in drifts(pair, ["a", "b"]).panels()[0].series if "null" in s.name]  # type: ignore[attr-defined]
        for pair in ([drift_result(), drift_result()], [drift_result(), drift_result(2.0)])
    ]
    assert nulls == [["null"], ["a null", "b null"]]
    colours = drifts([drift_result(), drift_result(2.0)], ["a", "b"]).colours()
    assert len({colours[name] for name in ("a", "b", "a null", "b null")}) == 4


def test_drift_panels_have_one_height_and_room_for_every_row() -> None:
    names = [f"network {k}" for k in range(6)]
    figure = drifts([drift_result(float(k)) for k in range(1, 7)], names)
    raw, rotation_free = figure.panels()
    assert isinstance(raw, Intervals)
    assert raw.height == rotation_free.height
    assert raw.height >= 6 * len(raw.series) * len(raw.series[0].y)


def test_drift_without_intervals_does_not_speak_of_them() -> None:
    bare = drift_result()
    bare.numbers[["low", "high"]] = np.nan
    assert "bootstrap intervals" in drifts([drift_result()], [""]).subtitle
    assert "too few patients for intervals" in drifts([bare], [""]).subtitle


def history(segreg: bool) -> pd.DataFrame:
    rows = [
        {
            "step": step,
            "event": "train",
            "total": 1.0 / step,
            "segmentation/dice": 0.5 / step,
            "learning_rate": 1e-3,
            "seconds/step": 0.1,
        }
        | (
            {
                "segreg/epps_pulley": 0.3,
                "segreg/epps_pulley/weight": 0.1,
                "segreg/gradient_ratio": 0.2,
                "segreg/gradient_status": "ok",
                "segreg/n_eff": 4096.0,
            }
            if segreg
            else {}
        )
        for step in (1, 2, 3)
    ]
    return pd.DataFrame([*rows, {"step": 3, "event": "validation", "validation/dice": 0.7, "validation/best": True}])


def test_curves_are_losses_ratios_and_scores_and_nothing_else() -> None:
    assert curve_columns([history(True)]) == [
        "total",
        "segmentation/dice",
        "segreg/epps_pulley",
        "segreg/gradient_ratio",
        "validation/dice",
    ]


def test_stages_are_laid_end_to_end_with_a_gap() -> None:
    figure = training_curves(
        {"plain": [history(False), history(False)], "SegReg": [history(True)] * 2}, stages=["A", "B"]
    )
    total = figure.panels()[0]
    assert isinstance(total, Lines)
    steps = np.asarray(total.series[0].x, dtype=float)
    assert np.array_equal(steps, [1, 2, 3, np.nan, 4, 5, 6], equal_nan=True)
    assert list(total.marks) == [(0.0, "A"), (3.0, "B")]
    ranges = {panel.x_range for panel in figure.panels() if isinstance(panel, Lines)}
    assert len(ranges) == 1, "one step axis for all"
    assert ranges != {None}
    assert [s.name for s in total.series] == ["plain", "SegReg"]
    assert SegReg.caveat in figure.caption
    assert SegReg.caveat not in training_curves({"plain": history(False)}).caption


def test_an_empty_history_is_an_error() -> None:
    with pytest.raises(ResultError, match="row yet"):
        training_curves({"plain": pd.DataFrame()})


def scores() -> pd.DataFrame:
    rows = [
        {"case": f"{site}{case}", "site": site, "class": name, "metric": "dice", "value": value, "status": status}
        for site, values in (("A", (0.8, 0.6)), ("B", (0.0, np.nan)))
        for case, value in enumerate(values)
        for name in ("RV", "LV")
        for status in ["both_absent" if np.isnan(value) else "missed" if value == 0 else "ok"]
    ]
    return pd.DataFrame(rows)


def test_bars_are_means_over_cases_without_absent_classes() -> None:
    panels = scores_by_site({"plain": scores()}).panels()
    assert [panel.title for panel in panels] == ["RV", "LV", "mean of the classes"]
    bars = panels[0]
    assert isinstance(bars, Bars)
    assert list(bars.series[0].y) == pytest.approx([0.7, 0.0])
    assert bars.y_range == (0.0, 1.0)
    assert bars.note == "plain: 1 missed, 0 spurious"


def test_intervals_of_sites_are_over_patients_and_hold_students() -> None:
    """The percentile bootstrap covered 0.88 with ten patients; slices of a patient are not patients."""
    values = np.array([0.81, 0.62, 0.9, 0.77, 0.55, 0.7, 0.84, 0.66])
    rows = [
        {"case": f"p{p}/{s}", "subject": f"p{p}", "site": "A", "class": "RV", "metric": "dice", "status": "ok"}
        | {"value": value + (0.02 if s else -0.02)}
        for p, value in enumerate(values)
        for s in range(2)
    ]
    series = scores_by_site({"plain": pd.DataFrame(rows)}).panels()[0].series[0]  # type: ignore[attr-defined]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert series.y == [pytest.approx(values.mean())]
    assert series.low[0] <= expected.low + 1e-9
    assert series.high[0] >= expected.high - 1e-9
    assert series.high[0] - series.low[0] < 1.6 * (expected.high - expected.low)
    alone = scores_by_site({"plain": pd.DataFrame(rows[:2])}).panels()[0].series[0]  # type: ignore[attr-defined]
    assert np.isnan([alone.low[0], alone.high[0]]).all()


def test_a_missed_organ_counts_its_diagonal_in_the_distances_of_a_site() -> None:
    rows = scores()[lambda table: table["site"] == "A"].assign(metric="hd95", value=[3.0, 5.0, np.nan, 1.0])
    rows = rows.assign(status=["ok", "ok", "missed", "ok"], diagonal=20.0)
    panels = scores_by_site({"plain": rows}, metric="hd95").panels()
    assert [panel.series[0].y for panel in panels] == [  # type: ignore[attr-defined]
        [pytest.approx((3 + 20) / 2)],
        [pytest.approx((5 + 1) / 2)],
        [pytest.approx((4 + 10.5) / 2)],
    ]
    assert panels[0].y_range is None  # type: ignore[attr-defined]
    with pytest.raises(ResultError, match="diagonal"):
        scores_by_site({"plain": rows.drop(columns="diagonal")}, metric="hd95")


def test_a_missing_metric_is_an_error() -> None:
    with pytest.raises(ResultError, match="hd95"):
        scores_by_site({"plain": scores()}, metric="hd95")


def test_transfer_matrices_name_rows_and_columns() -> None:
    panel = transfer_matrices({"plain": np.eye(2)}, ["A", "B"], stages=["A", "B"]).panels()[0]
    assert isinstance(panel, Heatmap)
    assert panel.row_names == ["after A", "after B"]
    assert panel.column_names == ["A", "B"]


def test_a_projection_onto_one_axis_is_no_figure() -> None:
    line = dataclasses.replace(projection_result(), coordinates=[random(60, 1)] * 2)
    with pytest.raises(ResultError, match="two axes"):
        line.plot()


def test_values_below_zero_lie_within_their_panel() -> None:
    result = drift_result(-0.01)
    result.numbers = result.numbers.assign(low=np.nan, high=np.nan, null_low=np.nan, null_high=np.nan)
    low, high = drifts([result], ["plain"]).panels()[0].x_range
    assert low < -0.01 < 0 < high


def test_one_of_two_seeds_below_the_floor_is_not_both() -> None:
    seeds = [scored(0.91), scored(0.41)]
    assert credits(seeds)["stamp"] == "untrained: a/plain"
    assert credits(seeds[1:])["stamp"] == "untrained"
