"""From one row of a table of cases to the reader of its files or arrays, with the geometry that they tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data import images as pictures
from toolkit.data import stacks, volumes
from toolkit.data.geometry import Geometry
from toolkit.data.source import Arrays, FunctionSource, Source, in_memory
from toolkit.data.stacks import array_shape, stack_shape
from toolkit.data.volumes import read_geometry, require_same_grid
from toolkit.errors import ConfigError, DataError

Row = dict[str, Any]
# The endings of each kind of file, and what reads it.
_KINDS: dict[str, tuple[tuple[str, ...], Callable[..., Arrays]]] = {
    "nifti": (volumes.SUFFIXES, volumes.read_pair),
    "itk": (volumes.ITK_SUFFIXES, volumes.read_itk_pair),
    "picture": (pictures.SUFFIXES, pictures.read_pair),
    "arrays": (stacks.ARRAY_SUFFIXES, stacks.read_pair),
    "pages": ((), stacks.read_page_pair),  # a picture's ending, but several pages
}
_OWN = {"nifti": ("frame", "label_frame"), "picture": ("threshold", "foreground", "background")}  # columns of one kind
READABLE = tuple(suffix for suffixes, _ in _KINDS.values() for suffix in suffixes)
# A reader, the spatial axes that it will give (slices first where a stack is cut; 0 where a side is not known before its
# voxels are read), and how to write a result back in the file's own axes, or None.
Opened = tuple[Source, tuple[int, ...], Geometry | None]


def open_row(row: Row, dims: int | None, channels: int | None, common: Mapping[str, Any]) -> Opened:
    """The reader of one row, whose columns `task_from_table` explains; an image may be a `Source` too.

    `dims` are the spatial axes of a case, where somebody says so; `channels` (1 or 3) is what pictures are brought to,
    `common` the settings of every `Source`.
    """
    image, label, axes = row["image"], row.get("label"), dims or 3
    counted = (int(row["slices"]), 0, 0) if row.get("slices") else None  # known without a look
    if isinstance(image, Source):
        known = row.get("shape") or counted or (0,) * axes
        return dataclasses.replace(image, **common), known, row.get("geometry")
    if not is_path(image) and not (isinstance(image, (list, tuple)) and all(map(is_path, image))):
        return _arrays(row, dims, common)
    files = (Path(image),) if is_path(image) else tuple(Path(path) for path in image)
    kind, geometry = kind_of(files[0]), None
    label = None if label is None or kind == "arrays" else Path(label)
    options: dict[str, Any] = {}
    shape: tuple[int, ...] = (0, 0)
    for own, keys in _OWN.items():
        if own != kind and (foreign := [key for key in keys if row.get(key)]):
            fix = "Leave it empty there; label_values says what the values of any label mean."
            raise ConfigError(f"The column {foreign[0]} means nothing for {files[0].name}.", fix=fix)
    if len(files) > 1 and kind != "nifti":
        raise DataError("Several files of one image, its channels, need NIfTI.", where=", ".join(map(str, files)))
    if kind == "nifti":
        options = {"dims": axes, "frame": row.get("frame"), "label_frame": row.get("label_frame")}
        geometry = _nifti_geometry(files, label, **options)
    elif kind == "itk":
        options, geometry = {"dims": axes}, volumes.read_itk(files[0], axes)[1]
    elif kind == "arrays":
        options = {key: row[key] for key in ("image_key", "label_key") if key in row}
        shape = counted or array_shape(files[0], options.get("image_key", "image"))
        options["axes"] = len(shape)
    elif kind == "pages":
        shape = stack_shape(files[0])
    else:
        options = {key: row[key] for key in _OWN["picture"] if key in row}
        options["channels"] = channels
    inside = pictures.SUFFIXES if kind == "picture" else ()
    how: dict[str, Any] = {"read": _KINDS[kind][1], "options": options, "kind": kind, "suffixes": inside, **common}
    reader = FunctionSource(images=files, label=label, **how)
    return reader, geometry.read_shape if geometry is not None else shape, geometry


def kind_of(path: Path) -> str:
    """`nifti`, `itk` (DICOM folder, MetaImage, NRRD), `arrays`, `picture`, or `pages` of a TIFF file, by the name."""
    name = path.name.lower()
    if name.endswith(stacks.TIFF_SUFFIXES) and path.is_file() and stack_shape(path)[0] > 1:
        return "pages"
    for kind, (suffixes, _) in _KINDS.items():
        if name.endswith(suffixes):
            return kind
    if path.is_dir():
        return "itk"
    what = "This is no image file that can be read."
    raise DataError(what, where=path, fix=f"Readable: {', '.join(READABLE)}, and folders of one DICOM series.")


def dims_of(row: Row) -> int:
    """Spatial axes of a case where nobody says: 2 for pictures, 3 for volumes of more than one slice."""
    if isinstance(row["image"], Source):
        raise ConfigError("dims is needed where a table holds readers.", fix="Pass dims=2 or dims=3.")
    reader, shape, _ = open_row(row, None, None, {})
    return 2 if isinstance(reader, FunctionSource) and reader.kind == "nifti" and min(shape) == 1 else len(shape)


def is_path(value: object) -> bool:
    """Whether a cell of a table is the path of a file."""
    return isinstance(value, (str, Path))


def as_array(value: Any) -> np.ndarray:
    """An array of a tensor or of anything that NumPy takes."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value)


def channel_first(
    image: np.ndarray, label: np.ndarray | None, dims: int | None, name: str
) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Image (C, *S), label (*S) and the number of spatial axes."""
    if label is not None and label.shape[:1] == (1,):
        flat = label.ndim == 3 and dims != 3 and image.shape[1:] == label.shape[1:]
        label = label[0] if flat or label.ndim == 4 else label
    axes = label.ndim if label is not None else dims if dims is not None else image.ndim
    fix = "Give (H, W) or (C, H, W) in 2D, (Z, H, W) or (C, Z, H, W) in 3D, channels first."
    last = image.shape[-1] if image.ndim > 2 else 0
    if last in (1, 3, 4) and min(image.shape[:-1]) >= 16 and dims != 3:
        what = f"The image of {name!r} has shape {image.shape}: its channels seem to come last."
        fix += f" numpy.moveaxis(image, -1, 0) does it; a volume of {last} slices needs dims=3."
        raise DataError(what, where="image", fix=fix)
    if image.ndim == axes:
        image = image[None]
    if image.ndim != axes + 1 or axes not in (2, 3):
        expected = "" if label is None else f" for a label of shape {label.shape}"
        raise DataError(f"The image of {name!r} has shape {image.shape}{expected}.", where="image", fix=fix)
    return image, label, axes


def _arrays(row: Row, dims: int | None, common: Mapping[str, Any]) -> Opened:
    name = str(row.get("case", "image"))
    label = None if row.get("label") is None else as_array(row["label"])
    image, label, _ = channel_first(as_array(row["image"]), label, dims, name)
    reader = FunctionSource(read=in_memory, options={"arrays": (image, label)}, name=f"array {name}", **common)
    reader.read_raw()  # every array is checked now rather than in the middle of a training
    affine = row.get("affine")
    geometry = None if affine is None else Geometry.of_array(as_array(affine), image.shape[1:], dims or 3)
    return reader, image.shape[1:], geometry


def _nifti_geometry(
    files: Sequence[Path], label: Path | None, dims: int, frame: int | None, label_frame: int | None
) -> Geometry:
    several = frame is None and len(files) == 1 and volumes.volumes_in(files[0]) > 1
    geometry = read_geometry(files[0], dims, 0 if several else frame)
    if label is not None:
        require_same_grid(geometry, read_geometry(label, dims, label_frame), files[0], label)
    return geometry
