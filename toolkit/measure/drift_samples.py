"""The drift measures that need rows (sliced Wasserstein, MMD), on a subsample, with cheap bootstrap replicates."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.data.randomness import keyed_random
from toolkit.measure.distances import median_squared_distance, squared_distances


def fixed_directions(channels: int, number: int, seed: int) -> Tensor:
    """Unit columns (C, K), the same for the same arguments."""
    drawn = keyed_random("directions", seed, channels, number).standard_normal((channels, number))
    return torch.nn.functional.normalize(torch.from_numpy(drawn), dim=0).float()


def subsample(total: int, number: int, *key: int | str) -> Tensor:
    """Indices of at most `number` of `total` rows, ascending."""
    if total <= number:
        return torch.arange(total)
    return torch.from_numpy(keyed_random("rows", *key).choice(total, number, replace=False)).sort().values


class SlicedSamples:
    """Sorted projections of one stage's rows (n, C) with the patient (n,) of each."""

    def __init__(self, rows: Tensor, clusters: Tensor, directions: Tensor) -> None:
        self.values, order = torch.sort((rows @ directions).T.contiguous(), dim=1)
        self.clusters = clusters[order]

    def distance(self, other: SlicedSamples, weights: Tensor) -> Tensor:
        """Sliced W2 for every weighting of the patients (B, K); exact where all weights are 1.

        The optimal potentials of the one-dimensional transports stay feasible when weights change, so the weighted
        mean of the potentials is a first-order (lower) value of each replicate: no replicate needs a sort.
        """
        x, y = self.values, other.values
        gap = (x - y).square()
        steps = (x[:, 1:] - x[:, :-1]) * (x[:, 1:] + x[:, :-1] - y[:, 1:] - y[:, :-1])
        u = torch.cat((torch.zeros_like(x[:, :1]), steps.cumsum(1)), 1).double()
        u -= u.mean(1, keepdim=True)
        v = gap.double() - u
        number = weights.shape[1]
        total = _per_cluster(self.clusters, number, u) + _per_cluster(other.clusters, number, v)
        count = torch.bincount(self.clusters[0], minlength=number).double()
        both = (count + torch.bincount(other.clusters[0], minlength=number).double()) / 2
        square = (weights @ total) / (weights @ both) / len(x)
        return square.clamp_min(0).sqrt()

    def between_halves(self, halves: Tensor, directions: int = 64) -> Tensor:
        """Sliced W2 between two halves of the patients, for every split (S, K) -> (S,)."""
        values, clusters = self.values[:directions], self.clusters[:directions]
        result = []
        for half in halves:
            member = half[clusters] > 0
            parts = [values[chosen].view(len(values), -1) for chosen in (member, ~member)]
            number = min(part.shape[1] for part in parts)
            level = (torch.arange(number) + 0.5) / max(1, number)  # as many quantiles as the smaller half has rows
            one, two = (part[:, (level * part.shape[1]).long()] for part in parts)
            result.append((one - two).double().square().mean().sqrt())
        return torch.stack(result)


class KernelBlocks:
    """Sums of the Gaussian kernel within and between the patients of two sets of rows (at most one a row)."""

    def __init__(self, x: Tensor, y: Tensor, clusters_x: Tensor, clusters_y: Tensor) -> None:
        middle = torch.cat((x, y)).double().mean(0)
        x, y = (x.double() - middle).float(), (y.double() - middle).float()  # large means leave no digits for distances
        self.bandwidth = median_squared_distance(torch.cat((x, y)))
        self.patients, codes = torch.unique(torch.cat((clusters_x, clusters_y)), return_inverse=True)
        one_x, one_y = torch.nn.functional.one_hot(codes).float().split([len(x), len(y)])
        self.count_x, self.count_y = one_x.sum(0).double(), one_y.sum(0).double()
        self.own_x, self.own_y = self._own(x, one_x), self._own(y, one_y)
        self.cross = (one_x.T @ self._kernel(x, y) @ one_y).double()

    def discrepancy(self, weights: Tensor) -> Tensor:
        """MMD^2 for every weighting (B, K), unbiased; within a set a row is never paired with its own copies."""
        # paired sets are not independent: of N rows that stay as they are it is 2 (mean kernel - 1) / N, not 0
        w = weights[:, self.patients]
        own = _within(w, self.own_x, self.count_x) + _within(w, self.own_y, self.count_y)
        return own - 2 * _form(w, self.cross, w) / (w @ self.count_x * (w @ self.count_y))

    def between_halves(self, halves: Tensor) -> Tensor:
        """Unbiased MMD^2 between two halves of the patients of the first set, for every split (S, K) -> (S,)."""
        half, count = halves[:, self.patients], self.count_x
        rest = 1 - half
        own = _within(half, self.own_x, count) + _within(rest, self.own_x, count)
        return own - 2 * _form(half, self.own_x, rest) / (half @ count * (rest @ count))

    def _own(self, rows: Tensor, one_hot: Tensor) -> Tensor:
        kernel = self._kernel(rows, rows)
        kernel.diagonal().zero_()
        return (one_hot.T @ kernel @ one_hot).double()

    def _kernel(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(squared_distances(x, y) * (-0.5 / max(self.bandwidth, 1e-30)))


def _within(weights: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
    """Mean over pairs of different rows, of which each patient has `counts`."""
    return _form(weights, sums, weights) / ((weights @ counts) ** 2 - weights**2 @ counts)


def _form(left: Tensor, matrix: Tensor, right: Tensor) -> Tensor:
    return ((left @ matrix) * right).sum(1)


def _per_cluster(codes: Tensor, number: int, values: Tensor) -> Tensor:
    return torch.bincount(codes.flatten(), weights=values.flatten(), minlength=number)
