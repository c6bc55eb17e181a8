"""`Geometry`: where voxels lie in the world, and how to return an array to the axes of its file."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from toolkit.errors import DataError

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from left, posterior, superior (DICOM, ITK) to right, anterior, superior


@dataclasses.dataclass(frozen=True, eq=False)
class Geometry:
    """Axes of a volume as it was read and as it is stored."""

    # 4x4 voxel-to-world matrix in mm of the array as read (axes closest to right, anterior, superior), or None if the
    # file does not say
    affine: np.ndarray | None
    shape: tuple[int, ...]  # shape of the array as read, before it is cut into slices (three axes)
    spacing: tuple[float, ...] | None  # mm along these axes, or None if it is not known
    stored_affine: np.ndarray | None  # the file's own matrix in its own unit, or None
    stored_shape: tuple[int, ...]  # the file's own shape
    axes: tuple[int, ...] = (0, 1, 2)  # for each stored axis, its axis in the array as read
    flips: tuple[bool, ...] = (False, False, False)  # for each stored axis, whether it was reversed
    codes: tuple[int, int] = (0, 0)  # q-form and s-form code of the file
    unit: float = 1.0  # millimetres per unit of the file
    slice_axis: int | None = None  # axis of the array as read that a 2D task counts slices along, or None

    @classmethod
    def of_array(cls, affine: np.ndarray, shape: Sequence[int], dims: int) -> Geometry | None:
        """Geometry of an array with its 4x4 matrix (voxel to world, mm, RAS), slices first in a 2D task; None for a picture."""
        affine = np.asarray(affine, dtype=float)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
            raise DataError(f"The affine of an array is no invertible 4 x 4 matrix: {affine.tolist()}.", where="affine")
        if len(shape) != 3:
            return None
        sides = tuple(int(side) for side in shape)
        mm = tuple(float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
        return cls(affine, sides, mm, affine, sides, codes=(1, 1), slice_axis=0 if dims == 2 else None)

    def for_dims(self, dims: int) -> Geometry:
        """The same for a task of so many axes: in 2D slices lie along an axis of one voxel, else the coarsest, else the last."""
        if dims == 3:
            return self
        axis = 2
        if 1 in self.shape:
            axis -= self.shape[::-1].index(1)
        elif self.spacing is not None and max(self.spacing) >= 1.01 * min(self.spacing):
            axis = int(np.argmax(self.spacing))
        return dataclasses.replace(self, slice_axis=axis)

    @property
    def read_shape(self) -> tuple[int, ...]:
        """Shape of what `arrange` gives."""
        return self._slices_first(self.shape)

    @property
    def read_spacing(self) -> tuple[float, ...] | None:
        """Mm along the axes of what `arrange` gives, or None if it is not known."""
        return None if self.spacing is None else self._slices_first(self.spacing)

    def _slices_first(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        axis = self.slice_axis or 0
        return (values[axis], *values[:axis], *values[axis + 1 :])

    def arrange(self, stored: np.ndarray) -> np.ndarray:
        """Bring an array from the file's axes to those of the array as read (slices first in a 2D task)."""
        array = stored.reshape((*stored.shape, 1, 1)[:3])
        reversed_axes = tuple(axis for axis, flipped in enumerate(self.flips) if flipped)
        array = np.transpose(np.flip(array, reversed_axes), np.argsort(self.axes))
        return array if self.slice_axis is None else np.moveaxis(array, self.slice_axis, 0)

    def restore(self, array: np.ndarray) -> np.ndarray:
        """Bring an array (or a stack, slices first in a 2D task) of this volume's shape back to the file's axes and shape."""
        if array.shape != self.read_shape:
            what = f"The array has shape {array.shape}; the volume it belongs to has {self.read_shape}."
            raise DataError(what, fix="Pass the whole volume, without padding and without a channel axis.")
        if self.slice_axis is not None:
            array = np.moveaxis(array, 0, self.slice_axis)
        reversed_axes = tuple(axis for axis, flipped in enumerate(self.flips) if flipped)
        array = np.flip(np.transpose(array, self.axes), reversed_axes)
        return np.ascontiguousarray(array.reshape(self.stored_shape))


def largest_shift(first: np.ndarray, second: np.ndarray, shape: Sequence[int]) -> float:
    """Largest distance, in the matrices' unit, between where two affines put the corners of a volume."""
    corners = np.asarray(list(itertools.product(*((0.0, side - 1.0) for side in shape[:3]))))
    corners = np.concatenate([corners, np.ones((len(corners), 1))], axis=1)
    return float(np.linalg.norm(((first - second) @ corners.T)[:3], axis=0).max())
