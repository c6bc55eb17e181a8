"""Training loops to be timed: ours and a plain PyTorch one, on tasks of random images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from toolkit.data.table import task_from_arrays
from toolkit.data.task import Task
from toolkit.training.checkpoint import read
from toolkit.training.config import TrainConfig
from toolkit.training.directory import RunDirectory
from toolkit.training.loop import Loop, initial_checkpoint
from toolkit.training.protocol import Objective, Regularizer
from toolkit.training.step import TrainingStep

CLASSES = {0: "background", 1: "a", 2: "b", 3: "c"}


class SameBatch:
    """A loader whose batches cost nothing."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self._batch = batch

    def batch(self, step: int) -> dict[str, Any]:
        return self._batch


def random_task(count: int, side: int) -> Task:
    drawn = np.random.default_rng(0)
    images = list(drawn.standard_normal((count, side, side)).astype(np.float32))
    labels = list(drawn.integers(0, len(CLASSES), (count, side, side)).astype(np.uint8))
    return task_from_arrays(images, labels, classes=CLASSES, splits=["train"] * count)


def started_loop(
    folder: Path,
    network: nn.Module,
    objective: Objective,
    loader: Any,
    config: TrainConfig,
    regularizers: Sequence[Regularizer] = (),
) -> Loop:
    """A loop before its first step, its run directory in `folder`."""
    step = TrainingStep(network, objective, regularizers)
    directory = RunDirectory(folder)
    directory.create({"objects": {}, "config": {}}, initial_checkpoint(step, config, "benchmark"))
    return Loop(directory, step, loader, config, read(directory.checkpoints, 0), progress=False)
