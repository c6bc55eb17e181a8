"""`training_monitor`: the curves of a run while it is trained in the background, with a button that stops it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import CheckpointError
from toolkit.show.colours import FAINT, TEXT, category
from toolkit.show.compose_training import curve_columns, training_curves
from toolkit.show.widgets.canvas import Canvas
from toolkit.show.widgets.curves import CurvesView
from toolkit.show.widgets.state import Control, Explorer
from toolkit.show.widgets.view import static_png
from toolkit.training import background
from toolkit.training.directory import RunDirectory
from toolkit.training.history import read_history
from toolkit.training.run import Run

if TYPE_CHECKING:
    import pandas as pd

_WIDTH, _LEFT = 760, 14


class TrainingMonitor(Explorer):
    """State of `training_monitor`; see there."""

    title = "Training"

    def __init__(self, path: Path, process: Any, interval: float) -> None:
        super().__init__()
        self.directory, self.process, self.interval = RunDirectory(path), process, interval
        if not self.directory.exists():
            raise CheckpointError(
                "There is no run here.", where=str(path), fix="Pass a run, or the folder it was written to."
            )
        self.steps = int(self.directory.record()["config"]["steps"])
        self.history: pd.DataFrame = read_history(self.directory.history)
        self._seen: tuple[Any, ...] = ()
        self._stopping = False
        self._closed = threading.Event()
        self._values = {"logarithmic": False, "parts": ("losses", "ratios", "scores")}

    def controls(self) -> list[Control]:
        parts = (("loss terms", "losses"), ("gradient ratios", "ratios"), ("validation scores", "scores"))
        return [Control("logarithmic", "losses on a log scale", "switch"), Control("parts", "show", "several", parts)]

    @property
    def running(self) -> bool:
        """Whether some process trains the run now."""
        return background.is_running(self.directory.path, self.process)

    @property
    def step(self) -> int:
        """The newest logged step."""
        return 0 if self.history.empty else int(self.history["step"].max())

    @property
    def condition(self) -> str:
        """`running`, `stopping`, `ready`, `finished`, `interrupted` or `failed`."""
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
        size = file.stat().st_size if file.is_file() else 0
        seen = (size, self.condition)
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

    def curves(self) -> dict[str, list[tuple[str, list[float], list[float]]]]:
        """Part ("losses", "ratios", "scores") -> (name, steps, values) of every curve in the history."""
        found: dict[str, list[tuple[str, list[float], list[float]]]] = {"losses": [], "ratios": [], "scores": []}
        if self.history.empty:
            return found
        for column in curve_columns([self.history]):
            rows = self.history[["step", column]].dropna()
            part = (
                "scores"
                if column.startswith("validation/")
                else "ratios"
                if column.endswith("gradient_ratio")
                else "losses"
            )
            name = column.removeprefix("validation/").removesuffix("/gradient_ratio")
            found[part].append((name, [float(x) for x in rows["step"]], [float(y) for y in rows[column]]))
        return found

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
            for part, found in self.curves().items()
            for name, _, values in found
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


def training_monitor(run: Run | str | os.PathLike[str], *, interval: float = 0.5) -> TrainingMonitor:
    """Watch a run: loss terms, gradient ratios and validation scores as they are written, with a stop button.

    Start the training with `toolkit.train(..., background=True)`: one that runs in the notebook's own process blocks every
    widget until it ends.

    Args:
        run: what `toolkit.train` returned, or the run's directory; it may be trained by any process.
        interval: seconds between two looks at the files.

    Returns:
        The monitor: `.condition`, `.step`, `.history`, `.stop()`, `.curves()`, `.refresh()`, `.close()`.

    Raises:
        CheckpointError: there is no run.
    """
    if isinstance(run, Run):
        return TrainingMonitor(Path(run.path), run._process, interval)
    return TrainingMonitor(Path(run), None, interval)
