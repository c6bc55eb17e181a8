"""Distances between two clouds of features, each from its definition: the building blocks of `drift`."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.errors import ResultError
from toolkit.measure import gaussians
from toolkit.measure.cka import centred, median, squared_distances


def frechet(first: Tensor, second: Tensor) -> Tensor:
    """Squared Frechet distance between Gaussians with the means and (unbiased) covariances of two clouds."""
    return gaussians.frechet_distance(*gaussian(first), *gaussian(second))


def procrustes(first: Tensor, second: Tensor) -> Tensor:
    """Procrustes disparity of paired rows (N, C), (N, D): what no rotation, scale or shift removes, in [0, 1].

    Raises:
        ResultError: row counts differ.
    """
    if len(first) != len(second):
        raise ResultError(f"Procrustes compares the same rows; there are {len(first)} and {len(second)}.")
    x, y = centred(first), centred(second)
    return gaussians.procrustes_disparity(x.T @ x, y.T @ y, x.T @ y)


def median_squared_distance(rows: Tensor) -> float:
    """Median of the squared distances of all pairs of rows."""
    distances = squared_distances(rows, rows)
    upper = torch.triu_indices(len(rows), len(rows), 1)
    return float(median(distances[upper[0], upper[1]]))


def gaussian(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (C,) and unbiased covariance (C, C) of rows (N, C), in float64."""
    if len(rows) < 2:
        raise ResultError(f"{len(rows)} rows are too few for a covariance.")
    x = centred(rows)
    return rows.double().mean(0), x.T @ x / (len(x) - 1)
