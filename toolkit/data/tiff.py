"""Multi-page TIFF through tifffile: the pages of a file are the slices of a stack."""

from __future__ import annotations

import contextlib
import dataclasses
import logging.handlers
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.source import FileSource, Pair, checked_pair, decoding, require_file
from toolkit.errors import DataError

SUFFIXES = (".tif", ".tiff")
_MOST_VOXELS = 2**31


@dataclasses.dataclass(frozen=True, eq=False)
class TiffStackSource(FileSource):
    """A stack in one file and its label in another, page by page; grey pages only."""

    def read_raw(self) -> Pair:
        """Image (1, Z, H, W) and label (Z, H, W)."""
        label = None if self.label is None else read_pages(self.label)
        return checked_pair(read_pages(self.image)[None], label, self)


def read_pages(path: Path) -> np.ndarray:
    """All pages as (Z, H, W)."""
    shape = stack_shape(path)
    with _opened(path) as file:
        pages = np.stack([page.asarray() for page in file.pages])
    if pages.shape != shape:
        raise DataError(f"The pages are {pages.shape}, the header says {shape}.", where=path, fix="Export it again.")
    return pages


def stack_shape(path: Path) -> tuple[int, ...]:
    """(pages, rows, columns) by the headers; one page is a picture, not a stack."""
    with _opened(path) as file:
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
def _opened(path: Path) -> Iterator[Any]:
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
