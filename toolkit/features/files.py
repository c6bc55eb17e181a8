"""Image files as inputs of an analysis, read by the data room and normalised by its default rule."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.normalise import DEFAULT, normalise
from toolkit.errors import DataError

_NIFTI = (".nii", ".nii.gz")
_PICTURES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")


def read_items(path: str, dims: int | None, label: str | None = None) -> Iterator[dict[str, Any]]:
    """One dict per image of a file: image (C, *S), label, id, volume, spacing, affine, source.

    A NIfTI volume gives one image per slice for a 2D network. Images are normalised over the whole file by
    `toolkit.data.normalise`'s default rule; load a task instead if the network was trained with another one.

    Raises:
        DataError: missing, damaged or foreign file.
    """
    file = Path(path)
    name = file.name.lower()
    if name.endswith(_NIFTI):
        yield from _nifti(file, dims, label)
    elif name.endswith(_PICTURES):
        from toolkit.data.images import PictureSource

        pair = PictureSource(image=file, label=None if label is None else Path(label)).pair()
        yield {"image": pair.image, "label": pair.label, "id": file.stem, "source": str(file)}
    elif name.endswith(".npy"):
        yield {
            "image": _array(file),
            "label": None if label is None else np.load(label),
            "id": file.stem,
            "source": str(file),
        }
    else:
        raise DataError(
            f"{file.name} is not an image file that can be read here.",
            where=str(file),
            fix=f"Pass one of {', '.join((*_NIFTI, *_PICTURES, '.npy'))}, or the array itself.",
        )


def _nifti(file: Path, dims: int | None, label: str | None) -> Iterator[dict[str, Any]]:
    from toolkit.data.volumes import NiftiSource, read_geometry

    axes = dims or 3
    source = NiftiSource(images=(file,), label=None if label is None else Path(label), dims=axes)
    pair, geometry = source.pair(), read_geometry(file, axes)
    stem = file.name[: -len(".nii.gz" if file.name.lower().endswith(".gz") else ".nii")]
    known = {"volume": stem, "source": str(file), "affine": geometry.affine, "geometry": geometry}
    spacing = geometry.spacing
    if spacing is not None and axes == 2:
        spacing = tuple(mm for axis, mm in enumerate(spacing) if axis != geometry.slice_axis)
    if axes == 3:
        yield {"image": pair.image, "label": pair.label, "id": stem, "spacing": spacing, **known}
        return
    for position in range(pair.image.shape[1]):
        yield {
            "image": pair.image[:, position],
            "label": None if pair.label is None else pair.label[position],
            "id": f"{stem}/slice{position:02d}",
            "position": position,
            "spacing": spacing,
            **known,
        }


def _array(file: Path) -> np.ndarray:
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"This array cannot be read ({error}).", where=str(file)) from error
    return normalise(array if array.ndim > 2 else array[None], DEFAULT)
