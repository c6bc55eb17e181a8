"""Sums per patient from which every bootstrap replicate is a weighted combination."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from toolkit.data.randomness import keyed_random

_CHUNK = 4_000_000  # covariance entries held at once


@dataclasses.dataclass(frozen=True, eq=False)
class MomentBatch:
    """Means and covariances of every stage for a batch of weightings of the patients.

    Attributes:
        means: per stage (B, C).
        covariances: per stage (B, C, C), divided by n - 1.
        crosses: per pair of stages (B, C, C); empty if rows are not paired.
    """

    means: list[Tensor]
    covariances: list[Tensor]
    crosses: dict[tuple[int, int], Tensor]


class PatientMoments:
    """Count, sum and second moments of the rows of each patient, per stage.

    Args:
        rows: per stage (N_s, C).
        clusters: per stage, the patient of every row, 0..K-1.
        number: K.
        pairs: pairs of stages whose rows correspond and whose cross moments are wanted.
    """

    def __init__(
        self, rows: Sequence[Tensor], clusters: Sequence[Tensor], number: int, pairs: Sequence[tuple[int, int]]
    ) -> None:
        self.number, self.channels = number, rows[0].shape[1]
        self.shift = rows[0].double().mean(0)
        self.counts = [torch.bincount(codes, minlength=number).double() for codes in clusters]
        self.sums = [torch.zeros(number, self.channels, dtype=torch.float64) for _ in rows]
        self.grams = [torch.zeros(number, self.channels, self.channels, dtype=torch.float64) for _ in rows]
        self.crosses = {pair: torch.zeros_like(self.grams[0]) for pair in pairs}
        parts = [_by_cluster(r, c, number) for r, c in zip(rows, clusters, strict=True)]
        for k in range(number):
            own = [part[k].double() - self.shift for part in parts]
            for stage, part in enumerate(own):
                self.sums[stage][k] = part.sum(0)
                self.grams[stage][k] = part.T @ part
            for first, second in pairs:
                self.crosses[first, second][k] = own[first].T @ own[second]

    def moments(self, weights: Tensor) -> Iterator[MomentBatch]:
        """Moments under weights (B, K), a few replicates at a time."""
        for part in weights.double().split(max(1, _CHUNK // self.channels**2)):
            yield self._moments(part)

    def _moments(self, weights: Tensor) -> MomentBatch:
        counts = [weights @ count for count in self.counts]
        means = [weights @ total / n[:, None] for total, n in zip(self.sums, counts, strict=True)]
        covariances = [
            self._covariance(weights, gram, means[s], means[s], counts[s]) for s, gram in enumerate(self.grams)
        ]
        crosses = {
            (i, j): self._covariance(weights, gram, means[i], means[j], counts[i])
            for (i, j), gram in self.crosses.items()
        }
        return MomentBatch([mean + self.shift for mean in means], covariances, crosses)

    def _covariance(self, weights: Tensor, gram: Tensor, mean_a: Tensor, mean_b: Tensor, count: Tensor) -> Tensor:
        second = (weights @ gram.flatten(1)).unflatten(1, gram.shape[1:])
        n = count[:, None, None]
        return (second - n * mean_a[:, :, None] * mean_b[:, None, :]) / (n - 1).clamp_min(1)


def strata(clusters: Sequence[Tensor], number: int) -> list[np.ndarray]:
    """Patients (indices of K) that are present at the same stages; the same ones everywhere are a single stratum."""
    present = np.stack([np.bincount(codes.numpy(), minlength=number) > 0 for codes in clusters], axis=1)
    return [np.flatnonzero((present == kind).all(1)) for kind in np.unique(present, axis=0)[::-1]]


def bootstrap_weights(groups: Sequence[np.ndarray], replicates: int, seed: int) -> Tensor:
    """How often each of K patients is drawn in each replicate (B, K); the first row is all ones (no resampling).

    Patients of a stratum are drawn among themselves, so that no replicate leaves a stage without patients.
    """
    weights = np.ones((replicates + 1, sum(map(len, groups))))
    for index, group in enumerate(groups):
        drawn = keyed_random("bootstrap", seed, len(group), *([index] if index else []))
        weights[1:, group] = drawn.multinomial(len(group), [1 / len(group)] * len(group), size=replicates)
    return torch.from_numpy(weights)


def half_splits(groups: Sequence[np.ndarray], splits: int, seed: int) -> Tensor:
    """Random halves of K patients (S, K), 0 or 1, half of every stratum; the other half is one minus it."""
    halves = np.zeros((splits, sum(map(len, groups))))
    for index, group in enumerate(groups):
        drawn = keyed_random("halves", seed, len(group), *([index] if index else []))
        order = drawn.random((splits, len(group))).argsort(1).argsort(1)
        halves[:, group] = order < len(group) // 2
    return torch.from_numpy(halves)


def _by_cluster(rows: Tensor, codes: Tensor, number: int) -> list[Tensor]:
    order = torch.argsort(codes, stable=True)
    return list(rows.index_select(0, order).split(torch.bincount(codes, minlength=number).tolist()))
