"""Draws a figure with Plotly in the rectangles of the layout. Pictures travel as 8-bit data, so pages stay small."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.show import colours, layout
from toolkit.show.panels import Axes, Bars, Boxes, Coloured, Figure, Heatmap, Image, Intervals, Scatter, Series

if TYPE_CHECKING:
    import plotly.graph_objects as go

_LEVELS = 127  # maps are sent as signed or unsigned bytes
_PAPER = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "top"}
_FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"


def draw(figure: Figure) -> go.Figure:
    """A Plotly figure of fixed size; nothing is shown."""
    import plotly.graph_objects as go

    plan = layout.place(figure)
    page = _Page(plan, figure.colours())
    for text in plan.texts:
        page.write(text)
    for one in plan.placed:
        page.panel(one)
    if figure.stamp:
        size = layout.stamp_size(figure.stamp, plan.width)
        page.write(layout.Text((figure.stamp,), 0, 0, size, colours.STAMP, bold=True))
        page.notes[-1].update(x=0.5, y=0.5, xanchor="center", yanchor="middle", textangle=-20, opacity=0.45)
    result = go.Figure(data=page.traces)
    result.update_layout(width=plan.width, height=plan.height, margin=dict.fromkeys("lrtb", 0), template=None)
    result.update_layout(updatemenus=page.toggle(figure.provenance), annotations=page.notes, shapes=page.shapes)
    result.update_layout(plot_bgcolor="white", paper_bgcolor="white", bargap=0.2, barmode="group", boxmode="group")
    font = {"family": _FONT, "size": layout.TICK_SIZE, "color": colours.TEXT}
    return result.update_layout(font=font, hovermode="closest", meta={"title": figure.title}, **page.axes)


class _Page:
    """Collects traces, axes, texts and shapes in pixel coordinates of one layout."""

    def __init__(self, plan: layout.Layout, names: dict[str, int]) -> None:
        self.plan, self.names = plan, names
        self.traces: list[dict[str, Any]] = []
        self.notes: list[dict[str, Any]] = []
        self.shapes: list[dict[str, Any]] = []
        self.axes: dict[str, Any] = {}
        self.count = self.legends = 0

    def write(self, text: layout.Text) -> None:
        lines = "<br>".join(line.replace("<", "&lt;") for line in text.lines)
        place = {"x": text.left / self.plan.width, "y": 1 - text.top / self.plan.height, **_PAPER}
        style = {"align": "left", "showarrow": False, "borderpad": 0, "font": {"size": text.size, "color": text.colour}}
        self.notes.append({"text": f"<b>{lines}</b>" if text.bold else lines, **place, **style})

    def toggle(self, words: str) -> list[dict[str, Any]]:
        """A button that shows and hides the provenance, over the foot of the figure."""
        if not words:
            return []
        lines = layout.wrap(words, self.plan.width - 3 * layout.MARGIN, layout.CAPTION_SIZE)
        self.write(layout.Text(lines, layout.MARGIN, self.plan.height - 4, layout.CAPTION_SIZE))
        self.notes[-1].update(yanchor="bottom", visible=False, bgcolor="white", bordercolor=colours.GRID, borderpad=6)
        shown = f"annotations[{len(self.notes) - 1}].visible"
        button = {"label": "Provenance", "method": "relayout", "args": [{shown: True}], "args2": [{shown: False}]}
        place = {"x": 1, "y": 1, "xanchor": "right", "yanchor": "top", "pad": {"r": 4, "t": 4}}
        return [{"type": "buttons", "buttons": [button], "showactive": False, "font": {"size": 11.2}, **place}]

    def panel(self, one: layout.Placed) -> None:
        """Draw a panel in its rectangle; `at` names its axes, `across` and `up` are what they look like."""
        self.count += 1
        suffix, plan, panel = "" if self.count == 1 else str(self.count), self.plan, one.panel
        self.at = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        ends = [one.left / plan.width, (one.left + one.width) / plan.width]
        self.across: dict[str, Any] = {"domain": ends, "anchor": f"y{suffix}", "zeroline": False}
        ends = [1 - (one.top + one.height) / plan.height, 1 - one.top / plan.height]
        self.up: dict[str, Any] = {"domain": ends, "anchor": f"x{suffix}", "zeroline": False}
        self.beside = {"x": (one.left + one.width + 8) / plan.width, "y": ends[1], "xanchor": "left", "yanchor": "top"}
        if isinstance(panel, Image):
            self._image(panel)
        elif isinstance(panel, Heatmap):
            self._heatmap(panel)
        elif isinstance(panel, Axes):
            self._axes(panel)
        self.axes[f"xaxis{suffix}"], self.axes[f"yaxis{suffix}"] = self.across, self.up

    def _add(self, kind: str, **settings: Any) -> None:
        self.traces.append({"type": kind, **settings, **self.at})

    def _scale(self, panel: Coloured, values: np.ndarray, height: int) -> dict[str, Any]:
        """Values in the colours of a panel's ramp, and the bar beside it."""
        low, high, scale = panel.ramp()
        coded, texts = coded_values(values, low, high), [f"{tick:.2g}" for tick in (low, (low + high) / 2, high)]
        places = [coded["zmin"], (coded["zmin"] + coded["zmax"]) // 2, coded["zmax"]]
        size = {"len": height, "lenmode": "pixels", "thickness": 10, "xpad": 0, "ypad": 0, "outlinewidth": 0}
        ticks = {"tickvals": places, "ticktext": panel.bar_ticks or texts}
        ramp = {"colorscale": colours.plotly_scale(scale), "showscale": panel.bar}
        return {**coded, **ramp, "colorbar": {**_PAPER, **self.beside, **size, **ticks}}

    def _image(self, panel: Image) -> None:
        rows, columns = panel.pixels.shape[:2]
        self._add("image", source=_png(panel.shades()), hoverinfo="skip")
        if panel.overlay is not None:
            height, width = panel.overlay.shape
            across = {"x0": -0.5 + columns / width / 2, "dx": columns / width}
            down = {"y0": -0.5 + rows / height / 2, "dy": rows / height}
            self._add("heatmap", **self._scale(panel, panel.overlay, panel.height), **across, **down)
        edge: dict[str, Any] = {"showscale": False, "showlegend": False, "hoverinfo": "skip"}
        edge["contours"] = {"start": 0.5, "end": 0.5, "size": 1, "coloring": "none"}
        for label in [] if panel.labels is None else [int(v) for v in np.unique(panel.labels) if v > 0]:
            inside = np.equal(np.asarray(panel.labels), label).astype(np.uint8)
            line = {"color": colours.hex_colour(label), "width": 4 * panel.contour_width / 3}  # points to pixels
            self._add("contour", z=inside, line=line, name=panel.class_names.get(label, str(label)), **edge)
        top, bottom, left, end = panel.shown()
        if (bar := panel.scale_bar()) is not None:
            x, y = left + 0.05 * (end - left), bottom - 0.08 * (bottom - top)
            style: dict[str, Any] = {"hoverinfo": "skip", "showlegend": False}
            style["textfont"] = {"color": "white", "size": 11.2}
            line = {"color": "white", "width": 3}
            self._add("scatter", x=[x, x + bar[0]], y=[y, y], mode="lines", line=line, **style)
            self._add("scatter", x=[x], y=[y], text=[bar[1]], textposition="top right", mode="text", **style)
        edge = {"x0": -0.5, "x1": columns - 0.5, "y0": -0.5, "y1": rows - 0.5}
        axes = {"xref": self.at["xaxis"], "yref": self.at["yaxis"]}
        self.shapes.append({"type": "rect", **axes, **edge, "line": {"color": colours.GRID, "width": 0.6}})
        self.across.update(visible=False, range=[left - 0.5, end - 0.5], constrain="domain")
        self.up.update(visible=False, range=[bottom - 0.5, top - 0.5], constrain="domain")
        self.up.update(scaleanchor=self.at["xaxis"], scaleratio=panel.aspect)

    def _heatmap(self, panel: Heatmap) -> None:
        texts = [["" if np.isnan(value) else f"{value:.2f}" for value in row] for row in panel.values]
        annotate = {"text": texts, "texttemplate": "%{text}"} if panel.annotate else {}
        self._add("heatmap", **self._scale(panel, panel.values, panel.height), **annotate)
        rows, columns = panel.values.shape
        self.across.update(title={"text": panel.x_label, "standoff": 6}, range=[-0.5, columns - 0.5], showgrid=False)
        self.up.update(title={"text": panel.y_label, "standoff": 6}, range=[rows - 0.5, -0.5], showgrid=False)
        for axis, names in ((self.across, panel.column_names), (self.up, panel.row_names)):
            if names is not None:
                axis.update(tickvals=list(range(len(names))), ticktext=list(names), tickangle=0)
            else:
                axis.update(nticks=6, ticks="outside", ticklen=3)

    def _axes(self, panel: Axes) -> None:
        legend = f"legend{'' if self.legends == 0 else self.legends + 1}"
        for index, one in enumerate(panel.series):
            kind, settings = self._series(panel, one, index)
            shown = {"name": one.name, "showlegend": panel.legend and bool(one.name), "legend": legend}
            self._add(kind, **settings, **shown)
        if panel.legend:
            self.legends += 1
            style = {"bgcolor": "rgba(255,255,255,0)", "font": {"size": layout.NOTE_SIZE}, "tracegroupgap": 2}
            self.axes[legend] = {**self.beside, **style}
        style = {"gridcolor": colours.GRID, "linecolor": "#aab4bd", "ticks": "outside", "ticklen": 3, "showline": True}
        self.across.update(title={"text": panel.x_label, "standoff": 6}, **style)
        self.up.update(title={"text": panel.y_label, "standoff": 6}, **style)
        if isinstance(panel, Intervals) and panel.series:
            names = [str(name) for name in panel.series[0].y]
            self.up.update(tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.5, -0.5])
        if isinstance(panel, (Bars, Boxes)):
            self.across.update(type="category", showgrid=False)
        if panel.log_y:
            self.up.update(type="log", dtick=1 if panel.decades() > 2 else None, exponentformat="power")
        if panel.x_range is not None:
            self.across.update(range=list(panel.x_range))
        if panel.y_range is not None:
            self.up.update(range=[float(np.log10(v)) for v in panel.y_range] if panel.log_y else list(panel.y_range))
        axes = {"xref": self.at["xaxis"], "yref": f"{self.at['yaxis']} domain"}
        for x, text in panel.marks:
            dots = {"color": colours.FAINT, "width": 1, "dash": "dot"}
            self.shapes.append({"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": dots, **axes})
            font = {"size": layout.TICK_SIZE, "color": colours.FAINT}
            place = {"x": x, "y": 1, "xanchor": "left", "yanchor": "top", **axes}
            self.notes.append({"text": text, "showarrow": False, "font": font, **place})

    def _series(self, panel: Axes, one: Series, index: int) -> tuple[str, dict[str, Any]]:
        """The kind of trace that shows a series, and its settings."""
        colour = colours.category(self.names[one.colour or one.name])
        symbol = colours.SYMBOLS[one.symbol % len(colours.SYMBOLS)]
        points: dict[str, Any] = {"x": _small(one.x), "y": _small(one.y)}
        if isinstance(panel, (Bars, Boxes)):
            points = {"x": [str(v) for v in one.x], "y": _small(one.y), "offsetgroup": str(index)}
        if isinstance(panel, Bars):
            return "bar", {**points, "marker": {"color": colour}, "error_y": _errors(one.y, one.low, one.high)}
        if isinstance(panel, Boxes):
            style = {"marker": {"color": colour, "size": 3}, "line": {"width": 1.3}}
            return "box", {**points, **style, "quartilemethod": "linear"}
        if isinstance(panel, Intervals):
            height = (index - (len(panel.series) - 1) / 2) * min(0.28, 0.8 / len(panel.series))
            points["y"] = np.arange(len(one.y)) + height
            marker = {"color": colour, "symbol": symbol, "size": 7}
            error = _errors(one.x, one.low, one.high)
            return "scatter", {**points, "mode": "markers", "marker": marker, "error_x": error}
        if isinstance(panel, Scatter):
            marker = {"color": colour, "symbol": symbol, "size": one.size, "opacity": 0.65 if one.size < 8 else 1.0}
            if one.size >= 8:
                marker["line"] = {"color": "black", "width": 0.8}
            points.update(mode="markers", hovertext=one.text, marker=marker)
            if panel.joined:
                numbers = [str(number + 1) for number in range(len(one.x))]
                corners = [" ".join(corner) for corner in layout.corners(one)]
                points.update(mode="lines+markers+text", text=numbers, textposition=corners)
                points["line"] = {"color": colour, "width": 1.5}
            return "scattergl" if len(one.x) > 5000 else "scatter", points
        if one.low is not None and one.high is not None:
            red, green, blue = bytes.fromhex(colour[1:])
            band = {"mode": "none", "fill": "toself", "fillcolor": f"rgba({red},{green},{blue},0.15)"}
            around = np.concatenate([np.asarray(one.high), np.asarray(one.low)[::-1]])
            there = np.concatenate([np.asarray(one.x), np.asarray(one.x)[::-1]])
            self._add("scatter", x=there, y=around, showlegend=False, hoverinfo="skip", **band)
        line = {"color": colour, "dash": colours.DASHES[one.dash % 4], "width": 1.8}
        mode = "lines+markers" if len(one.x) < 15 else "lines"
        return "scatter", {**points, "mode": mode, "marker": {"size": 4}, "line": line}


def _png(shades: np.ndarray) -> str:
    """A greyscale or colour picture as a data URL."""
    from PIL import Image as Picture

    buffer = io.BytesIO()
    Picture.fromarray(shades).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def coded_values(values: np.ndarray, low: float, high: float) -> dict[str, Any]:
    """Values as one byte each (four with gaps) with the colour limits and a hover text that gives the value back."""
    values, span = np.asarray(values, dtype=float), high - low if high > low else 1.0
    gaps, signed = np.isnan(values), low < 0 < high and abs(low + high) <= 1e-9 * span
    steps = np.clip(np.nan_to_num((values - low) / span, nan=0.0), 0, 1) * (2 * _LEVELS)
    coded = np.round(steps - _LEVELS if signed else steps)
    start = "" if low == 0 else f"{low:.4g} + "
    back = f"%{{z}}/{_LEVELS} of {high:.4g}" if signed else f"{start}%{{z}}/{2 * _LEVELS} of {span:.4g}"
    if gaps.any():
        coded = np.where(gaps, np.nan, coded).astype(np.float32)
    else:
        coded = coded.astype(np.int8 if signed else np.uint8)
    low, high = (-_LEVELS, _LEVELS) if signed else (0, 2 * _LEVELS)
    return {"z": coded, "zmin": low, "zmax": high, "hovertemplate": f"{back}<extra></extra>"}


def _small(values: Any) -> Any:
    """Numbers rounded to single precision, so that pages stay small."""
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype.kind == "f" and array.size > 200 else array


def _errors(values: Any, low: Any, high: Any) -> dict[str, Any] | None:
    """Error bars from low to high around the values, or none."""
    if low is None or high is None:
        return None
    middle = np.asarray(values, dtype=float)
    ends = {"array": np.maximum(np.asarray(high) - middle, 0), "arrayminus": np.maximum(middle - np.asarray(low), 0)}
    return {"type": "data", "symmetric": False, **ends, "thickness": 1.3, "width": 3}
