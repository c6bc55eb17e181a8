"""From feature maps to rows: one vector per area or per sampled voxel of an image; and second moments per image."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.data.randomness import keyed_random
from toolkit.errors import DataError
from toolkit.features.layout import to_maps
from toolkit.inference.inputs import InputBatch
from toolkit.inference.windows import Frame, Window

POOLS = ("per-class", "per-region", "grid", "global", "voxels", "boundary")
VOXELS = ("voxels", "boundary")  # rows are voxels; of the others, means over areas
BAND = 3  # voxels from a boundary, for "boundary"
CELLS = 4  # along each axis, for "grid"


@dataclasses.dataclass
class RowPlan:
    """Which rows one batch gives, decided from the labels before the network runs, so all layers agree."""

    table: list[dict[str, Any]]  # one dict per row: case, volume, subject, site, class, class_name, count, index
    images: Tensor  # position in the batch of each row's image
    areas: Tensor  # number of each row's area in `maps`
    maps: Tensor | None  # (B, 1, *S) area of every voxel, -1 outside, for pools of areas
    places: Tensor | None  # (rows, d) voxel coordinates in the image, for pools of voxels


class Pooler:
    """Turns the activations of one batch into rows and moments; pools, samples and seed are those of `toolkit.extract`.

    A mean over an area counts every voxel of the label: a position of a coarse map weighs as much as its share of the
    area. The frame says where the images lie in what the network takes.
    """

    def __init__(self, batch: InputBatch, pool: str, samples: int, seed: int, frame: Frame) -> None:
        if pool in ("per-class", "per-region", "boundary") and batch.label is None:
            what = f"Pooling by {pool!r} needs a label for every image."
            fix = "Pass cases with labels, or use pool='global', pool='grid' or pool='voxels'."
            raise DataError(what, where=", ".join(batch.ids[:4]), fix=fix)
        self.batch, self.pool, self.frame = batch, pool, frame
        self.plan = _plan(batch, pool, samples, seed)
        # only areas that occur get a plane: a label of 255 is one class, not the last of 256
        self._areas, self._columns = torch.unique(self.plan.areas, return_inverse=True)
        self._whole: Tensor | None = None
        self._real = None if frame.size == frame.target else frame.pad(torch.ones_like(batch.image[:, :1]), 0.0)
        self.begin(None)

    def begin(self, window: Window | None) -> None:
        """The next activations are those of this window of the padded image, or of all of it."""
        self.window = window
        self.size = self.frame.target if window is None else tuple(part.stop - part.start for part in window[1:])
        self._planes: dict[tuple[int, ...], Tensor] = {}
        self._shares: dict[tuple[int, ...], Tensor] = {}
        self._masks: dict[tuple[int, ...], Tensor | None] = {}

    def rows(self, activation: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """(rows, C) sums and (rows, 1) weights, float32 on the CPU; their ratio, summed over windows, are the rows."""
        maps = to_maps(activation, self.size, name).float()
        if self.plan.places is not None:
            return self._voxels(maps, self.plan.places)
        flat = maps.flatten(2)
        size = tuple(maps.shape[2:])
        if self.pool == "global":
            mask = self._mask(size)
            if mask is None:
                return flat.mean(2).cpu(), torch.ones(len(flat), 1)
            return (flat * mask).sum(2).cpu(), mask.sum(2).cpu()
        if not len(self.plan.areas):
            return flat.new_zeros((0, flat.shape[1]), device="cpu"), torch.ones(0, 1)
        weights = self._area_weights(size)
        if flat.device.type == "cpu":  # of matrices this thin NumPy's product is up to four times faster
            sums = torch.from_numpy(np.matmul(weights.numpy(), flat.transpose(1, 2).detach().numpy()))
        else:
            sums = torch.bmm(weights, flat.transpose(1, 2))
        place = self.plan.images.to(sums.device), self._columns.to(sums.device)
        return sums[place].cpu(), self._shares[size][place].cpu()

    def moments(self, activation: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Per image over the positions of the map: Gram matrices (B, C, C), sums (B, C), counts (B), on the CPU."""
        maps = to_maps(activation, self.size, name).float()
        flat, mask = maps.flatten(2), self._mask(tuple(maps.shape[2:]))
        if mask is None:
            count = torch.full((len(flat),), float(flat.shape[2]))
            return torch.bmm(flat, flat.transpose(1, 2)).cpu(), flat.sum(2).cpu(), count
        weighted = flat * mask
        gram = torch.bmm(weighted, flat.transpose(1, 2))
        return gram.cpu(), weighted.sum(2).cpu(), mask.sum((1, 2)).cpu()

    def _area_weights(self, size: tuple[int, ...]) -> Tensor:
        """(B, areas, positions): the share of each position's field that belongs to the area."""
        if not self._planes:
            planes = self._area_planes()
            if self.window is not None:
                assert self.frame.tiling is not None
                planes = planes[self.window] * self.frame.tiling.share(self.window)
            self._planes[self.size] = planes
        if size not in self._planes:
            # a mean of equal means is the mean, so the smallest known multiple will do
            sizes = [s for s in self._planes if all(a % b == 0 for a, b in zip(s, size, strict=True))]
            self._planes[size] = _shrink(self._planes[min(sizes, key=math.prod, default=self.size)], size)
        weights = self._planes[size].flatten(2)
        if size not in self._shares:
            tiny = 0.0 if self.window is not None else 1e-12
            self._shares[size] = weights.sum(2, keepdim=True).clamp_min(tiny)
        return weights

    def _area_planes(self) -> Tensor:
        """(B, areas, *target) 1 where a voxel of the padded image belongs to the area."""
        if self._whole is None:
            maps = self.plan.maps
            assert maps is not None
            maps = maps[:, 0].to(self.batch.image.device).float()  # exact for any number of areas below 2^24
            planes = maps.new_empty(len(maps), len(self._areas), *self.frame.size)
            for column, area in enumerate(self._areas.tolist()):
                torch.eq(maps, area, out=planes[:, column])  # four times faster than comparing integers at once
            self._whole = self.frame.pad(planes, 0.0)
        return self._whole

    def _mask(self, size: tuple[int, ...]) -> Tensor | None:
        """(B, 1, positions) weight of every position: 1 or 0 of one pass, the share in what is stitched of a window."""
        if size not in self._masks:
            real = self._real
            if self.window is not None:
                assert self.frame.tiling is not None
                share = self.frame.tiling.share(self.window).expand(len(self.batch), 1, *self.size)
                real = share if real is None else share * real[self.window]
            mask = None if real is None else _shrink(real, size).flatten(2)
            if mask is not None and self.window is None:  # of an image smaller than any position's half, the fullest
                mask = (mask > mask.amax(2, keepdim=True).mul(0.999).clamp(max=0.5)).float()
            self._masks[size] = mask
        return self._masks[size]

    def _voxels(self, maps: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        flat = maps.flatten(2)  # (B, C, positions); rows are picked without laying out the whole map anew
        corner = [0] * len(self.size) if self.window is None else [part.start for part in self.window[1:]]
        local = places + torch.tensor(self.frame.starts) - torch.tensor(corner)
        sides = torch.tensor(self.size)
        inside = ((local >= 0) & (local < sides)).all(1)
        local = torch.minimum(local.clamp_min(0), sides - 1)
        index = torch.zeros(len(places), dtype=torch.int64)
        for axis, (side, whole) in enumerate(zip(maps.shape[2:], self.size, strict=True)):
            index = index * side + torch.div(local[:, axis] * side, whole, rounding_mode="floor")
        values = flat[self.plan.images.to(flat.device), :, index.to(flat.device)].cpu()
        weights = inside.float()[:, None]
        if self.window is None:
            return values, weights
        assert self.frame.tiling is not None
        share = self.frame.tiling.share(self.window).cpu()[tuple(local.unbind(1))]
        return values * (weights := weights * share[:, None]), weights


def _shrink(planes: Tensor, size: tuple[int, ...]) -> Tensor:
    """Mean of every position's field; axis by axis where sizes divide, which is six times faster."""
    if any(whole % side for whole, side in zip(planes.shape[2:], size, strict=True)):
        return getattr(F, f"adaptive_avg_pool{len(size)}d")(planes, size)
    for axis, side in enumerate(size, 2):
        factor = planes.shape[axis] // side
        fields = planes.unflatten(axis, (side, factor))
        if factor == 2:
            planes = (fields.select(axis + 1, 0) + fields.select(axis + 1, 1)) / 2
        elif factor > 2:
            planes = fields.mean(axis + 1)
    return planes


def _plan(batch: InputBatch, pool: str, samples: int, seed: int) -> RowPlan:
    if pool in VOXELS:
        return _plan_of_voxels(batch, pool, samples, seed)
    if pool == "global":
        whole = [_row(batch, k, -1, math.prod(batch.size)) for k in range(len(batch))]
        return RowPlan(whole, torch.arange(len(batch)), torch.zeros(len(batch), dtype=torch.int64), None, None)
    maps: list[np.ndarray] = []
    table: list[dict[str, Any]] = []
    rows: list[tuple[int, int]] = []  # position of the image, number of the area
    for position in range(len(batch)):
        label = None if batch.label is None else batch.label[position, 0].cpu().numpy()
        of_image, owners = areas_of(pool, batch.size, label)
        maps.append(of_image)
        for area, count in _counts(of_image.ravel()).items():
            table.append(_row(batch, position, owners.get(area, -1), count, -1 if pool == "per-class" else area))
            rows.append((position, area))
    images, areas = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return RowPlan(table, images, areas, torch.from_numpy(np.stack(maps)).unsqueeze(1), None)


def areas_of(pool: str, size: tuple[int, ...], label: Any) -> tuple[np.ndarray, dict[int, int]]:
    """Number of the area of every voxel of an image, -1 outside, and the class of every area that has one."""
    if pool == "grid":
        cells = np.zeros((1,) * len(size), dtype=np.int64)  # in row-major order
        for axis, side in enumerate(size):
            along = np.arange(side) * CELLS // side
            cells = cells * CELLS + along.reshape(-1, *[1] * (len(size) - axis - 1))
        return cells, {}
    return _regions(label) if pool == "per-region" else (label, {area: area for area in _counts(label.ravel())})


def _regions(label: np.ndarray) -> tuple[np.ndarray, dict[int, int]]:
    """Connected components (corners connect) of every class but 0, numbered as they appear, and their classes."""
    from scipy import ndimage

    maps = np.full(label.shape, -1, dtype=np.int64)
    owners: dict[int, int] = {}
    for index in [value for value in _counts(label.ravel()) if value > 0]:
        parts, number = ndimage.label(label == index, np.ones((3,) * label.ndim))
        maps[parts > 0] = parts[parts > 0] - 1 + len(owners)
        owners |= dict.fromkeys(range(len(owners), len(owners) + number), index)
    return maps, owners


def _plan_of_voxels(batch: InputBatch, pool: str, samples: int, seed: int) -> RowPlan:
    table: list[dict[str, Any]] = []
    images: list[int] = []
    places: list[np.ndarray] = [np.zeros((0, batch.image.ndim - 2), dtype=np.int64)]
    from scipy import ndimage

    labels = [None] * len(batch) if batch.label is None else batch.label[:, 0].cpu().numpy()
    size, side = batch.size, 2 * BAND + 1
    for position, label in enumerate(labels):
        if label is not None and pool == "boundary":
            inside = np.where(label < 0, label.max(), label)  # what is ignored is no other class
            high, low = ndimage.maximum_filter(label, side), ndimage.minimum_filter(inside, side)
            label = np.where(high != low, label.astype(np.int64), -1)
        flat = None if label is None else label.ravel()
        counts = {-1: math.prod(size)} if flat is None else _counts(flat)
        for index, count in counts.items():
            drawn = _draw(flat, index, count, samples, (seed, batch.ids[position], index))
            table += [_row(batch, position, index, count, place) for place in drawn.tolist()]
            images += [position] * len(drawn)
            places.append(np.stack(np.unravel_index(drawn, size), axis=1))
    none = torch.zeros(len(table), dtype=torch.int64)
    return RowPlan(table, torch.tensor(images, dtype=torch.int64), none, None, torch.from_numpy(np.concatenate(places)))


def _row(batch: InputBatch, position: int, owner: int, count: int, index: int = -1) -> dict[str, Any]:
    """What the table says of one row; its owner is a class, or -1 for all."""
    name = "all" if owner < 0 else str((batch.classes or {}).get(owner, owner))
    row: dict[str, Any] = {"case": batch.ids[position], "volume": batch.volumes[position]}
    row |= {"subject": batch.subjects[position], "site": batch.sites[position]}
    return row | {"class": owner, "class_name": name, "count": count, "index": index}


def _counts(label: np.ndarray) -> dict[int, int]:
    counted = label if label.min(initial=0) >= 0 else label[label >= 0]
    return {value: int(count) for value, count in enumerate(np.bincount(counted)) if count}  # no sorting


def _draw(label: np.ndarray | None, index: int, count: int, samples: int, key: tuple[int | str, ...]) -> np.ndarray:
    """Sorted flat voxel indices, without replacement, the same for every network that sees this case."""
    chosen = keyed_random(*key).choice(count, size=min(samples, count), replace=False)
    chosen.sort()
    return chosen if label is None else np.flatnonzero(label == index)[chosen]
