"""Slices and stacks in `.npz` or HDF5 files, as the preprocessing of Synapse and ACDC in this literature stores them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.source import Pair, Source, checked_pair, decoding, read_npz, require_file
from toolkit.errors import DataError

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")
SUFFIXES = (".npz", *HDF5_SUFFIXES)
_MOST_VOXELS = 2**31


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayFileSource(Source):
    """One slice (H, W) or one stack (Z, H, W), as `axes` says, with its label in one file of plain arrays."""

    path: Path = Path()
    image_key: str = "image"
    label_key: str | None = "label"
    axes: int | None = None

    def read_raw(self) -> Pair:
        """Read both arrays; the image gets a channel axis."""
        arrays = read_arrays(self.path, [key for key in (self.image_key, self.label_key) if key])
        image = arrays[self.image_key]
        if image.ndim not in ((2, 3) if self.axes is None else (self.axes,)):
            wanted = {2: "rows x columns", 3: "slices x rows x columns"}.get(self.axes or 0, "a slice or a stack")
            what = f"The array {self.image_key!r} has shape {image.shape}, not {wanted}."
            raise DataError(what, where=self.path, fix="Store rows x columns, or slices x rows x columns.")
        return checked_pair(image[None], arrays[self.label_key] if self.label_key else None, self)

    @property
    def where(self) -> str:
        return str(self.path)

    def files(self) -> tuple[Path, ...]:
        return (self.path,)


def read_arrays(path: Path, keys: list[str]) -> dict[str, np.ndarray]:
    """Read named arrays of an `.npz` or HDF5 file; nothing stored in it is run and no other file is opened."""
    if not path.name.lower().endswith(HDF5_SUFFIXES):
        return read_npz(path, keys)
    with _opened(path) as file:
        return {key: _dataset(file, key, path)[()] for key in keys}


def array_shape(path: Path, key: str) -> tuple[int, ...]:
    """Shape of one array; of an HDF5 file only the header is read."""
    if not path.name.lower().endswith(HDF5_SUFFIXES):
        return read_npz(path, [key])[key].shape
    with _opened(path) as file:
        return tuple(int(side) for side in _dataset(file, key, path).shape)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An HDF5 file, with every failure of the library turned into an error that names the file."""
    require_file(path)
    try:
        import h5py
    except ImportError as error:
        what = "HDF5 files need the package h5py, which is not installed."
        raise DataError(what, where=path, fix="pip install h5py") from error
    fix = "Copy or download it again; check it with task.verify()."
    with decoding(path, "a readable HDF5 file", fix), h5py.File(path, "r") as file:
        yield file


def _dataset(file: Any, key: str, path: Path) -> Any:
    import h5py

    if key not in file:
        what = f"The file has no array called {key}."
        raise DataError(what, where=path, fix=f"It holds {', '.join(file) or 'nothing'}; name the arrays accordingly.")
    link = file.get(key, getlink=True)
    dataset = None if isinstance(link, h5py.ExternalLink) else file[key]
    if dataset is None or (isinstance(dataset, h5py.Dataset) and (dataset.external or dataset.is_virtual)):
        fix = "Store it in this file: links are refused."
        raise DataError(f"The array {key} lies in another file.", where=path, fix=fix)
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "buif":
        raise DataError(f"{key} is no array of numbers.", where=path, fix="Store plain number arrays.")
    if dataset.size > _MOST_VOXELS:
        raise DataError(f"The header gives {key} the shape {dataset.shape}.", where=path, fix="It is damaged.")
    return dataset
