"""`dataset.json` of the Medical Segmentation Decathlon, which nnU-Net's raw data sets have too."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from toolkit.data.manifest import leaves_folder
from toolkit.data.reading import Row
from toolkit.errors import DataError

_MOST_BYTES = 2**26


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
        what = f"dataset.json cannot be read ({type(error).__name__}: {error})."
        fix = "Give the folder of a raw data set (nnUNet_raw/DatasetXXX_Name or a decathlon task), unpacked whole."
        raise DataError(what, where=path, fix=fix) from error
    return table


def decathlon_rows(folder: Path) -> list[Row]:
    """A row for every labelled case; which cases belong to one person is not published."""
    path, again = folder / "dataset.json", "Unpack the archive again."
    try:
        pairs = [(str(case["image"]), str(case["label"])) for case in read_description(folder)["training"]]
    except (KeyError, TypeError) as error:
        what = f"dataset.json cannot be read ({type(error).__name__}: {error})."
        raise DataError(what, where=path, fix=again) from error
    for name in (name for pair in pairs for name in pair):
        if leaves_folder(name):
            raise DataError(f"dataset.json names a file elsewhere: {name}.", where=path, fix="Do not use it.")
        if not (folder / name).is_file():
            raise DataError(f"{PurePosixPath(name)} is missing.", where=folder, fix=again)
    if len({folder / image for image, _ in pairs}) < len(pairs):
        raise DataError("dataset.json names an image twice.", where=path, fix=again)
    rows = []
    for image, label in pairs:
        case = Path(image).name.removesuffix(".gz").removesuffix(".nii")
        rows.append({"case": case, "subject": case, "image": folder / image, "label": folder / label})
    return rows
