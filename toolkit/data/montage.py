"""A picture of some cases of every site, with the labels in colour: a first look at a data set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from toolkit.data.case import Case
from toolkit.data.task import Task
from toolkit.errors import ConfigError

_COLOURS = np.asarray(
    [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [213, 94, 0], [0, 114, 178], [204, 121, 167]]
)


def montage(task: Task, out: str | os.PathLike[str], *, columns: int = 6, size: int = 160) -> Path:
    """Write a PNG with one row of cases per site; of volumes the slice with the most foreground is drawn.

    Raises:
        ConfigError: no columns, or a name that does not end in .png.
        DataError: a case that cannot be read.
    """
    from PIL import Image

    path = Path(out)
    if columns < 1 or size < 8 or path.suffix.lower() != ".png":
        raise ConfigError(f"A montage needs columns, a size and a .png name, not {columns}, {size}, {path.name!r}.")
    sheet = np.full((len(task.sites) * size, columns * size, 3), 255, np.uint8)
    for row, site in enumerate(task.sites):
        for column, case in enumerate(_spread(task.cases(site=site), columns)):
            tile = Image.fromarray(_drawn(case))
            tile.thumbnail((size - 4, size - 4))
            pixels = np.asarray(tile)
            top, left = row * size + 2, column * size + 2
            sheet[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        Image.fromarray(sheet).save(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _spread(cases: Sequence[Case], count: int) -> list[Case]:
    chosen = (
        np.unique(np.linspace(0, len(cases) - 1, min(count, len(cases))).round().astype(int)).tolist() if cases else []
    )
    return [cases[index] for index in chosen]


def _drawn(case: Case) -> np.ndarray:
    """RGB picture (H, W, 3) of one slice: the outline of every class over the image."""
    image = case.image_array()
    label = case.label_array() if case.has_label else np.zeros(image.shape[1:], np.uint8)
    if label.ndim == 3:
        axis = int(np.argmin(label.shape))
        others = tuple(a for a in range(3) if a != axis)
        best = int(np.argmax((label > 0).sum(axis=others)))
        image, label = np.take(image, best, axis=axis + 1), np.take(label, best, axis=axis)
    low, high = np.percentile(image, (1, 99))
    grey = np.clip((image - low) / max(float(high - low), 1e-6) * 255, 0, 255).astype(np.uint8)
    picture = np.repeat(grey[:1], 3, axis=0) if grey.shape[0] != 3 else grey
    picture = np.moveaxis(picture, 0, -1).copy()
    inner = np.zeros(label.shape, bool)
    inner[1:-1, 1:-1] = (
        (label[1:-1, 1:-1] == label[:-2, 1:-1])
        & (label[1:-1, 1:-1] == label[2:, 1:-1])
        & (label[1:-1, 1:-1] == label[1:-1, :-2])
        & (label[1:-1, 1:-1] == label[1:-1, 2:])
    )
    outline = (label > 0) & ~inner
    picture[outline] = _COLOURS[(label[outline].astype(int) - 1) % len(_COLOURS)]
    return picture
