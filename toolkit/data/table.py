"""`task_from_table`, the one road into a task, a row a case; `task_from_arrays` for what is already in memory."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, Unpack

import numpy as np

from toolkit.data.case import Case
from toolkit.data.images import picture_shape
from toolkit.data.labels import checked_classes, checked_values
from toolkit.data.normalise import DEFAULT, check_rule
from toolkit.data.reading import Row, dims_of, open_row
from toolkit.data.rows import columns_of, completed, plain, table_rows
from toolkit.data.source import FunctionSource
from toolkit.data.splits import Splits
from toolkit.data.task import Task
from toolkit.errors import DataError, ToolkitWarning
from toolkit.registry import register
from toolkit.results import DataFrame


class TaskSettings(TypedDict, total=False):
    """Keywords of every function that makes a task of one's own data."""

    regions: Mapping[str, Sequence[int]] | None
    splits: Splits
    label_values: Mapping[float, int] | Mapping[str, int] | None
    normalisation: str
    patch_size: Sequence[int] | None
    flips: Sequence[int]


@register("task", "task_from_table")
def task_from_table(
    frame: DataFrame | Iterable[Mapping[str, Any]] | Mapping[str, Sequence[Any]] | str | os.PathLike[str],
    *,
    classes: Mapping[int, str] | Mapping[str, str] | Sequence[str],
    regions: Mapping[str, Sequence[int]] | None = None,
    folder: str | os.PathLike[str] | None = None,
    splits: Splits = None,
    dims: int | None = None,
    channels: int | None = None,
    label_values: Mapping[float, int] | Mapping[str, int] | None = None,
    normalisation: str = DEFAULT,
    patch_size: Sequence[int] | None = None,
    flips: Sequence[int] = (),
    name: str = "table",
    check: bool = True,
) -> Task:
    """Make a task from a table, a row a case (or a stack that becomes a case a slice).

    Columns, of which only `image` is needed: `image` (a file; several files, its channels, as a list or with ";"
    between them in a text; the folder of a DICOM series; or an array (*S) or (C, *S)), `label` (the same, or empty),
    `case` (its name; default the file's), `subject` (splits never divide one; default read from the names where
    their pattern is plain, which is said, else every case its own), `site`, `split` (train, val or test), `volume`
    and `position` (stack of a picture and its place there), `spacing` (mm along the axes, slice distance first, for
    files that do not say), `group`, `affine` (4 x 4, of arrays); for special files `frame` and `label_frame` (of
    4-D NIfTI; without `frame` the fourth axis is the channels), `image_key` and `label_key` (arrays of `.npz` and
    HDF5 files), `threshold` (label values from here on are class 1), `foreground` (all above 0 are), `background`
    (no label file: background everywhere), `slices`.

    Args:
        frame: the table: a DataFrame, rows as dicts, columns as a dict, or the path of a CSV file.
        classes: class names by index, 0 = background.
        regions: overlapping regions made of classes, for networks with a sigmoid an output: {"whole": (1, 2, 3)}.
        folder: what relative paths start from; default the folder of the CSV file, else the current one.
        splits: where there is no column `split`, see `toolkit.data.splits.assign_splits`; default 60 / 20 / 20 by
            subject within each site.
        dims: 2 cuts volumes into slices along their coarsest axis; default 3 for volumes, 2 for pictures.
        channels: 1 or 3 brings all pictures to that many channels (grey is repeated).
        label_values: stored value -> class index if the labels are coded otherwise, for example {0: 0, 255: 1}.
        normalisation: rule of `toolkit.data.normalise`, applied per file.
        patch_size: network input size; default from the median size.
        flips: axes along which mirroring is allowed.
        name: name of the task.
        check: read every file now (default), so that a bad one is found before a training starts; False reads
            headers only.

    Raises:
        DataError: no rows, files that cannot be trusted, images that do not fit each other.
        ConfigError: columns that are not known, an invalid setting.

    Example:
        >>> rows = [{"image": f"images/{n}.png", "label": f"labels/{n}.png", "subject": n // 2} for n in range(10)]
        >>> own = tk.task_from_table(rows, classes=["background", "tumour"], flips=(0, 1))
    """
    given = dict(locals())
    named, rule = checked_classes(classes), check_rule(normalisation)
    rows = completed(table_rows(frame, folder), splits)
    dims = dims or dims_of(rows[0])
    common = {"normalisation": rule, "label_values": checked_values(label_values, named), "classes": tuple(named)}
    cases, sizes = cases_of_rows(rows, dims, channels, common, named)
    cases, counted = _checked_channels(cases, check)
    file = isinstance(frame, (str, os.PathLike))
    stored: Any = os.path.abspath(str(frame)) if file else columns_of(rows)
    below = os.path.abspath(folder) if file and folder is not None else None
    settings = {"frame": stored, "classes": named, "folder": below, "splits": splits if file else None, "dims": dims}
    channels = counted if counted == 1 else channels
    config = recipe("task_from_table", given, **settings, channels=channels, check=False)
    return Task(
        name,
        cases,
        dims=dims,
        channels=counted,
        classes=named,
        regions=regions,
        patch_size=patch_size or default_patch(cases, sizes),
        normalisation=rule,
        flips=flips,
        toolkit_config=None if stored is None else config,
    )


TaskSettings.__doc__ = task_from_table.__doc__  # explains them, where the others stand too


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
    one = spacing is not None and all(isinstance(value, (int, float, np.number)) for value in spacing)
    ids = [f"case{index:03d}" for index in range(count)] if ids is None else ids
    columns = {
        "image": images,
        "label": labels,
        "case": ids,
        "subject": ids if subjects is None else subjects,
        "site": [sites] * count if isinstance(sites, str) else sites,
        "group": groups,
        "spacing": [spacing] * count if one else spacing,
    }
    given = {name: list(column) for name, column in columns.items() if column is not None}
    return task_from_table(given, classes=classes, dims=dims, name=name, **settings)


def recipe(factory: str, given: Mapping[str, Any], /, **resolved: Any) -> dict[str, Any]:
    """What `registry.build` takes to make a task again: the factory's name and its arguments as plain values.

    Of those `given`, some are stored otherwise (`resolved`), such as paths from the root; what was left out is left out.
    """
    arguments = {**given, **given.get("settings", {}), **resolved, "settings": None}
    stored = {key: plain(value) for key, value in arguments.items() if value is not None and value != ()}
    return {"name": factory, "arguments": stored}


def cases_of_rows(
    rows: Iterable[Row], dims: int, channels: int | None, common: Mapping[str, Any], classes: Mapping[int, str]
) -> tuple[list[Case], list[tuple[int, ...]]]:
    """The cases of completed rows, one a slice where a stack is cut for a 2D task, and their sizes (0: not known yet)."""
    cases: list[Case] = []
    sizes: list[tuple[int, ...]] = []
    for row in rows:
        reader, shape, geometry = open_row(row, dims, channels, common)
        name, where, position = row["case"], reader.where, row.get("position")
        if len(shape) != dims and (len(shape), dims) != (3, 2):
            raise DataError(f"{name!r} has {len(shape)} spatial axes, not {dims}.", where=where)
        mm = _spacing(row, len(shape), None if geometry is None else geometry.read_spacing, where, dims)
        affine = row.get("affine") if geometry is None else geometry.affine
        case = Case(
            **{column: row[column] for column in ("site", "split", "subject")},
            id=name,
            volume=str(row.get("volume", name)),
            position=None if position is None else int(position),
            group=row.get("group"),
            classes=dict(classes),
            spacing=None if mm is None else mm[-dims:],
            slice_spacing=mm[0] if mm is not None and len(mm) == 3 and dims == 2 else None,
            affine=None if affine is None else np.asarray(affine, dtype=float),
            source=where,
            reader=reader,
            geometry=geometry,
        )
        own = [case]
        if len(shape) > dims:
            own = [dataclasses.replace(case, id=f"{name}/slice{n:02d}", position=n, index=n) for n in range(shape[0])]
        cases += own
        sizes += [shape[-dims:]] * len(own)
    return cases, sizes


def default_patch(cases: Sequence[Case], sizes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Median size, rounded down to a multiple of 16 (2D, at most 256) or 8 (3D, at most 96), at least one multiple."""
    known = []
    for case, size in zip(cases, sizes, strict=True):
        if not all(size):
            reader = case.reader
            picture = reader.images[0] if isinstance(reader, FunctionSource) and reader.kind == "picture" else None
            size = tuple(case.image_array().shape[1:]) if picture is None else picture_shape(picture)
        known.append(size)
    multiple, largest = (16, 256) if len(sizes[0]) == 2 else (8, 96)
    median = np.median(np.asarray(known), axis=0)
    return tuple(int(np.clip(side // multiple * multiple, multiple, largest)) for side in median)


def _spacing(row: Row, axes: int, known: tuple[float, ...] | None, where: str, dims: int) -> tuple[float, ...] | None:
    """Mm along the axes: of the file's header (`known`), else of the table."""
    given, name = row.get("spacing"), row["case"]
    if given is None:
        return known
    given = tuple(float(value) for value in given)
    stacked = dims == 2 and axes == 2 and "volume" in row
    if len(given) not in {axes, dims, 3 if stacked else axes}:
        what = f"{name!r} has {axes} spatial axes but a spacing of {len(given)} numbers."
        raise DataError(what, where=where, fix="Give mm along every axis of the image, or None if it is not known.")
    if not all(0 < value < float("inf") for value in given):
        raise DataError(f"The spacing of {name!r} is {given}.", where=where, fix="Use mm, above 0.")
    if known is not None and not np.allclose(given, known[-len(given) :], rtol=0.01):
        what = f"The header of {name!r} gives a spacing of {known} mm, the table {given}."
        fix = "Leave the column spacing empty for files that say it, or correct one of them."
        raise DataError(what, where=where, fix=fix)
    return known or given


def _checked_channels(cases: list[Case], check: bool) -> tuple[list[Case], int]:
    """Cases and the channels of their images; with `check` all files are read, and one grey channel told from three."""
    counted: dict[int, Case] = {}
    errors: list[DataError] = []
    readers: dict[int, Case] = {}
    for case in cases:
        readers.setdefault(id(case.reader), case)
    grey = check
    for case in readers.values() if check else cases[:1]:
        try:
            image = case.reader.read_raw().image
        except DataError as error:
            errors.append(error)
            continue
        counted.setdefault(image.shape[0], case)
        mergeable = isinstance(case.reader, FunctionSource) and case.reader.options.get("channels", 0) is None
        grey = grey and mergeable and image.shape[0] in (1, 3) and bool((image == image[:1]).all())
    if len(errors) > 1:
        others = "; ".join(f"{error.where}: {error.what}" for error in errors[1:5])
        what = f"{len(errors)} of {len(readers)} cases cannot be used. The first: {errors[0].what}"
        raise DataError(what, where=f"{errors[0].where} (next: {others})", fix=errors[0].fix)
    if errors:
        raise errors[0]
    if grey and 3 in counted:
        what = "The pictures hold the same grey channel three times; they are read as one channel."
        warnings.warn(f"{what} Pass channels=3 to keep three, or channels=1 to say so.", ToolkitWarning, stacklevel=4)
        own: Any = [case.reader for case in cases]
        merged = [dataclasses.replace(one, options={**one.options, "channels": 1}) for one in own]
        return [dataclasses.replace(case, reader=one) for case, one in zip(cases, merged, strict=True)], 1
    if len(counted) > 1:
        (first, one), (second, other), *_ = counted.items()
        what = f"The image of {other.id!r} has {second} channel(s), that of {one.id!r} {first}."
        fix = "Pass channels=1 or channels=3 (pictures), or convert the images."
        raise DataError(what, where=f"{one.source}; {other.source}", fix=fix)
    return cases, next(iter(counted))
