"""The Plotly figure of `drift_explorer` and the table of drift numbers beside it."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.show.colours import GREY, category
from toolkit.show.compose_drift import MEASURE_NAMES

if TYPE_CHECKING:
    from toolkit.show.widgets.drift import DriftExplorer


class ScatterView:
    """One trace for all points: the colours say the class, lasso and box select.

    Args:
        explorer: whose points it shows.
    """

    def __init__(self, explorer: DriftExplorer) -> None:
        import ipywidgets
        import plotly.graph_objects as go

        self.explorer, self._limits_of, self._numbers_of = explorer, None, ""
        self.rows = np.empty(0, dtype=int)
        self.figure: Any = go.FigureWidget(
            go.Scatter(mode="markers", marker={"size": 6}, hovertemplate="%{text}<extra></extra>"),
            layout={"width": 620, "height": 460, "dragmode": "lasso", "template": "plotly_white", "showlegend": False,
                    "margin": {"l": 50, "r": 10, "t": 60, "b": 40}},
        )  # fmt: skip
        self.figure.data[0].on_selection(self._from_page)
        self.figure.data[0].on_click(self._from_page)
        self.numbers = ipywidgets.HTML()
        self.box = ipywidgets.HBox([self.figure, self.numbers], layout={"align_items": "flex-start"})
        self.follow()
        explorer.listen(self.follow)

    def _from_page(self, _: Any, points: Any, *__: Any) -> None:
        self.explorer.select(self.rows[list(points.point_inds)])

    def follow(self) -> None:
        """Bring the figure and the table into line with the explorer."""
        rows, places = self.explorer.points()
        projection, values = self.explorer.projection(), self.explorer.state
        table = self.explorer.rows
        chosen = set(self.explorer.selected)
        inside = [place for place, row in enumerate(rows) if row in chosen]
        with self.figure.batch_update():
            trace = self.figure.data[0]
            if not np.array_equal(rows, self.rows) or trace.x is None:
                self.rows = rows
                indices = table["class"].to_numpy()[rows]
                trace.marker.color = [category(int(index) - 1 if index > 0 else GREY) for index in indices]
                part = table.iloc[rows]
                trace.text = [f"{c}, {n}" for c, n in zip(part["case"], part["class_name"], strict=True)]
            trace.x, trace.y = places[:, 0], places[:, 1]
            trace.selectedpoints = inside or None
            self.figure.layout.title.text = (
                f"{values['layer']}, {projection.method.upper()}<br><sub>{html.escape(self.explorer.stage_name())}; "
                f"{len(rows)} of {len(table)} points</sub>"
            )
            self._fix_axes(projection)
        self._write_numbers()

    def _fix_axes(self, projection: Any) -> None:
        """The same range at every stage, or movement could not be seen."""
        if self._limits_of is projection:
            return
        self._limits_of = projection
        everything = np.concatenate([np.asarray(one, dtype=float)[:, :2] for one in projection.coordinates])
        low, high = everything.min(0), everything.max(0)
        margin = 0.05 * (high - low) + 1e-9
        self.figure.layout.xaxis.range = [low[0] - margin[0], high[0] + margin[0]]
        self.figure.layout.yaxis.range = [low[1] - margin[1], high[1] + margin[1]]

    def _write_numbers(self) -> None:
        layer = self.explorer.state["layer"]
        if layer != self._numbers_of:
            self._numbers_of = layer
            self.numbers.value = numbers_table(self.explorer)


def numbers_table(explorer: DriftExplorer) -> str:
    """HTML of the drift numbers, with their interval and that of the null."""
    lines = []
    for _, row in explorer.numbers().iterrows():
        interval = f"{row['low']:.3g} to {row['high']:.3g}" if np.isfinite(row["low"]) else ""
        null = f"{row['null_low']:.3g} to {row['null_high']:.3g}" if np.isfinite(row["null_low"]) else ""
        stages = f"{explorer.stages[int(row['from']) - 1]} to {explorer.stages[int(row['to']) - 1]}"
        cells = (
            MEASURE_NAMES.get(row["measure"], row["measure"]),
            stages,
            f"{row['value']:.3g}",
            interval,
            null,
        )
        lines.append(
            "<tr>"
            + "".join(f"<td style='padding:1px 6px'>{html.escape(cell)}</td>" for cell in cells)
            + "</tr>"
        )
    head = "".join(f"<th style='padding:1px 6px;text-align:left'>{name}</th>"
                   for name in ("measure", "stages", "value", "interval", "no drift"))  # fmt: skip
    classes = explorer.rows.groupby("class", sort=True)["class_name"].first()
    key = " ".join(
        f"<span style='color:{category(int(str(index)) - 1 if int(str(index)) > 0 else GREY)}'>&#9679;</span> {html.escape(str(name))}"
        for index, name in classes.items()
    )
    return (
        f"<div style='font-size:11px;line-height:1.25;max-height:460px;overflow:auto'>{key}<br><b>Drift in the full feature "
        f"space</b> (all classes, intervals over patients)<table class='toolkit-numbers'><tr>{head}</tr>{''.join(lines)}</table>"
        "</div>"
    )
