"""What the three-dimensional phantoms share: their grid, and the result put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from toolkit.data.phantoms.phantom import Phantom, split_of

Floats = NDArray[np.float64]


def centred_axes(shape: Sequence[int], factors: Sequence[int], steps: Sequence[float]) -> list[Floats]:
    """Positions along each axis from the middle of the view, mm.

    Args:
        shape: voxels along each axis.
        factors: grid points per voxel.
        steps: mm between voxels.
    """
    return [
        (np.arange(n * f, dtype=np.float64) + 0.5 - 0.5 * n * f) * (step / f)
        for n, f, step in zip(shape, factors, steps, strict=True)
    ]


def finished(
    image: NDArray[np.float32],
    label: NDArray[np.uint8],
    spacing: tuple[float, float],
    group: str,
    subjects: Mapping[str, Sequence[int]],
    site: str,
    subject: int,
) -> Phantom:
    """The volume with all that is known of it; `spacing` is (pixel, slice) in mm."""
    pixel, between = spacing
    return Phantom(
        image=image,
        label=label,
        spacing=(pixel, pixel),
        slice_spacing=between,
        group=group,
        split=split_of(subjects, subject),
        site=site,
        subject=subject,
    )
