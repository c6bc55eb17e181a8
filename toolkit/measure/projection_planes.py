"""Planes to look at features in (principal components, discriminants, the head's weights), from streamed moments."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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
            centred = self._centred(part)
            sums = _gram(centred) if weight is None else (centred * weight[:, None]).T @ centred
            if not torch.isfinite(sums).all():
                raise DataError("The rows hold NaN or infinite values.", fix="Drop them before the fit.")
            self._gram += sums[:-1, :-1].double()
            self._sum += sums[:-1, -1].double()
            self.weight += float(len(part) if weight is None else weight.double().sum())
            self.count += len(part)
        return self

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


@dataclasses.dataclass(frozen=True, eq=False)
class Plane:
    """An affine plane in feature space."""

    mean: Tensor  # origin (C,) float64
    axes: Tensor  # orthonormal rows (k, C) float64
    explained: Tensor  # share of the fitted rows' total variance along each axis (k,)

    def coordinates(self, rows: Tensor) -> Tensor:
        """Coordinates (N, k) float32 of rows (N, C)."""
        axes = self.axes.to(rows.dtype)
        return (rows @ axes.T - self.mean.to(rows.dtype) @ axes.T).float()

    def explained_of(self, rows: StreamingMoments) -> Tensor:
        """Share of the total variance of other rows along each axis (k,), from their moments."""
        return _share(rows.covariance(), self.axes)


def principal_plane(source: StreamingMoments, components: int = 2) -> Plane:
    """The leading principal components; the entry of largest magnitude of each is positive."""
    covariance = source.covariance()
    _enough_channels(covariance, components)
    _, vectors = torch.linalg.eigh(covariance)
    axes = with_fixed_signs(vectors.flip(1)[:, :components].T)
    return Plane(source.mean, axes, _share(covariance, axes))


def discriminant_plane(
    per_class: Sequence[StreamingMoments], pooled: StreamingMoments, components: int = 2, ridge: float = 1e-6
) -> Plane:
    """The plane of Fisher's discriminants (between-class against within-class scatter, classes weighted equally).

    Two classes have one discriminant; the plane is filled up with the leading principal components of what is left.
    The `ridge` on the within-class scatter, relative to its mean diagonal, keeps dead channels from doing harm.
    """
    if len(per_class) < 2:
        raise ResultError("Discriminants need rows of at least two classes.", fix="Extract with pool='per-class'.")
    means = torch.stack([part.mean for part in per_class])
    within = torch.stack([part.covariance(unbiased=False) for part in per_class]).mean(0)
    centred = means - means.mean(0)
    within = within + torch.eye(len(within), dtype=within.dtype) * ridge * within.diagonal().mean().clamp_min(1e-30)
    root = torch.linalg.cholesky(within)
    whitened = torch.linalg.solve_triangular(root, centred.T, upper=False)
    vectors, _, _ = torch.linalg.svd(whitened, full_matrices=False)
    number = min(components, len(per_class) - 1)
    directions = torch.linalg.solve_triangular(root.T, vectors[:, :number], upper=True)
    return _completed(directions.T, pooled.mean, pooled.covariance(), components)


def head_plane(head_weights: Tensor, source: StreamingMoments, components: int = 2) -> Plane:
    """The plane in which the head tells the classes apart: leading directions of its centred weights (L, C).

    Adding one vector to the weights of every class changes no softmax, hence the centring.
    """
    weights = head_weights.double().flatten(1)
    weights = weights - weights.mean(0)
    _, values, directions = torch.linalg.svd(weights, full_matrices=False)
    number = min(components, int((values > values[0] * 1e-9).sum()))
    return _completed(directions[:number], source.mean, source.covariance(), components)


def with_fixed_signs(axes: Tensor) -> Tensor:
    """Rows with their entry of largest magnitude made positive."""
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    return axes * torch.where(largest < 0, -1.0, 1.0)


def rotation_onto(source: Tensor, target: Tensor) -> Tensor:
    """The orthogonal matrix R (k, k) that makes `source @ R` (centred) closest to `target` (centred)."""
    one, two = source.double() - source.double().mean(0), target.double() - target.double().mean(0)
    left, _, right = torch.linalg.svd(one.T @ two)
    return left @ right


def _completed(directions: Tensor, mean: Tensor, covariance: Tensor, components: int) -> Plane:
    _enough_channels(covariance, components)
    basis, _ = torch.linalg.qr(directions.T)
    if basis.shape[1] < components:
        outside = torch.eye(len(covariance), dtype=covariance.dtype) - basis @ basis.T
        _, vectors = torch.linalg.eigh(outside @ covariance @ outside)
        rest = outside @ vectors.flip(1)[:, : components - basis.shape[1]]
        basis, _ = torch.linalg.qr(torch.cat((basis, rest), 1))
    axes = with_fixed_signs(basis.T)
    return Plane(mean, axes, _share(covariance, axes))


def _share(covariance: Tensor, axes: Tensor) -> Tensor:
    total = covariance.diagonal().sum()
    if total <= 0:
        return torch.full((len(axes),), torch.nan, dtype=torch.float64)
    return ((axes @ covariance) * axes).sum(1) / total


def _enough_channels(covariance: Tensor, components: int) -> None:
    if not 1 <= components <= len(covariance):
        raise ResultError(f"{components} components do not fit into {len(covariance)} channels.")
