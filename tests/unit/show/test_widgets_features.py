"""`similarity_explorer` and `drift_explorer` without a browser."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from canvases import area_of, centre_of
from PIL import Image
from plotly.callbacks import Points

import toolkit as tk
from toolkit.errors import ConfigError, ResultError
from toolkit.show.colours import class_colour
from toolkit.show.compose_drift import drifts
from toolkit.show.widgets.drift import DriftExplorer, ScatterView, numbers_table
from toolkit.show.widgets.similarity import SimilarityExplorer


@pytest.fixture(scope="module")
def cases() -> list[Any]:
    random = np.random.default_rng(0)
    images = [random.normal(size=(32, 32)).astype(np.float32) for _ in range(6)]
    labels = [np.zeros((32, 32), dtype=np.uint8) for _ in range(6)]
    for label in labels:
        label[8:20, 8:20] = 1
    task = tk.task_from_arrays(
        images, labels, classes={0: "background", 1: "wall"}, splits=["test"] * 6, sites=["A"] * 3 + ["B"] * 3
    )
    return task.cases("test")


@pytest.fixture(scope="module")
def models() -> list[torch.nn.Module]:
    made = []
    for seed in range(3):
        torch.manual_seed(seed)
        made.append(tk.unet(1, 2, channels=(4, 8)))
    return made


@pytest.fixture
def similar(models: list[torch.nn.Module], cases: list[Any]) -> SimilarityExplorer:
    return tk.widgets.similarity_explorer(models[0], cases)


@pytest.fixture
def drifting(models: list[torch.nn.Module], cases: list[Any]) -> DriftExplorer:
    stages = [tk.extract(model, cases, ["bottleneck", "head_input"], pool="voxels", samples=6) for model in models]
    return tk.widgets.drift_explorer(stages, cases, bootstrap=20)


def test_the_layer_map_is_that_of_layer_similarity(similar: SimilarityExplorer) -> None:
    assert torch.equal(similar.layers().matrix, tk.layer_similarity(similar.features).matrix)
    similar.set(measure="procrustes")
    assert torch.equal(similar.layers().matrix, tk.layer_similarity(similar.features, method="procrustes").matrix)


def test_a_cell_of_the_map_opens_two_layers_and_a_cell_of_a_matrix_a_pair(similar: SimilarityExplorer) -> None:
    names = similar.features.layers
    similar.click(*centre_of(area_of(similar.compose(), "layers"), 0, 2))
    assert (similar.state["layer_a"], similar.state["layer_b"]) == (names[0], names[2])
    similar.key("ArrowDown")
    assert similar.state["layer_a"] == names[1]
    similar.click(*centre_of(area_of(similar.compose(), "channels b"), 1, 3))
    assert [similar.state[name] for name in ("pair_of", "channel_i", "channel_j")] == ["b", 1, 3]
    similar.set(layer_b=names[2], layer_a="head").set(pair_of="a")
    assert max(similar.state["channel_i"], similar.state["channel_j"]) <= 1  # the head has two channels
    similar.compose()


def test_the_maps_are_the_activations(
    similar: SimilarityExplorer, models: list[torch.nn.Module], cases: list[Any]
) -> None:
    _, tape = similar.activations()
    page = similar.images.stacks[similar.state["case"]][similar.state["slice"]]
    model = models[0].eval()
    with torch.no_grad():
        logits = model(page.item.image[None])
    torch.testing.assert_close(tape["head"], logits[0])


def test_features_alone_are_enough(similar: SimilarityExplorer, models: list[torch.nn.Module]) -> None:
    alone = tk.widgets.similarity_explorer(similar.features)
    assert "case" not in alone.state
    assert alone.compose().size[1] < similar.compose().size[1]
    with pytest.raises(ConfigError):
        tk.widgets.similarity_explorer(models[0])


def test_stages_and_what_lies_between(drifting: DriftExplorer) -> None:
    coordinates = [one.double().numpy() for one in drifting.projection().coordinates]
    np.testing.assert_allclose(drifting.positions(), coordinates[0])
    np.testing.assert_allclose(drifting.set(stage=2.5).positions(), (coordinates[1] + coordinates[2]) / 2)
    assert "interpolated" in drifting.stage_name()
    np.testing.assert_allclose(drifting.set(stage=3).positions(), coordinates[2])
    assert drifting.stage_name() == "stage 3"
    expected = tk.project(drifting.features, "bottleneck", "lda", "stage1").coordinates[2]
    np.testing.assert_allclose(drifting.set(method="lda", basis="stage1").positions(), expected.double().numpy())


def test_filters_leave_the_rows_they_name(drifting: DriftExplorer) -> None:
    drifting.set(classes=[1], sites=["B"])
    rows, places = drifting.points()
    part = drifting.rows.iloc[rows]
    assert set(part["class"]) == {1}
    assert set(part["site"]) == {"B"}
    assert len(places) == len(rows) == 3 * 6
    assert len(drifting.set(sites=[]).points()[0]) == 0


def test_selected_rows_are_drawn_on_their_image(drifting: DriftExplorer) -> None:
    first = drifting.compose().encode()
    assert drifting.select([]).compose().encode() != first
    before = drifting.compose()
    drifting.key("ArrowRight")
    names = drifting.rows["case"].iloc[list(drifting.selected)]
    assert set(names) == {list(dict.fromkeys(drifting.rows["case"]))[1]}
    assert len(names) == 2 * 6
    assert drifting.compose().encode() != before.encode()
    with pytest.raises(ConfigError):
        drifting.select([10**6])


def test_the_numbers_are_those_of_drift(drifting: DriftExplorer) -> None:
    found = drifting.numbers().set_index(["measure", "from", "to"])["value"]
    expected = tk.drift(drifting.features, "bottleneck", bootstrap=20, null_splits=20).table()
    expected = expected[(expected["class"] == "pooled") & (expected["from"] > 0)].set_index(["measure", "from", "to"])[
        "value"
    ]
    assert len(found) > 5
    np.testing.assert_allclose(found, expected.loc[found.index])


def test_a_jitter_as_the_repeat_is_named_in_the_figure_and_beside_the_points(
    models: list[torch.nn.Module], cases: list[Any]
) -> None:
    options: dict[str, Any] = {"layers": "bottleneck", "pool": "voxels", "samples": 6}
    stages = [tk.extract(model, cases, **options) for model in models[:2]]
    again = tk.extract(models[0], cases, jitter=0.01, **options)
    explorer = tk.widgets.drift_explorer(stages, cases, bootstrap=20, repeat=again)
    answered = (
        "weights that a jitter moved by 0.01 of their size on the same patients, what a jitter alone would have shown"
    )
    assert answered in numbers_table(explorer)
    assert ">repeat</th>" in numbers_table(explorer)
    row = explorer.numbers().set_index("measure").loc["frechet"]
    assert f"{row['repeat_low']:.3g} to {row['repeat_high']:.3g}" in numbers_table(explorer)
    result = tk.drift(stages, "bottleneck", bootstrap=20, null_splits=20, repeat=again)
    figure = drifts([result], [""])
    assert answered in figure.subtitle
    assert "what other patients would have shown" in figure.subtitle
    assert "repeat" in [series.name for series in figure.panels()[0].series]  # type: ignore[attr-defined]
    result = tk.drift(stages, "bottleneck", bootstrap=20, null_splits=20, repeat=stages[1])
    assert "what another training alone would have shown" in drifts([result], [""]).subtitle


def test_umap_has_no_axes_of_each_stage(drifting: DriftExplorer) -> None:
    drifting.set(basis="per_stage")
    drifting._values["method"] = "umap"
    drifting.adapt({"method"})
    assert drifting.state["basis"] == "stage1"
    assert [value for _, value in drifting.controls()[3].options] == ["shared", "stage1"]


def test_stages_of_other_rows_are_refused(
    drifting: DriftExplorer, models: list[torch.nn.Module], cases: list[Any]
) -> None:
    fewer = tk.extract(models[0], cases[:3], ["bottleneck", "head_input"], pool="voxels", samples=6)
    with pytest.raises(ResultError):
        tk.widgets.drift_explorer([drifting.features[0], fewer])
    with pytest.raises(ConfigError):
        tk.widgets.drift_explorer(drifting.features[:1])


def test_the_scatter_follows_and_selects(drifting: DriftExplorer) -> None:
    from plotly.callbacks import Points

    (box,) = drifting.extra_views()
    figure = box.children[0]
    np.testing.assert_allclose(figure.data[0].x, drifting.points()[1][:, 0])
    drifting.set(stage=2.0)
    np.testing.assert_allclose(figure.data[0].x, drifting.points()[1][:, 0])
    for callback in figure.data[0]._select_callbacks:
        callback(figure.data[0], Points(point_inds=[2, 5]), None)
    assert drifting.selected == (2, 5)
    assert list(figure.data[0].selectedpoints) == [2, 5]
    assert "toolkit-numbers" in box.children[1].value


def test_static_pictures(drifting: DriftExplorer, similar: SimilarityExplorer) -> None:
    pictures = [*drifting.static_pictures(), *similar.static_pictures()]
    assert len(pictures) == 3
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)


def drawn_around(view: ScatterView, places: list[int]) -> None:
    """What the page sends for a lasso: first the points, then its outline."""
    view.figure.data[0]._dispatch_on_selection(Points(point_inds=places), None)
    view.figure.plotly_relayout({"selections": [{"type": "path", "path": "M0,0L1,0L1,1Z"}]})


def outlines(view: ScatterView) -> int:
    return len(view.figure._layout.get("selections", []))


def test_an_old_outline_goes_when_something_else_is_shown(drifting: DriftExplorer) -> None:
    view = ScatterView(drifting)
    drawn_around(view, [2, 5])
    rows = tuple(sorted(int(row) for row in view.rows[[2, 5]]))
    assert drifting.selected == rows
    assert outlines(view) == 1, "the outline of the points that are shown stays"
    drifting.set(layer="head_input")
    assert outlines(view) == 0
    assert drifting.selected == rows
    assert sorted(int(view.rows[place]) for place in view.figure.data[0].selectedpoints) == list(rows)
    view.figure.data[0]._dispatch_on_selection(Points(point_inds=[]), None)  # the page's echo of that
    assert drifting.selected == rows
    drawn_around(view, [1])
    view.figure.data[0]._dispatch_on_click(Points(point_inds=[3]), None)
    assert outlines(view) == 0
    assert drifting.selected == (int(view.rows[3]),)
    drawn_around(view, [1])
    drifting.select([])
    assert outlines(view) == 0
    assert view.figure.data[0].selectedpoints is None


@pytest.mark.parametrize("pool", ["grid", "per-region", "per-class", "global"])
@pytest.mark.parametrize("dims", [2, 3])
def test_pooled_points_are_shown_where_they_were_pooled(pool: str, dims: int) -> None:
    """A cell of a grid of four along each axis, one of two squares, a class, or all of the image."""
    shape = (16,) * dims
    label = np.zeros(shape, dtype=np.uint8)
    label[..., 2:4, 2:4] = label[..., 10:14, 12:14] = 1
    noise = np.random.default_rng(0)
    task = tk.task_from_arrays(
        [noise.normal(size=shape).astype(np.float32) for _ in range(4)], [label] * 4, classes={0: "no", 1: "yes"}
    )
    cases = task.cases()
    model = tk.unet(1, 2, channels=(2, 4), dims=dims)
    stages = [tk.extract(model, cases, ["head_input"], pool=pool) for _ in range(2)]
    explorer = tk.widgets.drift_explorer(stages, cases, bootstrap=0)
    own = explorer.rows.reset_index()
    own = own[own["case"] == cases[0].id]
    row = {"grid": 4**dims - 10, "per-region": 1, "per-class": 1, "global": 0}[pool]
    drawn = explorer.select([int(own["index"].index[row])]).compose()
    tile = np.asarray(drawn.image)[66 : 66 + 210, 14 : 14 + 210].astype(int)
    marked = [190, 190, 190] if pool in ("grid", "global") else list(class_colour(1))
    rows, columns = np.nonzero((tile == marked).all(axis=2))
    found = [
        rows.min() * 16 / 210,
        (rows.max() + 1) * 16 / 210,
        columns.min() * 16 / 210,
        (columns.max() + 1) * 16 / 210,
    ]
    cell = [4, 8, 8, 12]  # the sixth cell from the first: row 1, column 2 of a slice
    expected = {"grid": cell, "per-region": [10, 14, 12, 14], "per-class": [2, 14, 2, 14], "global": [0, 16, 0, 16]}
    assert found == pytest.approx(expected[pool], abs=0.3)


def test_stages_in_another_order_are_refused(models: list[torch.nn.Module], cases: list[Any]) -> None:
    orders = (cases, cases[::-1])
    stages = [tk.extract(models[0], order, ["bottleneck"], pool="voxels", samples=4) for order in orders]
    with pytest.raises(ResultError, match="different rows"):
        tk.widgets.drift_explorer(stages, cases)


def test_the_saved_figure_holds_the_points_and_their_images(drifting: DriftExplorer, tmp_path: Path) -> None:
    parts = [Image.open(io.BytesIO(one)) for one in drifting.static_pictures()]
    saved = Image.open(drifting.save(tmp_path / "all.png")).convert("RGB")
    assert len(parts) == 2
    assert saved.size == (max(part.width for part in parts), sum(part.height for part in parts))
    top = 0
    for part in parts:
        cut = saved.crop((0, top, part.width, top + part.height))
        assert np.array_equal(np.asarray(cut), np.asarray(part.convert("RGB")))
        top += part.height


def test_the_value_of_a_cell_is_under_the_cursor(similar: SimilarityExplorer) -> None:
    names, matrix = similar.features.layers, tk.layer_similarity(similar.features).matrix
    x, y = centre_of(area_of(similar.compose(), "layers"), 0, 2)
    assert similar.readout(x, y) == f"{names[0]}, {names[2]}: {float(matrix[0, 2]):.3g}"
    layer, form = similar.state["layer_a"], similar.state["form"]
    found = tk.channel_similarity(similar.features, layer, form)
    x, y = centre_of(area_of(similar.compose(), "channels a"), 1, 0)
    one, other = found.channels[1], found.channels[0]
    assert similar.readout(x, y) == f"{one}, {other}: {float(found.matrix[1, 0]):.3g}"
    assert similar.readout(*centre_of(area_of(similar.compose(), "image"))).startswith("row ")
    assert similar.readout(1, 1) == ""


def test_a_head_of_one_output_is_no_end_of_the_explorer(cases: list[Any]) -> None:
    """Networks of one sigmoid output have a layer of one channel, which is like no other."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(4, 1, 1))
    explorer = tk.widgets.similarity_explorer(model, cases)
    assert (explorer.state["layer_a"], explorer.state["channel_j"]) == ("1", 0)
    explorer.compose()
    assert not [area for area in explorer.compose().areas if area.name == "channels a"]
    explorer.set(layer_a="0").compose()


def test_points_of_arrays_without_a_task_are_shown_on_their_image(models: list[torch.nn.Module]) -> None:
    items = [
        {"image": torch.rand(1, 32, 32), "label": torch.ones(32, 32).long(), "spacing": (2.0, 1.0)} for _ in range(2)
    ]
    items[1]["id"] = "mine"
    stages = [tk.extract(model, items, ["bottleneck"], pool="voxels", samples=4) for model in models[:2]]
    explorer = tk.widgets.drift_explorer(stages, items, bootstrap=0)
    assert list(explorer.cases) == list(dict.fromkeys(explorer.rows["case"])) == ["image0000", "mine"]
    canvas = explorer.select([5]).compose()
    tile = np.asarray(canvas.image)[66:276, 14:119].astype(int)  # 32 rows of 2 mm, 32 columns of 1 mm
    row, column = divmod(int(explorer.rows["index"].iloc[5]), 32)
    assert (tile[round((row + 0.5) * 210 / 32), round((column + 0.5) * 105 / 32)] == class_colour(1)).all()
