"""The index of data sets that come without our table: read from file names or from the tables they bring along."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from toolkit.data.manifest import Columns, Manifest, Pattern, filled
from toolkit.data.randomness import keyed_random
from toolkit.data.side_table import with_side_table
from toolkit.data.source import require_file
from toolkit.data.splits import assign_splits
from toolkit.errors import DataError

_FIELD = re.compile(r"\{(\w+)\}")
Row = dict[str, str]


def discovered_rows(manifest: Manifest, folder: Path) -> list[Row]:
    """One row per image that lies in `folder`, with the columns `image`, `label` and those of the layout.

    Raises:
        DataError: nothing found, images without a label, a table that is missing or damaged.
    """
    readers = {"pattern": _pattern_rows, "acdc": _acdc_rows, "mnms": _mnms_rows, "decathlon": _decathlon_rows}
    rows = readers[manifest.layout.rows](manifest, folder)
    if not rows:
        raise DataError(
            f"No image of {manifest.name!r} was found.",
            where=str(folder),
            fix=f"Expected: {', '.join(manifest.layout.expects)}. {' '.join(manifest.access.steps)}",
        )
    for column, names in manifest.layout.rename.items():
        for row in rows:
            row[column] = names.get(row.get(column, ""), row.get(column, ""))
    return rows


def split_rows(manifest: Manifest, rows: list[Row], chosen: str | None = None) -> list[Row]:
    """Rows with their split: of a named list, else of the files, else derived by subject (60 / 20 / 20 in a site).

    Raises:
        DataError: a list none of whose subjects is there.
    """
    columns = checked_columns(manifest)
    lists = manifest.split_lists.get(chosen or manifest.default_split)
    subjects = [filled(columns.subject, row, manifest) for row in rows]
    if lists:
        split_of = {subject: split for split, members in lists.items() for subject in members}
        kept = [{**row, "split": split_of[s]} for row, s in zip(rows, subjects, strict=True) if s in split_of]
        if not kept:
            raise DataError(
                "None of the subjects of the split list is there.",
                where=manifest.name,
                fix=f"It names {', '.join(list(split_of)[:3])}; found: {', '.join(subjects[:3])}.",
            )
        return kept
    if manifest.layout.rows == "table":
        return rows
    if all(row.get("split") for row in rows):
        units = [filled(manifest.hold_out_by or columns.subject, row, manifest) for row in rows]
        _hold_out(manifest, rows, units)
        return rows
    sites = [filled(columns.site, row, manifest) if columns.site else "" for row in rows]
    assigned = assign_splits(subjects, subjects, sites, None)
    return [{**row, "split": split} for row, split in zip(rows, assigned, strict=True)]


def checked_columns(manifest: Manifest) -> Columns:
    """The manifest's columns.

    Raises:
        DataError: it has none.
    """
    if manifest.columns is None:
        raise DataError("The manifest has no [columns].", where=manifest.name)
    return manifest.columns


def _hold_out(manifest: Manifest, rows: list[Row], units: Sequence[str]) -> None:
    """Move a share of the training subjects (or of what else stays together) to `val`, drawn in a fixed way, where nobody published which."""
    if not manifest.validation_share or any(row["split"] == "val" for row in rows):
        return
    own = sorted({unit for row, unit in zip(rows, units, strict=True) if row["split"] == "train"})
    count = round(manifest.validation_share * len(own))
    drawn = {own[i] for i in keyed_random("validation", manifest.name).permutation(len(own))[:count]}
    for row, unit in zip(rows, units, strict=True):
        if row["split"] == "train" and unit in drawn:
            row["split"] = "val"


def paths_below(folder: Path) -> list[str]:
    """Files below a folder, and folders with a slash at the end, sorted; hidden ones and links out are passed over."""
    root = folder.resolve()
    found = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if any(part.startswith((".", "__MACOSX")) for part in relative.parts):
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            continue
        found.append(relative.as_posix() + ("/" if path.is_dir() else ""))
    return found


def expression(pattern: str, fields: dict[str, str]) -> re.Pattern[str]:
    """A pattern with names in braces as a regular expression; a name that occurs again must match the same text."""
    parts, seen, last = [], set(), 0
    for match in _FIELD.finditer(pattern):
        name = match[1]
        parts.append(re.escape(pattern[last : match.start()]))
        parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{fields.get(name, '[^/]+?')})")
        seen.add(name)
        last = match.end()
    return re.compile("".join(parts) + re.escape(pattern[last:]))


def _pattern_rows(manifest: Manifest, folder: Path) -> list[Row]:
    paths = paths_below(folder)
    lowered = {path.lower(): path for path in paths}
    rows = []
    for pattern in manifest.layout.patterns:
        compiled = expression(pattern.image, manifest.layout.fields)
        for path in paths:
            if match := compiled.fullmatch(path):
                row = {**match.groupdict(), **pattern.values}
                stem = path.rstrip("/").rsplit("/", 1)[-1].split(".", 1)[0]
                row["background"] = "yes" if pattern.background else ""
                label = _label(manifest, pattern, row, lowered, folder)
                rows.append({**row, "stem": stem, "image": path, "label": label})
    if (table := manifest.layout.side_table) is not None:
        beside = folder / table.file
        rows = with_side_table(table, _text(beside) if beside.is_file() else None, rows, beside)
    return _listed_rows(manifest, folder, rows)


def _listed_rows(manifest: Manifest, folder: Path, rows: list[Row]) -> list[Row]:
    """Rows with the split that the data set's own lists give; images in no list are left out."""
    lists = {split: folder / name for split, name in manifest.layout.split_files.items()}
    if not any(path.is_file() for path in lists.values()):
        return rows
    split_of: dict[str, str] = {}
    for split, path in lists.items():
        for name in filter(None, (line.strip() for line in _text(path).splitlines())):
            if split_of.setdefault(name, split) != split:
                raise DataError(
                    f"{name} is in {split_of[name]} and in {split}.", where=str(path), fix="Get the lists again."
                )
    names = [row["image"].rsplit("/", 1)[-1] for row in rows]
    if missing := sorted(split_of.keys() - {*names, *(row["stem"] for row in rows)}):
        raise DataError(
            f"The lists name {len(missing)} images that are not there, for example {missing[0]}.",
            where=str(folder),
            fix="Complete the data set, or get the lists again.",
        )
    chosen = [split_of.get(name) or split_of.get(row["stem"]) for name, row in zip(names, rows, strict=True)]
    return [{**row, "split": split} for row, split in zip(rows, chosen, strict=True) if split]


def _label(manifest: Manifest, pattern: Pattern, row: Row, lowered: dict[str, str], folder: Path) -> str:
    if not pattern.label:
        return ""
    wanted = filled(pattern.label, row, manifest)
    found = lowered.get(wanted.lower())
    if found is None:
        raise DataError(
            f"An image has no label: {wanted} is missing.",
            where=str(folder),
            fix="Complete the data set, or move the image away.",
        )
    return found


def _text(path: Path) -> str:
    require_file(path)
    if path.stat().st_size > 2**26:
        raise DataError("The table is larger than 64 MiB.", where=str(path), fix="It is not the expected file.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError("The table is no text.", where=str(path), fix="Get it again.") from error


def _acdc_rows(manifest: Manifest, folder: Path) -> list[Row]:
    """End-diastole and end-systole of every patient, as its `Info.cfg` names them."""
    rows = []
    for info in sorted(folder.rglob("Info.cfg")):
        where = info.parent.relative_to(folder).as_posix()
        pairs = (line.partition(":") for line in _text(info).splitlines())
        known = {key.strip(): value.strip() for key, _, value in pairs}
        for phase in ("ED", "ES"):
            frame = known.get(phase, "")
            if not frame.isdecimal():
                raise DataError(
                    f"Info.cfg names no frame for {phase}.", where=str(info), fix="Get the file again (ED: 1)."
                )
            stem = f"{where}/{info.parent.name}_frame{int(frame):02d}"
            image, label = (_one_of(folder, stem + end, info) for end in ("", "_gt"))
            rows.append(
                {
                    "patient": info.parent.name,
                    "phase": phase,
                    "group": known.get("Group", ""),
                    "image": image,
                    "label": label,
                    "part": where.split("/")[0],
                }
            )
    return rows


def _one_of(folder: Path, stem: str, table: Path) -> str:
    for end in (".nii.gz", ".nii"):
        if (folder / (stem + end)).is_file():
            return stem + end
    raise DataError(
        f"{stem}.nii.gz is missing, which {table.name} names.", where=str(folder), fix="Complete the data set."
    )


def _mnms_rows(manifest: Manifest, folder: Path) -> list[Row]:
    """The two labelled frames of every subject in the table of M&Ms, of those whose labels are there."""
    tables = [path for path in sorted(folder.glob("*.csv")) if "External code" in _text(path).split("\n", 1)[0]]
    if len(tables) != 1:
        raise DataError(
            f"There are {len(tables)} tables with a column 'External code'.",
            where=str(folder),
            fix="Put the table of the data set (..._opendataset.csv) beside Training, Validation and Testing.",
        )
    names = {path.rsplit("/", 1)[-1]: path for path in paths_below(folder) if path.endswith("_sa_gt.nii.gz")}
    rows = []
    for number, entry in enumerate(csv.DictReader(io.StringIO(_text(tables[0]))), start=2):
        code = (entry.get("External code") or "").strip()
        label = names.get(f"{code}_sa_gt.nii.gz")
        if label is None:
            continue
        image = label.replace("_gt.nii", ".nii")
        if not (folder / image).is_file():
            raise DataError(f"{image} is missing.", where=str(folder), fix="Complete the data set.")
        for phase in ("ED", "ES"):
            frame = (entry.get(phase) or "").strip()
            if not frame.isdecimal():
                raise DataError(
                    f"Row {number} names no frame for {phase}.", where=str(tables[0]), fix="Get the table again."
                )
            known = {name.lower(): (entry.get(name) or "").strip() for name in ("Vendor", "Centre", "Pathology")}
            rows.append(
                {
                    "patient": code,
                    "phase": phase,
                    "frame": frame,
                    "image": image,
                    "label": label,
                    "part": label.split("/")[0],
                    **known,
                }
            )
    return rows


def _decathlon_rows(manifest: Manifest, folder: Path) -> list[Row]:
    """The labelled cases that `dataset.json` of the Medical Segmentation Decathlon lists."""
    path = folder / "dataset.json"
    try:
        table: Any = json.loads(_text(path))
        pairs = [(str(case["image"]), str(case["label"])) for case in table["training"]]
    except (json.JSONDecodeError, RecursionError, KeyError, TypeError) as error:
        raise DataError(
            f"dataset.json cannot be read ({type(error).__name__}: {error}).",
            where=str(path),
            fix="Unpack the archive again.",
        ) from error
    rows = []
    for pair in pairs:
        image, label = (PurePosixPath(name) for name in pair)
        if any(name.is_absolute() or ".." in name.parts for name in (image, label)):
            raise DataError(f"dataset.json names a file elsewhere: {image}.", where=str(path), fix="Do not use it.")
        for name in (image, label):
            if not (folder / name).is_file():
                raise DataError(f"{name} is missing.", where=str(folder), fix="Unpack the archive again.")
        case = image.name.removesuffix(".gz").removesuffix(".nii")
        rows.append({"case": case, "image": image.as_posix(), "label": label.as_posix()})
    if len({row["image"] for row in rows}) < len(rows):
        raise DataError("dataset.json names an image twice.", where=str(path), fix="Unpack the archive again.")
    return rows
