"""A training that is awkward to resume, run in a process of its own: `python resume_program.py FOLDER [--resume]`.

The network has dropout and batch statistics, and the regularizer keeps state and draws from the global generators of
Python, NumPy and torch.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.data.table import task_from_arrays
from toolkit.data.task import Task
from toolkit.training.config import TrainConfig
from toolkit.training.protocol import Regularizer, StepContext
from toolkit.training.run import Run
from toolkit.training.train import resume, train

STEPS = 24
CONFIG = TrainConfig(
    steps=STEPS, batch_size=4, checkpoint_every=5, validate_every=7, log_every=1, seed=3, clip_norm=1.0, workers=0
)


def disc_task(count: int = 10, side: int = 32) -> Task:
    """Noisy discs, the same on every call."""
    drawn = np.random.default_rng(11)
    images, labels = [], []
    for _ in range(count):
        rows, columns = np.mgrid[:side, :side]
        centre, radius = drawn.uniform(10, side - 10, 2), drawn.uniform(4, 9)
        label = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
        images.append((label + 0.4 * drawn.standard_normal(label.shape)).astype(np.float32))
        labels.append(label.astype(np.uint8))
    return task_from_arrays(images, labels, classes={0: "background", 1: "disc"})


def awkward_network() -> nn.Module:
    """Dropout, running statistics and a weight that is used twice."""
    torch.manual_seed(5)
    shared = nn.Conv2d(8, 8, 3, padding=1)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        shared,
        nn.Dropout2d(0.3),
        nn.ReLU(),
        shared,
        nn.ReLU(),
        nn.Conv2d(8, 2, 1),
    )


class AwkwardRegularizer(Regularizer):
    """Pulls the mean feature towards a running average, weighted by numbers from the global generators."""

    name = "awkward"

    def __init__(self) -> None:
        self.average = torch.zeros(8)

    @property
    def taps(self) -> tuple[str, ...]:
        return ("7",)

    def weights(self, step: int) -> dict[str, float]:
        return {"pull": 0.05}

    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        mean = context.features["7"].mean((0, 2, 3))
        self.average = 0.9 * self.average + 0.1 * mean.detach()
        drawn = random.random() + float(np.random.rand()) + float(torch.rand(()))  # noqa: NPY002
        return {"pull": drawn * (mean - self.average).square().sum()}

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.average = state["average"].clone() if state else torch.zeros(8)


def begin(folder: Path, config: TrainConfig = CONFIG) -> Run:
    """Train from the start."""
    return train(
        awkward_network(), disc_task(), regularizer=AwkwardRegularizer(), config=config, out=folder, progress=False
    )


def train_to_end(folder: Path, **options: Any) -> Run:
    """Resume, all foreign objects passed again."""
    return resume(
        folder, model=awkward_network(), task=disc_task(), regularizer=AwkwardRegularizer(), progress=False, **options
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "--resume" in sys.argv:
        train_to_end(Path(sys.argv[1]))
    else:  # killed with threads at work
        begin(Path(sys.argv[1]), CONFIG.replace(workers=2))
