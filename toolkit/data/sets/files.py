"""What the functions of the data sets share: files found by a pattern, texts and tables read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.data.manifest import Manifest, leaves_folder
from toolkit.data.reading import Row
from toolkit.data.rows import table_of, text_of
from toolkit.data.source import decoding
from toolkit.errors import DataError


def matched(folder: Path, image: str, label: str = "", case: str = "{stem}", **columns: Any) -> list[Row]:
    """A row for every image whose path below `folder` is matched whole by a regular expression.

    Folders end in `/`. `label` (upper and lower case may differ; empty = none), `case` and further columns are templates
    with the expression's groups in braces, and `stem`, the image's name up to its first dot.
    """
    paths = paths_below(folder)
    lowered = {path.lower(): path for path in paths} if label else {}
    rows = []
    for path in paths:
        if match := re.fullmatch(image, path):
            fields = {**match.groupdict(), "stem": path.rstrip("/").rsplit("/", 1)[-1].split(".", 1)[0]}
            row = {**filled(fields, case=case, **columns), "image": folder / path}
            if wanted := label.format_map(fields):
                row["label"] = folder / lowered.get(wanted.lower(), wanted)  # `rows_of` says what is missing
            rows.append(row)
    return rows


def indexed(manifest: Manifest, folder: Path, **columns: Any) -> list[Row]:
    """A row for every entry of the index table beside the manifest, whose columns stand in braces in the templates."""
    rows = [filled(fields, **columns) for fields in table_of(manifest.table_path)]
    return [row | {name: folder / row[name] for name in ("image", "label") if name in row} for row in rows]


def filled(fields: Mapping[str, Any], case: str, **columns: Any) -> Row:
    """Columns whose texts are templates, filled in; the subject is the case unless they say otherwise."""
    texts = {"case": case, "subject": case, **columns}
    return {name: text.format_map(fields) if isinstance(text, str) else text for name, text in texts.items()}


def paths_below(folder: Path) -> list[str]:
    """Files below a folder, and folders with a slash at the end, sorted; hidden ones and links out are passed over."""
    root = folder.resolve()
    paths = []
    for place, inner, names in os.walk(folder):
        here = Path(place).relative_to(folder)
        inner[:] = [name for name in inner if not name.startswith((".", "__MACOSX"))]
        for name in (*inner, *names):
            path = folder / here / name
            if name.startswith(".") or (path.is_symlink() and not path.resolve().is_relative_to(root)):
                continue
            paths.append((here / name).as_posix() + ("/" if path.is_dir() else ""))
    return sorted(paths)


def frame_of(phases: Mapping[str, str], phase: str, where: Path, line: str) -> int:
    """Number of the frame that a table names for a phase of the heart."""
    if not (frame := phases.get(phase, "")).isdecimal():
        raise DataError(f"{line} names no frame for {phase}.", where=where, fix="Get the file again (ED: 1).")
    return int(frame)


def read_description(root: Path) -> dict[str, Any]:
    """The content of `dataset.json`."""
    path = root / "dataset.json"
    fix = "Give the folder of a raw data set (nnUNet_raw/DatasetXXX_Name or a decathlon task), unpacked whole."
    with decoding(path, "a description of a data set", fix):
        table: dict[str, Any] = {**json.loads(text_of(path))}
    return table


def decathlon_rows(folder: Path) -> list[Row]:
    """A row for every labelled case; which cases belong to one person is not published."""
    path, again = folder / "dataset.json", "Unpack the archive again."
    with decoding(path, "a list of cases", again):
        pairs = [(str(case["image"]), str(case["label"])) for case in read_description(folder)["training"]]
    for name in (name for pair in pairs for name in pair):
        if leaves_folder(name):
            raise DataError(f"dataset.json names a file elsewhere: {name}.", where=path, fix="Do not use it.")
    if len({folder / image for image, _ in pairs}) < len(pairs):
        raise DataError("dataset.json names an image twice.", where=path, fix=again)
    rows = []
    for image, label in pairs:
        case = Path(image).name.removesuffix(".gz").removesuffix(".nii")
        rows.append({"case": case, "subject": case, "image": folder / image, "label": folder / label})
    return rows
