"""`task_from_dataset`: a task from any map-style data set: MONAI's, TorchIO's, torch's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from torch import Tensor

from toolkit.data.geometry import LPS, Geometry
from toolkit.data.reading import Row, as_array, channel_first
from toolkit.data.source import Arrays, FunctionSource
from toolkit.data.table import TaskSettings, task_from_table
from toolkit.data.task import Task
from toolkit.errors import ConfigError, DataError

_NAMES = ("case", "subject", "site", "split", "group", "volume")


def read_item(
    images: tuple[Path, ...], label: None, *, items: Any, index: int, keys: tuple[str, str], place: tuple[Any, ...]
) -> Arrays:
    """The arrays of one item of a data set; `place`: spatial axes of a case, geometry of the item, name of the case."""
    dims, geometry, name = place
    image, mask, _ = arrays_of(items[index], keys, dims, name)
    if geometry is None or geometry.slice_axis is None:
        return image, mask
    # slices first where a 2D task cuts a volume
    return np.stack([geometry.arrange(channel) for channel in image]), None if mask is None else geometry.arrange(mask)


def task_from_dataset(
    dataset: Any,
    *,
    classes: Mapping[int, str] | Mapping[str, str] | Sequence[str],
    keys: tuple[str, str] = ("image", "label"),
    sites: Sequence[str] | str | None = None,
    subjects: Sequence[str] | None = None,
    dims: int | None = None,
    name: str = "dataset",
    **settings: Unpack[TaskSettings],
) -> Task:
    """Make a task from a map-style data set: `len(dataset)` items that are dicts or pairs (image, label).

    Items of MONAI (`Dataset`, `CacheDataset`, MetaTensor) and of TorchIO (`SubjectsDataset`) keep their affine and
    the name of their file; other entries called case, subject, site, split, group or volume are taken over. Items are
    read again whenever they are needed and must then be the same: leave random transforms out, `loader` augments.

    Args:
        dataset: gives `len()` and `[index]`.
        classes: class names by index, 0 = background.
        keys: entries of the image and of the label in items that are dicts.
        sites: site of every item, or one name.
        subjects: subject of every item; default as in `task_from_table`.
        dims: 2 cuts volumes into slices along their coarsest axis; default the axes of an item.
        name: name of the task.
        **settings: regions, splits, label_values, normalisation, patch_size and flips, see `task_from_table`.

    Raises:
        DataError: no items, items without an image, random transforms, arrays that do not fit each other.
        ConfigError: no map-style data set, or lists of another length.

    Example:
        >>> pairs = [(c.image, c.label) for c in task.cases("train")]  # any data set with len() and [index]
        >>> own = tk.task_from_dataset(pairs, classes=task.classes, subjects=[c.subject for c in task.cases("train")])
    """
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or isinstance(dataset, Mapping):
        fix = "Give one with len() and [index]; of a loader its .dataset, of an iterable a list."
        raise ConfigError(f"{type(dataset).__name__} is no map-style data set.", where="task_from_dataset", fix=fix)
    count = len(dataset)
    if not count:
        raise DataError("The data set has no items.", where="task_from_dataset")
    rows = [_row(dataset, index, keys, dims) for index in range(count)]
    first, second = (arrays_of(dataset[0], keys, dims, "0")[0] for _ in range(2))
    if first.shape != second.shape or not np.array_equal(first, second, equal_nan=True):
        what = "The data set gives another image every time it is asked: its transforms are random."
        fix = "Leave random transforms out; task.loader(augmentation=...) and training augment."
        raise DataError(what, where="task_from_dataset", fix=fix)
    for column, given in (("site", [sites] * count if isinstance(sites, str) else sites), ("subject", subjects)):
        if given is not None and len(given) != count:
            raise ConfigError(f"There are {count} items but {len(given)} {column}s.", where="task_from_dataset")
        for row, value in zip(rows, given or (), strict=False):
            row[column] = value
    return task_from_table(rows, classes=classes, dims=dims or len(rows[0]["shape"]), name=name, **settings)


def arrays_of(
    item: Any, keys: tuple[str, str], dims: int | None, name: str
) -> tuple[np.ndarray, np.ndarray | None, Mapping[str, Any]]:
    """Image (C, *S), label (*S) or None of one item, and what is known of its place, as `unpacked` gives it."""
    image, label = _entries(item, keys, name)
    place = unpacked({"image": image, "label": label})
    pixels, mask = as_array(place["image"]), None if place["label"] is None else as_array(place["label"])
    if dims == 2 and pixels.ndim == 4 and pixels.shape[-1] == 1:  # TorchIO's pictures have a third axis of one voxel
        pixels, mask = pixels[..., 0], None if mask is None else mask[..., 0]
    if mask is not None and mask.dtype.kind == "f" and (mask == np.round(mask)).all():
        mask = mask.astype(np.int64)  # MONAI's loader gives every array as float
    pixels, mask, _ = channel_first(pixels, mask, dims if mask is None and dims == pixels.ndim - 1 else None, name)
    return pixels, mask, place


def _entries(item: Any, keys: tuple[str, str], name: str) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        if keys[0] not in item:
            fix = f"It has {', '.join(map(str, item))}."
            raise DataError(f"The item {name} has no entry {keys[0]!r}.", where="keys", fix=fix)
        return item[keys[0]], item.get(keys[1])
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return item[0], item[1]
    if isinstance(item, np.ndarray) or hasattr(item, "detach"):
        return item, None
    raise DataError(f"The item {name} is a {type(item).__name__}.", fix="Give dicts or pairs (image, label).")


def _row(dataset: Any, index: int, keys: tuple[str, str], dims: int | None) -> Row:
    item, name = dataset[index], f"case{index:03d}"
    image, _, place = arrays_of(item, keys, dims, name)
    affine = place.get("affine")
    if place.get("source"):
        name = Path(place["source"]).name.split(".", 1)[0]
    row: Row = {"case": name, "shape": image.shape[1:]}
    if isinstance(item, Mapping):
        row |= {key: str(item[key]) for key in _NAMES if isinstance(item.get(key), (str, int))}
    geometry = None if affine is None else Geometry.of_array(affine, image.shape[1:], 3)
    if geometry is not None:
        geometry = geometry.for_dims(dims or 3)
        row["shape"] = geometry.read_shape
    elif affine is not None:
        row["affine"] = affine
        row["spacing"] = tuple(float(mm) for mm in np.linalg.norm(affine[:3, : image.ndim - 1], axis=0))
    row["geometry"] = geometry
    options = {"items": dataset, "index": index, "keys": keys, "place": (dims, geometry, row["case"])}
    row["image"] = FunctionSource(read=read_item, options=options, name=f"{type(dataset).__name__}[{index}]")
    return row


def unpacked(value: Any) -> Any:
    """A MetaTensor, a TorchIO image or Subject, or a dict that holds them, as a dict of plain arrays; others unchanged.

    The voxel-to-world matrix (mm, right-anterior-superior) becomes `affine` and `spacing`. An identity without a file
    is what both libraries put where nothing is known, so it counts as unknown.
    """
    if _is_foreign(value):
        return _fields(value)
    if not isinstance(value, Mapping) or not any(_is_foreign(one) for one in value.values()):
        return value
    entries = dict(value)
    for name, kind in (("image", "intensity"), ("label", "label")):
        if name not in entries:
            candidates = [key for key, one in entries.items() if _kind(one) == kind]
            if len(candidates) > 1 and name == "image":
                what = f"A Subject with the images {', '.join(map(str, candidates))} needs one called 'image'."
                raise DataError(what, fix="Join the channels in one ScalarImage and call it 'image'.")
            if len(candidates) == 1:
                entries[name] = entries.pop(candidates[0])
    plain = {key: _fields(one)["image"] if _is_foreign(one) else one for key, one in entries.items()}
    image = entries.get("image")
    return {**(_fields(image) if _is_foreign(image) else {}), **plain}


def _is_foreign(value: Any) -> bool:
    if isinstance(value, Mapping):  # a collated TorchIO image
        return {"data", "affine"} <= set(value)
    return hasattr(value, "affine") and (hasattr(value, "meta") or hasattr(value, "data")) and not hasattr(value, "id")


def _kind(value: Any) -> str:
    """The type of a TorchIO image, "intensity" or "label"; "" of anything else."""
    kind = value.get("type", "") if isinstance(value, Mapping) else getattr(value, "type", "")
    kind = kind[0] if isinstance(kind, (list, tuple)) and kind else kind
    return kind if isinstance(kind, str) else ""


def _fields(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        known = {"path": getattr(value, "path", None), **getattr(value, "meta", {}), "affine": value.affine}
        value = {**known, "data": value if isinstance(value, Tensor) else value.data}
    data, matrix, source = value["data"], value["affine"], value.get("path") or value.get("filename_or_obj")
    data = data.as_tensor() if hasattr(data, "as_tensor") else data
    affine = np.asarray(matrix.cpu() if isinstance(matrix, Tensor) else matrix, dtype=np.float64)
    affine = LPS @ affine if str(value.get("space", "RAS")).upper() == "LPS" else affine
    if affine.ndim == 3:
        sources = list(source) if isinstance(source, (list, tuple)) else [source] * len(affine)
        places = [_place(one, file) for one, file in zip(affine, sources, strict=True)]
        return {"image": data, **{name: [place.get(name) for place in places] for name in places[0]}}
    return {"image": data, **_place(affine, source)}


def _place(affine: np.ndarray, source: Any) -> dict[str, Any]:
    known = bool(source) or not np.array_equal(affine, np.eye(len(affine)))
    spacing = tuple(float(length) for length in np.linalg.norm(affine[:-1, :-1], axis=0)) if known else None
    return {"affine": affine if known else None, "spacing": spacing, "source": str(source or "")}
