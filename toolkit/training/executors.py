"""One training of a study, as any executor carries it to another process."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from toolkit.features.process_state import thread_count
from toolkit.training.config import TrainConfig
from toolkit.training.objective import Objective
from toolkit.training.regularizer import Regularizer
from toolkit.training.train import train_or_resume

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class Training:
    """One training of a study; plain objects, so that any executor can carry it to another process."""

    method: str
    seed: int
    fold: int | None
    model: nn.Module
    task: Any
    objective: Objective
    regularizers: list[Regularizer]
    config: TrainConfig
    folder: Path
    aliases: dict[str, str]
    site: Any
    split: str
    metric: str
    progress: bool

    def run(self) -> pd.DataFrame:
        """Train, or continue, and score; what is held here stays as it is."""
        model, objective, regularizers = copy.deepcopy((self.model, self.objective, self.regularizers))
        with thread_count(self.config.threads):
            parts = (model, self.task, objective, regularizers, self.config)
            options: dict[str, Any] = {"aliases": self.aliases, "site": self.site, "progress": self.progress}
            run = train_or_resume(self.folder, *parts, **options)
            table = run.evaluate(self.split, self.site, metrics=(self.metric,))
        place = {} if self.fold is None else {"fold": self.fold}
        return table.assign(method=self.method, seed=self.seed, **place)
