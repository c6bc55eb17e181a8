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

    Args:
        monitor: whose history it shows.
    """

    def __init__(self, monitor: TrainingMonitor) -> None:
        import ipywidgets
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        self.monitor = monitor
        empty = make_subplots(rows=1, cols=3, subplot_titles=list(TITLES.values()), horizontal_spacing=0.06)
        self.figure: Any = go.FigureWidget(empty)
        self.figure.update_layout(
            width=1020, height=330, template="plotly_white", margin={"l": 45, "r": 10, "t": 40, "b": 40},
            legend={"font": {"size": 10}, "orientation": "h", "y": -0.2},
        )  # fmt: skip
        self.figure.update_xaxes(title_text="step", range=[0, monitor.steps])
        self.places: dict[tuple[str, str], int] = {}
        self.button = ipywidgets.Button(
            description="Stop after this step", icon="stop", layout={"width": "200px"}
        )
        self.button.on_click(lambda _: monitor.stop())
        self.box = ipywidgets.VBox([self.button, self.figure])
        self.follow()
        monitor.listen(self.follow)

    def follow(self) -> None:
        """Bring the figure into line with the history."""
        import plotly.graph_objects as go

        curves, state = self.monitor.curves(), self.monitor.state
        with self.figure.batch_update():
            for column, (part, found) in enumerate(curves.items(), start=1):
                for name, steps, values in found:
                    if (part, name) not in self.places:
                        colour = category(len(self.places))
                        self.figure.add_trace(
                            go.Scatter(
                                name=name, mode="lines+markers", line={"color": colour}, marker={"size": 4}
                            ),
                            row=1,
                            col=column,
                        )
                        self.places[part, name] = len(self.figure.data) - 1
                    trace = self.figure.data[self.places[part, name]]
                    trace.visible = part in state["parts"]
                    if trace.x is None or len(trace.x) != len(steps):
                        trace.x, trace.y = steps, values
            self.figure.layout.yaxis.type = "log" if state["logarithmic"] else "linear"
        self.button.disabled = not self.monitor.running or self.monitor.condition == "stopping"
        self.button.description = {"stopping": "Stopping", "running": "Stop after this step"}.get(
            self.monitor.condition, self.monitor.condition.capitalize()
        )
