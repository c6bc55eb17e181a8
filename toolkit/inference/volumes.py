"""Cases of one volume together: slices in their order, stacked, with their spacing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from toolkit.data.case import Case
from toolkit.errors import ConfigError


def group_volumes(cases: Iterable[Case]) -> list[list[Case]]:
    """Cases of one volume together, slices in their order; volumes in the order of their first case."""
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.site, case.volume), []).append(case)
    return [sorted(group, key=lambda case: case.position or 0) for group in groups.values()]


def stack(maps: Sequence[np.ndarray], volume: Sequence[Case], regions: bool = False) -> np.ndarray:
    """One array of a volume: the slices along a new axis before the spatial ones, or the single map itself."""
    if volume[0].position is None and len(maps) == 1:
        return maps[0]
    if len({each.shape for each in maps}) > 1:
        raise ConfigError("The slices of this volume differ in size.", where=volume[0].volume)
    return np.stack(maps, axis=1 if regions else 0)


def volume_spacing(volume: Sequence[Case]) -> tuple[float, ...] | None:
    """Spacing in mm along the axes of `stack`; None if any of it is unknown."""
    first = volume[0]
    if first.spacing is None:
        return None
    if first.position is None and len(volume) == 1:
        return first.spacing
    return None if first.slice_spacing is None else (first.slice_spacing, *first.spacing)


def same_size(cases: Sequence[Case], batch_size: int) -> Iterator[list[Case]]:
    """Consecutive cases of one size, at most `batch_size` together."""
    for _, same in itertools.groupby(cases, key=lambda case: case.image_array().shape):
        run = list(same)
        for start in range(0, len(run), batch_size):
            yield run[start : start + batch_size]


def one_map(prediction: Any, dims: int) -> np.ndarray:
    """Labels (*S) to draw: masks (K, *S) of overlapping regions are numbered from 1, a later one over an earlier."""
    array = np.asarray(prediction)
    if array.ndim == dims or len(array) == 1:
        return array.reshape(array.shape[-dims:])
    numbers = np.arange(1, len(array) + 1).reshape(-1, *[1] * dims)
    return (np.asarray(array > 0) * numbers).max(0)
