"""From arrays of any dimension to the 2D picture that a panel shows: slice, channels, size, pixel aspect."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from toolkit.errors import ResultError
from toolkit.show.panels import Image

LARGEST = 256  # pixels of a side in figures of many panels; more cannot be seen there


@dataclasses.dataclass(frozen=True)
class View:
    """Which slice of an image is shown, and how far it is thinned out."""

    size: tuple[int, ...]  # spatial size of the image without padding
    padded: tuple[int, ...]  # spatial size with padding
    position: int | None  # index along the first axis of a volume; None for a 2D image
    stride: int  # every stride-th pixel is kept
    aspect: float  # height of a pixel divided by its width
    mm: float | None = None  # width of a shown pixel in millimetres, if it is known
    # first row, end row, first and end column of what is shown; None = all
    window: tuple[int, int, int, int] | None = None

    def panel(self, image: Image, side: int) -> Image:
        """A picture of this slice in its proportions; its longer edge measures `side` pixels."""
        image.aspect, image.mm, image.window = self.aspect, self.mm, self.window
        return image.fit(side)

    @property
    def note(self) -> str:
        """Which slice it is; nothing for a 2D image."""
        return "" if self.position is None else f", slice {self.position}"

    def around(self, organ: Any) -> View:
        """The same slice cut to an organ (*S) and a margin of a quarter; whole if that is most of it or nothing."""
        rows, columns = np.nonzero(self.plane(organ))
        if not len(rows):
            return self
        height, width = self.plane(organ).shape
        half = 0.75 * max(float(np.ptp(rows)) * self.aspect, float(np.ptp(columns)), 8.0) + 1
        middle = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
        top, bottom = max(0, round(middle[0] - half / self.aspect)), min(height, round(middle[0] + half / self.aspect))
        left, right = max(0, round(middle[1] - half)), min(width, round(middle[1] + half))
        small = (bottom - top) * (right - left) < 0.7 * height * width
        return dataclasses.replace(self, window=(top, bottom, left, right)) if small else self

    def plane(self, values: Any) -> np.ndarray:
        """(H, W) of an array with the image's spatial size."""
        array = np.asarray(values)
        array = array[tuple(slice(0, side) for side in self.size)]
        array = array if self.position is None else array[self.position]
        return array[:: self.stride, :: self.stride]

    def picture(self, image: Any) -> np.ndarray:
        """(H, W) or (H, W, 3) of an image (C, *S); other channel counts show the first channel."""
        array = np.asarray(image)
        if len(array) == 3:
            return np.stack([self.plane(channel) for channel in array], axis=-1)
        return self.plane(array[0])

    def coarse(self, values: Any, fine: Any) -> np.ndarray:
        """(h, w) of a map of any size; `fine` gives it at the image's size, for images that were padded."""
        return self.plane(fine()) if self.size != self.padded else self.of_layer(values)

    def of_layer(self, values: Any) -> np.ndarray:
        """(h, w) of a map at a layer's own size, which covers the padded image."""
        array = np.asarray(values)
        if self.position is None:
            return array
        return array[min(len(array) - 1, int((self.position + 0.5) * len(array) / self.padded[0]))]


def choose_view(
    size: tuple[int, ...],
    padded: tuple[int, ...],
    *,
    focus: Any = None,
    position: int | None = None,
    spacing: tuple[float, ...] | None = None,
    largest: int = LARGEST,
) -> View:
    """The slice to show: the given one, the one in which `focus` is largest, or the middle one."""
    if len(size) not in (2, 3):
        raise ResultError(f"Only 2D and 3D images can be drawn, not {len(size)}D.")
    if len(size) == 3:
        if position is None:
            position = size[0] // 2
            if focus is not None:
                extent = np.asarray(focus)[: size[0]].reshape(size[0], -1).sum(axis=1)
                position = int(extent.argmax()) if extent.any() else position
        if not 0 <= position < size[0]:
            raise ResultError(f"There is no slice {position} in a volume of {size[0]}.", where="position")
    else:
        position = None
    measured = spacing is not None and spacing[-1] > 0
    aspect = float(spacing[-2] / spacing[-1]) if measured and spacing is not None else 1.0
    stride = max(1, -(-max(size[-2:]) // largest))
    return View(size, padded, position, stride, aspect, stride * float(spacing[-1]) if measured and spacing else None)


def result_view(result: Any, index: int, focus: Any = None, position: int | None = None) -> View:
    """The slice of one image of a result: the given one, the one in which `focus[index]` (K, *S) is largest, or the middle."""
    if not -len(result.cases) <= index < len(result.cases):
        raise ResultError(f"There is no image {index}; the result holds {len(result.cases)}.", where="index")
    size = tuple((result.input if hasattr(result, "input") else result.image).shape[2:])
    padded, spacing = getattr(result, "padded_size", size), (getattr(result, "spacing", None) or {index: None})[index]
    focus = None if focus is None else focus[index].any(0)
    return choose_view(size, padded, focus=focus, position=position, spacing=spacing)
