"""From feature maps to rows: one vector per class, per image, or per sampled voxel; and second moments per image."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.data.randomness import keyed_random
from toolkit.errors import ConfigError, DataError
from toolkit.features.inputs import InputBatch
from toolkit.features.layout import to_maps

POOLS = ("per-class", "global", "voxels")


@dataclasses.dataclass
class RowPlan:
    """Which rows one batch gives, decided from the labels before the network runs, so all layers agree.

    Attributes:
        table: one dict per row: case, volume, subject, site, class, class_name, count, index.
        images: position in the batch of each row's image.
        classes: class of each row, -1 for all classes.
        places: (rows, d) voxel coordinates in the image, for pool "voxels".
    """

    table: list[dict[str, Any]]
    images: Tensor
    classes: Tensor
    places: Tensor | None


class Pooler:
    """Turns the activations of one batch into rows and moments.

    Args:
        batch: the images and labels.
        pool: "per-class" (mean over the voxels of each class present, every voxel of the label counted: a position of a
            coarse map weighs as much as its share of the class), "global" (mean over the image) or "voxels".
        samples: voxels per class and image for "voxels".
        seed: base of the voxel draw, which is keyed by (seed, case, class).
    """

    def __init__(self, batch: InputBatch, pool: str, samples: int, seed: int) -> None:
        check_pool(pool, samples)
        if pool == "per-class" and batch.label is None:
            raise DataError(
                "Pooling per class needs a label for every image.",
                where=", ".join(batch.ids[:4]),
                fix="Pass cases with labels, or use pool='global' or pool='voxels'.",
            )
        self.batch, self.pool = batch, pool
        self.size = tuple(batch.image.shape[2:])
        self.valid = batch.valid()
        self.plan = _plan(batch, pool, samples, seed)
        self._planes: dict[tuple[int, ...], Tensor] = {}
        self._masks: dict[tuple[int, ...], Tensor | None] = {}

    def rows(self, activation: Tensor, name: str) -> Tensor:
        """(rows, C) float32 on the CPU."""
        maps = to_maps(activation, self.size, name).float()
        if self.plan.places is not None:
            return self._voxels(maps, self.plan.places)
        flat = maps.flatten(2)
        size = tuple(maps.shape[2:])
        if self.pool == "global":
            mask = self._mask(size)
            means = flat.mean(2) if mask is None else (flat * mask).sum(2) / mask.sum(2)
            return means.cpu()
        weights = self._class_weights(size)
        means = torch.bmm(weights, flat.transpose(1, 2)) / weights.sum(2, keepdim=True).clamp_min(1e-12)
        return means[self.plan.images.to(means.device), self.plan.classes.to(means.device)].cpu()

    def moments(self, activation: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Per image over the positions of the map: Gram matrices (B, C, C), sums (B, C), counts (B), on the CPU."""
        flat = to_maps(activation, self.size, name).float().flatten(2)
        mask = self._mask(tuple(to_maps(activation, self.size, name).shape[2:]))
        count = torch.full((len(flat),), float(flat.shape[2]))
        if mask is not None:
            flat, count = flat * mask, mask.sum((1, 2)).cpu()
        return torch.bmm(flat, flat.transpose(1, 2)).cpu(), flat.sum(2).cpu(), count

    def _class_weights(self, size: tuple[int, ...]) -> Tensor:
        """(B, classes, positions): the share of each position's field that belongs to the class."""
        if not self._planes:
            label = self.batch.label
            assert label is not None
            number = int(label.max().clamp_min(0)) + 1
            classes = torch.arange(number, device=label.device).reshape(-1, *[1] * len(self.size))
            self._planes[self.size] = (label == classes).float()
        if size not in self._planes:
            # a mean of equal means is the mean, so the smallest known multiple will do
            known = [s for s in self._planes if all(a % b == 0 for a, b in zip(s, size, strict=True))]
            source = min(known, key=math.prod, default=self.size)
            self._planes[size] = _shrink(self._planes[source], size)
        return self._planes[size].flatten(2)

    def _mask(self, size: tuple[int, ...]) -> Tensor | None:
        if size not in self._masks:
            self._masks[size] = (
                None if self.valid is None else (_shrink(self.valid, size) > 0.5).float().flatten(2)
            )
        return self._masks[size]

    def _voxels(self, maps: Tensor, places: Tensor) -> Tensor:
        flat = maps.flatten(2)  # (B, C, positions); rows are picked without laying out the whole map anew
        index = torch.zeros(len(places), dtype=torch.int64)
        for axis, (side, whole) in enumerate(zip(maps.shape[2:], self.size, strict=True)):
            index = index * side + torch.div(places[:, axis] * side, whole, rounding_mode="floor")
        return flat[self.plan.images.to(flat.device), :, index.to(flat.device)].cpu()


def check_pool(pool: str, samples: int) -> None:
    """Refuse an unknown pool or a useless number of samples.

    Raises:
        ConfigError: see above.
    """
    if pool not in POOLS:
        raise ConfigError(
            f"Unknown pool {pool!r}.", where="extract(pool=...)", fix=f"Use one of {', '.join(POOLS)}."
        )
    if samples < 1:
        raise ConfigError(f"samples must be at least 1, not {samples}.", where="extract(samples=...)")


def _shrink(planes: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(planes.shape[2:]) == size:
        return planes
    if len(size) == 3:
        return F.adaptive_avg_pool3d(planes, size)
    return F.adaptive_avg_pool2d(planes, size) if len(size) == 2 else F.adaptive_avg_pool1d(planes, size[0])


def _plan(batch: InputBatch, pool: str, samples: int, seed: int) -> RowPlan:
    table: list[dict[str, Any]] = []
    images: list[int] = []
    places: list[np.ndarray] = []
    labels = None if batch.label is None or pool == "global" else batch.label[:, 0].cpu().numpy()
    for position in range(len(batch)):
        size = batch.sizes[position]
        label = None if labels is None else labels[position][tuple(slice(side) for side in size)].ravel()
        counts = {-1: math.prod(size)} if label is None else _counts(label)
        for index, count in counts.items():
            names = batch.classes or {}
            row = {
                "case": batch.ids[position],
                "volume": batch.volumes[position],
                "subject": batch.subjects[position],
                "site": batch.sites[position],
                "class": index,
                "class_name": "all" if index < 0 else str(names.get(index, index)),
                "count": count,
                "index": -1,
            }
            if pool != "voxels":
                table.append(row)
                images.append(position)
                continue
            drawn = _draw(label, index, count, samples, (seed, batch.ids[position], index))
            table += [{**row, "index": int(i)} for i in drawn]
            images += [position] * len(drawn)
            places.append(np.stack(np.unravel_index(drawn, size), axis=1))
    return RowPlan(
        table,
        torch.tensor(images, dtype=torch.int64),
        torch.tensor([row["class"] for row in table], dtype=torch.int64),
        torch.from_numpy(np.concatenate(places)) if pool == "voxels" else None,
    )


def _counts(label: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(label, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True) if value >= 0}


def _draw(
    label: np.ndarray | None, index: int, count: int, samples: int, key: tuple[int | str, ...]
) -> np.ndarray:
    """Sorted flat voxel indices, without replacement, the same for every network that sees this case."""
    chosen = keyed_random(*key).choice(count, size=min(samples, count), replace=False)
    chosen.sort()
    return chosen if label is None else np.flatnonzero(label == index)[chosen]
