"""Tasks of noisy discs that train in a second."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.data.table import task_from_arrays
from toolkit.data.task import Task


def discs(channels: int, dims: int = 2, normalisation: str = "zscore-clip", side: int = 32) -> Task:
    drawn = np.random.default_rng(3)
    grid = np.stack(np.meshgrid(*[np.arange(side)] * dims, indexing="ij"))
    images, labels = [], []
    for _ in range(10):
        centre, radius = drawn.uniform(side / 3, 2 * side / 3, dims), drawn.uniform(side / 6, side / 4)
        inside = ((grid - centre.reshape(-1, *[1] * dims)) ** 2).sum(0) < radius**2
        image = inside + 0.3 * drawn.standard_normal((channels, *inside.shape))
        images.append((image if channels > 1 else image[0]).astype(np.float32))
        labels.append(inside.astype(np.uint8))
    return task_from_arrays(
        images, labels, classes={0: "background", 1: "disc"}, normalisation=normalisation, dims=dims
    )


@pytest.fixture(scope="session")
def grey() -> Task:
    return discs(1)


@pytest.fixture(scope="session")
def unit() -> Task:
    """Images in [0, 1]."""
    return discs(1, normalisation="range")


@pytest.fixture(scope="session")
def colour() -> Task:
    return discs(3)
