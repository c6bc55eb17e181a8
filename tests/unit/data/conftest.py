"""Small files and tasks for the tests of toolkit.data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from toolkit import Task, task_from_arrays

Writer = Callable[..., Path]


@pytest.fixture
def nifti(tmp_path: Path) -> Writer:
    """Writes a NIfTI file: nifti(name, array, affine=..., codes=(1, 1), unit="mm")."""

    def write(name: str, array: np.ndarray, affine: np.ndarray | None = None, **options: Any) -> Path:
        affine = np.diag([2.0, 3.0, 4.0, 1.0]) if affine is None else affine
        image = nibabel.Nifti1Image(array, affine)
        qform, sform = options.get("codes", (1, 1))
        image.set_sform(options.get("sform", affine), code=sform)
        image.set_qform(options.get("qform", affine), code=qform)
        image.header.set_xyzt_units(options.get("unit", "mm"))
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(image, path)
        return path

    return write


@pytest.fixture
def volume() -> np.ndarray:
    """A float32 volume (6, 7, 5) in which every voxel differs."""
    return np.arange(210, dtype=np.float32).reshape(6, 7, 5)


def stripes(count: int, size: tuple[int, ...], classes: int = 3) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Images whose pixel (i, j, ...) of case n holds a number of its own, and labels in bands of the first axis."""
    images, labels = [], []
    for case in range(count):
        image = np.arange(np.prod(size), dtype=np.float32).reshape(size) + 10_000 * case
        band = np.arange(size[0]) * classes // size[0]
        labels.append(np.broadcast_to(band.reshape(-1, *(1,) * (len(size) - 1)), size).astype(np.uint8))
        images.append(image)
    return images, labels


@pytest.fixture
def striped() -> Callable[..., Task]:
    """A task of `stripes`: striped(count=10, size=(20, 24), **arguments of task_from_arrays)."""

    def make(count: int = 10, size: tuple[int, ...] = (20, 24), **arguments: Any) -> Task:
        images, labels = stripes(count, size)
        options = {"splits": "train", "normalisation": "none", "patch_size": size, **arguments}
        return task_from_arrays(images, labels, classes=["background", "low", "high"], **options)

    return make
