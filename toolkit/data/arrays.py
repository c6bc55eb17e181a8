"""`task_from_arrays`: a task from arrays or tensors that are already in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack

import numpy as np

from toolkit.data.table import TaskSettings, task_from_table
from toolkit.data.task import Task
from toolkit.errors import ConfigError


def task_from_arrays(
    images: Iterable[Any],
    labels: Iterable[Any] | None,
    *,
    classes: Mapping[int, str] | Mapping[str, str] | Sequence[str],
    spacing: Sequence[float] | Sequence[Sequence[float] | None] | None = None,
    sites: Sequence[str] | str | None = None,
    subjects: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    groups: Sequence[str | None] | None = None,
    dims: int | None = None,
    name: str = "arrays",
    **settings: Unpack[TaskSettings],
) -> Task:
    """Make a task from arrays.

    Args:
        images: list of arrays or one array whose first axis is the case; each (*S) or (C, *S).
        labels: the same for labels, each (*S) or (1, *S) with whole numbers; or None.
        classes: class names by index, 0 = background.
        spacing: mm along the axes of an image: one for all, or one per case; None = unknown. For stacks cut into
            slices: slice distance first, then the in-plane spacing.
        sites: site of every case, or one name; default one site, "site".
        subjects: subject of every case; default every case its own.
        ids: case names; default case000, case001, ...
        groups: pathology group of every case.
        dims: 2 with three-dimensional arrays cuts stacks (Z, H, W) into slices; default: axes of a label.
        name: name of the task.
        **settings: regions, splits, label_values, normalisation, patch_size and flips, see `task_from_table`.

    Raises:
        DataError: shapes that do not agree, NaN or infinite voxels, labels that are no class.
        ConfigError: lists of different lengths, or an invalid setting.

    Example:
        >>> images, labels = np.zeros((10, 32, 32)), np.zeros((10, 32, 32), dtype=int)
        >>> tk.task_from_arrays(images, labels, classes=["background", "tumour"], spacing=(0.7, 0.7)).classes
        {0: 'background', 1: 'tumour'}
    """
    images = list(images)
    count = len(images)
    ids = [f"case{index:03d}" for index in range(count)] if ids is None else ids
    columns = {
        "image": images,
        "label": labels,
        "case": ids,
        "subject": ids if subjects is None else subjects,
        "site": [sites] * count if isinstance(sites, str) else sites,
        "group": groups,
        "spacing": _spacings(spacing, count),
    }
    given = {name: list(column) for name, column in columns.items() if column is not None}
    return task_from_table(given, classes=classes, dims=dims, name=name, **settings)


def _spacings(spacing: Any, count: int) -> list[Sequence[float] | None]:
    if spacing is None:
        return [None] * count
    given = list(spacing)
    if all(isinstance(value, (int, float, np.number)) for value in given):
        return [tuple(float(value) for value in given)] * count
    if len(given) != count:
        raise ConfigError(f"{len(given)} spacings were given for {count} images.", where="spacing")
    return [None if value is None else tuple(float(number) for number in value) for value in given]
