"""Distances that need only means and covariances; every function takes leading batch axes (bootstrap replicates)."""

from __future__ import annotations

import torch
from torch import Tensor


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
