"""Volumes and their slices: cardiac MR, abdominal CT, hippocampus, prostate."""

from __future__ import annotations

from pathlib import Path

from toolkit.data.manifest import Manifest
from toolkit.data.reading import Row
from toolkit.data.sets.decathlon import decathlon_rows
from toolkit.data.sets.files import data_set, index_of, matched, paths_below, table_of, text_of
from toolkit.errors import DataError


@data_set
def acdc(folder: Path, manifest: Manifest) -> list[Row]:
    """End-diastole and end-systole of every patient, as its `Info.cfg` names them."""
    rows: list[Row] = []
    for info in sorted(folder.rglob("Info.cfg")):
        patient = info.parent.name
        lines = (line.partition(":") for line in text_of(info).splitlines())
        known = {key.strip(): value.strip() for key, _, value in lines}
        for phase in ("ED", "ES"):
            frame = known.get(phase, "")
            if not frame.isdecimal():
                raise DataError(
                    f"Info.cfg names no frame for {phase}.", where=str(info), fix="Get the file again (ED: 1)."
                )
            stem = f"{patient}_frame{int(frame):02d}"
            row = {"case": f"{patient}_{phase}", "subject": patient, "group": known.get("Group") or None}
            rows.append(row | {"image": _volume(info, stem), "label": _volume(info, f"{stem}_gt")})
    return rows


def _volume(info: Path, stem: str) -> Path:
    for end in (".nii.gz", ".nii"):
        if (path := info.with_name(stem + end)).is_file():
            return path
    raise DataError(
        f"{stem}.nii.gz is missing, which {info.name} names.", where=str(info.parent), fix="Complete the data set."
    )


@data_set
def acdc_c(folder: Path, manifest: Manifest) -> list[Row]:
    """Corrupted test volumes, one folder an artefact."""
    pairs = matched(folder, r"(?P<site>bias|ghosting|motion|spike)/(?P<patient>patient\d{3})_(?:ED|ES)_[0-2]\.npz")
    return [
        {"case": f"{f['site']}/{f['stem']}", "subject": f["patient"], "site": f["site"], "split": "test", **row}
        for f, row in pairs
    ]


@data_set
def acdc_slices(folder: Path, manifest: Manifest) -> list[Row]:
    """Slices to train on, volumes to test on, as the semi-supervised literature stores them."""
    scan = r"(?P<volume>(?P<patient>patient\d{3})_frame\d{2})"
    slices = matched(folder, rf"ACDC_training_slices/{scan}_slice_(?P<position>\d+)\.h5")
    volumes = matched(folder, rf"ACDC_training_volumes/{scan}\.h5")
    return [
        {"case": f["stem"], "subject": f["patient"], "volume": f["volume"], "position": f.get("position"), **row}
        for f, row in (*slices, *volumes)
    ]


@data_set
def cardiac_acdc(folder: Path, manifest: Manifest) -> list[Row]:
    """Stacks of 35 patients in `.npz` files."""
    return [
        {
            "case": f"{row['patient']}_{row['phase']}",
            "subject": row["patient"],
            "split": row["split"],
            "group": row["group"],
            "slices": row["slices"],
            "image": folder / row["file"],
        }
        for row in index_of(manifest)
    ]


@data_set
def cardiac_sunnybrook(folder: Path, manifest: Manifest) -> list[Row]:
    """Labelled slices as pictures; 20 frames at each slice position are numbered through, from 1 on."""
    validation = {"SC-HF-I-40", "SC-HF-NI-36", "SC-HYP-40", "SC-N-40"}  # the last of each group in part 1
    rows: list[Row] = []
    for row in index_of(manifest):
        position, phase = divmod(int(row["frame_index"]) - 1, 20)
        volume = f"{row['subject']}_frame{phase:02d}"
        rows.append(
            {
                "case": f"{volume}/slice{position}",
                "subject": row["subject"],
                "split": "val" if row["subject"] in validation else row["split"],
                "group": row["group"],
                "volume": volume,
                "position": position,
                "image": folder / "images" / row["file"],
                "label": folder / "labels" / row["file"],
            }
        )
    return rows


@data_set
def mnms(folder: Path, manifest: Manifest) -> list[Row]:
    """The two labelled frames of every subject in the table of M&Ms, of those whose labels are there."""
    tables = [path for path in sorted(folder.glob("*.csv")) if "External code" in text_of(path).split("\n", 1)[0]]
    if len(tables) != 1:
        raise DataError(
            f"There are {len(tables)} tables with a column 'External code'.",
            where=str(folder),
            fix="Put the table of the data set (..._opendataset.csv) beside Training, Validation and Testing.",
        )
    labels = {path.rsplit("/", 1)[-1]: folder / path for path in paths_below(folder) if path.endswith("_sa_gt.nii.gz")}
    rows: list[Row] = []
    for number, entry in enumerate(table_of(tables[0]), start=2):
        code = entry.get("External code", "")
        label = labels.get(f"{code}_sa_gt.nii.gz")
        if label is None:
            continue
        image = label.with_name(f"{code}_sa.nii.gz")
        if not image.is_file():
            raise DataError(f"{image.name} is missing.", where=str(image), fix="Complete the data set.")
        for phase in ("ED", "ES"):
            frame = entry.get(phase, "")
            if not frame.isdecimal():
                raise DataError(
                    f"Row {number} names no frame for {phase}.", where=str(tables[0]), fix="Get the table again."
                )
            row: Row = {"case": f"{code}_{phase}", "subject": code, "site": entry.get("Vendor", "")}
            row |= {"group": entry.get("Pathology") or None, "image": image, "label": label}
            rows.append(row | {"frame": int(frame), "label_frame": int(frame)})
    return rows


@data_set
def btcv(folder: Path, manifest: Manifest) -> list[Row]:
    """The 30 labelled scans."""
    training = "RawData/Training"
    pairs = matched(
        folder, rf"{training}/img/img(?P<number>\d{{4}})\.nii\.gz", f"{training}/label/label{{number}}.nii.gz"
    )
    return [{"case": f"case{f['number']}", "subject": f"case{f['number']}", **row} for f, row in pairs]


@data_set
def synapse(folder: Path, manifest: Manifest) -> list[Row]:
    """Slices to train on, volumes to test on."""
    slices = matched(folder, r"train_npz/(?P<subject>case\d{4})_slice(?P<position>\d+)\.npz")
    volumes = matched(folder, r"test_vol_h5/(?P<subject>case\d{4})\.npy\.h5")
    return [
        {"case": f["stem"], "subject": f["subject"], "volume": f["subject"], "position": f.get("position"), **row}
        for f, row in (*slices, *volumes)
    ]


@data_set
def msd_hippocampus(folder: Path, manifest: Manifest) -> list[Row]:
    """The labelled cases of task 04."""
    return decathlon_rows(folder)


@data_set
def hippocampus_msd04(folder: Path, manifest: Manifest) -> list[Row]:
    """The same cases with a fixed split and three intensity families as sites."""
    return [
        {
            "case": row["case"],
            "subject": row["case"],
            "split": row["split"],
            "site": row["intensity_family"],
            "image": folder / "images" / f"{row['case']}.nii.gz",
            "label": folder / "labels" / f"{row['case']}.nii.gz",
        }
        for row in index_of(manifest)
    ]


@data_set
def harp(folder: Path, manifest: Manifest) -> list[Row]:
    """Whole brains at two field strengths."""
    pairs = matched(folder, r"(?P<site>1\.5T|3T)/images/(?P<subject>[^/]+?)\.nii\.gz", "{site}/labels/{subject}.nii.gz")
    return [{"case": f["subject"], "subject": f["subject"], "site": f["site"], **row} for f, row in pairs]


@data_set
def hisub25(folder: Path, manifest: Manifest) -> list[Row]:
    """25 subjects with three subfields."""
    pairs = matched(folder, r"images/(?P<subject>[^/]+?)\.nii\.gz", "labels/{subject}.nii.gz")
    return [{"case": f["subject"], "subject": f["subject"], **row} for f, row in pairs]


@data_set
def msd_prostate(folder: Path, manifest: Manifest) -> list[Row]:
    """The labelled cases of task 05, T2 alone (the first of two channels)."""
    return [{**row, "frame": 0} for row in decathlon_rows(folder)]


@data_set
def nci_isbi(folder: Path, manifest: Manifest) -> list[Row]:
    """DICOM series of two sites with labels as NRRD."""
    sites = {"Prostate3T": "RUNMC", "ProstateDx": "BMC"}
    rows: list[Row] = []
    pattern = r"images/(?P<part>Prostate3T|ProstateDx)-(?P<number>[\d-]+)/"
    for fields, row in matched(folder, pattern, "labels/{part}-{number}.nrrd"):
        name = f"{sites[fields['part']]}_{fields['number']}"
        rows.append({"case": name, "subject": name, "site": sites[fields["part"]], **row})
    return rows


@data_set
def promise12(folder: Path, manifest: Manifest) -> list[Row]:
    """The 50 labelled cases."""
    pairs = matched(folder, r"TrainingData/(?P<case>Case\d{2})\.mhd", "TrainingData/{case}_segmentation.mhd")
    return [{"case": f["case"], "subject": f["case"], **row} for f, row in pairs]


@data_set
def prostate_saml(folder: Path, manifest: Manifest) -> list[Row]:
    """Six sites, a folder each."""
    pattern = r"(?P<site>RUNMC|BMC|I2CVB|UCL|BIDMC|HK)/Case(?P<number>\d+)\.nii\.gz"
    rows: list[Row] = []
    for fields, row in matched(folder, pattern, "{site}/Case{number}_segmentation.nii.gz"):
        name = f"{fields['site']}_{fields['number']}"
        rows.append({"case": name, "subject": name, "site": fields["site"], **row})
    return rows
