"""Planes to look at features in: principal components, Fisher discriminants, the segmentation head's weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from toolkit.errors import ResultError
from toolkit.measure.moments import StreamingMoments


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
