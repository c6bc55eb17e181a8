"""The Plotly figure of `drift_explorer` and the table of drift numbers beside it."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.show.colours import hex_colour
from toolkit.show.compose_drift import MEASURE_NAMES, NULLS

if TYPE_CHECKING:
    from toolkit.show.widgets.drift import DriftExplorer


class ScatterView:
    """One trace for all points: the colours say the class, lasso and box select."""

    def __init__(self, explorer: DriftExplorer) -> None:
        import ipywidgets
        import plotly.graph_objects as go

        self.explorer, self._numbers_of = explorer, ""
        self.rows, places = explorer.points()
        start = {
            "x": places[:, 0],
            "y": places[:, 1],
            "text": self._texts(),
            "marker": {"size": 6, "color": self._colours()},
        }
        # made with its points: what is sent before the page has loaded the figure's script is lost
        self.figure: Any = go.FigureWidget(
            go.Scatter(mode="markers", hovertemplate="%{text}<extra></extra>", **start),
            layout={
                "width": 620,
                "height": 460,
                "dragmode": "lasso",
                "template": "plotly_white",
                "showlegend": False,
                "margin": {"l": 50, "r": 10, "t": 60, "b": 40},
                "title": {"text": self._title()},
                **self._axes(),
            },
        )
        self._outline = self._outlining = False
        self.figure.data[0].on_selection(self._outlined)
        self.figure.data[0].on_click(self._from_page)
        self.numbers = ipywidgets.HTML()
        self.box = ipywidgets.HBox([self.figure, self.numbers], layout={"align_items": "flex-start"})
        self.follow()
        explorer.listen(self.follow)

    def _from_page(self, _: Any, points: Any, *__: Any) -> None:
        if points.point_inds:  # the page also reports an empty selection when an outline is taken away
            self.explorer.select(self.rows[list(points.point_inds)])

    def _outlined(self, *message: Any) -> None:
        """A lasso or a box was drawn: its outline stays until something else is selected or shown."""
        self._outlining = True
        self._outline = bool(message[1].point_inds)
        try:
            self._from_page(*message)
        finally:
            self._outlining = False

    def follow(self) -> None:
        rows, places = self.explorer.points()
        chosen = set(self.explorer.selected)
        inside = [place for place, row in enumerate(rows) if row in chosen]
        trace = self.figure.data[0]
        if self._outline and not self._outlining:
            self._outline = False
            self.figure.plotly_relayout({"selections": []})
            trace.selectedpoints = None  # the page forgets them with the outline, and only changes are sent
        with self.figure.batch_update():
            if not np.array_equal(rows, self.rows):
                self.rows = rows
                trace.marker.color, trace.text = self._colours(), self._texts()
            trace.x, trace.y = places[:, 0], places[:, 1]
            trace.selectedpoints = inside or None
            self.figure.layout.title.text = self._title()
            self.figure.update_layout(**self._axes())
        if self.explorer.state["layer"] != self._numbers_of:
            self._numbers_of = self.explorer.state["layer"]
            self.numbers.value = numbers_table(self.explorer)

    def _colours(self) -> list[str]:
        indices = self.explorer.rows["class"].to_numpy()[self.rows]
        return [hex_colour(int(index)) for index in indices]

    def _texts(self) -> list[str]:
        part = self.explorer.rows.iloc[self.rows]
        return [f"{case}, {name}" for case, name in zip(part["case"], part["class_name"], strict=True)]

    def _title(self) -> str:
        values, stage = self.explorer.state, html.escape(self.explorer.stage_name())
        points = f"{len(self.rows)} of {len(self.explorer.rows)} points"
        return f"{values['layer']}, {values['method'].upper()}<br><sub>{stage}; {points}</sub>"

    def _axes(self) -> dict[str, Any]:
        """The same range at every stage, or movement could not be seen."""
        projection = self.explorer.projection()
        everything = np.concatenate([np.asarray(one, dtype=float)[:, :2] for one in projection.coordinates])
        low, high = everything.min(0), everything.max(0)
        margin = 0.05 * (high - low) + 1e-9
        ends = [[float(a), float(b)] for a, b in zip(low - margin, high + margin, strict=True)]
        return {"xaxis": {"range": ends[0]}, "yaxis": {"range": ends[1]}}


def numbers_table(explorer: DriftExplorer) -> str:
    """HTML of the drift numbers, with their interval and that of the null."""

    def interval(row: Any, name: str) -> str:
        low, high = row.get(f"{name}low", np.nan), row.get(f"{name}high", np.nan)
        return f"{low:.3g} to {high:.3g}" if np.isfinite(low) else ""

    lines = []
    columns = 2 + (explorer.repeat is not None)
    for _, row in explorer.numbers().iterrows():
        stages = f"{explorer.stages[int(row['from']) - 1]} to {explorer.stages[int(row['to']) - 1]}"
        cells = [MEASURE_NAMES.get(row["measure"], row["measure"]), stages, f"{row['value']:.3g}"]
        cells += [interval(row, name) for name in ("", "null_", "repeat_")[:columns]]
        lines.append(
            "<tr>" + "".join(f"<td style='padding:1px 6px'>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
        )
    names = ("measure", "stages", "value", "interval", "null", "repeat")[: 3 + columns]
    head = "".join(f"<th style='padding:1px 6px;text-align:left'>{name}</th>" for name in names)
    classes = explorer.rows.groupby("class", sort=True)["class_name"].first()
    key = " ".join(
        f"<span style='color:{hex_colour(int(str(index)))}'>&#9679;</span> {html.escape(str(name))}"
        for index, name in classes.items()
    )
    return (
        f"<div style='font-size:11px;line-height:1.25;max-height:460px;overflow:auto'>{key}<br><b>Drift in the full feature "
        f"space</b> (all classes, intervals over patients)<table class='toolkit-numbers'><tr>{head}</tr>{''.join(lines)}</table>"
        f"{html.escape(NULLS + explorer.repeat_text())}</div>"
    )
