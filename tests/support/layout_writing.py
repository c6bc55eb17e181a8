"""What the builders of official layouts write with: volumes, pictures, random labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

Written = dict[str, np.ndarray]
Builder = Callable[[Path], Written]
BUILDERS: dict[str, Builder] = {}

# Oblique: turned by 20 degrees about the first axis, stored feet first, with a shift.
TURN = np.deg2rad(20)
OBLIQUE = np.array(
    [
        [-1.5, 0, 0, 30],
        [0, 1.25 * np.cos(TURN), -8 * np.sin(TURN), -12],
        [0, 1.25 * np.sin(TURN), 8 * np.cos(TURN), 7],
        [0, 0, 0, 1],
    ]
)


def builder(name: str) -> Callable[[Builder], Builder]:
    def keep(build: Builder) -> Builder:
        BUILDERS[name] = build
        return build

    return keep


def random_label(shape: tuple[int, ...], classes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, shape).astype(np.uint8)


def random_image(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed + 1000).integers(0, 900, shape).astype(np.int16)


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray = OBLIQUE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def as_read(stored: np.ndarray) -> np.ndarray:
    """What a file with the oblique affine must be read as: the first axis points left and is turned round."""
    return stored[::-1]


def volume_pair(image: Path, label: Path, shape: tuple[int, ...], classes: int, seed: int) -> np.ndarray:
    stored = random_label(shape, classes, seed)
    save_nifti(image, random_image(shape, seed))
    save_nifti(label, stored)
    return as_read(stored)


def save_picture(path: Path, array: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def picture_pair(image: Path, mask: Path, shape: tuple[int, int], seed: int, coding: str = "255") -> np.ndarray:
    """An RGB picture and a mask of two rectangles in one of several codings; returns the classes."""
    truth = np.zeros(shape, np.uint8)
    truth[: shape[0] // 2, : shape[1] // 2] = 1
    truth[-8:, -8 - seed :] = 1
    save_picture(image, random_image((*shape, 3), seed).astype(np.uint8))
    numbered = truth.copy()
    numbered[-8:, -8 - seed :] = 2
    stored = {"255": truth * 255, "numbered": numbered, "jpeg": np.stack([truth * 255] * 3, -1)}[coding]
    save_picture(mask, stored, **({"quality": 100, "subsampling": 0} if coding == "jpeg" else {}))
    return truth
