"""Check every file of a task: there, unchanged, readable, and with labels that the task knows."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.data.case import Case
from toolkit.data.generated import GeneratedSource, index_rows
from toolkit.data.manifest import Manifest, data_folders
from toolkit.data.rows import person_of
from toolkit.data.sets import files_of, rows_of
from toolkit.data.source import Pair, Source
from toolkit.errors import DataError, ToolkitError
from toolkit.files import file_sha256
from toolkit.results import DataFrame, as_table

if TYPE_CHECKING:
    from toolkit.data.task import Task


_ABOUT_THE_FILE = ("case", "verdict", "checksum", "detail", "source", "site", "split")
_EMPTY = dict.fromkeys((*_ABOUT_THE_FILE, "shape", "spacing", "classes", "low", "high", "notes"), "")
_TINY = 10
_COMPANIONS = (".md", ".txt", ".csv", ".json", ".cfg", ".pdf", ".sha256", ".raw", ".zraw", ".xlsx")
_COMPANION_NAMES = ("SHA256SUMS", "LICENSE", "README")


def verify(task: Task) -> DataFrame:
    """Read and check all data of a task; nothing is raised, every finding is a row.

    Returns:
        DataFrame with one row per volume or picture, then rows about files. `case` is the volume, empty in a row
        about files or splits; `verdict`: `ok`, `missing`, `changed` (other bytes than recorded), `wrong` (cannot be trusted),
        `duplicate` (the same image is in another split); of names `leak` (cases of two
        splits seem to be of one person); of files `incomplete` and `surplus` (fewer or more of a
        pattern than the manifest expects), `foreign` (no case uses the file); `checksum`: `matches`, `differs`,
        `none` where none is recorded; `detail`, `source`, `site`, `split`, `shape`, `spacing` in mm; `classes` that
        occur; `low` and `high`, the range of the stored intensities; `notes`: what is worth a look but no error
        (slices without foreground, classes that are absent or tiny, the same image again in one split).
    """
    recorded = task.manifest.checksums() if task.manifest else {}
    if task.manifest and task.manifest.generated:
        recorded = {f"{row['site']}/{row['subject']}": row["sha256"] for row in index_rows(task.manifest)}
    rows: list[dict[str, Any]] = []
    first: dict[str, dict[str, Any]] = {}
    slices = Counter(id(case.reader) for case in task.cases())
    for case in task.cases():
        if count := slices.pop(id(case.reader), 0):
            row = _EMPTY | _row(case, recorded, task, count)
            twin = first.setdefault(row.pop("print"), row) if row.get("print") else row
            if twin is not row:
                _mark_twins(twin, row)
            rows.append(row)
    rows += _leaks(task) + _about_the_folder(task)
    return as_table(rows, list(_EMPTY))


def name_of(case: Case) -> str:
    """What a case is called in `verify`'s table: its volume where it is a slice of one."""
    return case.volume if case.index is not None else case.id


def _mark_twins(twin: dict[str, Any], row: dict[str, Any]) -> None:
    for one, other in ((row, twin), (twin, row)):
        if twin["split"] != row["split"]:
            one["verdict"] = "duplicate" if one["verdict"] == "ok" else one["verdict"]
            one["detail"] = f"The image of {other['case']} in {other['split']} is the same."
        else:
            one["notes"] = "; ".join(filter(None, (one["notes"], f"same image as {other['case']}")))


def _row(case: Case, recorded: dict[str, str], task: Task, slices: int) -> dict[str, Any]:
    reader = case.reader
    row: dict[str, Any] = {name: getattr(case, name) for name in ("source", "site", "split")}
    row |= {"case": name_of(case), "spacing": " x ".join(f"{mm:.4g}" for mm in case.spacing or ())}
    missing = [str(path) for path in reader.files() if not path.is_file()]
    if missing:
        return row | {"verdict": "missing", "checksum": "none", "detail": f"no such file: {', '.join(missing)}"}
    row["checksum"] = _checksum(reader, recorded)
    try:
        pair = reader.read_raw()
        if case.index is not None and pair.image.shape[1] != slices:
            raise DataError(f"The index has {slices} slices, the file {pair.image.shape[1]}.")
        if pair.image.shape[0] != task.channels:
            raise DataError(f"The image has {pair.image.shape[0]} channels, the task {task.channels}.")
    except ToolkitError as error:
        return row | {"verdict": "wrong", "detail": f"{error.what} {error.fix}".strip()}
    changed = {"verdict": "changed", "detail": "The bytes are not those that the manifest records."}
    return row | _content(pair, task) | (changed if row["checksum"] == "differs" else {"verdict": "ok"})


def _content(pair: Pair, task: Task) -> dict[str, Any]:
    image = np.ascontiguousarray(pair.image)
    low, high = float(image.min()), float(image.max())
    notes, present = ["every voxel has one value"] if low == high else [], ""
    if pair.label is None:
        notes.append("no label")
    else:
        counts = np.bincount(pair.label.ravel(), minlength=len(task.classes))
        present = " ".join(str(index) for index in np.flatnonzero(counts))
        named = [(name, int(counts[index])) for index, name in task.classes.items() if index]
        notes += [f"no {name}" for name, count in named if not count]
        notes += [f"{name}: {count} voxels" for name, count in named if 0 < count < _TINY]
        if task.dims == 2 and pair.label.ndim == 3 and (empty := int((~pair.label.any(axis=(1, 2))).sum())):
            notes.append(f"{empty} of {len(pair.label)} slices without foreground")
    digest = hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()
    shape = " x ".join(map(str, image.shape[1:]))
    return {"shape": shape, "classes": present, "low": low, "high": high, "notes": "; ".join(notes), "print": digest}


def _leaks(task: Task) -> list[dict[str, Any]]:
    """Rows about names that tell of one person in two splits, where no manifest says who is who."""
    if task.manifest is not None:
        return []
    seen: dict[str, Case] = {}
    rows = []
    for case in task.cases():
        person = person_of(case.volume)
        first = seen.setdefault(person, case)
        if first.split != case.split and first.subject != case.subject and person != case.volume:
            detail = f"{first.id} in {first.split} and {case.id} in {case.split} seem to be of one person, {person}."
            rows.append(_EMPTY | {"verdict": "leak", "checksum": "none", "detail": detail})
    return rows


def _about_the_folder(task: Task) -> list[dict[str, Any]]:
    """Rows about files rather than cases: too few or too many of a pattern, and files that do not belong."""
    manifest = task.manifest
    folders = [] if manifest is None or manifest.generated else data_folders(manifest.name)
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if manifest is None or folder is None:
        return []
    rows = []
    for pattern, expected in manifest.files.items():
        verdict, detail = counted(expected, len(_matching(folder, pattern)), manifest.unconfirmed.get("cases", ""))
        rows.append({"verdict": verdict, "source": str(folder / pattern), "detail": detail})
    for path in _foreign(task, manifest, folder):
        rows.append({"verdict": "foreign", "source": str(path), "detail": "No case uses this file."})
    return [_EMPTY | {"checksum": "none"} | row for row in rows if row["verdict"] != "ok"]


def counted(expected: int, found: int, doubt: str = "") -> tuple[str, str]:
    """Verdict on a number of files, `ok`, `incomplete` or `surplus`, and a sentence; expected 0 is any number from one on."""
    wanted = f"{expected} are expected" if expected else "at least one is expected"
    doubt = f" The number is not confirmed: {doubt}" if doubt else ""
    detail = f"{found} {'file' if found == 1 else 'files'} found, {wanted}.{doubt}"
    if found < max(expected, 1):
        return "incomplete", detail
    return "surplus" if expected and found > expected else "ok", detail


def _foreign(task: Task, manifest: Manifest, folder: Path) -> list[Path]:
    """Files that nothing accounts for: no case, no pattern of the manifest, no companion (text, table, licence)."""
    own = {path.resolve() for case in task.cases() for path in case.reader.files()}
    # a split list may leave out cases that belong all the same
    own |= {path.resolve() for row in rows_of(manifest, folder) for path in files_of(row)}
    for pattern in (*manifest.files, *manifest.other_files):
        own |= {path.resolve() for path in _matching(folder, pattern)}
    others = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.resolve() not in own)
    strange = (path for path in others if path.stem not in _COMPANION_NAMES)
    return [path for path in strange if not path.name.lower().endswith(_COMPANIONS)]


def _matching(folder: Path, pattern: str) -> list[Path]:
    paths = {path: path.relative_to(folder).parts for path in folder.glob(pattern) if path.is_file()}
    return [path for path, parts in paths.items() if not any(part.startswith((".", "__MACOSX")) for part in parts)]


def _checksum(reader: Source, recorded: dict[str, str]) -> str:
    if isinstance(reader, GeneratedSource):
        expected = recorded.get(f"{reader.site}/{reader.subject}")
        same = [] if expected is None else [reader.stack().sha256() == expected]
    else:
        parts = {path: ["/".join(path.parts[-count:]) for count in (4, 3, 2, 1)] for path in reader.files()}
        named = {path: next((recorded[name] for name in ends if name in recorded), "") for path, ends in parts.items()}
        same = [file_sha256(path) == expected for path, expected in named.items() if expected]
    return "none" if not same else "matches" if all(same) else "differs"
