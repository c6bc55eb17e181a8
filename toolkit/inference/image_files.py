"""Image files as inputs of an analysis, read and normalised as a task's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.first_reading import check as check_first_reading
from toolkit.data.normalise import DEFAULT, normalise
from toolkit.errors import DataError

_NIFTI = (".nii", ".nii.gz")
_PICTURES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")


def read_items(
    paths: Sequence[str],
    dims: int | None,
    channels: int | None = None,
    label: str | None = None,
    normalisation: str = DEFAULT,
) -> Iterator[dict[str, Any]]:
    """One dict per image of a file: image (C, *S), label, id, volume, spacing, affine, source.

    A NIfTI volume gives one image per slice for a 2D network. Images are normalised over the whole file.

    Args:
        paths: one file, or several NIfTI files, one a channel.
        dims: spatial axes that the network takes.
        channels: that a picture is to have; None = its own.
        label: file of the label.
        normalisation: rule, see `toolkit.data.normalise`.

    Raises:
        DataError: missing, damaged or foreign file.
    """
    files = [Path(path) for path in paths]
    file, names = files[0], [Path(path).name.lower() for path in paths]
    if all(name.endswith(_NIFTI) for name in names):
        yield from _nifti(files, dims, label, normalisation)
    elif len(files) > 1 or not names[0].endswith((*_PICTURES, ".npy")):
        raise DataError(
            f"{', '.join(one.name for one in files)} cannot be read here.",
            where=str(file),
            fix=f"Pass one of {', '.join((*_NIFTI, *_PICTURES, '.npy'))}, several NIfTI files (a channel each), or the "
            "array itself.",
        )
    elif names[0].endswith(_PICTURES):
        from toolkit.data.images import PictureSource

        marks = None if label is None else Path(label)
        pair = PictureSource(image=file, label=marks, channels=channels, normalisation=normalisation).pair()
        yield {"image": pair.image, "label": pair.label, "id": file.stem, "source": str(file)}
    else:
        check_first_reading([file])
        marks = None if label is None else np.load(label)
        yield {"image": _array(file, normalisation), "label": marks, "id": file.stem, "source": str(file)}


def _nifti(files: list[Path], dims: int | None, label: str | None, normalisation: str) -> Iterator[dict[str, Any]]:
    from toolkit.data.volumes import NiftiSource, read_geometry

    axes, file = dims or 3, files[0]
    marks = None if label is None else Path(label)
    source = NiftiSource(images=tuple(files), label=marks, dims=axes, normalisation=normalisation)
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


def _array(file: Path, normalisation: str) -> np.ndarray:
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"This array cannot be read ({error}).", where=str(file)) from error
    return normalise(array if array.ndim > 2 else array[None], normalisation)
