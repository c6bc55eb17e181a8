"""`task_from_arrays`: a task from arrays or tensors that are already in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toolkit.data.case import Case
from toolkit.data.labels import checked_classes, checked_values
from toolkit.data.normalise import DEFAULT
from toolkit.data.source import ArraySource
from toolkit.data.splits import Splits, assign_splits
from toolkit.data.task import Task
from toolkit.errors import ConfigError, DataError


def task_from_arrays(
    images: Any,
    labels: Any,
    *,
    classes: Mapping[int, str] | Sequence[str],
    spacing: Sequence[float] | Sequence[Sequence[float] | None] | None = None,
    sites: Sequence[str] | str | None = None,
    subjects: Sequence[str] | None = None,
    splits: Splits = None,
    ids: Sequence[str] | None = None,
    groups: Sequence[str | None] | None = None,
    dims: int | None = None,
    label_values: Mapping[float, int] | None = None,
    normalisation: str = DEFAULT,
    patch_size: Sequence[int] | None = None,
    flips: Sequence[int] = (),
    name: str = "arrays",
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
        splits: see `toolkit.data.splits.assign_splits`; default 60 / 20 / 20 by subject.
        ids: case names; default case000, case001, ...
        groups: pathology group of every case.
        dims: 2 with three-dimensional arrays cuts stacks (Z, H, W) into slices; default: axes of a label.
        label_values: stored value -> class index if the labels are coded otherwise, for example {0: 0, 255: 1}.
        normalisation: rule of `toolkit.data.normalise`.
        patch_size: network input size; default from the median size.
        flips: axes along which mirroring is allowed.
        name: name of the task.

    Raises:
        DataError: shapes that do not agree, NaN or infinite voxels, labels that are no class.
        ConfigError: lists of different lengths, or a setting that cannot work.
    """
    named = checked_classes(classes)
    images = [_array(image) for image in images]
    count = len(images)
    labels = [None] * count if labels is None else [_array(label) for label in labels]
    ids = [f"case{index:03d}" for index in range(count)] if ids is None else [str(case) for case in ids]
    subjects = ids if subjects is None else [str(subject) for subject in subjects]
    sites = ["site"] * count if sites is None else [sites] * count if isinstance(sites, str) else list(sites)
    groups = [None] * count if groups is None else list(groups)
    _check_lengths(count, labels=labels, ids=ids, subjects=subjects, sites=sites, groups=groups)
    assigned = assign_splits(ids, subjects, sites, splits)
    spacings = _spacings(spacing, count)
    values = checked_values(label_values, named)
    volumes = []
    for index in range(count):
        image, label, axes = _channel_first(images[index], labels[index], dims, ids[index])
        reader = ArraySource(
            normalisation=normalisation,
            label_values=values,
            classes=tuple(named),
            image=image,
            label=label,
            name=f"array {ids[index]}",
        )
        reader.read_raw()  # every array is checked now rather than in the middle of a training
        volumes.append((reader, axes, spacings[index]))
    dims = volumes[0][1] if dims is None else dims
    cases: list[Case] = []
    for index, (reader, axes, mm) in enumerate(volumes):
        details = {
            "site": str(sites[index]),
            "split": assigned[index],
            "subject": subjects[index],
            "group": groups[index],
            "classes": named,
            "affine": None,
            "source": reader.where,
            "reader": reader,
        }
        cases += cases_of_volume(ids[index], details, reader.image.shape[1:], axes, dims, mm)
    channels = volumes[0][0].image.shape[0]
    _check_channels(cases, channels)
    sizes = [case.reader.image.shape[-dims:] for case in cases]  # type: ignore[attr-defined]
    return Task(
        name,
        cases,
        dims=dims,
        channels=channels,
        classes=named,
        patch_size=patch_size or default_patch(sizes),
        normalisation=normalisation,
        flips=flips,
    )


def cases_of_volume(
    name: str, details: Mapping[str, Any], shape: Sequence[int], axes: int, dims: int, spacing: Sequence[float] | None
) -> list[Case]:
    """One case for a volume or image, or one per slice where a stack (Z, H, W) is cut for a 2D task.

    Raises:
        DataError: an image with too few or too many axes, or a spacing for another number of axes.
    """
    if axes != dims and (axes, dims) != (3, 2):
        raise DataError(f"{name!r} has {axes} spatial axes, the task has {dims}.", where=str(details["source"]))
    if spacing is not None and len(spacing) not in {axes, dims}:
        raise DataError(
            f"{name!r} has {axes} spatial axes but a spacing of {len(spacing)} numbers.",
            where=str(details["source"]),
            fix="Give mm along every axis of the image, or None if it is not known.",
        )
    mm = None if spacing is None else tuple(float(value) for value in spacing)
    if mm is not None and not all(0 < value < float("inf") for value in mm):
        raise DataError(f"The spacing of {name!r} is {mm}.", where=str(details["source"]), fix="Use mm, above 0.")
    if axes == dims:
        return [Case(id=name, volume=name, position=None, spacing=mm, slice_spacing=None, **details)]
    between = mm[0] if mm is not None and len(mm) == 3 else None
    return [
        Case(
            id=f"{name}/slice{index:02d}",
            volume=name,
            position=index,
            index=index,
            spacing=None if mm is None else mm[-2:],
            slice_spacing=between,
            **details,
        )
        for index in range(shape[0])
    ]


def default_patch(sizes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Median size, rounded down to a multiple of 16 (2D, at most 256) or 8 (3D, at most 96), at least one multiple."""
    dims = len(sizes[0])
    multiple, largest = (16, 256) if dims == 2 else (8, 96)
    median = np.median(np.asarray(sizes), axis=0)
    return tuple(int(np.clip(side // multiple * multiple, multiple, largest)) for side in median)


def _check_lengths(count: int, **lists: Sequence[Any]) -> None:
    if not count:
        raise DataError("There are no images.", where="task_from_arrays(images=...)")
    for what, given in lists.items():
        if len(given) != count:
            where = f"task_from_arrays({what}=...)"
            raise ConfigError(f"There are {count} images but {len(given)} {what}.", where=where)


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value)


def _channel_first(
    image: np.ndarray, label: np.ndarray | None, dims: int | None, name: str
) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Image (C, *S), label (*S) and the number of spatial axes."""
    if (
        label is not None
        and label.ndim == 3
        and label.shape[0] == 1
        and dims != 3
        and image.shape[1:] == label.shape[1:]
    ) or (label is not None and label.ndim == 4 and label.shape[0] == 1):
        label = label[0]
    axes = label.ndim if label is not None else dims if dims is not None else image.ndim
    if image.ndim == axes:
        image = image[None]
    if image.ndim != axes + 1 or axes not in (2, 3):
        expected = "" if label is None else f" for a label of shape {label.shape}"
        raise DataError(
            f"The image of {name!r} has shape {image.shape}{expected}.",
            where="task_from_arrays",
            fix="Give (H, W) or (C, H, W) in 2D, (Z, H, W) or (C, Z, H, W) in 3D, channels first.",
        )
    return image, label, axes


def _spacings(spacing: Any, count: int) -> list[Sequence[float] | None]:
    if spacing is None:
        return [None] * count
    given = list(spacing)
    if all(isinstance(value, (int, float, np.number)) for value in given):
        return [tuple(float(value) for value in given)] * count
    if len(given) != count:
        raise ConfigError(f"{len(given)} spacings were given for {count} images.", where="spacing")
    return [None if value is None else tuple(float(number) for number in value) for value in given]


def _check_channels(cases: Sequence[Case], channels: int) -> None:
    for case in cases:
        own = case.reader.image.shape[0]  # type: ignore[attr-defined]
        if own != channels:
            raise DataError(
                f"The image of {case.id!r} has {own} channel(s), that of {cases[0].id!r} {channels}.",
                where=case.source,
                fix="Convert all images to the same channels.",
            )
