"""How far apart two sets of features are: alignments of the same rows (CKA, Procrustes), Fréchet distance, angles of subspaces.

Where means and covariances are enough, batch axes may lead (bootstrap replicates).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from toolkit.errors import ResultError


def linear_cka(first: Tensor, second: Tensor, debiased: bool = False) -> Tensor:
    """Linear CKA of paired rows (N, C) and (N, D): ||Xc'Yc||^2 / (||Xc'Xc|| ||Yc'Yc||) (Kornblith et al. 2019).

    `debiased` uses the unbiased estimate of each HSIC; it needs 4 rows and may be negative. The biased form tends to
    1 when there are fewer rows than channels. Computed from C x D matrices, never N x N.
    """
    if len(first) != len(second):
        fix = "Extract both with the same data, pool, samples and seed."
        raise ResultError(f"CKA compares features of the same rows; there are {len(first)} and {len(second)}.", fix=fix)
    if len(first) < (minimum := 4 if debiased else 2):
        raise ResultError(f"{len(first)} rows are too few: this form of CKA needs at least {minimum}.")
    x, y = centred(first), centred(second)
    cross, own, other = (_linear_hsic(a, b, debiased) for a, b in ((x, y), (x, x), (y, y)))
    return cross / (own * other).sqrt()


def rbf_kernel(rows: Tensor, fraction: float = 0.5) -> Tensor:
    """Gaussian kernel (N, N) exp(-d^2 / (2 fraction^2 m)), m = median of all N^2 squared distances."""
    distances = squared_distances(rows.double(), rows.double())
    return torch.exp(-distances / (2 * fraction**2 * median(distances.flatten()).clamp_min(1e-300)))


def unbiased_hsic(kernels: Tensor) -> Tensor:
    """Unbiased HSIC of every pair of kernels (L, N, N) -> (L, L) (Song et al. 2012), N >= 4.

    All pairs come from one product of the flattened kernels, so that L layers cost one pass, not L^2.
    """
    number = kernels.shape[-1]
    if number < 4:
        raise ResultError(f"{number} rows are too few for the unbiased HSIC: it needs at least 4.")
    hollow = kernels.clone()
    hollow.diagonal(dim1=1, dim2=2).zero_()
    flat, rows = hollow.flatten(1), hollow.sum(2)
    total = rows.sum(1)
    value = flat @ flat.T + torch.outer(total, total) / ((number - 1) * (number - 2))
    return (value - 2 / (number - 2) * rows @ rows.T) / (number * (number - 3))


def squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Squared Euclidean distances (N, M) of rows, by one product, never negative."""
    return ((first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * first @ second.T).clamp_min(0)


def centred(rows: Tensor) -> Tensor:
    """Rows in float64 minus their mean."""
    rows = rows.double()
    return rows - rows.mean(0)


def _linear_hsic(x: Tensor, y: Tensor, debiased: bool) -> Tensor:
    """Scaled HSIC of centred rows; the scale is common to all pairs and cancels in the ratio."""
    value = ((x.T @ y) ** 2).sum()
    if not debiased:
        return value
    number = len(x)
    squares_x, squares_y = (x**2).sum(1), (y**2).sum(1)
    value = value - number / (number - 2) * squares_x @ squares_y
    return value + squares_x.sum() * squares_y.sum() / ((number - 1) * (number - 2))


def median(values: Tensor) -> Tensor:
    """The median as usual: the mean of the two middle values of an even number."""
    middle = sorted({(values.numel() - 1) // 2, values.numel() // 2})
    parted = np.partition(values.cpu().numpy(), middle)  # both at once, in less time than one `kthvalue`
    return torch.from_numpy(parted[middle]).mean().to(values.device)


def procrustes(first: Tensor, second: Tensor) -> Tensor:
    """Procrustes disparity of paired rows (N, C), (N, D): what no rotation, scale or shift removes, in [0, 1]."""
    if len(first) != len(second):
        raise ResultError(f"Procrustes compares the same rows; there are {len(first)} and {len(second)}.")
    x, y = centred(first), centred(second)
    return procrustes_disparity(x.T @ x, y.T @ y, x.T @ y)


def median_squared_distance(rows: Tensor) -> float:
    """Median of the squared distances of all pairs of rows."""
    distances = squared_distances(rows, rows)
    upper = torch.triu_indices(len(rows), len(rows), 1)
    return float(median(distances[upper[0], upper[1]]))


def frechet_from_root(mean_a: Tensor, root_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    """Squared Frechet distance |m1-m2|^2 + tr(S1 + S2 - 2 (S1^{1/2} S2 S1^{1/2})^{1/2}); root_a is S1^{1/2}."""
    inner = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp_min(0).sqrt().sum(-1)
    traces = (root_a**2).sum((-2, -1)) + cov_b.diagonal(dim1=-2, dim2=-1).sum(-1)
    return (((mean_a - mean_b) ** 2).sum(-1) + traces - 2 * inner).clamp_min(0)


def distance_to_standard_normal(mean: Tensor, eigenvalues: Tensor) -> Tensor:
    """Squared Frechet distance to N(0, I), from the mean (..., C) and the covariance's eigenvalues (..., C)."""
    return (mean**2).sum(-1) + ((eigenvalues.clamp_min(0).sqrt() - 1) ** 2).sum(-1)


def root_from_eigen(values: Tensor, vectors: Tensor) -> Tensor:
    """The symmetric square root from eigenvalues (..., C) and eigenvectors in columns (..., C, C)."""
    return (vectors * values.clamp_min(0).sqrt()[..., None, :]) @ vectors.mT


def alignment(own_a: Tensor, own_b: Tensor, cross: Tensor) -> Tensor:
    """Linear CKA (biased) from covariances (..., C, C), (..., D, D) and the cross-covariance (..., C, D)."""
    return (cross**2).sum((-2, -1)) / ((own_a**2).sum((-2, -1)) * (own_b**2).sum((-2, -1))).sqrt()


def procrustes_disparity(own_a: Tensor, own_b: Tensor, cross: Tensor) -> Tensor:
    """1 - (sum of singular values of Xc'Yc)^2 after scaling both to unit Frobenius norm, from (co)variances."""
    traces = own_a.diagonal(dim1=-2, dim2=-1).sum(-1) * own_b.diagonal(dim1=-2, dim2=-1).sum(-1)
    return (1 - torch.linalg.svdvals(cross).sum(-1) ** 2 / traces).clamp(0, 1)


def principal_angles(axes_a: Tensor, axes_b: Tensor) -> Tensor:
    """Principal angles (..., k), radians, ascending, between the spans of orthonormal columns (..., C, k)."""
    return torch.linalg.svdvals(axes_a.mT @ axes_b).clamp(0, 1).arccos()
