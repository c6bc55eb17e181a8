"""From one row of an index to the reader of its files, with the geometry their headers tell."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from toolkit.data.array_files import ArrayFileSource, array_shape
from toolkit.data.geometry import Geometry
from toolkit.data.images import PictureSource
from toolkit.data.itk import ItkSource, read_itk
from toolkit.data.manifest import Manifest, filled
from toolkit.data.source import NpzSource, Source
from toolkit.data.volumes import NiftiSource, read_geometry
from toolkit.errors import DataError


@dataclasses.dataclass(frozen=True)
class Opened:
    """A reader, what is known of its geometry, and the number of slices it is cut into (None = not cut)."""

    reader: Source
    slices: int | None
    geometry: Geometry | None = None
    spacing: tuple[float, ...] | None = None
    slice_spacing: float | None = None


def open_source(manifest: Manifest, folder: Path, row: dict[str, str]) -> Opened:
    """The reader of one row.

    Raises:
        DataError: headers that are damaged or contradict each other, a number in the index that is none.
    """
    from toolkit.data.labels import checked_values

    layout = manifest.layout
    image = folder / filled(layout.image or "{image}", row, manifest)
    named = filled(layout.label or ("" if layout.rows == "table" else "{label}"), row, manifest)
    label = folder / named if named else None
    values = None if layout.label_values is None else {float(k): v for k, v in layout.label_values.items()}
    common: dict[str, Any] = {
        "normalisation": manifest.normalisation,
        "classes": tuple(sorted(manifest.classes)),
        "label_values": checked_values(values, manifest.classes),
    }
    if layout.kind in ("nifti-pairs", "itk-pairs"):
        return _volume(manifest, image, label, row, common)
    slices = _number(layout.slices, row, manifest)
    if layout.kind == "npz-stacks":
        stack = NpzSource(path=image, image_key=layout.image_key, label_key=layout.label_key, **common)
        return Opened(stack, slices)
    if layout.kind == "array-files":
        shape = array_shape(image, layout.image_key)
        arrays = ArrayFileSource(path=image, image_key=layout.image_key, label_key=layout.label_key, **common)
        return Opened(arrays, shape[0] if len(shape) == 3 and manifest.dims == 2 else None)
    channels = 3 if manifest.channel_rule == "grey-to-rgb" else None
    picture = PictureSource(
        image=image,
        label=label,
        channels=channels,
        foreground=layout.foreground,
        threshold=layout.threshold,
        background=row.get("background") == "yes",
        **common,
    )
    return Opened(picture, slices)


def _volume(manifest: Manifest, image: Path, label: Path | None, row: dict[str, str], common: dict[str, Any]) -> Opened:
    layout, dims = manifest.layout, manifest.dims
    reader: Source
    if layout.kind == "itk-pairs":
        reader, geometry = ItkSource(image=image, label=label, dims=dims, **common), read_itk(image, dims)[1]
    else:
        frame = _number(layout.frame, row, manifest)
        label_frame = _number(layout.label_frame, row, manifest)
        geometry = read_geometry(image, dims, frame)
        reader = NiftiSource(images=(image,), label=label, dims=dims, frame=frame, label_frame=label_frame, **common)
    if dims == 3:
        return Opened(reader, None, geometry, geometry.spacing)
    in_plane, between = geometry.slice_spacings()
    return Opened(reader, geometry.shape[geometry.slice_axis or 0], geometry, in_plane, between)


def _number(template: str, row: dict[str, str], manifest: Manifest) -> int | None:
    if not template:
        return None
    text = filled(template, row, manifest)
    try:
        return int(text)
    except ValueError as error:
        raise DataError(
            f"The index has {text!r} where a whole number is needed.",
            where=f"{manifest.name}: {template}",
            fix="Get the table of the data set again.",
        ) from error
