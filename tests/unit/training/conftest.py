"""A task of noisy discs, small enough to train on in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from toolkit.data.table import task_from_arrays
from toolkit.data.task import Task
from toolkit.models.unet import UNet, unet
from toolkit.training.config import TrainConfig
from toolkit.training.run import Run
from toolkit.training.train import train


def disc_arrays(count: int, side: int, dims: int = 2) -> tuple[list[np.ndarray], list[np.ndarray]]:
    drawn = np.random.default_rng(1)
    images, labels = [], []
    for _ in range(count):
        grid = np.stack(np.meshgrid(*[np.arange(side)] * dims, indexing="ij"))
        centre, radius = drawn.uniform(side / 3, 2 * side / 3, dims), drawn.uniform(side / 8, side / 4)
        inside = ((grid - centre.reshape(-1, *[1] * dims)) ** 2).sum(0) < radius**2
        images.append((inside + 0.3 * drawn.standard_normal(inside.shape)).astype(np.float32))
        labels.append(inside.astype(np.uint8))
    return images, labels


@pytest.fixture(scope="session")
def discs() -> Task:
    """2D, one site."""
    images, labels = disc_arrays(12, 32)
    return task_from_arrays(images, labels, classes={0: "background", 1: "disc"})


@pytest.fixture(scope="session")
def two_sites() -> Task:
    """2D, sites left and right."""
    images, labels = disc_arrays(24, 32)
    return task_from_arrays(images, labels, classes={0: "background", 1: "disc"}, sites=["left"] * 12 + ["right"] * 12)


@pytest.fixture(scope="session")
def balls() -> Task:
    """3D, one site, larger than the patch."""
    images, labels = disc_arrays(6, 24, dims=3)
    return task_from_arrays(images, labels, classes={0: "background", 1: "ball"}, spacing=(2.0, 1.0, 1.0))


@pytest.fixture
def network() -> UNet:
    """The same small weights in every test."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return unet(1, 2, channels=(4, 8, 8))


SHORT: dict[str, Any] = {"steps": 6, "batch_size": 4, "checkpoint_every": 3, "validate_every": 3, "log_every": 2}


@pytest.fixture
def short() -> TrainConfig:
    return TrainConfig(**SHORT)


@pytest.fixture
def trained(discs: Task, network: UNet, tmp_path: Path) -> Callable[..., Run]:
    """Trains on discs: `trained(name="a", steps=..., regularizer=...)`."""

    def start(name: str = "run", model: torch.nn.Module | None = None, task: Any = None, **options: Any) -> Run:
        keywords = {
            k: options.pop(k) for k in ("objective", "regularizer", "site", "aliases", "background") if k in options
        }
        config = TrainConfig(**{**SHORT, **options})
        return train(
            network if model is None else model,
            task or discs,
            config=config,
            out=tmp_path / name,
            progress=False,
            **keywords,
        )

    return start
