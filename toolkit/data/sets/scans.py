"""Volumes and their slices: cardiac MR, abdominal CT, hippocampus, prostate."""

from __future__ import annotations

from pathlib import Path

from toolkit.data.manifest import Manifest
from toolkit.data.reading import Row
from toolkit.data.rows import table_of, text_of
from toolkit.data.sets.files import decathlon_rows, frame_of, indexed, matched, paths_below
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
            stem = f"{patient}_frame{frame_of(entries, phase, info, 'Info.cfg'):02d}"
            row = {"case": f"{patient}_{phase}", "subject": patient, "group": entries.get("Group") or None}
            rows.append(row | {"image": _volume(info, stem), "label": _volume(info, f"{stem}_gt")})
    return rows


def _volume(info: Path, stem: str) -> Path:
    plain = info.with_name(f"{stem}.nii")
    return plain if plain.is_file() else info.with_name(f"{stem}.nii.gz")


def acdc_c(folder: Path, manifest: Manifest) -> list[Row]:
    """Corrupted test volumes, one folder an artefact."""
    pattern = r"(?P<site>bias|ghosting|motion|spike)/(?P<patient>patient\d{3})_(?:ED|ES)_[0-2]\.npz"
    return matched(folder, pattern, case="{site}/{stem}", subject="{patient}", site="{site}", split="test")


def acdc_slices(folder: Path, manifest: Manifest) -> list[Row]:
    """Slices to train on, volumes to test on, as the semi-supervised literature stores them."""
    scan = r"(?P<volume>(?P<patient>patient\d{3})_frame\d{2})"
    names = {"subject": "{patient}", "volume": "{volume}"}
    slices = rf"ACDC_training_slices/{scan}_slice_(?P<position>\d+)\.h5"
    volumes = matched(folder, rf"ACDC_training_volumes/{scan}\.h5", **names)
    return matched(folder, slices, **names, position="{position}") + volumes


def synapse(folder: Path, manifest: Manifest) -> list[Row]:
    """Slices to train on, volumes to test on."""
    names = {"subject": "{volume}", "volume": "{volume}"}
    volumes = matched(folder, r"test_vol_h5/(?P<volume>case\d{4})\.npy\.h5", **names)
    slices = r"train_npz/(?P<volume>case\d{4})_slice(?P<position>\d+)\.npz"
    return matched(folder, slices, **names, position="{position}") + volumes


def cardiac_acdc(folder: Path, manifest: Manifest) -> list[Row]:
    """Stacks of 35 patients in `.npz` files."""
    names = {"image": "{file}", "case": "{patient}_{phase}", "subject": "{patient}"}
    return indexed(manifest, folder, **names, split="{split}", group="{group}", slices="{slices}")


def cardiac_sunnybrook(folder: Path, manifest: Manifest) -> list[Row]:
    """Labelled slices as pictures; 20 frames at each slice position are numbered through, from 1 on."""
    validation = {"SC-HF-I-40", "SC-HF-NI-36", "SC-HYP-40", "SC-N-40"}  # the last of each group in part 1
    rows: list[Row] = []
    for row in table_of(manifest.table_path):
        position, phase = divmod(int(row["frame_index"]) - 1, 20)
        volume = f"{row['subject']}_frame{phase:02d}"
        files = {"image": folder / "images" / row["file"], "label": folder / "labels" / row["file"]}
        split = "val" if row["subject"] in validation else row["split"]
        place = {"case": f"{volume}/slice{position}", "volume": volume, "position": position, "split": split}
        rows.append({"subject": row["subject"], "group": row["group"], **place, **files})
    return rows


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
            person: Row = {"subject": code, "site": entry.get("Vendor", ""), "group": entry.get("Pathology") or None}
            person |= {"image": label.with_name(f"{code}_sa.nii.gz"), "label": label}
            for phase in _PHASES:
                frame = frame_of(entry, phase, tables[0], f"Row {number}")
                rows.append({"case": f"{code}_{phase}", **person, "frame": frame, "label_frame": frame})
    return rows


def btcv(folder: Path, manifest: Manifest) -> list[Row]:
    """The 30 labelled scans."""
    image, label = r"img/img(?P<number>\d{4})\.nii\.gz", "RawData/Training/label/label{number}.nii.gz"
    return matched(folder, f"RawData/Training/{image}", label, case="case{number}")


def msd_hippocampus(folder: Path, manifest: Manifest) -> list[Row]:
    """The labelled cases of task 04."""
    return decathlon_rows(folder)


def hippocampus_msd04(folder: Path, manifest: Manifest) -> list[Row]:
    """The same cases with a fixed split and three intensity families as sites."""
    files = {"image": "images/{case}.nii.gz", "label": "labels/{case}.nii.gz"}
    return indexed(manifest, folder, **files, case="{case}", split="{split}", site="{intensity_family}")


def harp(folder: Path, manifest: Manifest) -> list[Row]:
    """Whole brains at two field strengths."""
    pattern = r"(?P<site>1\.5T|3T)/images/(?P<case>[^/]+?)\.nii\.gz"
    return matched(folder, pattern, "{site}/labels/{case}.nii.gz", case="{case}", site="{site}")


def hisub25(folder: Path, manifest: Manifest) -> list[Row]:
    """25 subjects with three subfields."""
    return matched(folder, r"images/(?P<case>[^/]+?)\.nii\.gz", "labels/{case}.nii.gz", case="{case}")


def msd_prostate(folder: Path, manifest: Manifest) -> list[Row]:
    """The labelled cases of task 05, T2 alone (the first of two channels)."""
    return [{**row, "frame": 0} for row in decathlon_rows(folder)]


def nci_isbi(folder: Path, manifest: Manifest) -> list[Row]:
    """DICOM series of two sites with labels as NRRD."""
    rows: list[Row] = []
    for part, site in (("Prostate3T", "RUNMC"), ("ProstateDx", "BMC")):
        files = rf"images/{part}-(?P<number>[\d-]+)/", f"labels/{part}-{{number}}.nrrd"
        rows += matched(folder, *files, case=f"{site}_{{number}}", site=site)
    return rows


def promise12(folder: Path, manifest: Manifest) -> list[Row]:
    """The 50 labelled cases."""
    return matched(folder, r"TrainingData/Case\d{2}\.mhd", "TrainingData/{stem}_segmentation.mhd")


def prostate_saml(folder: Path, manifest: Manifest) -> list[Row]:
    """Six sites, a folder each."""
    pattern = r"(?P<site>RUNMC|BMC|I2CVB|UCL|BIDMC|HK)/Case(?P<number>\d+)\.nii\.gz"
    label = "{site}/Case{number}_segmentation.nii.gz"
    return matched(folder, pattern, label, case="{site}_{number}", site="{site}")
