"""The drift measures that means and covariances suffice for; every bootstrap replicate combines sums per patient."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from toolkit.data.randomness import keyed_random
from toolkit.measure import distances

_CHUNK = 4_000_000  # covariance entries held at once
_PATIENTS = 64  # whose second moments are held at once


@dataclasses.dataclass(frozen=True, eq=False)
class MomentBatch:
    """Means and covariances of every stage for a batch of weightings of the patients."""

    means: list[Tensor]  # per stage (B, C)
    covariances: list[Tensor]  # per stage (B, C, C), divided by n - 1
    crosses: dict[tuple[int, int], Tensor]  # per pair of stages (B, C, C); empty if rows are not paired


class PatientMoments:
    """Count, sum and second moments of the rows (N_s, C) of each patient (0..K-1 by row), per stage.

    Cross moments are kept of the `pairs` of stages, whose rows correspond. With `units`, (U, K) weightings of the
    patients, the sums are kept of those in place of single patients, so that memory does not grow with K; every later
    weighting is one of units.
    """

    def __init__(
        self,
        rows: Sequence[Tensor],
        clusters: Sequence[Tensor],
        number: int,
        pairs: Sequence[tuple[int, int]],
        units: Tensor | None = None,
    ) -> None:
        kept, self.channels = number if units is None else len(units), rows[0].shape[1]
        self.units = units
        self.shift = rows[0].mean(0, dtype=torch.float64)
        self.counts = [torch.zeros(kept, 1, dtype=torch.float64) for _ in rows]
        self.sums = [torch.zeros(kept, self.channels, dtype=torch.float64) for _ in rows]
        self.grams = [torch.zeros(kept, self.channels, self.channels, dtype=torch.float64) for _ in rows]
        self.crosses = {pair: torch.zeros_like(self.grams[0]) for pair in pairs}
        parts = [_by_cluster(r, c, number) for r, c in zip(rows, clusters, strict=True)]
        for start in range(0, number, _PATIENTS):
            some = slice(start, start + _PATIENTS)
            own = [[part.double() - self.shift for part in stage[some]] for stage in parts]
            for stage, mine in enumerate(own):
                self._add(self.counts[stage], some, [torch.tensor([float(len(part))]).double() for part in mine])
                self._add(self.sums[stage], some, [part.sum(0) for part in mine])
                self._add(self.grams[stage], some, [part.T @ part for part in mine])
            for first, second in pairs:
                both = zip(own[first], own[second], strict=True)
                self._add(self.crosses[first, second], some, [one.T @ two for one, two in both])

    def _add(self, total: Tensor, patients: slice, values: list[Tensor]) -> None:
        part = torch.stack(values)
        if self.units is None:
            total[patients] = part
        else:
            total += (self.units[:, patients] @ part.flatten(1)).view_as(total)

    def moments(self, weights: Tensor) -> Iterator[MomentBatch]:
        """Moments under weights (B, K), or (B, U) of the units, a few replicates at a time."""
        for part in weights.double().split(max(1, _CHUNK // self.channels**2)):
            yield self._moments(part)

    def _moments(self, weights: Tensor) -> MomentBatch:
        counts = [(weights @ count)[:, 0] for count in self.counts]
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
        halves[:, group] = drawn.random((splits, len(group))).argsort(1).argsort(1) < len(group) // 2
    return torch.from_numpy(halves)


def _by_cluster(rows: Tensor, codes: Tensor, number: int) -> list[Tensor]:
    if bool((codes.diff() < 0).any()):
        rows = rows.index_select(0, torch.argsort(codes, stable=True))
    return list(rows.split(torch.bincount(codes, minlength=number).tolist()))


Pair = tuple[int, int]
Values = dict[tuple[str, Pair], Tensor]  # measure and stages -> (B,)
REFERENCE = -1  # stands for N(0, I) in place of a stage


@dataclasses.dataclass(frozen=True)
class MomentMeasures:
    """What to compute from moments."""

    pairs: Sequence[Pair]  # stages to compare
    scale: float  # root mean channel variance at stage 1, the unit of the centroid shift
    subspaces: Sequence[int]  # numbers of leading principal directions to compare
    paired: bool  # also the measures that need corresponding rows

    def over(self, sums: PatientMoments, weights: Tensor) -> Values:
        """Every measure for every weighting (B, K)."""
        batches = [self._batch(batch) for batch in sums.moments(weights)]
        return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}

    def between_halves(self, sums: PatientMoments, halves: Tensor, whole: Tensor) -> dict[str, Tensor]:
        """The measures that need no pairing, between halves (S, K) of the patients `whole` (1, K) at stage 1: (S,)."""
        parts: dict[str, list[Tensor]] = {}
        for one, two in zip(sums.moments(halves), sums.moments(whole - halves), strict=True):
            eigen = [torch.linalg.eigh(part.covariances[0]) for part in (one, two)]
            both = MomentBatch([one.means[0], two.means[0]], [one.covariances[0], two.covariances[0]], {})
            for name, value in self._unpaired(both, eigen, 0, 1).items():
                parts.setdefault(name, []).append(value)
        return {name: torch.cat(values) for name, values in parts.items()}

    def _batch(self, batch: MomentBatch) -> Values:
        eigen = [torch.linalg.eigh(covariance) for covariance in batch.covariances]
        values: Values = {
            ("frechet", (REFERENCE, stage)): distances.distance_to_standard_normal(batch.means[stage], own[0])
            for stage, own in enumerate(eigen)
        }
        for i, j in self.pairs:
            for name, value in self._unpaired(batch, eigen, i, j).items():
                values[name, (i, j)] = value
            if self.paired:
                own = batch.covariances[i], batch.covariances[j], batch.crosses[i, j]
                values["linear_cka", (i, j)] = 1 - distances.alignment(*own)
                values["procrustes", (i, j)] = distances.procrustes_disparity(*own)
        return values

    def _unpaired(
        self, batch: MomentBatch, eigen: Sequence[tuple[Tensor, Tensor]], i: int, j: int
    ) -> dict[str, Tensor]:
        channels = batch.means[i].shape[1]
        shift = torch.linalg.vector_norm(batch.means[j] - batch.means[i], dim=1)
        root = distances.root_from_eigen(*eigen[i])
        values = {
            "centroid_shift": shift / (self.scale * channels**0.5),
            "frechet": distances.frechet_from_root(batch.means[i], root, batch.means[j], batch.covariances[j]),
        }
        for k in self.subspaces:
            angles = distances.principal_angles(eigen[i][1][..., -k:], eigen[j][1][..., -k:])
            values[f"grassmann_{k}"] = angles.square().sum(-1).sqrt()
            values[f"chordal_{k}"] = angles.sin().square().sum(-1).sqrt()
        return values


def debiased_cka(first: Tensor, second: Tensor, clusters: Tensor, weights: Tensor, blocks: int = 20) -> Tensor:
    """1 - debiased linear CKA for every weighting of the patients (B, K), the first of which is all ones.

    Rows that a bootstrap draws twice would count as agreeing pairs, so the replicates are linear in the weights,
    with each block of patients' influence found by leaving it out (delete-a-block jackknife).
    """
    number = weights.shape[1]
    blocks = min(blocks, number)
    block_of = torch.arange(number) % blocks
    value = 1 - distances.linear_cka(first, second, debiased=True)
    left_out = []
    for block in range(blocks):
        keep = (block_of[clusters] != block).nonzero()[:, 0]
        enough = 4 <= len(keep) < len(clusters)
        part = (first.index_select(0, keep), second.index_select(0, keep))
        left_out.append(1 - distances.linear_cka(*part, debiased=True) if enough else value)
    influence = (blocks - 1) * (value - torch.stack(left_out))
    share = torch.stack([weights[:, block_of == block].mean(1) for block in range(blocks)], 1)
    return value + (share - 1) @ influence / blocks
