"""`Run`: a training run on disk with its network in memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from toolkit.training import checkpoint as checkpoints
from toolkit.training.config import TrainConfig
from toolkit.training.directory import RunDirectory
from toolkit.training.history import read_history

if TYPE_CHECKING:
    import pandas as pd

    from toolkit.objectives.base import Objective
    from toolkit.regularizers.base import Regularizer


@dataclasses.dataclass(eq=False)
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
    objective: Objective
    regularizers: tuple[Regularizer, ...] = ()
    site: Any = None
    _process: Any = dataclasses.field(default=None, repr=False)

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
