"""Slices and stacks in `.npz`, HDF5 and multi-page TIFF files.

Arrays are stored as the preprocessing of Synapse and ACDC in this literature has them; pages are the slices of a stack.
"""

from __future__ import annotations

import contextlib
import logging.handlers
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.source import Arrays, decoding, read_npz, require_file
from toolkit.errors import DataError, library

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")
ARRAY_SUFFIXES = (".npz", *HDF5_SUFFIXES)
TIFF_SUFFIXES = (".tif", ".tiff")
_MOST_VOXELS = 2**31


def read_pair(
    images: tuple[Path, ...], _: None, *, image_key: str = "image", label_key: str = "label", axes: int | None = None
) -> Arrays:
    """One slice (1, H, W) or one stack (1, Z, H, W), as `axes` says, with its label, of one file of plain arrays."""
    arrays = read_arrays(images[0], [image_key, label_key])
    image = arrays[image_key]
    if image.ndim not in ((2, 3) if axes is None else (axes,)):
        wanted = {2: "rows x columns", 3: "slices x rows x columns"}.get(axes or 0, "a slice or a stack")
        what = f"The array {image_key!r} has shape {image.shape}, not {wanted}."
        raise DataError(what, where=images[0], fix="Store rows x columns, or slices x rows x columns.")
    return image[None], arrays[label_key]


def read_arrays(path: Path, keys: list[str]) -> dict[str, np.ndarray]:
    """Read named arrays of an `.npz` or HDF5 file; nothing stored in it is run and no other file is opened."""
    if not path.name.lower().endswith(HDF5_SUFFIXES):
        return read_npz(path, keys)
    with _hdf5(path) as file:
        return {key: _dataset(file, key, path)[()] for key in keys}


def array_shape(path: Path, key: str) -> tuple[int, ...]:
    """Shape of one array; of an HDF5 file only the header is read."""
    if not path.name.lower().endswith(HDF5_SUFFIXES):
        return read_npz(path, [key])[key].shape
    with _hdf5(path) as file:
        return tuple(int(side) for side in _dataset(file, key, path).shape)


@contextlib.contextmanager
def _hdf5(path: Path) -> Iterator[Any]:
    """An HDF5 file, with every failure of the library turned into an error that names the file."""
    require_file(path)
    h5py = library("h5py", "HDF5 files need")
    fix = "Copy or download it again; check it with task.verify()."
    with decoding(path, "a readable HDF5 file", fix), h5py.File(path, "r") as file:
        yield file


def _dataset(file: Any, key: str, path: Path) -> Any:
    import h5py

    if key not in file:
        what = f"The file has no array called {key}."
        raise DataError(what, where=path, fix=f"It holds {', '.join(file) or 'nothing'}; name the arrays accordingly.")
    dataset = None if isinstance(file.get(key, getlink=True), h5py.ExternalLink) else file[key]
    if dataset is None or (isinstance(dataset, h5py.Dataset) and (dataset.external or dataset.is_virtual)):
        fix = "Store it in this file: links are refused."
        raise DataError(f"The array {key} lies in another file.", where=path, fix=fix)
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "buif":
        raise DataError(f"{key} is no array of numbers.", where=path, fix="Store plain number arrays.")
    if dataset.size > _MOST_VOXELS:
        raise DataError(f"The header gives {key} the shape {dataset.shape}.", where=path, fix="It is damaged.")
    return dataset


def read_page_pair(images: tuple[Path, ...], label: Path | None) -> Arrays:
    """A stack (1, Z, H, W) of the pages of one TIFF file and its label (Z, H, W) in another; grey pages only."""
    return read_pages(images[0])[None], None if label is None else read_pages(label)


def read_pages(path: Path) -> np.ndarray:
    """All pages as (Z, H, W)."""
    shape = stack_shape(path)
    with _tiff(path) as file:
        pages, first = np.stack([page.asarray() for page in file.pages]), file.pages[0]
    if pages.shape != shape:
        raise DataError(f"The pages are {pages.shape}, the header says {shape}.", where=path, fix="Export it again.")
    return ~pages if pages.itemsize == 1 and first.photometric.name == "MINISWHITE" else pages  # as Pillow reads one


def stack_shape(path: Path) -> tuple[int, ...]:
    """(pages, rows, columns) by the headers; one page is a picture, not a stack."""
    with _tiff(path) as file:
        shapes = {tuple(int(side) for side in page.shape) for page in file.pages}
        count = len(file.pages)
    if count == 1:
        return (1, *next(iter(shapes))[:2])
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        what = f"The pages have the shapes {sorted(shapes)}; a stack has grey pages of one size."
        raise DataError(what, where=path, fix="Save colour as one file a page, thumbnails in files of their own.")
    shape = (count, *next(iter(shapes)))
    if int(np.prod(shape, dtype=np.int64)) > _MOST_VOXELS:
        raise DataError(f"The header gives the shape {shape}.", where=path, fix="It is damaged.")
    return shape


@contextlib.contextmanager
def _tiff(path: Path) -> Iterator[Any]:
    """The file; what tifffile only logs (pages that are cut off, for one) is an error here."""
    import tifffile

    require_file(path)
    log, complaints = tifffile.logger(), logging.handlers.BufferingHandler(capacity=1000)
    complaints.setLevel(logging.ERROR)
    log.addHandler(complaints)
    propagates, log.propagate = log.propagate, False
    try:
        with decoding(path, "a complete TIFF file"):
            with tifffile.TiffFile(path) as file:
                yield file
            if complaints.buffer:
                raise ValueError(complaints.buffer[0].getMessage())
    finally:
        log.removeHandler(complaints)
        log.propagate = propagates
