"""The drift measures that means and covariances suffice for, over batches of bootstrap replicates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from toolkit.measure.distances import (
    alignment,
    distance_to_standard_normal,
    frechet_from_root,
    linear_cka,
    principal_angles,
    procrustes_disparity,
    root_from_eigen,
)
from toolkit.measure.patient_moments import MomentBatch, PatientMoments

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
            ("frechet", (REFERENCE, stage)): distance_to_standard_normal(batch.means[stage], own[0])
            for stage, own in enumerate(eigen)
        }
        for i, j in self.pairs:
            for name, value in self._unpaired(batch, eigen, i, j).items():
                values[name, (i, j)] = value
            if self.paired:
                own = batch.covariances[i], batch.covariances[j], batch.crosses[i, j]
                values["linear_cka", (i, j)] = 1 - alignment(*own)
                values["procrustes", (i, j)] = procrustes_disparity(*own)
        return values

    def _unpaired(
        self, batch: MomentBatch, eigen: Sequence[tuple[Tensor, Tensor]], i: int, j: int
    ) -> dict[str, Tensor]:
        channels = batch.means[i].shape[1]
        shift = torch.linalg.vector_norm(batch.means[j] - batch.means[i], dim=1)
        root = root_from_eigen(*eigen[i])
        values = {
            "centroid_shift": shift / (self.scale * channels**0.5),
            "frechet": frechet_from_root(batch.means[i], root, batch.means[j], batch.covariances[j]),
        }
        for k in self.subspaces:
            angles = principal_angles(eigen[i][1][..., -k:], eigen[j][1][..., -k:])
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
    value = 1 - linear_cka(first, second, debiased=True)
    left_out = []
    for block in range(blocks):
        keep = (block_of[clusters] != block).nonzero()[:, 0]
        enough = 4 <= len(keep) < len(clusters)
        part = (first.index_select(0, keep), second.index_select(0, keep))
        left_out.append(1 - linear_cka(*part, debiased=True) if enough else value)
    influence = (blocks - 1) * (value - torch.stack(left_out))
    share = torch.stack([weights[:, block_of == block].mean(1) for block in range(blocks)], 1)
    return value + (share - 1) @ influence / blocks
