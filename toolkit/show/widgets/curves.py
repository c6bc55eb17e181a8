"""The Plotly figure of `training_monitor` and its stop button."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toolkit.show.colours import category

if TYPE_CHECKING:
    from toolkit.show.widgets.monitor import TrainingMonitor

TITLES = {
    "losses": "loss terms, before their weights",
    "ratios": "gradient ratio to the objective",
    "scores": "validation",
}


class CurvesView:
    """Three panels that grow while the run goes on.

    The figure is made anew, with all its data, whenever a curve or the run's condition is new: what is sent to a figure before
    the page has loaded its script is lost, but not what it is made with.
    """

    def __init__(self, monitor: TrainingMonitor) -> None:
        import ipywidgets

        self.monitor = monitor
        self.button = ipywidgets.Button(description="Stop after this step", icon="stop", layout={"width": "200px"})
        self.button.on_click(lambda _: monitor.stop())
        self.box = ipywidgets.VBox([self.button])
        self._made_for: tuple[object, ...] = ()
        self.figure: Any = None
        self.follow()
        monitor.listen(self.follow)

    def follow(self) -> None:
        """Bring the figure and the button into line with the run."""
        condition = self.monitor.condition
        curves = [(part, *curve) for part, found in self.monitor.curves().items() for curve in found]
        made_for = (condition, *((part, name) for part, name, _, _ in curves))
        if made_for != self._made_for:
            self._made_for = made_for
            self.figure = self._figure(curves)
            self.box.children = (self.button, self.figure)
        else:
            self._update(curves)
        self.button.disabled = condition != "running"
        self.button.description = {"stopping": "Stopping", "running": "Stop after this step"}.get(
            condition, condition.capitalize()
        )

    def _figure(self, curves: list[tuple[str, str, list[float], list[float]]]) -> Any:
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        figure = make_subplots(rows=1, cols=3, subplot_titles=list(TITLES.values()), horizontal_spacing=0.06)
        figure.update_layout(
            width=1020,
            height=330,
            template="plotly_white",
            margin={"l": 45, "r": 10, "t": 40, "b": 40},
            legend={"font": {"size": 10}, "orientation": "h", "y": -0.2},
        )
        figure.update_xaxes(title_text="step", rangemode="tozero")  # ends where the run is
        state = self.monitor.state
        figure.layout.yaxis.type = "log" if state["logarithmic"] else "linear"
        for place, (part, name, steps, values) in enumerate(curves):
            figure.add_trace(
                go.Scatter(
                    name=name,
                    x=steps,
                    y=values,
                    mode="lines+markers",
                    line={"color": category(place)},
                    marker={"size": 4},
                    visible=part in state["parts"],
                ),
                row=1,
                col=list(TITLES).index(part) + 1,
            )
        return go.FigureWidget(figure)

    def _update(self, curves: list[tuple[str, str, list[float], list[float]]]) -> None:
        state = self.monitor.state
        with self.figure.batch_update():
            for trace, (part, _, steps, values) in zip(self.figure.data, curves, strict=True):
                trace.visible = part in state["parts"]
                if len(trace.x) != len(steps):
                    trace.x, trace.y = steps, values
            self.figure.layout.yaxis.type = "log" if state["logarithmic"] else "linear"
