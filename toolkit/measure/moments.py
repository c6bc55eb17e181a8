"""Mean and covariance of any number of rows, streamed in chunks with memory O(C^2)."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.errors import DataError, ResultError

CHUNK = 8192


class StreamingMoments:
    """Weighted mean and covariance of rows (N, C) that arrive in chunks.

    A chunk is shifted by the mean of the first one and multiplied in float32 (float64 stays float64); the sums are
    kept in float64. The shift removes the cancellation of E[xx'] - mm' for features far from zero. A column of ones
    beside the rows gives their sum in the same product.
    """

    def __init__(self, channels: int) -> None:
        self.weight = 0.0
        self.count = 0
        self._shift: Tensor | None = None
        self._place: Tensor | None = None
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._gram = torch.zeros(channels, channels, dtype=torch.float64)

    def update(self, rows: Tensor, weights: Tensor | None = None) -> StreamingMoments:
        """Add rows (N, C), each with a weight (N,) (1 if not given)."""
        if rows.ndim != 2 or rows.shape[1] != len(self._sum):
            raise DataError(f"Expected rows with {len(self._sum)} channels, got the shape {tuple(rows.shape)}.")
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK].detach()
            part = part if part.dtype in (torch.float32, torch.float64) else part.float()
            weight = None if weights is None else weights[start : start + CHUNK].to(part.dtype)
            self._add(part, weight)
        return self

    def _add(self, part: Tensor, weight: Tensor | None) -> None:
        channels = len(self._sum)
        rows = self._centred(part)
        sums = _gram(rows) if weight is None else (rows * weight[:, None]).T @ rows
        if not torch.isfinite(sums).all():
            raise DataError("The rows hold NaN or infinite values.", fix="Drop them before the fit.")
        self._gram += sums[:channels, :channels].double()
        self._sum += sums[:channels, channels].double()
        self.weight += float(len(part) if weight is None else weight.double().sum())
        self.count += len(part)

    def _centred(self, part: Tensor) -> Tensor:
        """Rows minus the shift and a column of ones (n, C + 1), in one place of memory that every chunk uses again."""
        channels = part.shape[1]
        if self._shift is None:
            self._shift = part.mean(0)
        place = self._place
        if place is None or place.dtype != part.dtype or place.device != part.device:
            place = self._place = part.new_ones(CHUNK, channels + 1)
        torch.sub(part, self._shift.to(part.dtype), out=place[: len(part), :channels])
        return place[: len(part)]

    @property
    def mean(self) -> Tensor:
        """(C,) float64."""
        self._require_rows(1)
        assert self._shift is not None
        return self._shift.double() + self._sum / self.weight

    def covariance(self, unbiased: bool = True) -> Tensor:
        """(C, C) float64, divided by N - 1 (or by N)."""
        self._require_rows(2)
        scatter = self._gram - torch.outer(self._sum, self._sum) / self.weight
        correction = (self.count - 1) / self.count if unbiased else 1.0
        return scatter / (self.weight * correction)

    def _require_rows(self, number: int) -> None:
        if self.count < number or self.weight <= 0:
            fix = "Extract more images, or pool='voxels' with more samples."
            raise ResultError(f"{self.count} rows are too few: at least {number} are needed.", fix=fix)


def _gram(rows: Tensor) -> Tensor:
    """Product of the transposed rows with the rows; numpy (on the CPU) sees one matrix twice and halves the work."""
    if rows.device.type != "cpu":
        return rows.T @ rows
    array = rows.numpy()
    return torch.from_numpy(array.T @ array)


def balanced_weights(labels: Tensor) -> Tensor:
    """Row weights (N,) that give every class the same total weight and sum to N."""
    _, inverse, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    return (len(labels) / (len(counts) * counts.double()))[inverse]
