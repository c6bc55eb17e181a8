"""`training_monitor`: the curves of a run while it is trained in the background, with a button that stops it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from toolkit.errors import CheckpointError
from toolkit.results import DataFrame
from toolkit.show.colours import FAINT, TEXT, category
from toolkit.show.compose_training import curve_columns, training_curves
from toolkit.show.widgets.canvas import Canvas
from toolkit.show.widgets.state import Control, Explorer
from toolkit.show.widgets.view import static_png
from toolkit.training import background
from toolkit.training.directory import RunDirectory
from toolkit.training.history import read_history
from toolkit.training.run import Run

_WIDTH, _LEFT = 760, 14
Curve = tuple[str, list[float], list[float]]
TITLES = {
    "losses": "loss terms, before their weights",
    "ratios": "gradient ratio to the objective",
    "scores": "validation",
}


class TrainingMonitor(Explorer):
    """Watch a run: loss terms, gradient ratios and validation scores as they are written, with a stop button.

    Start the training with `toolkit.train(..., background=True)`: one that runs in the notebook's own process blocks every
    widget until it ends. Use `.condition`, `.step`, `.history`, `.stop()`, `.curves()`, `.refresh()` and `.close()`.

    Args:
        run: what `toolkit.train` returned, or the run's directory; it may be trained by any process.
        interval: seconds between two looks at the files.

    Raises:
        CheckpointError: there is no run.
    """

    title = "Training"

    def __init__(self, run: Run | str | os.PathLike[str], *, interval: float = 0.5) -> None:
        super().__init__(logarithmic=False, parts=("losses", "ratios", "scores"))
        path, self.process = (run.path, run._process) if isinstance(run, Run) else (Path(run), None)
        self.directory, self.interval = RunDirectory(path), interval
        if not self.directory.exists():
            fix = "Pass a run, or the folder it was written to."
            raise CheckpointError("There is no run here.", where=path, fix=fix)
        self.steps = int(self.directory.record()["config"]["steps"])
        self.history: DataFrame = read_history(self.directory.history)
        self._seen: tuple[Any, ...] = ()
        self._stopping, self._closed, self._reading = False, threading.Event(), threading.Lock()

    def controls(self) -> list[Control]:
        parts = (("loss terms", "losses"), ("gradient ratios", "ratios"), ("validation scores", "scores"))
        return [Control("logarithmic", "losses on a log scale", "switch"), Control("parts", "show", "several", parts)]

    @property
    def running(self) -> bool:
        """Whether some process trains the run now."""
        return background.is_running(self.directory.path, self.process)

    @property
    def step(self) -> int:
        return 0 if self.history.empty else int(self.history["step"].max())

    @property
    def condition(self) -> str:
        """`running`, `stopping`, `ready`, `finished`, `interrupted` or `failed`."""
        self._stopping = self._stopping and self.running  # a run that was resumed since is not stopping
        if self.running:
            return "stopping" if self._stopping else "running"
        return str(self.directory.state().get("state", "ready"))

    def stop(self) -> None:
        """Ask for an end after the step at hand; returns at once. `toolkit.resume` continues the run later."""
        self._stopping = self.running
        background.stop(self.directory.path, self.process)
        self.changed()

    def refresh(self) -> bool:
        """Read what was written since the last look; the page follows. Returns whether anything was new."""
        file = self.directory.history
        with self._reading:  # a look that began before another must not end after it
            seen = (file.stat().st_size if file.is_file() else 0, self.condition)
            if seen == self._seen:
                return False
            self._seen, self.history = seen, read_history(file)
        self.changed()
        return True

    def watch(self) -> None:
        """Refresh until nobody trains the run any more or the monitor is closed, in a thread of its own."""

        def look() -> None:
            while not self._closed.is_set():
                going = self.running
                self.refresh()
                if not going:
                    return
                self._closed.wait(self.interval)

        threading.Thread(target=look, daemon=True, name=f"monitor of {self.directory.path.name}").start()

    def close(self) -> None:
        """Look no more; the training goes on."""
        self._closed.set()

    def curves(self) -> dict[str, list[Curve]]:
        """Part ("losses", "ratios", "scores") -> (name, steps, values) of every curve in the history."""
        curves: dict[str, list[Curve]] = {part: [] for part in TITLES}
        for column in [] if self.history.empty else curve_columns([self.history]):
            rows = self.history[["step", column]].dropna()
            ends = {"scores": column.startswith("validation/"), "ratios": column.endswith("gradient_ratio")}
            part = next((part for part, fits in ends.items() if fits), "losses")
            name = column.removeprefix("validation/").removesuffix("/gradient_ratio")
            curves[part].append((name, [float(x) for x in rows["step"]], [float(y) for y in rows[column]]))
        return curves

    def draw(self) -> Canvas:
        """See `Explorer`: how far the run is, and its newest numbers."""
        canvas = Canvas(_WIDTH, 84)
        share = self.step / self.steps
        words = f"{self.directory.path.name}: {self.condition}, step {self.step} of {self.steps}"
        canvas.text(_LEFT, 6, words, size=15, bold=True)
        canvas.frame(_LEFT, 32, _WIDTH - 2 * _LEFT, 14)
        canvas.fill(_LEFT, 32, round(share * (_WIDTH - 2 * _LEFT)), 14, category(0))
        newest = [
            f"{name}{' gradient ratio' if part == 'ratios' else ''} {values[-1]:.3g}"
            for part, curves in self.curves().items()
            for name, _, values in curves
            if values
        ]
        words = ", ".join(newest) or "nothing is logged yet"
        canvas.text(_LEFT, 54, words, size=12, colour=TEXT if newest else FAINT, width=_WIDTH - 2 * _LEFT)
        return canvas

    def extra_views(self) -> list[Any]:
        """See `Explorer`: the stop button and the curves; the monitor begins to watch."""
        view = CurvesView(self)
        self.watch()
        return [view.box]

    def static_pictures(self) -> list[bytes]:
        """See `Explorer`: how far it is and the curves so far."""
        if self.history.empty:
            return super().static_pictures()
        return [*super().static_pictures(), static_png(training_curves({self.directory.path.name: self.history}))]


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
        condition = self.monitor.condition
        curves = [(part, curve) for part, several in self.monitor.curves().items() for curve in several]
        made_for = (condition, *((part, curve[0]) for part, curve in curves))
        if made_for == self._made_for:
            self._fill(self.figure, curves)
        else:
            self._made_for, self.figure = made_for, self._figure(curves)
            self.box.children = (self.button, self.figure)
        self.button.disabled = condition != "running"
        texts = {"stopping": "Stopping", "running": "Stop after this step"}
        self.button.description = texts.get(condition, condition.capitalize())

    def _figure(self, curves: list[tuple[str, Curve]]) -> Any:
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        figure = make_subplots(rows=1, cols=3, subplot_titles=list(TITLES.values()), horizontal_spacing=0.06)
        margin, legend = {"l": 45, "r": 10, "t": 40, "b": 40}, {"font": {"size": 10}, "orientation": "h", "y": -0.2}
        figure.update_layout(width=1020, height=330, template="plotly_white", margin=margin, legend=legend)
        figure.update_xaxes(title_text="step", rangemode="tozero")  # ends where the run is
        for place, (part, (name, _, _)) in enumerate(curves):
            style = {"mode": "lines+markers", "line": {"color": category(place)}, "marker": {"size": 4}}
            figure.add_trace({"type": "scatter", "name": name, **style}, row=1, col=list(TITLES).index(part) + 1)
        self._fill(figure, curves)
        return go.FigureWidget(figure)

    def _fill(self, figure: Any, curves: list[tuple[str, Curve]]) -> None:
        state = self.monitor.state
        with figure.batch_update():
            for trace, (part, (_, steps, values)) in zip(figure.data, curves, strict=True):
                trace.visible = part in state["parts"]
                if trace.x is None or len(trace.x) != len(steps):
                    trace.x, trace.y = steps, values
            figure.layout.yaxis.type = "log" if state["logarithmic"] else "linear"
