"""`dataset.json` of the Medical Segmentation Decathlon, which nnU-Net's raw data sets have too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from toolkit.data.reading import Row
from toolkit.errors import DataError

_MOST_BYTES = 2**26


def decathlon_rows(folder: Path) -> list[Row]:
    """A row for every labelled case; which cases belong to one person is not published."""
    table = read_description(folder)
    return [
        {"case": case, "subject": case, "image": folder / image, "label": folder / label}
        for image, label in decathlon_pairs(table, folder)
        for case in [Path(image).name.removesuffix(".gz").removesuffix(".nii")]
    ]


def read_description(root: Path) -> dict[str, Any]:
    """The content of `dataset.json`."""
    path = root / "dataset.json"
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is larger than 64 MiB")
        table = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(table, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"dataset.json cannot be read ({type(error).__name__}: {error}).",
            where=str(path),
            fix="Give the folder of a raw data set (nnUNet_raw/DatasetXXX_Name or a decathlon task), unpacked whole.",
        ) from error
    return table


def decathlon_pairs(table: Mapping[str, Any], root: Path) -> list[tuple[str, str]]:
    """Paths of image and label of the labelled cases that `dataset.json` of the decathlon lists."""
    path = root / "dataset.json"
    try:
        pairs = [(str(case["image"]), str(case["label"])) for case in table["training"]]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"dataset.json cannot be read ({type(error).__name__}: {error}).",
            where=str(path),
            fix="Unpack the archive again.",
        ) from error
    clean = []
    for pair in pairs:
        image, label = (PurePosixPath(name) for name in pair)
        if any(name.is_absolute() or ".." in name.parts for name in (image, label)):
            raise DataError(f"dataset.json names a file elsewhere: {image}.", where=str(path), fix="Do not use it.")
        for name in (image, label):
            if not (root / name).is_file():
                raise DataError(f"{name} is missing.", where=str(root), fix="Unpack the archive again.")
        clean.append((image.as_posix(), label.as_posix()))
    if len({image for image, _ in clean}) < len(clean):
        raise DataError("dataset.json names an image twice.", where=str(path), fix="Unpack the archive again.")
    return clean
