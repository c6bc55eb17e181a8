"""Draws a figure with Plotly in the rectangles of the layout. Pictures travel as 8-bit data, so pages stay small."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.show import colours, layout
from toolkit.show import plotly_encoding as encoding
from toolkit.show.panels import Axes, Bars, Boxes, Coloured, Figure, Heatmap, Image, Intervals, Scatter, Series

if TYPE_CHECKING:
    import plotly.graph_objects as go

_PAPER = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "top"}
_FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"


def draw(figure: Figure) -> go.Figure:
    """A Plotly figure of fixed size; nothing is shown."""
    import plotly.graph_objects as go

    plan = layout.place(figure)
    page = _Page(plan, figure.colours())
    top = layout.MARGIN * 0.7
    top = page.write(plan.title, layout.MARGIN, top, layout.TITLE_SIZE, bold=True)
    page.write(plan.subtitle, layout.MARGIN, top + 2, layout.SUBTITLE_SIZE, colour=colours.FAINT)
    for left, height, label, name in plan.key:
        page.write((f"■ {name}",), left, height, layout.NOTE_SIZE, colour=colours.hex_colour(label))
    for one in plan.placed:
        head = layout.lines_height(one.title, layout.PANEL_SIZE) + layout.lines_height(one.note, layout.NOTE_SIZE)
        end = page.write(one.title, one.left, one.top - head - 4, layout.PANEL_SIZE, bold=True)
        page.write(one.note, one.left, end, layout.NOTE_SIZE, colour=colours.FAINT)
        page.panel(one)
    foot = plan.height - layout.lines_height(plan.caption, layout.CAPTION_SIZE) - layout.MARGIN * 0.6
    page.write(plan.caption, layout.MARGIN, foot, layout.CAPTION_SIZE, colour=colours.FAINT)
    if figure.stamp:
        page.write((figure.stamp,), 0, 0, layout.stamp_size(figure.stamp, plan.width), bold=True, colour=colours.STAMP)
        page.notes[-1] |= {
            "x": 0.5,
            "y": 0.5,
            "xanchor": "center",
            "yanchor": "middle",
            "textangle": -20,
            "opacity": 0.45,
        }
    result = go.Figure(data=page.traces)
    result.update_layout(
        width=plan.width,
        height=plan.height,
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        annotations=page.notes,
        updatemenus=page.toggle(figure.provenance),
        shapes=page.shapes,
        plot_bgcolor="white",
        paper_bgcolor="white",
        barmode="group",
        boxmode="group",
        hovermode="closest",
        font={"family": _FONT, "size": layout.TICK_SIZE, "color": colours.TEXT},
        meta={"title": figure.title},
        template=None,
        bargap=0.2,
        **page.axes,
    )
    return result


class _Page:
    """Collects traces, axes, texts and shapes in pixel coordinates of one layout."""

    def __init__(self, plan: layout.Layout, names: dict[str, int]) -> None:
        self.plan, self.names = plan, names
        self.traces: list[Any] = []
        self.notes: list[dict[str, Any]] = []
        self.shapes: list[dict[str, Any]] = []
        self.axes: dict[str, Any] = {}
        self.count = 0
        self.legends = 0

    def write(
        self,
        lines: tuple[str, ...],
        left: float,
        top: float,
        size: float,
        *,
        bold: bool = False,
        colour: str = colours.TEXT,
    ) -> float:
        if lines:
            text = "<br>".join(line.replace("<", "&lt;") for line in lines)
            self.notes.append(
                {
                    "text": f"<b>{text}</b>" if bold else text,
                    "x": left / self.plan.width,
                    "y": 1 - top / self.plan.height,
                    **_PAPER,
                    "align": "left",
                    "showarrow": False,
                    "font": {"size": size, "color": colour},
                    "borderpad": 0,
                }
            )
        return top + layout.lines_height(lines, size)

    def toggle(self, words: str) -> list[dict[str, Any]]:
        """A button that shows and hides the provenance, over the foot of the figure."""
        if not words:
            return []
        lines = layout.wrap(words, self.plan.width - 3 * layout.MARGIN, layout.CAPTION_SIZE)
        self.write(lines, layout.MARGIN, self.plan.height - 4, layout.CAPTION_SIZE, colour=colours.FAINT)
        self.notes[-1] |= {"yanchor": "bottom", "visible": False, "bgcolor": "white", "bordercolor": colours.GRID}
        self.notes[-1] |= {"borderpad": 6}
        shown = f"annotations[{len(self.notes) - 1}].visible"
        button = {"label": "Provenance", "method": "relayout", "args": [{shown: True}], "args2": [{shown: False}]}
        place = {"x": 1, "y": 1, "xanchor": "right", "yanchor": "top", "pad": {"r": 4, "t": 4}}
        return [{"type": "buttons", "buttons": [button], "showactive": False, "font": {"size": 11.2}, **place}]

    def panel(self, one: layout.Placed) -> None:
        self.count += 1
        suffix = "" if self.count == 1 else str(self.count)
        across = {
            "domain": [one.left / self.plan.width, (one.left + one.width) / self.plan.width],
            "anchor": f"y{suffix}",
            "zeroline": False,
        }
        up = {
            "domain": [1 - (one.top + one.height) / self.plan.height, 1 - one.top / self.plan.height],
            "anchor": f"x{suffix}",
            "zeroline": False,
        }
        panel = one.panel
        if isinstance(panel, Image):
            self._image(panel, one, suffix, across, up)
        elif isinstance(panel, Heatmap):
            self._heatmap(panel, one, suffix, across, up)
        elif isinstance(panel, Axes):
            self._axes(panel, one, suffix, across, up)
        self.axes[f"xaxis{suffix}"], self.axes[f"yaxis{suffix}"] = across, up

    def _bar(self, one: layout.Placed, panel: Coloured) -> dict[str, Any]:
        low, high, _ = panel.ramp()
        values, texts = encoding.ticks(low, high)
        return {
            "x": (one.left + one.width + 8) / self.plan.width,
            "y": 1 - one.top / self.plan.height,
            **_PAPER,
            "len": one.height,
            "lenmode": "pixels",
            "thickness": 10,
            "xpad": 0,
            "ypad": 0,
            "outlinewidth": 0,
            "tickvals": values,
            "ticktext": panel.bar_ticks or texts,
        }

    def _image(self, panel: Image, one: layout.Placed, suffix: str, across: dict[str, Any], up: dict[str, Any]) -> None:
        import plotly.graph_objects as go

        rows, columns = panel.pixels.shape[:2]
        axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        self.traces.append(go.Image(source=encoding.png(panel.shades()), hoverinfo="skip", **axes))
        if panel.overlay is not None:
            low, high = panel.overlay_limits
            height, width = panel.overlay.shape
            self.traces.append(
                go.Heatmap(
                    **encoding.coded_values(panel.overlay, low, high),
                    colorscale=colours.plotly_scale(panel.overlay_scale),
                    showscale=panel.bar,
                    x0=-0.5 + columns / width / 2,
                    dx=columns / width,
                    y0=-0.5 + rows / height / 2,
                    dy=rows / height,
                    colorbar=self._bar(one, panel),
                    **axes,
                )
            )
        if panel.labels is not None:
            self._contours(panel, axes)
        self._millimetres(panel, axes)
        top, bottom, left, end = panel.shown()
        self.shapes.append(
            {
                "type": "rect",
                "xref": axes["xaxis"],
                "yref": axes["yaxis"],
                "x0": -0.5,
                "x1": columns - 0.5,
                "y0": -0.5,
                "y1": rows - 0.5,
                "line": {"color": colours.GRID, "width": 0.6},
            }
        )
        across.update(visible=False, range=[left - 0.5, end - 0.5], constrain="domain")
        up.update(
            visible=False,
            range=[bottom - 0.5, top - 0.5],
            scaleanchor=f"x{suffix}",
            scaleratio=panel.aspect,
            constrain="domain",
        )

    def _millimetres(self, panel: Image, axes: dict[str, str]) -> None:
        import plotly.graph_objects as go

        if (bar := panel.scale_bar()) is None:
            return
        top, bottom, left, end = panel.shown()
        x, y = left + 0.05 * (end - left), bottom - 0.08 * (bottom - top)
        style: dict[str, Any] = {"hoverinfo": "skip", "showlegend": False, "textfont": {"color": "white", "size": 11.2}}
        line = {"color": "white", "width": 3}
        self.traces.append(go.Scatter(x=[x, x + bar[0]], y=[y, y], mode="lines", line=line, **style, **axes))
        text = {"text": [bar[1]], "textposition": "top right", "mode": "text"}
        self.traces.append(go.Scatter(x=[x], y=[y], **text, **style, **axes))

    def _contours(self, panel: Image, axes: dict[str, str]) -> None:
        import plotly.graph_objects as go

        assert panel.labels is not None
        for label in [int(v) for v in np.unique(panel.labels) if v > 0]:
            self.traces.append(
                go.Contour(
                    z=(panel.labels == label).astype(np.uint8),
                    contours={"start": 0.5, "end": 0.5, "size": 1, "coloring": "none"},
                    line={"color": colours.hex_colour(label), "width": 4 * panel.contour_width / 3},  # points to pixels
                    showscale=False,
                    showlegend=False,
                    hoverinfo="skip",
                    name=panel.class_names.get(label, str(label)),
                    **axes,
                )
            )

    def _heatmap(
        self, panel: Heatmap, one: layout.Placed, suffix: str, across: dict[str, Any], up: dict[str, Any]
    ) -> None:
        import plotly.graph_objects as go

        low, high = panel.limits
        annotate = {"text": encoding.texts(panel.values), "texttemplate": "%{text}"} if panel.annotate else {}
        self.traces.append(
            go.Heatmap(
                **encoding.coded_values(panel.values, low, high),
                colorscale=colours.plotly_scale(panel.scale),
                colorbar=self._bar(one, panel),
                showscale=panel.bar,
                xaxis=f"x{suffix}",
                yaxis=f"y{suffix}",
                **annotate,
            )
        )
        rows, columns = panel.values.shape
        across.update(title={"text": panel.x_label, "standoff": 6}, range=[-0.5, columns - 0.5], showgrid=False)
        up.update(title={"text": panel.y_label, "standoff": 6}, range=[rows - 0.5, -0.5], showgrid=False)
        for axis, names in ((across, panel.column_names), (up, panel.row_names)):
            if names is not None:
                axis.update(tickvals=list(range(len(names))), ticktext=list(names), tickangle=0)
            else:
                axis.update(nticks=6, ticks="outside", ticklen=3)

    def _axes(self, panel: Axes, one: layout.Placed, suffix: str, across: dict[str, Any], up: dict[str, Any]) -> None:
        legend = f"legend{'' if self.legends == 0 else self.legends + 1}"
        for index, series in enumerate(panel.series):
            trace = self._series(panel, series, index)
            trace.update(
                xaxis=f"x{suffix}", yaxis=f"y{suffix}", showlegend=panel.legend and bool(series.name), legend=legend
            )
            self.traces.append(trace)
        if panel.legend:
            self.legends += 1
            self.axes[legend] = {
                "x": (one.left + one.width + 8) / self.plan.width,
                "y": 1 - one.top / self.plan.height,
                "xanchor": "left",
                "yanchor": "top",
                "bgcolor": "rgba(255,255,255,0)",
                "font": {"size": layout.NOTE_SIZE},
                "tracegroupgap": 2,
            }
        style = {"gridcolor": colours.GRID, "linecolor": "#aab4bd", "ticks": "outside", "ticklen": 3, "showline": True}
        across.update(title={"text": panel.x_label, "standoff": 6}, **style)
        up.update(title={"text": panel.y_label, "standoff": 6}, **style)
        if isinstance(panel, Intervals) and panel.series:
            names = [str(name) for name in panel.series[0].y]
            up.update(tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.5, -0.5])
        if isinstance(panel, (Bars, Boxes)):
            across.update(type="category", showgrid=False)
        if panel.log_y:
            up.update(type="log", dtick=1 if panel.decades() > 2 else None, exponentformat="power")
        if panel.x_range is not None:
            across.update(range=list(panel.x_range))
        if panel.y_range is not None:
            up.update(range=[float(np.log10(v)) for v in panel.y_range] if panel.log_y else list(panel.y_range))
        for x, text in panel.marks:
            reference = {"xref": f"x{suffix}", "yref": f"y{suffix} domain"}
            self.shapes.append(
                {
                    "type": "line",
                    "x0": x,
                    "x1": x,
                    "y0": 0,
                    "y1": 1,
                    "line": {"color": colours.FAINT, "width": 1, "dash": "dot"},
                    **reference,
                }
            )
            self.notes.append(
                {
                    "x": x,
                    "y": 1,
                    "text": text,
                    "showarrow": False,
                    "xanchor": "left",
                    "yanchor": "top",
                    "font": {"size": layout.TICK_SIZE, "color": colours.FAINT},
                    **reference,
                }
            )

    def _series(self, panel: Axes, one: Series, index: int) -> Any:
        import plotly.graph_objects as go

        colour = colours.category(self.names[one.colour or one.name])
        symbol = colours.SYMBOLS[one.symbol % len(colours.SYMBOLS)]
        if isinstance(panel, Bars):
            return go.Bar(
                x=[str(v) for v in one.x],
                y=encoding.small(one.y),
                name=one.name,
                marker={"color": colour},
                error_y=encoding.errors(one.y, one.low, one.high),
                offsetgroup=str(index),
            )
        if isinstance(panel, Boxes):
            return go.Box(
                x=[str(v) for v in one.x],
                y=encoding.small(one.y),
                name=one.name,
                marker={"color": colour, "size": 3},
                quartilemethod="linear",
                offsetgroup=str(index),
                line={"width": 1.3},
            )
        if isinstance(panel, Intervals):
            height = (index - (len(panel.series) - 1) / 2) * min(0.28, 0.8 / len(panel.series))
            return go.Scatter(
                x=encoding.small(one.x),
                y=np.arange(len(one.y)) + height,
                name=one.name,
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 7},
                error_x=encoding.errors(one.x, one.low, one.high),
            )
        if isinstance(panel, Scatter):
            kind = go.Scattergl if len(one.x) > 5000 else go.Scatter
            marker = {"color": colour, "symbol": symbol, "size": one.size, "opacity": 0.65 if one.size < 8 else 1.0}
            if one.size >= 8:
                marker["line"] = {"color": "black", "width": 0.8}
            joined: dict[str, Any] = {"mode": "markers", "hovertext": one.text}
            if panel.joined:
                numbers = [str(number + 1) for number in range(len(one.x))]
                joined |= {
                    "mode": "lines+markers+text",
                    "text": numbers,
                    "textposition": "top right",
                    "line": {"color": colour, "width": 1.5},
                }
            return kind(x=encoding.small(one.x), y=encoding.small(one.y), name=one.name, marker=marker, **joined)
        if one.low is not None and one.high is not None:
            band = np.concatenate([np.asarray(one.high), np.asarray(one.low)[::-1]])
            self.traces.append(
                go.Scatter(
                    x=np.concatenate([np.asarray(one.x), np.asarray(one.x)[::-1]]),
                    y=band,
                    fill="toself",
                    mode="none",
                    fillcolor=encoding.faded(colour),
                    showlegend=False,
                    hoverinfo="skip",
                    xaxis=f"x{'' if self.count == 1 else self.count}",
                    yaxis=f"y{'' if self.count == 1 else self.count}",
                )
            )
        mode = "lines+markers" if len(one.x) < 15 else "lines"
        return go.Scatter(
            x=encoding.small(one.x),
            y=encoding.small(one.y),
            name=one.name,
            mode=mode,
            marker={"size": 4},
            line={"color": colour, "dash": colours.DASHES[one.dash % 4], "width": 1.8},
        )
