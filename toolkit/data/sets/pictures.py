"""Pictures: nuclei, glands and other tissue, polyps, skin."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from toolkit.data.manifest import Manifest
from toolkit.data.reading import Row
from toolkit.data.rows import table_of, text_of
from toolkit.data.sets.files import indexed, matched
from toolkit.data.splits import held_out
from toolkit.errors import DataError

_SOFT: dict[str, Any] = {"threshold": 128}  # masks from 0 to 255, some of them stored as JPEG
_OBJECTS: dict[str, Any] = {"foreground": True}  # numbered
_NEGATIVE: dict[str, Any] = {"group": "negative", "background": True}  # without a lesion and a mask


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
