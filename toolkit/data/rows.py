"""Rows of cases: of a table, whatever it comes in, with nothing left out; and of the files of an official data set."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.manifest import Manifest, leaves_folder
from toolkit.data.reading import READABLE, Row, is_path
from toolkit.data.source import decoding, require_file
from toolkit.data.splits import Splits, assign_splits
from toolkit.errors import ConfigError, DataError, ToolkitWarning

COLUMNS = (
    *("image", "label", "case", "subject", "site", "split", "volume", "position", "spacing", "group", "affine"),
    *("frame", "label_frame", "slices", "image_key", "label_key", "threshold", "foreground", "background"),
    *("geometry", "shape"),
)
_TEXT = ("case", "subject", "site", "split", "volume", "group")
# "patient012_frame03", "sub-01/ses-2_T1w", "north/P7-left": a word for a person with a number, then more of that person.
_PERSON = re.compile(
    r"^((?:.*?/)??(?:sub-[a-z0-9]+|(?:sub(?:ject)?|pat(?:ient)?|person|case|animal|mouse|p|s)[-_ ]?\d+))[-_ ./]", re.I
)
# "ann_slice03", "x17_z12": whatever stands before a word for a part with a number.
_PART = re.compile(r"^(.+?)[-_ ./](?:slice|sl|frame|fr|z|t|tile|patch|crop|view|visit|ses|phase)[-_ ]?\d+$", re.I)
_NUMBER = re.compile(r"^(.+?)[-_ .]\d+$")


def table_rows(frame: Any, folder: str | os.PathLike[str] | None) -> list[Row]:
    """The rows of a table as dicts without their empty cells, files as absolute paths."""
    root = Path(folder).expanduser() if folder is not None else Path()
    if isinstance(frame, (str, os.PathLike)):
        path = Path(frame).expanduser()
        root = root if folder is not None else path.parent
        numbers = ("frame", "label_frame", "slices", "position", "threshold", "spacing", "foreground", "background")
        frame = table_of(path, "Save it as CSV, UTF-8, a row for every image.")
        frame = [row | {key: _numbers(row[key], key, path) for key in numbers if row.get(key)} for row in frame]
    elif isinstance(frame, Mapping):
        lengths = {name: len(column) for name, column in frame.items()}
        if len({*lengths.values()}) > 1:
            raise ConfigError(f"The columns have different lengths: {lengths}.", where="task_from_table")
        frame = [dict(zip(frame, values, strict=True)) for values in zip(*frame.values(), strict=True)]
    elif hasattr(frame, "to_dict"):
        frame = frame.to_dict("records")
    rows = [{str(key): value for key, value in row.items() if not _empty(value)} for row in frame]
    if not rows:
        raise DataError("The table has no rows.", where="task_from_table", fix="Give a row for every image.")
    unknown = sorted({key for row in rows for key in row} - set(COLUMNS))
    if unknown:
        what = f"The table has columns that are not known: {', '.join(unknown)}."
        raise ConfigError(what, where="task_from_table", fix=f"Rename or drop them; known are {', '.join(COLUMNS)}.")
    for number, row in enumerate(rows):
        if "image" not in row:
            raise DataError(f"Row {number} has no image.", where="task_from_table", fix="Fill the column image.")
        row["image"] = _located(row["image"], root)
        if "label" in row:
            row["label"] = _located(row["label"], root)
        row |= {key: str(row[key]) for key in _TEXT if key in row}
        row |= {key: int(row[key]) for key in ("frame", "label_frame") if key in row}  # floats beside empty cells
    return rows


def completed(rows: list[Row], splits: Splits = None) -> list[Row]:
    """Rows with a case, a subject, a site and a split; what is missing is filled in as `task_from_table` says."""
    for number, row in enumerate(rows):
        row.setdefault("case", stem_of(row["image"]) or f"case{number:03d}")
        row.setdefault("site", "site")
    ids = [row["case"] for row in rows]
    own = [str(row.get("volume", row["case"])) for row in rows]
    stacks = [] if any("subject" in row for row in rows) else list(dict.fromkeys(own))
    subject_of = dict(zip(stacks, inferred_subjects(stacks), strict=True))
    for row, stack in zip(rows, own, strict=True):
        row.setdefault("subject", subject_of.get(stack, stack))
    if splits is not None or not all("split" in row for row in rows):
        if splits is None and any("split" in row for row in rows):
            missing = next(row["case"] for row in rows if "split" not in row)
            raise ConfigError(f"The case {missing!r} has no split, others have.", where="split", fix="Fill them all.")
        chosen = assign_splits(ids, [row["subject"] for row in rows], [row["site"] for row in rows], splits)
        for row, split in zip(rows, chosen, strict=True):
            row["split"] = split
    return rows


def inferred_subjects(names: Sequence[str]) -> list[str]:
    """The subject of every case by its name, where the pattern is plain; else every name is its own subject.

    Plain is a word for a person with a number at the start (`patient012_...`, `sub-01_...`, also as a folder), or a
    word for a part with a number at the end (`..._slice03`, `..._frame2`).
    """
    subjects = [person_of(name) for name in names]
    counts = Counter(subjects)
    if 1 < len(counts) < len(names):
        example = next(name for name, subject in zip(names, subjects, strict=True) if counts[subject] > 1)
        what = f"Subjects were read from the names: {len(counts)} in {len(names)} images"
        example = f"{example!r} is of the subject {person_of(example)!r}"
        fix = "splits keep each together. Pass subjects=, or a column subject, to differ."
        warnings.warn(f"{what} ({example}); {fix}", ToolkitWarning, stacklevel=4)
        return subjects
    together = Counter(match[1] for name in names if (match := _NUMBER.match(name)))
    one = len(names) > 1 and len(counts) == 1
    if one or (len(together) > 1 and max(together.values()) > 1 and any(map(str.isdigit, "".join(together)))):
        prefix = subjects[0] if one else together.most_common(1)[0][0]
        some = ", ".join([name for name in names if name.startswith(prefix)][:3])
        what = f"Several names begin alike ({some}). If they are of one person, training and test would share that person: "
        warnings.warn(f"{what}pass subjects=, or a column subject.", ToolkitWarning, stacklevel=4)
    return list(names)


def person_of(name: str) -> str:
    """The subject that a plain name tells, else the name itself."""
    match = _PERSON.match(name) or _PART.match(name)
    return match[1] if match else name


def columns_of(rows: Sequence[Row]) -> dict[str, list[Any]] | None:
    """The table as columns that JSON holds, or None where it holds arrays or readers."""
    names = [name for name in COLUMNS if any(name in row for row in rows)]
    columns = {name: [plain(row.get(name)) for row in rows] for name in names}
    try:
        return dict(json.loads(json.dumps(columns)))
    except (TypeError, ValueError):
        return None


def text_of(path: Path, what: str = "a text", fix: str = "Get it again.") -> str:
    """A text file (UTF-8) of at most 64 MB."""
    require_file(path, most=2**26)
    with decoding(path, what, fix):
        return path.read_text(encoding="utf-8-sig")


def table_of(path: Path, fix: str = "Get it again.") -> list[dict[str, Any]]:
    """The rows of a CSV file, blanks around names and values removed."""
    lines = io.StringIO(text_of(path, "a table", fix))
    rows = [
        {key.strip(): value.strip() if isinstance(value, str) else value for key, value in row.items()}
        for row in csv.DictReader(lines, restkey="more than the first line names", restval="", skipinitialspace=True)
    ]
    if not rows:
        raise DataError("The table has no rows.", where=path, fix=fix)
    return rows


def _numbers(text: str, column: str, where: Path) -> Any:
    """What a cell of a column of numbers says."""
    try:
        if column in ("foreground", "background"):
            return bool(int({"true": "1", "false": "0"}.get(text.lower(), text)))
        return [float(part) for part in text.replace(";", " ").split()] if column == "spacing" else int(text)
    except ValueError as error:
        raise DataError(f"The column {column!r} holds {text!r}, no number.", where=where) from error


def _empty(value: Any) -> bool:
    """None, an empty text, or the NaN and NA that stand for an empty cell in a DataFrame."""
    missing = type(value).__name__ in ("NAType", "NaTType") or (np.isscalar(value) and value != value)
    return value is None or missing or (isinstance(value, str) and not value)


def _located(value: Any, root: Path) -> Any:
    if isinstance(value, str) and ";" in value:
        value = [part.strip() for part in value.split(";")]
    if is_path(value):
        return (root / Path(value).expanduser()).absolute()
    if isinstance(value, (list, tuple)) and value and all(map(is_path, value)):
        return tuple((root / Path(part).expanduser()).absolute() for part in value)
    return value


def stem_of(image: Any) -> str:
    """The name of a file without its suffix, and of one of several channels without the channel; "" of an array."""
    first = image[0] if isinstance(image, tuple) else image
    if not isinstance(first, Path):
        return ""
    suffix = next((end for end in READABLE if first.name.lower().endswith(end)), "")
    stem = first.name[: len(first.name) - len(suffix)]
    return stem.removesuffix("_0000") if isinstance(image, tuple) else stem


def plain(value: Any) -> Any:
    """A value as JSON holds it."""
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


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
        return {**json.loads(text_of(path))}


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
    names = [Path(image).name.removesuffix(".gz").removesuffix(".nii") for image, _ in pairs]
    files = [{"image": folder / image, "label": folder / label} for image, label in pairs]
    return [{"case": name, "subject": name, **own} for name, own in zip(names, files, strict=True)]
