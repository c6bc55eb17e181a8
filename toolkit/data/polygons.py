"""Outlines of objects in XML (the Aperio ImageScope format that MoNuSeg uses) as a map of numbered objects."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from toolkit.data.source import require_file
from toolkit.errors import DataError

_MOST_BYTES = 2**28


def read_polygons(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Objects (H, W) as uint16, numbered from 1 in the order of the file; where two overlap the first one holds.

    A pixel belongs to an outline if its centre is inside by the even-odd rule; the centre of the first pixel has the
    coordinates (0.5, 0.5).
    """
    require_file(path)
    if path.stat().st_size > _MOST_BYTES:
        raise DataError("The XML file is larger than 256 MiB.", where=path, fix="It is no outline file.")
    content = path.read_bytes()
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content or b"\x00" in content:
        what = "The XML file declares a document type or entities, which outlines do not need and which are unsafe."
        raise DataError(what, where=path, fix="Take the file as it was published.")
    try:
        root = ElementTree.fromstring(content)
        outlines = [
            np.asarray([(float(v.attrib["X"]), float(v.attrib["Y"])) for v in region.iter("Vertex")])
            for region in root.iter("Region")
        ]
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        what = f"The XML file cannot be read as outlines ({type(error).__name__}: {error})."
        raise DataError(what, where=path, fix="Take the file as it was published.") from error
    if not outlines:
        raise DataError("The XML file has no regions.", where=path, fix="Check that it belongs to the image.")
    objects = np.zeros(shape, np.uint16)
    for number, outline in enumerate(outlines, start=1):
        _check_outline(outline, shape, number, path)
        rows, columns, inside = fill(outline, shape)
        window = objects[rows, columns]
        window[inside & (window == 0)] = number
    return objects


def fill(outline: np.ndarray, shape: tuple[int, int]) -> tuple[slice, slice, np.ndarray]:
    """Pixels whose centre is inside an outline (n, 2) of x, y: a window of rows and columns, and its mask."""
    low = np.clip(np.floor(outline.min(axis=0)), 0, (shape[1], shape[0])).astype(int)
    high = np.clip(np.ceil(outline.max(axis=0)), 0, (shape[1], shape[0])).astype(int)
    rows, columns = slice(low[1], high[1]), slice(low[0], high[0])
    y = np.arange(low[1], high[1])[:, None] + 0.5
    x = np.arange(low[0], high[0])[None, :] + 0.5
    inside = np.zeros((y.size, x.size), bool)
    for (x0, y0), (x1, y1) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        if y0 != y1:
            crosses = (y0 <= y) != (y1 <= y)
            inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return rows, columns, inside


def _check_outline(outline: np.ndarray, shape: tuple[int, int], number: int, path: Path) -> None:
    if len(outline) < 3 or not np.isfinite(outline).all():
        what = f"Region {number} has {len(outline)} corners or corners that are no numbers."
        raise DataError(what, where=path, fix="Take the file as it was published.")
    # Annotators click a little beyond the border; a whole picture further is another picture's file.
    reach = np.asarray((shape[1], shape[0]))
    if (outline < -reach).any() or (outline > 2 * reach).any() or number > np.iinfo(np.uint16).max:
        what = f"Region {number} lies outside the picture of {shape[0]} x {shape[1]} pixels."
        raise DataError(what, where=path, fix="The outlines belong to another picture.")
