"""Drift measures written down from their definitions on all rows: what the streamed and resampled ones must give."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.errors import ResultError
from toolkit.measure import distances as gaussians
from toolkit.measure.distances import centred, median_squared_distance, rbf_kernel, squared_distances, unbiased_hsic


def centroid_shift(first: Tensor, second: Tensor, scale: float | None = None) -> Tensor:
    """Distance of the means of rows (N, C) and (M, C), divided by scale * sqrt(C) if a scale is given."""
    shift = torch.linalg.vector_norm(second.double().mean(0) - first.double().mean(0))
    return shift if scale is None else shift / (scale * first.shape[1] ** 0.5)


def frechet_to_standard_normal(rows: Tensor) -> Tensor:
    """Squared Frechet distance of a cloud to N(0, I)."""
    mean, covariance = gaussian(rows)
    return gaussians.distance_to_standard_normal(mean, torch.linalg.eigvalsh(covariance))


def subspace_angles(first: Tensor, second: Tensor, components: int = 2) -> Tensor:
    """Principal angles (k,), radians, ascending, between the leading principal directions of two clouds.

    Their root sum of squares is the Grassmann geodesic, that of their sines the chordal distance.
    """
    axes = [torch.linalg.eigh(gaussian(rows)[1])[1][:, -components:] for rows in (first, second)]
    return gaussians.principal_angles(*axes)


def maximum_mean_discrepancy(
    first: Tensor, second: Tensor, bandwidth: float | None = None, biased: bool = False
) -> Tensor:
    """MMD^2 with the kernel exp(-d^2 / (2 s2)); s2 = median squared distance of the pooled rows if not given.

    Args:
        first: (N, C).
        second: (M, C).
        bandwidth: s2.
        biased: keep the pairs of a row with itself.
    """
    x, y = first.double(), second.double()
    s2 = bandwidth if bandwidth is not None else median_squared_distance(torch.cat((x, y)))
    own_x, own_y, cross = (torch.exp(-squared_distances(a, b) / (2 * s2)) for a, b in ((x, x), (y, y), (x, y)))
    if biased:
        return own_x.mean() + own_y.mean() - 2 * cross.mean()
    own = [(kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1)) for kernel in (own_x, own_y)]
    return own[0] + own[1] - 2 * cross.mean()


def sliced_wasserstein(first: Tensor, second: Tensor, directions: Tensor) -> Tensor:
    """Sliced 2-Wasserstein distance: root mean squared difference of the sorted projections.

    Args:
        first: (N, C).
        second: (N, C), as many rows.
        directions: unit columns (C, K).

    Raises:
        ResultError: row counts differ.
    """
    if len(first) != len(second):
        raise ResultError(f"Sorted projections need as many rows; there are {len(first)} and {len(second)}.")
    one, two = (torch.sort((rows.double() @ directions.double()).T, dim=1).values for rows in (first, second))
    return ((one - two) ** 2).mean().sqrt()


def gaussian(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (C,) and unbiased covariance (C, C) of rows (N, C), in float64."""
    if len(rows) < 2:
        raise ResultError(f"{len(rows)} rows are too few for a covariance.")
    x = centred(rows)
    return rows.double().mean(0), x.T @ x / (len(x) - 1)


def frechet(first: Tensor, second: Tensor) -> Tensor:
    """Squared Frechet distance between Gaussians with the means and (unbiased) covariances of two clouds."""
    mean, covariance = gaussian(first)
    root = gaussians.root_from_eigen(*torch.linalg.eigh(covariance))
    return gaussians.frechet_from_root(mean, root, *gaussian(second))


def rbf_cka(first: Tensor, second: Tensor, debiased: bool = False) -> Tensor:
    """CKA with the kernels of `toolkit.measure.distances.rbf_kernel`."""
    return kernel_cka(rbf_kernel(first), rbf_kernel(second), debiased)


def kernel_cka(first: Tensor, second: Tensor, debiased: bool = False) -> Tensor:
    """CKA of two kernel matrices (N, N)."""
    if debiased:
        table = unbiased_hsic(torch.stack((first, second)))
    else:
        turned = [k - k.mean(0)[None] - k.mean(1)[:, None] + k.mean() for k in (first, second)]
        flat = torch.stack([kernel.flatten() for kernel in turned])
        table = flat @ flat.T
    return table[0, 1] / (table[0, 0] * table[1, 1]).sqrt()
