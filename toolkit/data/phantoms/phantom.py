"""One generated subject: an image stack with its reference labels and geometry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Phantom:
    """A generated stack or volume.

    Attributes:
        image: raw grey values (Z, H, W) float32, whole numbers.
        label: class of every voxel (Z, H, W) uint8.
        spacing: (row, column) mm.
        slice_spacing: mm between slices.
        group: pathology group.
        split: "train", "val" or "test".
        site: name of the site.
        subject: number of the subject within its site.
    """

    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    spacing: tuple[float, float]
    slice_spacing: float
    group: str
    split: str
    site: str
    subject: int
