"""Files of a data set: found by the rules of its manifest, and texts and tables read."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.data.manifest import Manifest
from toolkit.data.reading import Row
from toolkit.data.source import decoding, require_file
from toolkit.data.splits import held_out
from toolkit.errors import DataError


def matched(folder: Path, image: str, label: str = "", case: str = "{stem}", **columns: Any) -> list[Row]:
    """A row for every image whose path below `folder` is matched whole by a regular expression.

    Args:
        folder: of the data.
        image: regular expression with named groups; folders end in `/`.
        label: path of the label that belongs to the image; upper and lower case may differ; empty = none.
        case: name of the case.
        columns: further ones; the subject is the case where it is not among them. All texts are templates with the groups
            in braces, and `stem`, the image's name up to its first dot.
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


def filled(fields: Mapping[str, Any], case: str, **columns: Any) -> Row:
    """Columns whose texts are templates, filled in; the subject is the case unless they say otherwise."""
    texts = {"case": case, "subject": case, **columns}
    return {name: text.format_map(fields) if isinstance(text, str) else text for name, text in texts.items()}


def by_rules(manifest: Manifest, folder: Path) -> list[Row]:
    """The rows that the manifest describes: of its index table, whose columns its templates name, else of the files."""
    rows: list[Row] = []
    with decoding(
        Path(manifest.folder) / f"{manifest.name}.toml", "a manifest whose rows fit the data", "Correct [[rows]]."
    ):
        for rule in manifest.rows:
            if manifest.table_path.is_file():
                rows += [filled(fields, **rule) for fields in index_of(manifest)]
            else:
                rows += matched(folder, **rule)
    for row in rows:
        row |= {name: folder / row[name] for name in ("image", "label") if name in row}
    if manifest.validation:
        held_out(rows, manifest.validation, manifest.name)
    return _listed(rows, folder, {split: folder / f"{split}.txt" for split in manifest.split_files})


def _listed(rows: list[Row], folder: Path, lists: dict[str, Path]) -> list[Row]:
    """Rows with the split that the data set's own lists give; images in no list are left out."""
    if not any(path.is_file() for path in lists.values()):
        return rows
    split_of: dict[str, str] = {}
    for split, path in lists.items():
        for line in filter(None, (line.strip() for line in text_of(path).splitlines())):
            if split_of.setdefault(line, split) != split:
                what = f"{line} is in {split_of[line]} and in {split}."
                raise DataError(what, where=path, fix="Get the lists again.")
    names = [row["image"].name for row in rows]
    if missing := sorted(split_of.keys() - {*names, *(row["case"] for row in rows)}):
        what = f"The lists name {len(missing)} images that are not there, for example {missing[0]}."
        raise DataError(what, where=folder, fix="Complete the data set, or get the lists again.")
    chosen = [split_of.get(name) or split_of.get(row["case"]) for name, row in zip(names, rows, strict=True)]
    return [{**row, "split": split} for row, split in zip(rows, chosen, strict=True) if split]


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


def text_of(path: Path) -> str:
    """A text file of a data set."""
    require_file(path, most=2**26)
    with decoding(path, "a text", "Get it again."):
        return path.read_text(encoding="utf-8-sig")


def table_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, blanks around names and values removed."""
    rows = [
        {(key or "").strip(): value.strip() for key, value in row.items() if isinstance(value, str)}
        for row in csv.DictReader(io.StringIO(text_of(path)), skipinitialspace=True)
    ]
    if not rows:
        raise DataError("The table has no rows.", where=path, fix="Get it again.")
    return rows


def index_of(manifest: Manifest) -> list[dict[str, str]]:
    """The index table that comes with the toolkit, beside the manifest."""
    if not manifest.table_path.is_file():
        what = f"The index table of {manifest.name!r} cannot be read: it is missing."
        fix = "It belongs beside the manifest; install the toolkit again."
        raise DataError(what, where=manifest.table_path, fix=fix)
    return table_of(manifest.table_path)
