"""Curved pictures of features: UMAP fitted once with later rows placed out of sample, and t-SNE of everything."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import torch
from torch import Tensor

from toolkit.arguments import checked_methods
from toolkit.data.randomness import keyed_random
from toolkit.errors import ConfigError, ResultError
from toolkit.process_state import thread_count

_CHECKED = 1500  # rows on which trustworthiness and stability are measured


@checked_methods
@dataclasses.dataclass(frozen=True)
class UmapOptions:
    """Settings of UMAP; all of them are written into the result.

    Attributes:
        neighbours: size of the neighbourhood.
        min_distance: smallest distance between points in the picture.
        epochs: of the layout; None = umap-learn's own choice.
        fit_rows: rows of the fit (drawn class-balanced); all others are placed out of sample.
        stability_seeds: further fits with other seeds, whose neighbourhoods are compared with the picture's.
        seed: of the draw and the layout.
    """

    neighbours: int = 15
    min_distance: float = 0.1
    epochs: int | None = None
    fit_rows: int = 5000
    stability_seeds: int = 0
    seed: int = 0


@checked_methods
@dataclasses.dataclass(frozen=True)
class TsneOptions:
    """Settings of t-SNE.

    Attributes:
        perplexity: effective number of neighbours.
        fit_rows: rows shown over all stages (drawn class-balanced); t-SNE cannot place others.
        seed: of the draw and the layout.
    """

    perplexity: float = 30.0
    fit_rows: int = 4000
    seed: int = 0


def umap_pictures(
    rows: list[Tensor], labels: list[Tensor], fitted_on: list[int], options: UmapOptions
) -> tuple[list[Tensor], dict[str, Any]]:
    """Coordinates per stage of rows (N, C), fitted on some stages; and the settings with what was measured."""
    pool = torch.cat([rows[s] for s in fitted_on])
    chosen = balanced_sample(torch.cat([labels[s] for s in fitted_on]), options.fit_rows, options.seed)
    base = pool.index_select(0, chosen)
    if len(base) <= options.neighbours:
        raise ResultError(f"{len(base)} rows are too few for {options.neighbours} neighbours.")
    neighbours = nearest(base, base, options.neighbours)
    embedding = fit_umap(base, neighbours, options, options.seed)
    pictures = [place(part, base, embedding, options.neighbours) for part in rows]
    starts = torch.tensor([0, *(len(rows[s]) for s in fitted_on)]).cumsum(0)
    for start, stage in zip(starts, fitted_on, strict=False):
        inside = (chosen >= start) & (chosen < start + len(rows[stage]))
        pictures[stage][chosen[inside] - start] = embedding[inside]  # rows of the fit stay where the fit put them
    some = torch.arange(0, len(base), max(1, len(base) // _CHECKED))
    trust = trustworthiness(base[some], embedding[some], options.neighbours)
    measured = {"rows_in_fit": len(base), "trustworthiness": trust}
    if options.stability_seeds:
        others = [fit_umap(base, neighbours, options, options.seed + 1 + k) for k in range(options.stability_seeds)]
        overlaps = [neighbour_overlap(embedding[some], other[some], options.neighbours) for other in others]
        measured["stability"] = sum(overlaps) / len(overlaps)
    return pictures, {**dataclasses.asdict(options), **measured}


def fit_umap(rows: Tensor, neighbours: tuple[Tensor, Tensor], options: UmapOptions, seed: int) -> Tensor:
    """umap-learn's layout (N, 2) of rows whose exact neighbours are known, so that none are searched for."""
    index, distances = (part.numpy() for part in neighbours)
    # numba sets the threads of the whole process, and last bits depend on them
    with thread_count(None), warnings.catch_warnings():
        # that tensorflow is not there, that a seed means one thread, that transform will not work
        warnings.simplefilter("ignore")
        import umap

        model = umap.UMAP(
            n_neighbors=options.neighbours,
            min_dist=options.min_distance,
            n_epochs=options.epochs,
            random_state=seed,
            n_jobs=1,
            precomputed_knn=(index.astype("int32"), distances.astype("float32")),
            force_approximation_algorithm=True,
        )
        return torch.from_numpy(model.fit_transform(rows.float().numpy()).astype("float32"))


def tsne_pictures(rows: list[Tensor], options: TsneOptions) -> tuple[list[Tensor], dict[str, Any]]:
    """t-SNE of the union of all stages' rows; coordinates per stage."""
    from sklearn.manifold import TSNE

    union = torch.cat(rows)
    if not bool((union != union[:1]).any()):
        fix = "Look at toolkit.collapse for this layer, or take another one."
        raise ResultError(f"All {len(union)} rows are the same: there is nothing to map.", fix=fix)
    if not 1 <= options.perplexity < len(union):
        raise ConfigError(f"A perplexity of {options.perplexity:g} needs more than {len(union)} rows.")
    model = TSNE(perplexity=options.perplexity, init="pca", random_state=options.seed)
    points = torch.from_numpy(model.fit_transform(union.float().numpy()).astype("float32"))
    some = torch.arange(0, len(union), max(1, len(union) // _CHECKED))
    trust = trustworthiness(union[some], points[some])
    measured = {"trustworthiness": trust, "divergence": float(model.kl_divergence_)}
    return list(points.split([len(part) for part in rows])), {**dataclasses.asdict(options), **measured}


def balanced_sample(labels: Tensor, number: int, seed: int) -> Tensor:
    """Indices of at most `number` rows, as evenly over the classes as they allow, ascending."""
    if len(labels) <= number:
        return torch.arange(len(labels))
    order = torch.from_numpy(keyed_random("balanced", seed, len(labels)).permutation(len(labels)))
    rank = torch.empty_like(order)
    for label in torch.unique(labels):
        members = order[labels[order] == label]
        rank[members] = torch.arange(len(members))
    return torch.argsort(rank, stable=True)[:number].sort().values


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
