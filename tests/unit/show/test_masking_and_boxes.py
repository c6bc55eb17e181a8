"""Figures of many masked latents, galleries, box plots and the robustness table."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from toolkit.errors import ConfigError, ResultError
from toolkit.explain.mask_result import MaskedLatent
from toolkit.explain.masking import mask_latent
from toolkit.methods.latent_augmentation.network import fast_slow_network
from toolkit.models.unet import unet
from toolkit.show.colours import class_colour
from toolkit.show.compose_masking import gallery, masked_grid, masking_summary
from toolkit.show.compose_training import score_boxes, score_means, score_table, volume_scores
from toolkit.show.draw import plotly_figure, static_figure
from toolkit.show.panels import Boxes, Figure, Image, Series


@pytest.fixture(scope="module")
def results() -> dict[str, list]:
    torch.manual_seed(0)
    net = fast_slow_network(1, 3, width=1)
    batch = {"image": torch.rand(2, 1, 32, 32), "label": torch.randint(3, (2, 1, 32, 32))}
    return {
        scheme: [mask_latent(net, batch, scheme, fraction) for fraction in (0.0, 0.5)]
        for scheme in ("channel", "spatial")
    }


def table(values: dict[str, list[float]]) -> pd.DataFrame:
    rows = [
        {"case": case, "class": index, "metric": "dice", "value": value}
        for case, several in values.items()
        for index, value in enumerate(several)
    ]
    return pd.DataFrame(rows)


def test_a_grid_has_a_row_a_quantity_and_a_column_a_fraction(results: dict[str, list]) -> None:
    figure = masked_grid(results, index=1)
    assert [len(row) for row in figure.rows] == [3, 3, 3, 3]
    head, clean, masked = figure.rows[0]
    assert isinstance(head, Image)
    assert isinstance(clean, Image)
    assert isinstance(masked, Image)
    assert np.array_equal(head.labels, results["channel"][0].label[1, 0])
    assert np.array_equal(masked.labels, results["channel"][1].segmentation[1][1])
    for label in (1, 2):
        colours = masked.pixels[masked.labels == label]
        assert (colours == class_colour(label)).all(), "a class has the colour of its contour in every figure"
    assert (masked.pixels[masked.labels == 0] == 0).all()
    assert figure.rows[1][0] is None
    assert "eval" in figure.subtitle


def test_a_grid_tells_the_score_of_every_network_once(results: dict[str, list]) -> None:
    rows = {}
    for number, (name, row) in enumerate(results.items()):
        network = {"name": f"net-{number}", "dice": 0.9 - 0.5 * number, "floor": 0.75, "patients": 8}
        told = {"weights": str(number), "network": network}
        rows[name] = [dataclasses.replace(result, provenance=told) for result in row]
    figure = masked_grid(rows)
    assert "net-0 test Dice 0.90 (n = 8); net-1 test Dice 0.40" in figure.caption
    assert figure.caption.count("net-0") == 1
    assert figure.stamp == "untrained: net-1"


def test_a_grid_of_images_shows_what_was_decoded(results: dict[str, list]) -> None:
    panel = masked_grid({"spatial": results["spatial"]}, show=["image"]).rows[0][2]
    assert isinstance(panel, Image)
    assert np.allclose(panel.pixels, results["spatial"][1].image[1][0, 0])


def test_a_grid_refuses_what_it_cannot_show(results: dict[str, list]) -> None:
    with pytest.raises(ConfigError, match="mask"):
        masked_grid(results, show=["mask"])
    with pytest.raises(ResultError):
        masked_grid(results, index=7)
    with pytest.raises(ResultError):
        masked_grid({})


def test_the_summary_counts_pixels(results: dict[str, list]) -> None:
    result = results["channel"][1]
    masked, truth = np.asarray(result.segmentation[1]) > 0, np.asarray(result.label[:, 0]) > 0
    summary = masking_summary(result)
    assert summary["ratio"] == pytest.approx(masked.sum() / truth.sum())
    assert summary["over"] == pytest.approx((masked & ~truth).sum() / truth.sum())
    assert summary["under"] == pytest.approx((truth & ~masked).sum() / truth.sum())
    assert summary["ratio"] == pytest.approx(1 + summary["over"] - summary["under"])
    assert summary["entropy"] == pytest.approx(float(result.entropy[1].mean()), rel=1e-5)


def test_the_summary_of_a_class_called_foreground_and_of_overlapping_regions() -> None:
    """Three of four voxels of the class are missed, and one beside it is added: 1/2, 1/4 and 3/4 in all."""
    clean = torch.zeros(1, 4, 4, dtype=torch.int64)
    masked, label = clean.clone(), clean.clone()
    label[0, 0], masked[0, 0, 0], masked[0, 3, 0], label[0, 2, 2] = 1, 1, 1, -1
    masked[0, 2, 2] = 1  # not to be scored
    known = {"input": torch.rand(1, 1, 4, 4), "image": None, "entropy": (torch.zeros(1, 4, 4),) * 2, "image_mask": None}
    known |= {"mask": torch.ones(1, 3, 1, 1), "cases": ["a"], "classes": {0: "background", 1: "foreground"}}
    known |= {"scheme": "channel", "fraction": 0.5, "soft": True, "skips": "keep", "layer": "b", "bn_mode": "eval"}
    known |= {"temperature": 1.0, "against": "reference", "provenance": {}}
    result = MaskedLatent(segmentation=(clean, masked), label=label[:, None], **known)
    expected = {"ratio": 0.5, "over": 0.25, "under": 0.75, "entropy": 0.0}
    assert masking_summary(result) == pytest.approx(expected)
    regions = [torch.stack((one > 0, torch.zeros_like(one) > 0), 1).long() for one in (clean, masked, label)]
    regions[1][0, 0, 2, 2] = 0
    result = MaskedLatent(segmentation=(regions[0], regions[1]), label=regions[2], **known)
    assert masking_summary(result) == pytest.approx(expected)


def test_a_gallery_shows_differences_from_the_first_in_one_range() -> None:
    original = np.zeros((8, 8))
    figure = gallery({"original": original, "brighter": original + 0.5, "darker": original - 2.0})
    change = figure.rows[1][1]
    assert isinstance(change, Image)
    assert change.overlay is not None
    assert (change.overlay == 0.5).all()
    assert change.overlay_limits == (-2.0, 2.0)
    with pytest.raises(ResultError):
        gallery({"original": original})


def test_scores_are_means_over_classes_then_volumes() -> None:
    frame = table({"a": [0.2, 0.4], "b": [1.0, float("nan")]})
    assert volume_scores(frame).tolist() == pytest.approx([0.3, 1.0])
    scores = {"plain": {"home": frame, "away": table({"c": [0.1, 0.1]})}}
    means = score_means(scores)
    assert means.loc["plain"].tolist() == pytest.approx([0.65, 0.1, 0.375])
    with pytest.raises(ResultError):
        score_means({"plain": {"home": frame}, "other": {"away": frame}})
    with pytest.raises(ResultError, match="iou"):
        volume_scores(frame, "iou")
    away = table({"a": [0.9, 0.9]}).assign(site="B")  # the name of a volume at home
    both = pd.concat([frame.assign(site="A"), away])
    assert volume_scores(both).tolist() == pytest.approx([0.3, 1.0, 0.9])


def test_missing_an_organ_never_improves_a_mean() -> None:
    """Two volumes of two organs, diagonal 30: hd95 of 2, 4 and 6, and an organ that is missed."""
    rows = {"class": ["RV", "LV"] * 2, "value": [2.0, 4.0, 6.0, np.nan], "status": ["ok", "ok", "ok", "missed"]}
    frame = pd.DataFrame({"case": ["a", "a", "b", "b"], "metric": "hd95", "diagonal": 30.0, **rows})
    assert volume_scores(frame, "hd95").tolist() == pytest.approx([3.0, 18.0])
    assert score_means({"plain": {"home": frame}}, "hd95").loc["plain", "home"] == pytest.approx(10.5)
    with pytest.raises(ResultError, match="diagonal"):
        score_means({"plain": {"home": frame.drop(columns="diagonal")}}, "hd95")
    dice = frame.assign(metric="dice", value=[0.8, 0.6, 0.9, 0.0])
    assert score_means({"plain": {"home": dice}}).loc["plain", "home"] == pytest.approx((0.7 + 0.45) / 2)


def test_boxes_hold_every_volume_and_both_backends_draw_quartiles(tmp_path: Path) -> None:
    scores = {
        name: {"home": table({str(i): [i / 10] for i in range(9)}), "away": table({"z": [0.5]})}
        for name in ("plain", "method")
    }
    figure = score_boxes(scores)
    (panel,) = figure.panels()
    assert isinstance(panel, Boxes)
    assert panel.categories() == ["home", "away"]
    drawn = plotly_figure(figure)
    assert [trace.type for trace in drawn.data] == ["box", "box"]
    assert drawn.layout.boxmode == "group"
    assert sorted(drawn.data[0].y) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.6, 0.7, 0.8])
    assert static_figure(figure, tmp_path / "boxes.png").stat().st_size > 2000
    assert static_figure(score_table(scores), tmp_path / "table.png").stat().st_size > 2000


def test_the_table_of_one_test_set_has_no_mean() -> None:
    panel = score_table({"plain": {"home": table({"a": [0.2, 0.4]})}}).panels()[0]
    assert panel.column_names == ["home"]  # type: ignore[attr-defined]
    assert panel.values.tolist() == [[pytest.approx(0.3)]]  # type: ignore[attr-defined]


def test_a_picture_has_a_frame_in_both_backends() -> None:
    from toolkit.show import matplotlib_backend, plotly_backend

    figure = Figure("t", [[Image(pixels=np.ones((4, 4)), limits=(0.0, 1.0))]])
    spines = matplotlib_backend.draw(figure).axes[0].spines.values()
    assert all(spine.get_visible() for spine in spines)
    (frame,) = plotly_backend.draw(figure).layout.shapes
    assert (frame.x0, frame.x1, frame.y0, frame.y1) == (-0.5, 3.5, -0.5, 3.5)


def test_the_static_box_spans_the_quartiles() -> None:
    from toolkit.show import matplotlib_backend

    values = np.array([0.0, 1.0, 2.0, 3.0, 10.0])
    page = matplotlib_backend.draw(Figure("t", [[Boxes(series=[Series(name="s", x=["a"] * 5, y=values)])]]))
    corners = page.axes[0].patches[0].get_path().vertices[:, 1]
    assert corners.min() == pytest.approx(np.quantile(values, 0.25))
    assert corners.max() == pytest.approx(np.quantile(values, 0.75))


def test_entropies_of_regions_end_at_one_bit(results: dict[str, list]) -> None:
    """Each region is a yes or no of its own: the mean over three of them is at most 1 bit, not log2(4)."""
    masks = torch.zeros(2, 3, 32, 32, dtype=torch.long)
    known = {"segmentation": (masks, masks), "label": masks, "classes": {0: "none", 1: "a", 2: "b", 3: "c"}}
    rows = {"channel": [dataclasses.replace(one, **known) for one in results["channel"]]}
    panels = masked_grid(rows, show=["entropy"]).panels()
    assert {panel.overlay_limits for panel in panels} == {(0.0, 1.0)}  # type: ignore[attr-defined]


def test_a_network_in_half_precision_gives_masks_that_can_be_drawn(tmp_path: Path) -> None:
    """NumPy has no bfloat16."""
    for net in (unet(1, 3, channels=(4, 8)), fast_slow_network(1, 3, width=1)):
        result = mask_latent(net.bfloat16(), torch.rand(1, 1, 16, 16))
        assert result.mask.dtype == torch.float32
        assert static_figure(result, tmp_path / "mask.png").stat().st_size > 2000
