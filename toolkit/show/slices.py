"""From arrays of any dimension to the 2D picture that a panel shows: slice, channels, size, pixel aspect."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from toolkit.errors import ResultError

LARGEST = 256  # pixels of a side in figures of many panels; more cannot be seen there


@dataclasses.dataclass(frozen=True)
class View:
    """Which slice of an image is shown, and how far it is thinned out.

    Attributes:
        size: spatial size of the image without padding.
        padded: spatial size with padding.
        position: index along the first axis of a volume; None for a 2D image.
        stride: every stride-th pixel is kept.
        aspect: height of a pixel divided by its width.
    """

    size: tuple[int, ...]
    padded: tuple[int, ...]
    position: int | None
    stride: int
    aspect: float

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
        array = np.asarray(values)
        if self.size != self.padded:
            return self.plane(fine())
        if self.position is not None:
            array = array[min(len(array) - 1, int((self.position + 0.5) * len(array) / self.padded[0]))]
        return array


def choose_view(
    size: tuple[int, ...],
    padded: tuple[int, ...],
    *,
    focus: Any = None,
    position: int | None = None,
    spacing: tuple[float, ...] | None = None,
    largest: int = LARGEST,
) -> View:
    """The slice to show: the given one, the one in which `focus` is largest, or the middle one.

    Raises:
        ResultError: neither 2D nor 3D, or a slice outside of the volume.
    """
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
    aspect = float(spacing[-2] / spacing[-1]) if spacing is not None and spacing[-1] > 0 else 1.0
    return View(size, padded, position, max(1, -(-max(size[-2:]) // largest)), aspect)
