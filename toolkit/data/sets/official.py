"""Official data sets whose cases are listed in files of their own: a function of the folder each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from toolkit.data.manifest import Manifest, leaves_folder
from toolkit.data.reading import Row
from toolkit.data.sets.files import matched, paths_below, table_of, text_of
from toolkit.data.source import decoding
from toolkit.data.splits import held_out
from toolkit.errors import DataError

_PHASES = ("ED", "ES")  # end of diastole, end of systole


def acdc(folder: Path, manifest: Manifest) -> list[Row]:
    """End-diastole and end-systole of every patient, as its `Info.cfg` names them."""
    rows: list[Row] = []
    for info in sorted(folder.rglob("Info.cfg")):
        patient = info.parent.name
        lines = (line.partition(":") for line in text_of(info).splitlines())
        entries = {key.strip(): value.strip() for key, _, value in lines}
        for phase in _PHASES:
            stem = f"{patient}_frame{_frame(entries, phase, info, 'Info.cfg'):02d}"
            row = {"case": f"{patient}_{phase}", "subject": patient, "group": entries.get("Group") or None}
            rows.append(row | {"image": _volume(info, stem), "label": _volume(info, f"{stem}_gt")})
    return rows


def _volume(info: Path, stem: str) -> Path:
    plain = info.with_name(f"{stem}.nii")
    return plain if plain.is_file() else info.with_name(f"{stem}.nii.gz")


def mnms(folder: Path, manifest: Manifest) -> list[Row]:
    """The two labelled frames of every subject in the table of M&Ms, of those whose labels are there."""
    tables = [path for path in sorted(folder.glob("*.csv")) if "External code" in text_of(path).split("\n", 1)[0]]
    if len(tables) != 1:
        fix = "Put the table of the data set (..._opendataset.csv) beside Training, Validation and Testing."
        raise DataError(f"There are {len(tables)} tables with a column 'External code'.", where=folder, fix=fix)
    labels = {path.rsplit("/", 1)[-1]: folder / path for path in paths_below(folder) if path.endswith("_sa_gt.nii.gz")}
    rows: list[Row] = []
    for number, entry in enumerate(table_of(tables[0]), start=2):
        code = entry.get("External code", "")
        if label := labels.get(f"{code}_sa_gt.nii.gz"):
            image = label.with_name(f"{code}_sa.nii.gz")
            for phase in _PHASES:
                frame = _frame(entry, phase, tables[0], f"Row {number}")
                row: Row = {"case": f"{code}_{phase}", "subject": code, "site": entry.get("Vendor", "")}
                row |= {"group": entry.get("Pathology") or None, "image": image, "label": label}
                rows.append(row | {"frame": frame, "label_frame": frame})
    return rows


def _frame(phases: Mapping[str, str], phase: str, where: Path, line: str) -> int:
    """Number of the frame that a table names for a phase of the heart."""
    if not (frame := phases.get(phase, "")).isdecimal():
        raise DataError(f"{line} names no frame for {phase}.", where=where, fix="Get the file again (ED: 1).")
    return int(frame)


def glas(folder: Path, manifest: Manifest) -> list[Row]:
    """Colon glands with numbered objects; a tenth of the training patients validates.

    Patients are in training and test at once, as published: a subject is an image.
    """
    rows: list[Row] = []
    for part, split in (("train", "train"), ("testA", "test"), ("testB", "test")):
        rows += matched(folder, rf"{part}_\d+\.bmp", "{stem}_anno.bmp", split=split, foreground=True)
    table = folder / "Grade.csv"
    grades = _grades(table, [row["case"] for row in rows]) if table.is_file() else {}
    for row in rows:
        row["group"] = grades.get(row["case"], ("", ""))[1] or None
    held_out(rows, 0.1, manifest.name, [grades.get(row["case"], (row["case"], ""))[0] for row in rows])
    return rows


def _grades(path: Path, stems: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Patient and grade of every image."""
    grades: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(table_of(path), start=2):
        missing = [column for column in ("name", "patient ID", "grade (GlaS)") if not line.get(column)]
        if missing:
            what = f"Row {number} has no {' and no '.join(map(repr, missing))}."
            raise DataError(what, where=path, fix="Get the table again.")
        values = line["patient ID"], line["grade (GlaS)"]
        if grades.setdefault(line["name"], values) != values:
            what = f"{line['name']} stands in the table twice, with different values."
            raise DataError(what, where=path, fix="Get the table again.")
    if absent := [stem for stem in stems if stem not in grades]:
        fix = "Get the table again, or move it away: the data set can be read without it."
        raise DataError(f"The table has no row for {len(absent)} images, for example {absent[0]}.", where=path, fix=fix)
    return grades


def decathlon(folder: Path, manifest: Manifest | None = None) -> list[Row]:
    """A row for every labelled case of a task of the decathlon; which cases belong to one person is not published."""
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


def read_description(root: Path) -> dict[str, Any]:
    """The content of `dataset.json`, which tasks of the decathlon and nnU-Net's raw data sets have."""
    path = root / "dataset.json"
    fix = "Give the folder of a raw data set (nnUNet_raw/DatasetXXX_Name or a decathlon task), unpacked whole."
    with decoding(path, "a description of a data set", fix):
        table: dict[str, Any] = {**json.loads(text_of(path))}
    return table


def msd_prostate(folder: Path, manifest: Manifest) -> list[Row]:
    """The labelled cases of task 05, T2 alone (the first of two channels)."""
    return [{**row, "frame": 0} for row in decathlon(folder)]


DATA_SETS = {"acdc": acdc, "glas": glas, "mnms": mnms, "msd_hippocampus": decathlon, "msd_prostate": msd_prostate}
