"""Exact nearest neighbours, and what UMAP makes of them: fuzzy weights, out-of-sample places, agreement of pictures."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from toolkit.errors import ResultError

_CHUNK = 4_000_000  # distances, or their differences, held at once


def nearest(queries: Tensor, base: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Indices (N, k) and Euclidean distances (N, k), ascending, of the nearest rows of `base` (M, C).

    A product finds a few candidates more than asked for, whose distances are then taken from the differences: the
    product alone loses half the digits where rows are close.
    """
    if len(base) < number:
        raise ResultError(f"{len(base)} rows do not have {number} neighbours.", fix="Ask for fewer neighbours.")
    candidates = min(len(base), number + 8)
    square = (base**2).sum(1)
    index = torch.empty(len(queries), number, dtype=torch.long, device=base.device)
    lengths = torch.empty(len(queries), number, dtype=base.dtype, device=base.device)
    size = max(1, _CHUNK // max(len(base), candidates * base.shape[1]))
    for part, found, length in zip(queries.split(size), index.split(size), lengths.split(size), strict=True):
        rough = torch.topk(square - 2 * part @ base.T, candidates, dim=1, largest=False).indices
        gaps = base.index_select(0, rough.flatten()).view(len(part), candidates, -1).sub_(part[:, None])
        exact = torch.linalg.vector_norm(gaps, dim=2)
        order = torch.argsort(exact, dim=1, stable=True)[:, :number]
        found.copy_(rough.gather(1, order))
        length.copy_(exact.gather(1, order))
    return index, lengths


def fuzzy_weights(distances: Tensor, iterations: int = 64) -> Tensor:
    """UMAP's membership of each neighbour, exp(-(d - rho) / sigma), from ascending distances (N, k).

    rho is the distance of the nearest neighbour that is not at distance 0; sigma makes the memberships of the k
    neighbours sum to log2(k) (McInnes, Healy and Melville 2018, section 3.1).
    """
    distances = distances.double()
    target = math.log2(distances.shape[1])
    positive = torch.where(distances > 0, distances, torch.inf).amin(1, keepdim=True)
    rho = torch.where(torch.isfinite(positive), positive, 0.0)
    beyond = (distances - rho).clamp_min(0)
    low, high = torch.zeros_like(rho), torch.full_like(rho, torch.inf)
    sigma = torch.ones_like(rho)
    for _ in range(iterations):
        too_much = torch.exp(-beyond / sigma).sum(1, keepdim=True) > target
        high = torch.where(too_much, sigma, high)
        low = torch.where(too_much, low, sigma)
        sigma = torch.where(torch.isfinite(high), (low + high) / 2, 2 * sigma)
    floor = 1e-3 * torch.where(rho > 0, distances.mean(1, keepdim=True), distances.mean()).clamp_min(1e-12)
    return torch.exp(-beyond / torch.maximum(sigma, floor))


def place(queries: Tensor, base: Tensor, embedding: Tensor, number: int) -> Tensor:
    """Coordinates (N, 2) of new rows (N, C): the mean of their neighbours' in the fit (M, C) by fuzzy weight."""
    index, distances = nearest(queries, base, number)
    weights = fuzzy_weights(distances)
    weights = (weights / weights.sum(1, keepdim=True)).to(embedding.dtype)
    return (embedding[index] * weights[:, :, None]).sum(1)


def neighbour_overlap(first: Tensor, second: Tensor, number: int = 15) -> float:
    """Share of each point's nearest neighbours that two pictures (N, 2) of the same points have in common."""
    number = min(number, len(first) - 1)
    sets = [nearest(points, points, number + 1)[0][:, 1:] for points in (first, second)]
    return float((sets[0][:, :, None] == sets[1][:, None, :]).any(2).double().mean())


def trustworthiness(rows: Tensor, points: Tensor, number: int = 15) -> float:
    """How far neighbours in the picture (N, 2) are neighbours among the rows (N, C), 1 = all (Venna and Kaski 2001)."""
    from sklearn import manifold

    number = min(number, (len(rows) - 1) // 2)
    return float(manifold.trustworthiness(rows.double().numpy(), points.double().numpy(), n_neighbors=number))
