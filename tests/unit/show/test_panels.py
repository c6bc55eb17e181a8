"""Panels, colours and layout: ranges, quantisation, and rectangles that never overlap."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.errors import ResultError
from toolkit.show import colours
from toolkit.show.draw import plotly_figure
from toolkit.show.layout import CAPTION_SIZE, NOTE_SIZE, SUBTITLE_SIZE, TICK_SIZE, WIDEST, place, wrap
from toolkit.show.panels import (
    Axes,
    Bars,
    Figure,
    Heatmap,
    Image,
    Intervals,
    Lines,
    Panel,
    Scatter,
    Series,
    range_note,
    symmetric_limits,
)


def example() -> Figure:
    picture = np.linspace(-1, 3, 64 * 48).reshape(64, 48)
    rows: list[list[Panel | None]] = [
        [
            Image(
                title="a", note="range", pixels=picture, overlay=picture[::8, ::8], overlay_limits=(-3, 3), bar=True
            ).fit(150),
            Image(title="b", pixels=picture, labels=(picture > 1).astype(int), class_names={1: "organ"}).fit(150),
        ],
        [Heatmap(title="h", values=np.eye(5), row_names=list("abcde"), x_label="channel"), None],
        [
            Lines(series=[Series(name="one", x=[0, 1], y=[1.0, 2.0])], x_label="step"),
            Scatter(series=[Series(name="cloud", x=np.arange(9.0), y=np.arange(9.0))]),
        ],
        [
            Bars(series=[Series(name="plain", x=["A", "B"], y=[0.5, 0.75], low=[0.4, 0.7], high=[0.6, 0.8])]),
            Intervals(series=[Series(name="drift", x=[1.0, 2.0], y=["RV", "LV"], low=[0.5, 1.5], high=[1.5, 2.5])]),
        ],
    ]
    return Figure("Title", rows, subtitle="How to read it.", caption="weights 0123456789ab")


def test_picture_range_is_its_own_unless_given() -> None:
    even = np.linspace(0, 1, 201).reshape(3, 67)
    assert Image(pixels=even).limits == pytest.approx((0.005, 0.995))  # one in two hundred at each end is cut
    assert Image(pixels=np.array([[2.0] * 999 + [5.0]])).limits == (2.0, 5.0)  # a range of nothing takes all values
    assert Image(pixels=np.array([[2.0, np.nan]])).limits == (2.0, 2.0)
    assert Image(pixels=np.array([[0.0, 9.0]]), limits=(0.0, 3.0)).shades().tolist() == [[0, 255]]


def test_shades_are_the_nearest_of_256_levels() -> None:
    pixels = np.array([[0.0, 0.5, 1.0, 2.0]])
    assert Image(pixels=pixels, limits=(0.0, 1.0)).shades().tolist() == [[0, 128, 255, 255]]


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2), (1, 2, 3, 4)])
def test_something_that_is_no_picture_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ResultError, match=r"H, W"):
        Image(pixels=np.zeros(shape))


def test_anisotropic_pixels_stretch_the_panel() -> None:
    panel = Image(pixels=np.zeros((10, 20)), aspect=4.0).fit(200)
    assert (panel.height, panel.width) == (200, 100)


def test_symmetric_limits() -> None:
    assert symmetric_limits(np.array([-3.0, 1.0, np.nan])) == (-3.0, 3.0)
    assert symmetric_limits(np.zeros(4)) == (-1.0, 1.0)
    assert symmetric_limits(np.full(2, np.nan)) == (-1.0, 1.0)


def test_range_note_says_what_there_is() -> None:
    assert range_note(np.array([-0.5, 2.0])) == "\N{MINUS SIGN}0.5 to 2"
    assert range_note(np.zeros(3)) == "all zero"
    assert range_note(np.array([np.nan])) == "no finite value"


def test_colours_hit_the_ends_and_the_middle_of_a_scale() -> None:
    found = colours.rgba(np.array([-2.0, 0.0, 2.0]), -2.0, 2.0, "diverging")
    stops = colours.SCALES["diverging"]
    assert [tuple(c) for c in found[:, :3]] == [stops[0][:3], stops[4][:3], stops[8][:3]]
    assert found[1, 3] == 255
    assert colours.rgba(np.zeros(1), -1.0, 1.0, "diverging_overlay")[0, 3] == 0, "zero lets the picture through"


def test_sequential_scale_grows_in_lightness() -> None:
    ramp = colours.rgba(np.linspace(0, 1, 64), 0.0, 1.0, "sequential")[:, :3].astype(float)
    lightness = ramp @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all()


def test_equal_names_share_a_colour_in_a_figure() -> None:
    series = [Series(name="plain", x=[0], y=[0]), Series(name="other", x=[0], y=[0])]
    again = [Series(name="other", x=[0], y=[0]), Series(name="third", colour="plain", x=[0], y=[0])]
    figure = Figure("t", [[Lines(series=series), Lines(series=again)]])
    assert figure.colours() == {"plain": 0, "other": 1}


def test_a_class_has_the_colour_of_its_contour_whichever_classes_a_figure_holds() -> None:
    series = [Series(name=name, x=[0], y=[0], label=label) for name, label in (("background", 0), ("LV", 3), ("RV", 1))]
    names = Figure("classes", [[Scatter(series=series)]]).colours()
    for name, label in (("LV", 3), ("RV", 1), ("background", 0)):
        code = colours.category(names[name]).lstrip("#")
        assert tuple(bytes.fromhex(code)) == colours.class_colour(label)
    assert len(set(names.values())) == 3
    assert Figure("one", [[Scatter(series=series[1:2])]]).colours() == {"LV": names["LV"]}


def test_panels_never_overlap_and_stay_on_the_page() -> None:
    plan = place(example())
    assert len(plan.placed) == 7
    for one in plan.placed:
        assert one.left >= 0
        assert one.top >= 0
        assert one.left + one.width <= plan.width
        assert one.top + one.height <= plan.height
    for i, a in enumerate(plan.placed):
        for b in plan.placed[i + 1 :]:
            apart = (
                a.left + a.width <= b.left
                or b.left + b.width <= a.left
                or a.top + a.height <= b.top
                or b.top + b.height <= a.top
            )
            assert apart, (a, b)


def test_legends_and_bars_get_their_room() -> None:
    short = Axes(series=[Series(name="a", x=[], y=[])]).padding()[1]
    long = Axes(series=[Series(name="a very long name", x=[], y=[])]).padding()[1]
    assert long - short >= 15 * 6
    picture = np.zeros((4, 4))
    assert Image(pixels=picture, bar=True).padding()[1] > Image(pixels=picture).padding()[1] + 40


def test_a_row_has_one_colour_bar_a_scale() -> None:
    rows: list[list[Panel | None]] = [
        [Heatmap(values=np.eye(3)), Heatmap(values=np.eye(3))],
        [Heatmap(values=np.eye(3)), Heatmap(values=np.eye(3), limits=(0.0, 2.0))],
    ]
    bars = [one.panel for one in place(Figure("t", rows)).placed if isinstance(one.panel, Heatmap)]
    assert [panel.bar for panel in bars] == [False, True, False, True]
    assert bars[1].bar_ticks is None
    assert bars[3].bar_ticks == ("min", "", "max"), "two ranges have no common numbers"


def test_a_wide_figure_shrinks_its_panels_and_not_its_text() -> None:
    picture = np.zeros((20, 20))
    plan = place(Figure("t", [[Image(pixels=picture, width=300, height=300) for _ in range(8)]]))
    assert plan.width <= WIDEST
    assert all(one.width == one.height < 110 for one in plan.placed)
    folded = place(Figure("t", [[Image(pixels=picture, width=300, height=300) for _ in range(9)]] * 2)).placed
    assert [len([one for one in folded if one.top == top]) for top in sorted({one.top for one in folded})] == [
        5,
        5,
        4,
        4,
    ]
    assert folded[0].width > 150, "more than eight a row stand in two halves, one below the other"
    assert min(SUBTITLE_SIZE, NOTE_SIZE, TICK_SIZE, CAPTION_SIZE) * 0.72 >= 8, "points at 100 pixels an inch"


def test_the_millimetre_bar_is_round_and_at_most_a_third_of_the_width() -> None:
    assert Image(pixels=np.zeros((96, 96)), mm=1.5).scale_bar() == (pytest.approx(20 / 1.5), "20 mm")
    assert Image(pixels=np.zeros((96, 96)), mm=1.5, window=(0, 9, 0, 30)).scale_bar() == (
        pytest.approx(10 / 1.5),
        "10 mm",
    )
    assert Image(pixels=np.zeros((96, 96))).scale_bar() is None


def test_columns_line_up_where_kinds_agree() -> None:
    panels: list[list[Panel | None]] = [[Lines(width=100), Lines(width=200)], [Lines(width=150), Lines(width=120)]]
    placed = place(Figure("t", panels)).placed
    assert placed[0].left == placed[2].left
    assert placed[1].left == placed[3].left


def test_the_bar_of_a_shorter_row_moves_nothing_in_the_longer_one() -> None:
    """Ten pictures a row are folded; the second half may be shorter and ends with its own bar."""

    def picture(bar: bool) -> Image:
        return Image(
            pixels=np.zeros((4, 4)), width=80, height=80, bar=bar, overlay=np.ones((4, 4)), overlay_limits=(0, 1)
        )

    rows = [[picture(False), picture(False), picture(True)], [picture(False), picture(True)]]
    left = [one.left for one in place(Figure("t", rows)).placed]
    assert left[1] - left[0] == left[2] - left[1]
    assert left[3:] == left[:2]


def test_the_number_of_a_point_stands_away_from_its_neighbours() -> None:
    path = [Series(name="a", x=[0.0, 1.0, 1.0], y=[0.0, 0.0, 1.0], size=9)]  # to the right, then up
    (trace,) = plotly_figure(Figure("t", [[Scatter(series=path, joined=True)]])).data
    assert list(trace.textposition) == ["top left", "bottom right", "top right"]


def test_wrap_keeps_every_word_and_line_break() -> None:
    text = "one two three four five\nsix"
    lines = wrap(text, width=80, size=10)
    assert " ".join(lines).split() == text.split()
    assert lines[-1] == "six"
    assert max(map(len, lines)) <= 13


def test_a_long_name_breaks_between_its_parts() -> None:
    name = "latent_augmentation/hard_segmentation"
    lines = wrap(f"the {name} term", width=120, size=10)
    assert "".join(lines).replace(" ", "") == f"the{name}term"
    assert max(map(len, lines)) <= 20
    assert "hard_segmentation" in " ".join(lines), "no word of the name is cut"
    assert wrap(name, width=400, size=10) == (name,)


def test_decades() -> None:
    panel = Lines(series=[Series(name="a", x=[0, 1], y=[0.01, 10.0]), Series(name="b", x=[0], y=[np.nan])])
    assert panel.decades() == pytest.approx(3.0)


def test_a_few_bright_voxels_do_not_make_a_picture_black() -> None:
    pixels = np.arange(10_000.0).reshape(100, 100) / 10_000
    pixels[50, 50:52] = 1e4
    picture = Image(title="MR", pixels=pixels)
    assert picture.limits == pytest.approx(np.percentile(pixels, (0.5, 99.5)))
    assert 100 < np.median(picture.shades()) < 155, "without the window 9 998 of 10 000 pixels would be black"
