"""A function for each official data set, called as it is: its folder -> the rows of its cases. First scans, then pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from toolkit.data.manifest import Manifest
from toolkit.data.reading import Row
from toolkit.data.rows import decathlon_rows, frame_of, indexed, matched, paths_below, table_of, text_of
from toolkit.data.splits import held_out
from toolkit.errors import DataError

_PHASES = ("ED", "ES")  # end of diastole, end of systole
_SOFT: dict[str, Any] = {"threshold": 128}  # masks from 0 to 255, some of them stored as JPEG
_OBJECTS: dict[str, Any] = {"foreground": True}  # numbered
_NEGATIVE: dict[str, Any] = {"group": "negative", "background": True}  # without a lesion and a mask


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
    """Slices to train on, volumes to test on, as the semi-supervised literature stores them: both of every patient."""
    scan = r"(?P<volume>(?P<patient>patient\d{3})_frame\d{2})"
    names = {"subject": "{patient}", "volume": "{volume}"}
    slices = rf"ACDC_training_slices/{scan}_slice_(?P<position>\d+)\.h5"
    volumes = matched(folder, rf"ACDC_training_volumes/{scan}\.h5", **names)
    rows = matched(folder, slices, **names, position="{position}") + volumes
    tested = manifest.split_lists.get(manifest.default_split, {}).get("test", ())
    return [row for row in rows if (row["subject"] in tested) != ("position" in row)]


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
    return matched(folder, pattern, "{site}/Case{number}_segmentation.nii.gz", case="{site}_{number}", site="{site}")


def digestpath_patch(folder: Path, manifest: Manifest) -> list[Row]:
    """Tiles of sections, those of one section together."""
    tile, subject = r"(?P<section>[^/]+?)__(?P<tile>\d+_\d+)\.png", {"subject": "{section}"}
    rows = matched(folder, f"images/{tile}", "masks/{section}__{tile}.png", group="positive", **subject, **_SOFT)
    return rows + matched(folder, f"negatives/{tile}", **subject, **_NEGATIVE)


def digestpath_wsi(folder: Path, manifest: Manifest) -> list[Row]:
    """Whole sections; those without a lesion have no mask."""
    rows = matched(folder, r"images/(?P<name>[^/]+?)\.jpg", "masks/{name}_mask.jpg", group="positive", **_SOFT)
    return rows + matched(folder, r"negatives/[^/]+?\.jpg", **_NEGATIVE)


def dsb2018(folder: Path, manifest: Manifest) -> list[Row]:
    """Nuclei as released: a folder an image, a mask an object."""
    image, label = r"stage1_train/(?P<id>[^/]+)/images/(?P=id)\.png", "stage1_train/{id}/masks/"
    return matched(folder, image, label, case="{id:.12}", subject="{id}", **_OBJECTS)


def nuclei_dsb2018(folder: Path, manifest: Manifest) -> list[Row]:
    """Nuclei of six looks."""
    names = {"case": "{domain}/{id:.12}", "subject": "{field}", "split": "{split}", "site": "{domain}"}
    return indexed(manifest, folder, image="{image}", label="{label}", **names, **_OBJECTS)


def ebhi_seg(folder: Path, manifest: Manifest) -> list[Row]:
    """Six kinds of tissue, a folder each."""
    image, label = r"(?P<group>[^/]+)/image/(?P<name>[^/]+?)\.png", "{group}/label/{name}.png"
    return matched(folder, image, label, case="{group}/{name}", group="{group}", **_SOFT)


def glas(folder: Path, manifest: Manifest) -> list[Row]:
    """Colon glands with numbered objects; a tenth of the training patients validates.

    Patients are in training and test at once, as published: a subject is an image.
    """
    rows: list[Row] = []
    for part, split in (("train", "train"), ("testA", "test"), ("testB", "test")):
        rows += matched(folder, rf"{part}_\d+\.bmp", "{stem}_anno.bmp", split=split, **_OBJECTS)
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


def monuseg(folder: Path, manifest: Manifest) -> list[Row]:
    """Nuclei outlined in XML; a tenth of the training patients validates."""
    files = r"(?P<name>[\w-]+)\.tif", "{name}.xml"
    names = {"case": "{name}", "subject": "{name:.12}"}
    rows: list[Row] = []
    for split, images, labels in (("train", "train/Tissue Images/", "train/Annotations/"), ("test", "test/", "test/")):
        rows += matched(folder, images + files[0], labels + files[1], **names, split=split, **_OBJECTS)
    held_out(rows, 0.1, manifest.name)
    return rows


def isic_2016(folder: Path, manifest: Manifest) -> list[Row]:
    """Skin lesions; a tenth of the training images validates."""
    parts = {"train": "ISBI2016_ISIC_Part1_Training_{}", "test": "ISBI2016_ISIC_Part1_Test_{}"}
    rows = _isic(folder, {split: (part, part) for split, part in parts.items()}, "Segmentation")
    held_out(rows, 0.1, manifest.name)
    return rows


def isic_2017(folder: Path, manifest: Manifest) -> list[Row]:
    """Skin lesions with a published validation split."""
    parts = {"train": "Training", "val": "Validation", "test": "Test_v2"}
    names = {split: (f"ISIC-2017_{part}_{{}}", f"ISIC-2017_{part}_Part1_{{}}") for split, part in parts.items()}
    return _isic(folder, names, "segmentation")


def _isic(folder: Path, parts: dict[str, tuple[str, str]], ending: str) -> list[Row]:
    rows: list[Row] = []
    for split, (images, labels) in parts.items():
        label = f"{labels.format('GroundTruth')}/{{stem}}_{ending}.png"
        rows += matched(folder, rf"{images.format('Data')}/ISIC_\d{{7}}\.jpg", label, split=split, **_SOFT)
    return rows


def kvasir_seg(folder: Path, manifest: Manifest) -> list[Row]:
    """Polyps, with the published lists for training and validation."""
    return _kvasir(folder, ("train", "val"))


def kvasir_sessile(folder: Path, manifest: Manifest) -> list[Row]:
    """The sessile polyps among them."""
    return _kvasir(folder, ("train", "val", "test"))


def _kvasir(folder: Path, splits: Iterable[str]) -> list[Row]:
    rows = matched(folder, r"images/(?P<name>[^/]+?)\.jpg", "masks/{name}.jpg", **_SOFT)
    return _listed(rows, folder, {split: folder / f"{split}.txt" for split in splits})


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
