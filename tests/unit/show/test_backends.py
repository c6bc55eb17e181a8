"""Both backends draw the same figure; files are valid, repeatable, and pictures travel as bytes."""

from __future__ import annotations

import base64
import io
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.unit.show.test_panels import example
from toolkit.errors import ResultError
from toolkit.show import matplotlib_backend, plotly_backend
from toolkit.show.draw import plotly_figure, static_figure
from toolkit.show.layout import place
from toolkit.show.panels import Figure, Heatmap, Image, Lines, Scatter, Series


def test_the_suffix_chooses_the_format(tmp_path: Path) -> None:
    starts = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    for suffix, start in starts.items():
        path = static_figure(example(), tmp_path / "deep" / f"figure.{suffix}")
        assert path.read_bytes().startswith(start)
    assert len(list((tmp_path / "deep").iterdir())) == 3, "no temporary file stays"


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="jpg"):
        static_figure(example(), tmp_path / "figure.jpg")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_equal_figures_give_equal_bytes(kind: str) -> None:
    assert matplotlib_backend.render(example(), kind) == matplotlib_backend.render(example(), kind)


def test_png_has_the_size_of_the_layout() -> None:
    from PIL import Image as Picture

    plan = place(example())
    with Picture.open(io.BytesIO(matplotlib_backend.render(example(), "png", dpi=100))) as picture:
        assert abs(picture.width - plan.width) <= 1
        assert abs(picture.height - plan.height) <= 1


def test_drawing_leaves_no_pyplot_session() -> None:
    matplotlib_backend.render(example(), "png")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_drawn_picture_shows_the_pixels() -> None:
    """The panel of a black and white checkerboard has its two colours where they belong."""
    from PIL import Image as Picture

    board = np.array([[0.0, 1.0], [1.0, 0.0]])
    figure = Figure("t", [[Image(pixels=board, width=100, height=100)]])
    one = place(figure).placed[0]
    with Picture.open(io.BytesIO(matplotlib_backend.render(figure, "png", dpi=100))) as picture:
        drawn = np.asarray(picture.convert("L"))
    top, left = round(one.top), round(one.left)
    quarters = [drawn[top + y, left + x] for y in (25, 75) for x in (25, 75)]
    assert quarters == [0, 255, 255, 0]


def test_plotly_page_has_every_panel_title_and_caption() -> None:
    figure = plotly_figure(example())
    texts = " ".join(note.text for note in figure.layout.annotations)
    for word in ("Title", "How to read it.", "weights 0123456789ab", "range"):
        assert word in texts
    axes = [key for key in figure.to_dict()["layout"] if key.startswith("xaxis")]
    assert len(axes) == 7
    assert (figure.layout.width, figure.layout.height) == (place(example()).width, place(example()).height)


def test_plotly_axes_lie_where_the_layout_says() -> None:
    figure, plan = plotly_figure(example()), place(example())
    for number, one in enumerate(plan.placed, 1):
        across = figure.layout[f"xaxis{'' if number == 1 else number}"].domain
        up = figure.layout[f"yaxis{'' if number == 1 else number}"].domain
        assert across[0] * plan.width == pytest.approx(one.left)
        assert (1 - up[1]) * plan.height == pytest.approx(one.top)


def test_the_picture_in_the_page_is_the_picture() -> None:
    from PIL import Image as Picture

    pixels = np.random.default_rng(0).normal(size=(32, 40))
    panel = Image(pixels=pixels)
    source = plotly_backend.draw(Figure("t", [[panel]])).data[0].source
    with Picture.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as picture:
        assert (np.asarray(picture) == panel.shades()).all()


def test_a_512_slice_with_a_map_stays_below_half_a_megabyte() -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:512, :512]
    slice_ = np.sin(rows / 37) * np.cos(columns / 23) + 0.02 * rng.normal(size=(512, 512))
    alone = plotly_backend.draw(Figure("t", [[Image(pixels=slice_)]]))
    assert len(alone.to_json()) < 500_000
    mapped = Image(pixels=slice_, overlay=rng.normal(size=(64, 64)), overlay_limits=(-3.0, 3.0))
    assert len(plotly_backend.draw(Figure("t", [[mapped]])).to_json()) < 500_000


@pytest.mark.parametrize(("low", "high"), [(-0.25, 0.25), (0.0, 2.0), (-1.0, 3.0)])
def test_coded_maps_give_their_values_back(low: float, high: float) -> None:
    values = np.linspace(low, high, 301).reshape(7, 43)
    coded = plotly_backend.coded_values(values, low, high)
    assert coded["z"].dtype.itemsize == 1
    back = low + (coded["z"].astype(float) - coded["zmin"]) * (high - low) / (coded["zmax"] - coded["zmin"])
    assert np.abs(back - values).max() <= (high - low) / 254 / 2 + 1e-12


def test_texts_from_outside_cannot_become_markup() -> None:
    figure = plotly_figure(Figure("<script>alert(1)</script>", [[Heatmap(values=np.eye(2))]]))
    assert all("<script" not in note.text for note in figure.layout.annotations)


def test_gaps_in_curves_are_drawn_as_gaps() -> None:
    series = Series(name="a", x=[0.0, np.nan, 2.0], y=[1.0, np.nan, 3.0])
    figure = plotly_figure(Figure("t", [[Lines(series=[series])]]))
    assert figure.data[0].connectgaps is not True
    assert np.isnan(np.asarray(figure.data[0].y, dtype=float)[1])


@pytest.mark.parametrize("x", [[-0.2318, -0.2289], [0.0, 12.5], [1e-5, 3e-5]])
def test_numbers_on_the_axis_do_not_run_into_each_other(x: list[float]) -> None:
    panel = Scatter(series=[Series(name="a", x=x, y=[0.0, 1.0])], width=240, x_range=(x[0], x[1]))
    page = matplotlib_backend.draw(Figure("t", [[panel]]))
    page.canvas.draw()
    (canvas,) = page.axes
    boxes = [one.get_window_extent() for one in canvas.get_xticklabels() if one.get_text()]
    shown = sorted((b for b in boxes if 0 <= b.x0 < page.bbox.x1), key=lambda b: b.x0)
    assert len(shown) >= 2
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(shown))


def test_the_legend_shows_a_dashed_line_as_dashed() -> None:
    """Two dashes beside the marker, so that it can be told from the solid one."""
    series = [Series(name=name, x=[0, 1], y=[0, 1], dash=dash) for name, dash in (("with", 0), ("without", 1))]
    (canvas,) = matplotlib_backend.draw(Figure("t", [[Lines(series=series)]])).axes
    (solid,) = matplotlib_backend.draw(Figure("t", [[Lines(series=series[:1])]])).axes
    assert canvas.get_legend().handlelength > 1.5 * solid.get_legend().handlelength
