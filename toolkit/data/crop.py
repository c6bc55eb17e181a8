"""A stack of slices cut or padded to a size about its centre, and put back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkit.errors import DataError


def crop_or_pad(stack: np.ndarray, size: Sequence[int]) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """The centre (..., *size) of a stack (..., rows, columns), with zeros where it is smaller.

    The odd pixel goes before the image when padding and is cut after it when cropping.

    Returns:
        The stack, and (row start, column start, rows, columns): where the cut begins in the padded stack, and the
        padded stack's sides. `put_back` takes them.
    """
    if stack.ndim < 2 or len(size) != 2 or min(size) < 1:
        raise DataError(f"Cannot cut {stack.shape} to {tuple(size)}.", fix="Give (..., rows, columns) and two sides.")
    missing = [max(target - side, 0) for side, target in zip(stack.shape[-2:], size, strict=True)]
    padding = [(0, 0)] * (stack.ndim - 2) + [((extra + 1) // 2, extra // 2) for extra in missing]
    padded = np.pad(stack, padding)
    rows, columns = padded.shape[-2:]
    row, column = (rows - size[0]) // 2, (columns - size[1]) // 2
    return padded[..., row : row + size[0], column : column + size[1]], (row, column, rows, columns)


def put_back(cut: np.ndarray, offsets: tuple[int, int, int, int], shape: Sequence[int]) -> np.ndarray:
    """The inverse of `crop_or_pad`: the cut in a canvas of zeros of the original sides (..., *shape)."""
    row, column, rows, columns = offsets
    canvas = np.zeros((*cut.shape[:-2], rows, columns), cut.dtype)
    canvas[..., row : row + cut.shape[-2], column : column + cut.shape[-1]] = cut
    top, left = (rows - shape[0] + 1) // 2, (columns - shape[1] + 1) // 2
    return canvas[..., top : top + shape[0], left : left + shape[1]]
