"""A small grammar of figures that both backends draw: a grid of panels, a title and a line of provenance.

Every panel is plain data with its display range; nothing here knows Plotly or matplotlib.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from toolkit.errors import ResultError
from toolkit.show.colours import GREY, class_category


@dataclasses.dataclass(kw_only=True)
class Panel:
    """What all panels share."""

    title: str = ""  # bold line above the panel
    note: str = ""  # small line below the title; says the range that the colours or bars cover
    width: int = 300  # inner width in pixels
    height: int = 220  # inner height in pixels

    def padding(self) -> tuple[int, int, int]:
        """Pixels that tick labels, bars and legends need: left, right, bottom."""
        return 8, 8, 8

    def sized(self, width: int, height: int) -> Self:
        """The panel, with this inner width and height in pixels."""
        self.width, self.height = width, height
        return self


@dataclasses.dataclass(kw_only=True)
class Coloured(Panel):
    """Base of the panels with a colour bar."""

    bar: bool = False  # draw the colour bar; of the panels of a row that share a scale only the last keeps it
    bar_ticks: tuple[str, str, str] | None = None  # texts at its two ends and in its middle; None = the numbers

    def ramp(self) -> tuple[float, float, str]:
        """Ends and scale of the colours."""
        raise NotImplementedError


@dataclasses.dataclass(kw_only=True)
class Image(Coloured):
    """A grey or RGB picture, with a signed or positive map or a label map over it; `bar` is that of the overlay, if any."""

    pixels: np.ndarray  # (H, W) or (H, W, 3)
    # values shown as black and white; None = the 0.5th and 99.5th percentile: a few bright voxels leave the rest visible
    limits: tuple[float, float] | None = None
    overlay: np.ndarray | None = None  # (h, w) of any size, stretched over the picture
    overlay_limits: tuple[float, float] = (0.0, 1.0)  # display range of the overlay
    overlay_scale: str = "diverging_overlay"  # name of a colour scale
    labels: np.ndarray | None = None  # (H, W) integer map whose classes are drawn as coloured contours
    class_names: dict[int, str] = dataclasses.field(default_factory=dict)  # for the figure's key of the contours
    aspect: float = 1.0  # height of a pixel divided by its width (spacing ratio)
    contour_width: float = 1.1  # of the class contours, in points
    window: tuple[int, int, int, int] | None = None  # first row, end row, first and end column shown; None = all
    mm: float | None = None  # width of a pixel in millimetres, for the scale bar; None = unknown

    def padding(self) -> tuple[int, int, int]:
        return 4, 60 if self.bar else 4, 8

    def ramp(self) -> tuple[float, float, str]:
        if self.overlay is None:
            return *(self.limits or (0.0, 1.0)), "grey"
        return *self.overlay_limits, self.overlay_scale

    def shown(self) -> tuple[int, int, int, int]:
        """First row, end row, first and end column of what is shown."""
        return self.window or (0, self.pixels.shape[0], 0, self.pixels.shape[1])

    def scale_bar(self) -> tuple[float, str] | None:
        """Length in pixels and text of the millimetre bar, at most a third of the width; None if nothing is known."""
        _, _, first, end = self.shown()
        lengths = [mm for mm in (100, 50, 20, 10, 5, 2, 1) if self.mm and mm <= (end - first) * self.mm / 3]
        return (lengths[0] / self.mm, f"{lengths[0]} mm") if lengths and self.mm else None

    def __post_init__(self) -> None:
        self.pixels = np.asarray(self.pixels)
        if self.pixels.ndim not in (2, 3) or (self.pixels.ndim == 3 and self.pixels.shape[2] != 3):
            raise ResultError(f"A picture is (H, W) or (H, W, 3), not {self.pixels.shape}.")
        if self.limits is None:
            finite = self.pixels[np.isfinite(self.pixels)]
            low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
            self.limits = (float(low), float(high)) if high > low else (float(finite.min()), float(finite.max()))

    def fit(self, side: int) -> Image:
        """Set the panel's size so that the longer side of the picture measures `side` pixels."""
        top, bottom, left, right = self.shown()
        rows, columns = (bottom - top) * self.aspect, right - left
        self.height = max(24, round(side * rows / max(rows, columns)))
        self.width = max(24, round(side * columns / max(rows, columns)))
        return self

    def shades(self) -> np.ndarray:
        """The picture as uint8 between its limits, (H, W) or (H, W, 3)."""
        low, high = self.limits or (0.0, 1.0)
        span = high - low if high > low else 1.0
        scaled = np.clip((np.nan_to_num(self.pixels.astype(np.float32), nan=low) - low) / span, 0, 1)
        return np.round(scaled * 255).astype(np.uint8)


@dataclasses.dataclass(kw_only=True)
class Heatmap(Coloured):
    """A matrix with a colour bar."""

    values: np.ndarray  # (rows, columns)
    limits: tuple[float, float] = (0.0, 1.0)  # display range
    scale: str = "sequential"  # name of a colour scale
    row_names: Sequence[str] | None = None  # tick labels of the rows (None: indices; an empty list: none)
    column_names: Sequence[str] | None = None  # tick labels of the columns
    x_label: str = ""
    y_label: str = ""
    annotate: bool = False  # write the numbers into the cells
    bar: bool = True

    def padding(self) -> tuple[int, int, int]:
        names = ["00"] if self.row_names is None else self.row_names
        longest = max((len(name) for name in names), default=-2)
        ticks = 26 if self.column_names is None or len(self.column_names) else 8
        below = ticks + (18 if self.x_label else 0)
        return 22 + 7 * longest + (16 if self.y_label else 0), 62 if self.bar else 8, below

    def ramp(self) -> tuple[float, float, str]:
        return *self.limits, self.scale


@dataclasses.dataclass(kw_only=True)
class Series:
    """One named line, set of points or set of bars; equal names get equal colours within a figure."""

    name: str
    x: Sequence[Any] | np.ndarray
    y: Sequence[Any] | np.ndarray
    low: Sequence[float] | np.ndarray | None = None  # lower ends of intervals
    high: Sequence[float] | np.ndarray | None = None  # upper ends
    colour: str | None = None  # name that picks the colour (default: the series' own name)
    dash: int = 0  # 0 solid, 1 dashed, 2 dotted, 3 dash-dotted
    symbol: int = 0  # index of the marker
    size: float = 5.0  # diameter of the marker in pixels
    text: Sequence[str] | None = None  # hover text of every point (Plotly only)
    label: int | None = None  # value of the class that it is, of one colour in every figure; None or below 0 = none


@dataclasses.dataclass(kw_only=True)
class Axes(Panel):
    """Base of the panels with two axes and a legend of their series."""

    series: list[Series] = dataclasses.field(default_factory=list)
    x_label: str = ""
    y_label: str = ""
    x_range: tuple[float, float] | None = None  # limits of the x axis; None = the data's own range
    y_range: tuple[float, float] | None = None  # limits of the y axis
    log_y: bool = False
    legend: bool = True  # whether the legend stands to the right of the panel
    marks: Sequence[tuple[float, str]] = ()  # vertical lines, as (x, text)

    def padding(self) -> tuple[int, int, int]:
        longest = max((len(one.name) for one in self.series), default=0)
        return 64, (44 + 7 * longest) if self.legend and longest else 20, 46

    def decades(self) -> float:
        """Powers of ten that the positive values of all series span."""
        values = np.concatenate([np.asarray(one.y, dtype=float) for one in self.series] or [np.ones(1)])
        values = values[np.isfinite(values) & (values > 0)]
        return float(np.log10(values.max() / values.min())) if values.size else 0.0


@dataclasses.dataclass(kw_only=True)
class Lines(Axes):
    """Curves; a series with `low` and `high` also gets a band."""


@dataclasses.dataclass(kw_only=True)
class Scatter(Axes):
    """Points; `joined` connects those of a series by a line and numbers them from 1."""

    joined: bool = False


@dataclasses.dataclass(kw_only=True)
class Bars(Axes):
    """Grouped bars over categories, with intervals where `low` and `high` are given; bars start at zero."""


@dataclasses.dataclass(kw_only=True)
class Boxes(Axes):
    """Grouped box plots: a series' `x` names the category of every value in its `y`.

    Boxes span the quartiles (linear interpolation; Plotly's lie a little farther out for few values), whiskers the values
    within 1.5 box heights, points lie beyond.
    """

    def categories(self) -> list[str]:
        """Categories of all series in order of appearance."""
        return list(dict.fromkeys(str(name) for one in self.series for name in one.x))


@dataclasses.dataclass(kw_only=True)
class Intervals(Axes):
    """Values with intervals, one row each: `x` holds the values, `y` the row names (strings)."""

    def padding(self) -> tuple[int, int, int]:
        rows = [str(row) for one in self.series for row in one.y]
        _, right, bottom = super().padding()
        return 20 + 7 * max(map(len, rows), default=4), right, bottom


@dataclasses.dataclass
class Figure:
    """A grid of panels."""

    title: str  # what the figure shows
    rows: list[list[Panel | None]]  # panels, row by row; None leaves a cell empty
    subtitle: str = ""  # how to read it, one or two sentences
    caption: str = ""  # drawn below the panels: steps, scores, seeds, and what else a reader must know
    provenance: str = ""  # what made the figure; behind a button of interactive figures and in the metadata of files
    stamp: str = ""  # a word across the whole picture, for example "untrained"
    # what caption and provenance tell of, and the names of these; None = a composer's first argument and its `names`
    sources: tuple[Any, Sequence[str]] | None = None

    def panels(self) -> list[Panel]:
        return [panel for row in self.rows for panel in row if panel is not None]

    def key(self) -> dict[int, str]:
        """Names of the classes whose contours are drawn, by label; panels of several tasks share a colour's names."""
        shown = [panel for panel in self.panels() if isinstance(panel, Image) and panel.labels is not None]
        pairs = dict.fromkeys(pair for panel in shown for pair in panel.class_names.items() if pair[0] > 0)
        return {label: " / ".join(name for other, name in pairs if other == label) for label, _ in pairs}

    def colours(self) -> dict[str, int]:
        """Index of the colour of every series name: that of its class, else in order of appearance."""
        names: dict[str, int] = {}
        classes: dict[str, int] = {}
        for panel in self.panels():
            for one in getattr(panel, "series", ()):
                names.setdefault(one.colour or one.name, len(names))
                if one.label is not None and one.label >= 0:
                    classes[one.colour or one.name] = class_category(one.label)
        if "null" in names:  # the absence of an effect is grey
            order = [name for name in names if name != "null"]
            names = {name: index for index, name in enumerate(order)} | {"null": GREY}
        return names | classes


def in_rows(panels: Sequence[Panel], columns: int) -> list[list[Panel | None]]:
    """Panels of equal series row by row; the legend stands once, to the right of the first row."""
    for index, panel in enumerate(panels):
        if isinstance(panel, Axes):
            panel.legend = index + 1 == min(columns, len(panels))
    return [list(panels[start : start + columns]) for start in range(0, len(panels), columns)]


def histogram(name: str, counts: Any, edges: Any) -> Series:
    """Shares of the counts (bins,) at the middle between their edges (bins + 1,)."""
    counts, edges = np.asarray(counts, dtype=float), np.asarray(edges, dtype=float)
    return Series(name=name, x=(edges[1:] + edges[:-1]) / 2, y=counts / max(1.0, counts.sum()))


def symmetric_limits(values: np.ndarray) -> tuple[float, float]:
    """Display range (-m, m) with m the largest finite magnitude (1 for an all-zero map)."""
    finite = np.abs(values[np.isfinite(values)])
    largest = float(finite.max()) if finite.size else 0.0
    return (-largest, largest) if largest > 0 else (-1.0, 1.0)


def range_note(values: np.ndarray) -> str:
    """The values' own range as text, as every picture must state it."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return "no finite value"
    if not finite.any():
        return "all zero"
    return f"{number_text(float(finite.min()))} to {number_text(float(finite.max()))}"


def number_text(value: float) -> str:
    """Two significant digits, short enough to stand above a small panel."""
    text = f"{value:.2g}" if value == 0 or 0.01 <= abs(value) < 1e4 else f"{value:.1e}"
    mantissa, _, exponent = text.partition("e")
    text = f"{mantissa}e{int(exponent)}" if exponent else text
    return text.replace("-", "\N{MINUS SIGN}")
