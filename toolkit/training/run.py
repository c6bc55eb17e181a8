"""`Run`: a training run on disk with its network in memory."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from toolkit.arguments import checked_methods
from toolkit.inference.memory import remember
from toolkit.measure.segmentation import METRICS
from toolkit.training import background, scoring
from toolkit.training import checkpoint as checkpoints
from toolkit.training.config import TrainConfig
from toolkit.training.directory import RunDirectory
from toolkit.training.history import read_history
from toolkit.training.objective import Objective

if TYPE_CHECKING:
    import pandas as pd

    from toolkit.data.case import Case
    from toolkit.training.regularizer import Regularizer


@checked_methods
@dataclasses.dataclass(eq=False, repr=False)
class Run:
    """What `train` and `resume` return.

    Attributes:
        path: the run's directory.
        model: the network; after training it holds the selected weights.
        task: what it was trained on.
        config: settings.
        objective: supervised part.
        regularizers: added losses.
        site: the site or sites it was trained on; None = all.
    """

    path: Path
    model: nn.Module
    task: Any
    config: TrainConfig
    _: dataclasses.KW_ONLY
    objective: Objective
    regularizers: tuple[Regularizer, ...] = ()
    site: Any = None
    _process: subprocess.Popen[bytes] | None = dataclasses.field(default=None, repr=False)

    def __repr__(self) -> str:
        names = " + ".join(regularizer.name for regularizer in self.regularizers) or "plain"
        task = getattr(self.task, "name", type(self.task).__name__)
        return f"Run({str(self.path)!r}: {names} on {task}, {self.state}, step {self.step} of {self.config.steps})"

    def __post_init__(self) -> None:
        own = type(self.objective).logits is not Objective.logits
        remember(self.model, **run_with(self.task, self.config), select=self.objective.logits if own else None)

    @property
    def directory(self) -> RunDirectory:
        """The run's files."""
        return RunDirectory(self.path)

    @property
    def history(self) -> pd.DataFrame:
        """Every logged step and validation so far: `step`, `event`, each loss term by name, weights, gradient ratios."""
        return read_history(self.directory.history)

    @property
    def state(self) -> str:
        """`ready`, `running`, `finished`, `interrupted` or `failed`."""
        return self.directory.state().get("state", "ready")

    @property
    def finished(self) -> bool:
        """Whether the last step was reached."""
        return self.state == "finished"

    @property
    def step(self) -> int:
        """Step of the newest checkpoint."""
        return max(checkpoints.steps_on_disk(self.directory.checkpoints), default=0)

    @property
    def selected_step(self) -> int | None:
        """Step whose weights were selected at the end; None before that."""
        return self.directory.state().get("selected_step")

    @property
    def running(self) -> bool:
        """Whether another process trains this run now."""
        return background.is_running(self.path, self._process)

    def wait(self, timeout: float | None = None, *, progress: bool = False) -> Run:
        """Wait for a training in the background, then put the selected weights into `model`.

        Args:
            timeout: seconds; None = as long as it takes.
            progress: show a bar meanwhile.

        Raises:
            TimeoutError: it is not done in time (and goes on).
            ToolkitError: it failed.
        """
        background.wait(self.path, self._process, self.config.steps, timeout, progress)
        self.reload()
        return self

    def stop(self, timeout: float | None = 60.0) -> Run:
        """End a training in the background after the step at hand; `resume` continues it.

        Raises:
            TimeoutError: it did not end in time.
            ToolkitError: it failed.
        """
        background.stop(self.path, self._process)
        return self.wait(timeout)

    def reload(self) -> None:
        """Put the selected weights on disk (the newest, if the run is not finished) into `model`.

        Raises:
            CheckpointError: the checkpoint is damaged.
        """
        step = self.selected_step if self.finished else self.step
        checkpoints.read(self.directory.checkpoints, self.step if step is None else step).put_into(self.model)

    def evaluate(
        self,
        split: str = "test",
        sites: str | Sequence[str] | None = None,
        *,
        metrics: Sequence[str] = METRICS,
        progress: bool = False,
    ) -> pd.DataFrame:
        """Score the network on a split; the table is kept in the run's directory and read from there next time.

        Args:
            split: `train`, `val` or `test`.
            sites: one, several, or None = all.
            metrics: any of dice, iou, hd95, assd.
            progress: show a bar over volumes.

        Returns:
            case (the volume), site, class, metric, value, status, subject, group, unit, diagonal, rule.

        Raises:
            ConfigError: no such cases.
            DataError: a case without label.
        """
        return scoring.evaluate_run(self, split, sites, metrics, progress)

    def predict(
        self, cases: Iterable[Case], out: str | os.PathLike[str] | None = None, *, progress: bool = False
    ) -> dict[str, Any]:
        """Segment cases; the slices of a volume are put together.

        Args:
            cases: whole volumes of a task.
            out: folder for one NIfTI file a volume (of pictures: PNG), in the geometry of its image; on a task with
                regions for one folder a volume with a 0/1 file a region, since regions overlap. None = keep them in memory.
            progress: show a bar over volumes.

        Returns:
            Path of the file or folder, or without `out` the label map (*S) uint8 or the masks (regions, *S), by name of the
            volume.

        Raises:
            DataError: slices are missing, so that the volume's geometry cannot be kept.
        """
        return scoring.predict_run(self, cases, out, progress)


def run_with(task: Any, config: TrainConfig) -> dict[str, Any]:
    """What a network remembers of its training: the fields of `toolkit.inference.memory.Defaults` that a task decides."""
    regions = getattr(task, "regions", None)
    return {
        "patch_size": config.patch_size or getattr(task, "patch_size", None),
        "classes": len(getattr(task, "classes", None) or ()) or None,
        "regions": regions or None,
        "activation": "sigmoid" if regions else None,
    }
