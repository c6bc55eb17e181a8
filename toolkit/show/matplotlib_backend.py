"""The static twin: draws a figure with matplotlib to PDF, SVG or PNG. No browser, no pyplot, no global state."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.errors import ResultError
from toolkit.show import colours, layout
from toolkit.show.panels import Axes, Bars, Boxes, Coloured, Figure, Heatmap, Image, Intervals, Scatter, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Canvas
    from matplotlib.figure import Figure as Page

_DPI = 100  # one pixel of the layout is 1/100 inch
_POINTS = 72 / _DPI  # font sizes are laid out in pixels
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "D", "^", "x", "P", "|")
_SETTINGS: dict[Any, Any] = {
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "toolkit",
    "font.family": "DejaVu Sans",
    "text.parse_math": False,  # a dollar in a name of a class is a dollar
}
_STAMP: dict[str, Any] = {"color": colours.STAMP, "alpha": 0.45, "weight": "bold", "zorder": 100}
_OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
FORMATS = ("pdf", "svg", "png")


def render(figure: Figure, kind: str, *, dpi: int = 200, where: str = "") -> bytes:
    """The bytes of a figure as `pdf`, `svg` or `png`; equal figures give equal bytes."""
    if kind not in FORMATS:
        fix = "Use a path ending in .pdf, .svg or .png."
        raise ResultError(f"A figure cannot be written as {kind!r}.", where=where, fix=fix)
    import matplotlib

    origin = figure.provenance or None
    told = {
        "pdf": {"CreationDate": None, "Subject": origin},
        "svg": {"Date": None, "Description": origin},
        "png": {"Software": None} | ({"Description": origin} if origin else {}),
    }
    buffer = io.BytesIO()
    with matplotlib.rc_context(_SETTINGS):
        draw(figure).savefig(buffer, format=kind, dpi=dpi, metadata=told[kind], facecolor="white")
    return buffer.getvalue()


def draw(figure: Figure) -> Page:
    """A matplotlib figure that belongs to no pyplot session."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Page

    plan = layout.place(figure)
    page = Page(figsize=(plan.width / _DPI, plan.height / _DPI), dpi=_DPI)
    FigureCanvasAgg(page)
    for text in plan.texts:
        weight, size = "bold" if text.bold else "normal", text.size * _POINTS
        for number, line in enumerate(text.lines):
            x, y = text.left / plan.width, 1 - (text.top + number * text.size * layout.LINE) / plan.height
            page.text(x, y, line, fontsize=size, va="top", ha="left", color=text.colour, weight=weight)
    names = figure.colours()
    for one in plan.placed:
        canvas = page.add_axes(_box(plan, one.left, one.top, one.width, one.height))
        _style(canvas)
        if isinstance(one.panel, Image):
            _image(page, canvas, one.panel, one, plan)
        elif isinstance(one.panel, Heatmap):
            _heatmap(page, canvas, one.panel, one, plan)
        elif isinstance(one.panel, Axes):
            _axes(canvas, one.panel, names)
    if figure.stamp:
        size = layout.stamp_size(figure.stamp, plan.width) * _POINTS
        page.text(0.5, 0.5, figure.stamp, fontsize=size, rotation=20, ha="center", va="center", **_STAMP)
    return page


def _box(
    plan: layout.Layout, left: float, top: float, width: float, height: float
) -> tuple[float, float, float, float]:
    return (left / plan.width, 1 - (top + height) / plan.height, width / plan.width, height / plan.height)


def _style(canvas: Canvas) -> None:
    canvas.tick_params(labelsize=layout.TICK_SIZE * _POINTS, colors=colours.FAINT, length=3, width=0.6)
    canvas.spines[:].set(color="#aab4bd", linewidth=0.6)
    canvas.spines[["top", "right"]].set_visible(False)


def _image(page: Page, canvas: Canvas, panel: Image, one: layout.Placed, plan: layout.Layout) -> None:
    rows, columns = panel.pixels.shape[:2]
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    shades = panel.shades()
    if shades.ndim == 2:
        canvas.imshow(shades, cmap="gray", vmin=0, vmax=255, extent=extent, aspect="auto")
    else:
        canvas.imshow(shades, extent=extent, aspect="auto")
    if panel.overlay is not None:
        over = colours.rgba(panel.overlay, *panel.overlay_limits, panel.overlay_scale)
        canvas.imshow(over, extent=extent, aspect="auto", interpolation="nearest")
    if panel.labels is not None:
        for label in [int(v) for v in np.unique(panel.labels) if v > 0]:
            mask = (panel.labels == label).astype(float)
            if 0 < mask.mean() < 1:
                canvas.contour(mask, levels=[0.5], colors=[colours.hex_colour(label)], linewidths=panel.contour_width)
    top, bottom, left, end = panel.shown()
    canvas.set(xticks=[], yticks=[], xlim=(left - 0.5, end - 0.5), ylim=(bottom - 0.5, top - 0.5))
    if (bar := panel.scale_bar()) is not None:
        from matplotlib.patheffects import withStroke

        halo = [withStroke(linewidth=2.5, foreground="black")]
        style: dict[str, Any] = {"transform": canvas.transAxes, "color": "white", "path_effects": halo}
        canvas.plot((0.05, 0.05 + bar[0] / (end - left)), (0.06, 0.06), linewidth=2, solid_capstyle="butt", **style)
        canvas.text(0.05, 0.09, bar[1], fontsize=layout.NOTE_SIZE * _POINTS, va="bottom", **style)
    canvas.spines[:].set(visible=True, edgecolor=colours.GRID, linewidth=0.6)  # a white picture would be lost
    _bar(page, plan, one, panel)


def _heatmap(page: Page, canvas: Canvas, panel: Heatmap, one: layout.Placed, plan: layout.Layout) -> None:
    rows, columns = panel.values.shape
    canvas.imshow(colours.rgba(panel.values, *panel.limits, panel.scale), aspect="auto", interpolation="nearest")
    for axis, names, count in ((canvas.xaxis, panel.column_names, columns), (canvas.yaxis, panel.row_names, rows)):
        if names is not None:
            axis.set_ticks(range(len(names)), list(names))
        else:
            axis.set_ticks(range(0, count, max(1, round(count / 4))))
    _name_axes(canvas, panel)
    canvas.spines[:].set_visible(False)
    if panel.annotate:
        shade = colours.rgba(panel.values, *panel.limits, panel.scale)[..., :3] @ np.array([0.299, 0.587, 0.114])
        for row in range(rows):
            for column in range(columns):
                ink = "black" if shade[row, column] > 140 else "white"
                value = panel.values[row, column]
                text = "" if np.isnan(value) else f"{value:.2f}"
                canvas.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
    _bar(page, plan, one, panel)


def _bar(page: Page, plan: layout.Layout, one: layout.Placed, panel: Coloured) -> None:
    if not panel.bar:
        return
    low, high, scale = panel.ramp()
    bar = page.add_axes(_box(plan, one.left + one.width + 8, one.top, 10, one.height))
    _style(bar)
    ramp = colours.rgba(np.linspace(high, low, 256)[:, None], low, high, scale)
    bar.imshow(ramp, aspect="auto", extent=(0, 1, low, high))
    bar.yaxis.tick_right()
    ticks = [low, (low + high) / 2, high]
    bar.set_xticks([])
    bar.set_yticks(ticks, panel.bar_ticks or [f"{tick:.2g}" for tick in ticks])
    bar.spines[:].set_visible(False)


def _axes(canvas: Canvas, panel: Axes, names: dict[str, int]) -> None:
    canvas.grid(True, color=colours.GRID, linewidth=0.6)
    canvas.set_axisbelow(True)
    if panel.log_y:
        _logarithmic(canvas, panel.decades() >= 1.3)
    draw_series = next(draw for kind, draw in _SERIES.items() if isinstance(panel, kind))
    for index, one in enumerate(panel.series):
        draw_series(canvas, panel, one, index, colours.category(names[one.colour or one.name]))
    if isinstance(panel, Intervals) and panel.series:
        rows = [str(name) for name in panel.series[0].y]
        canvas.set_yticks(range(len(rows)), rows)
        canvas.set_ylim(len(rows) - 0.5, -0.5)
    grouped = isinstance(panel, Bars | Boxes)
    if grouped and panel.series:
        groups = panel.categories() if isinstance(panel, Boxes) else [str(name) for name in panel.series[0].x]
        canvas.set_xticks(range(len(groups)), groups)
        canvas.grid(False, axis="x")
    for x, text in panel.marks:
        canvas.axvline(x, color=colours.FAINT, linewidth=0.8, linestyle=":")
        at = canvas.get_xaxis_transform()
        canvas.text(x, 1.0, f" {text}", fontsize=8, va="top", color=colours.FAINT, transform=at)
    curves = not grouped and not isinstance(panel, Intervals | Scatter)
    if curves and panel.series and all(np.asarray(one.x).dtype.kind in "iu" for one in panel.series):
        canvas.locator_params(axis="x", integer=True)  # no task two and a half
    if panel.x_range is not None:
        canvas.set_xlim(*panel.x_range)
    if panel.y_range is not None:
        canvas.set_ylim(*panel.y_range)
    if not grouped:
        _thin_ticks(canvas, panel.width)
    _name_axes(canvas, panel)
    if panel.legend and any(one.name for one in panel.series):
        _legend(canvas, 1.0 + 10 / panel.width)


def _name_axes(canvas: Canvas, panel: Axes | Heatmap) -> None:
    canvas.set_xlabel(panel.x_label, fontsize=layout.NOTE_SIZE * _POINTS, color=colours.TEXT)
    canvas.set_ylabel(panel.y_label, fontsize=layout.NOTE_SIZE * _POINTS, color=colours.TEXT)


def _logarithmic(canvas: Canvas, decades: bool) -> None:
    """A logarithmic axis, with numbers between the powers of ten where there is hardly one of those."""
    from matplotlib.ticker import LogLocator, NullFormatter

    canvas.set_yscale("log")
    if not decades:
        canvas.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    canvas.yaxis.set_major_formatter("{x:g}" if decades else "{x:.2g}")
    canvas.yaxis.set_minor_formatter(NullFormatter())


def _thin_ticks(canvas: Canvas, width: int) -> None:
    """Fewer numbers on the horizontal axis where they would run into each other."""
    low, high = sorted(canvas.get_xlim())
    ticks = [tick for tick in canvas.xaxis.get_majorticklocs() if low <= tick <= high]
    texts = canvas.xaxis.get_major_formatter().format_ticks(ticks)
    needed = max(map(len, texts), default=0) * layout.TICK_SIZE * 0.64 + 8
    if needed * len(texts) > width:
        canvas.locator_params(axis="x", nbins=max(2, int(width / needed) - 1))


def _legend(canvas: Canvas, left: float) -> None:
    named = [line for line in canvas.get_lines() if not str(line.get_label()).startswith("_")]
    broken = any(line.get_linestyle() not in ("-", "None") for line in named)
    text: dict[str, Any] = {"fontsize": layout.NOTE_SIZE * _POINTS, "labelcolor": colours.TEXT}
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (left, 1.02), "borderaxespad": 0.0}
    canvas.legend(frameon=False, handlelength=3.0 if broken else 1.6, **place, **text)


def _curve(canvas: Canvas, panel: Axes, one: Series, index: int, colour: str) -> None:
    (line,) = canvas.plot(one.x, one.y, label=one.name, color=colour, linestyle=_DASHES[one.dash % 4], linewidth=1.5)
    line.set(marker="o" if len(one.x) < 15 else "", markersize=3)
    if one.low is not None and one.high is not None:
        canvas.fill_between(one.x, one.low, one.high, color=colour, alpha=0.15, linewidth=0)


def _points(canvas: Canvas, panel: Axes, one: Series, index: int, colour: str) -> None:
    large, marker, area = one.size >= 8, _MARKERS[one.symbol % len(_MARKERS)], (one.size * _POINTS) ** 2
    points = canvas.scatter(one.x, one.y, area, colour, marker=marker, label=one.name, rasterized=len(one.x) > 2000)
    points.set(alpha=1.0 if large else 0.65, linewidths=0.8 if large else 0)
    if large and one.symbol % 6 != 4:
        points.set_edgecolor("black")
    if not isinstance(panel, Scatter) or not panel.joined:
        return
    canvas.plot(one.x, one.y, color=colour, linewidth=1.2)
    for number, (x, y, (va, ha)) in enumerate(zip(one.x, one.y, layout.corners(one), strict=True), 1):
        if np.isfinite(x) and np.isfinite(y):
            # the text begins where the point is
            offset = (4 if ha == "right" else -4, 4 if va == "top" else -4)
            text = canvas.annotate(str(number), (x, y), xytext=offset, textcoords="offset points", fontsize=8)
            text.set(ha=_OPPOSITE[ha], va=_OPPOSITE[va], clip_on=True)


def _centres(panel: Axes, groups: int, index: int) -> tuple[np.ndarray, float]:
    """Where the bars or boxes of a series stand, and the width that each has."""
    width = 0.8 / len(panel.series)
    return np.arange(groups) - 0.4 + width * (index + 0.5), width


def _bar_group(canvas: Canvas, panel: Axes, one: Series, index: int, colour: str) -> None:
    centres, width = _centres(panel, len(one.x), index)
    values = np.asarray(one.y, dtype=float)
    canvas.bar(centres, values, width=width * 0.92, color=colour, label=one.name, linewidth=0)
    if one.low is not None and one.high is not None:
        spread = np.abs(np.stack([values - np.asarray(one.low), np.asarray(one.high) - values]))
        canvas.errorbar(centres, values, yerr=spread, fmt="none", ecolor=colours.TEXT, elinewidth=0.9, capsize=2)


def _box_group(canvas: Canvas, panel: Axes, one: Series, index: int, colour: str) -> None:
    categories = panel.categories() if isinstance(panel, Boxes) else []
    centres, width = _centres(panel, len(categories), index)
    values, names = np.asarray(one.y, dtype=float), np.asarray([str(name) for name in one.x])
    groups = [values[(names == name) & np.isfinite(values)] for name in categories]
    style: dict[str, Any] = {
        "boxprops": {"facecolor": colour, "alpha": 0.55, "edgecolor": colour},
        "medianprops": {"color": colours.TEXT, "linewidth": 1.4},
        "flierprops": {"marker": "o", "markersize": 2.5, "markeredgecolor": colour},
        "whiskerprops": {"color": colour},
        "capprops": {"color": colour},
    }
    place: dict[str, Any] = {"positions": centres, "widths": width * 0.8, "manage_ticks": False}
    drawn = canvas.boxplot(groups, patch_artist=True, **place, **style)
    drawn["boxes"][0].set_label(one.name)


def _interval_rows(canvas: Canvas, panel: Axes, one: Series, index: int, colour: str) -> None:
    count = len(panel.series)
    heights = np.arange(len(one.y)) + (index - (count - 1) / 2) * min(0.28, 0.8 / count)
    values = np.asarray(one.x, dtype=float)
    spread = None
    if one.low is not None and one.high is not None:
        spread = np.maximum(np.stack([values - np.asarray(one.low), np.asarray(one.high) - values]), 0)
    style: dict[str, Any] = {"color": colour, "markersize": 5, "elinewidth": 1.6, "capsize": 2.5, "label": one.name}
    canvas.errorbar(values, heights, xerr=spread, fmt=_MARKERS[one.symbol % len(_MARKERS)], **style)


_SERIES = {Intervals: _interval_rows, Boxes: _box_group, Bars: _bar_group, Scatter: _points, Axes: _curve}
