"""Pictures: nuclei, glands and other tissue, polyps, skin."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from toolkit.data.manifest import Manifest
from toolkit.data.reading import Row
from toolkit.data.sets.files import data_set, index_of, matched, table_of, text_of
from toolkit.data.splits import held_out
from toolkit.errors import DataError

_SOFT = {"threshold": 128}  # masks from 0 to 255, some of them stored as JPEG


@data_set
def digestpath_patch(folder: Path, manifest: Manifest) -> list[Row]:
    """Tiles of sections, those of one section together."""
    tile = r"(?P<section>[^/]+?)__(?P<tile>\d+_\d+)\.png"
    positive = matched(folder, f"images/{tile}", "masks/{section}__{tile}.png")
    rows = [{"case": f["stem"], "subject": f["section"], "group": "positive", **_SOFT, **row} for f, row in positive]
    negative = matched(folder, f"negatives/{tile}")
    return rows + [
        {"case": f["stem"], "subject": f["section"], "group": "negative", "background": True, **row}
        for f, row in negative
    ]


@data_set
def digestpath_wsi(folder: Path, manifest: Manifest) -> list[Row]:
    """Whole sections; those without a lesion have no mask."""
    positive = matched(folder, r"images/(?P<name>[^/]+?)\.jpg", "masks/{name}_mask.jpg")
    rows = [{**_single(f["stem"]), "group": "positive", **_SOFT, **row} for f, row in positive]
    negative = matched(folder, r"negatives/[^/]+?\.jpg")
    return rows + [{**_single(f["stem"]), "group": "negative", "background": True, **row} for f, row in negative]


@data_set
def dsb2018(folder: Path, manifest: Manifest) -> list[Row]:
    """Nuclei as released: a folder an image, a mask an object."""
    pairs = matched(folder, r"stage1_train/(?P<id>[^/]+)/images/(?P=id)\.png", "stage1_train/{id}/masks/")
    return [{"case": f["id"][:12], "subject": f["id"], "foreground": True, **row} for f, row in pairs]


@data_set
def nuclei_dsb2018(folder: Path, manifest: Manifest) -> list[Row]:
    """Nuclei of six looks."""
    return [
        {
            "case": f"{row['domain']}/{row['id'][:12]}",
            "subject": row["field"],
            "split": row["split"],
            "site": row["domain"],
            "foreground": True,
            "image": folder / row["image"],
            "label": folder / row["label"],
        }
        for row in index_of(manifest)
    ]


@data_set
def ebhi_seg(folder: Path, manifest: Manifest) -> list[Row]:
    """Six kinds of tissue, a folder each."""
    pairs = matched(folder, r"(?P<group>[^/]+)/image/(?P<name>[^/]+?)\.png", "{group}/label/{name}.png")
    return [{**_single(f"{f['group']}/{f['name']}"), "group": f["group"], **_SOFT, **row} for f, row in pairs]


@data_set
def glas(folder: Path, manifest: Manifest) -> list[Row]:
    """Colon glands with numbered objects; a tenth of the training patients validates.

    Patients are in training and test at once, as published: a subject is an image.
    """
    rows: list[Row] = []
    for part, split in (("train", "train"), ("testA", "test"), ("testB", "test")):
        pairs = matched(folder, rf"(?P<name>{part}_\d+)\.bmp", "{name}_anno.bmp")
        rows += [{**_single(f["stem"]), "split": split, "foreground": True, **row} for f, row in pairs]
    table = folder / "Grade.csv"
    grades = _grades(table, [row["case"] for row in rows]) if table.is_file() else {}
    for row in rows:
        row["group"] = grades.get(row["case"], ("", ""))[1] or None
    held_out(rows, 0.1, manifest.name, [grades.get(row["case"], (row["case"], ""))[0] for row in rows])
    return rows


def _grades(path: Path, stems: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Patient and grade of every image."""
    known: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(table_of(path), start=2):
        missing = [column for column in ("name", "patient ID", "grade (GlaS)") if not line.get(column)]
        if missing:
            raise DataError(
                f"Row {number} has no {' and no '.join(map(repr, missing))}.",
                where=str(path),
                fix="Get the table again.",
            )
        values = line["patient ID"], line["grade (GlaS)"]
        if known.setdefault(line["name"], values) != values:
            raise DataError(
                f"{line['name']} stands in the table twice, with different values.",
                where=str(path),
                fix="Get the table again.",
            )
    if absent := [stem for stem in stems if stem not in known]:
        raise DataError(
            f"The table has no row for {len(absent)} images, for example {absent[0]}.",
            where=str(path),
            fix="Get the table again, or move it away: the data set can be read without it.",
        )
    return known


@data_set
def monuseg(folder: Path, manifest: Manifest) -> list[Row]:
    """Nuclei outlined in XML; a tenth of the training patients validates."""
    rows: list[Row] = []
    parts = (
        ("train", r"train/Tissue Images/(?P<name>[\w-]+)\.tif", "train/Annotations/{name}.xml"),
        ("test", r"test/(?P<name>[\w-]+)\.tif", "test/{name}.xml"),
    )
    for split, image, label in parts:
        for fields, row in matched(folder, image, label):
            name = {"case": fields["name"], "subject": fields["name"][:12]}
            rows.append({**name, "split": split, "foreground": True, **row})
    held_out(rows, 0.1, manifest.name)
    return rows


@data_set
def isic_2016(folder: Path, manifest: Manifest) -> list[Row]:
    """Skin lesions; a tenth of the training images validates."""
    parts = {"train": "ISBI2016_ISIC_Part1_Training_{}", "test": "ISBI2016_ISIC_Part1_Test_{}"}
    rows = _isic(folder, {split: (part, part) for split, part in parts.items()}, "Segmentation")
    held_out(rows, 0.1, manifest.name)
    return rows


@data_set
def isic_2017(folder: Path, manifest: Manifest) -> list[Row]:
    """Skin lesions with a published validation split."""
    parts = {"train": "Training", "val": "Validation", "test": "Test_v2"}
    names = {split: (f"ISIC-2017_{part}_{{}}", f"ISIC-2017_{part}_Part1_{{}}") for split, part in parts.items()}
    return _isic(folder, names, "segmentation")


def _isic(folder: Path, parts: dict[str, tuple[str, str]], ending: str) -> list[Row]:
    rows: list[Row] = []
    for split, (images, labels) in parts.items():
        label = f"{labels.format('GroundTruth')}/ISIC_{{number}}_{ending}.png"
        pairs = matched(folder, rf"{images.format('Data')}/ISIC_(?P<number>\d{{7}})\.jpg", label)
        rows += [{**_single(f["stem"]), "split": split, **_SOFT, **row} for f, row in pairs]
    return rows


@data_set
def kvasir_seg(folder: Path, manifest: Manifest) -> list[Row]:
    """Polyps, with the published lists for training and validation."""
    return _kvasir(folder, ("train", "val"))


@data_set
def kvasir_sessile(folder: Path, manifest: Manifest) -> list[Row]:
    """The sessile polyps among them."""
    return _kvasir(folder, ("train", "val", "test"))


def _kvasir(folder: Path, splits: Iterable[str]) -> list[Row]:
    pairs = matched(folder, r"images/(?P<name>[^/]+?)\.jpg", "masks/{name}.jpg")
    rows = [{**_single(f["stem"]), **_SOFT, **row} for f, row in pairs]
    return _listed(rows, folder, {split: folder / f"{split}.txt" for split in splits})


def _listed(rows: list[Row], folder: Path, lists: dict[str, Path]) -> list[Row]:
    """Rows with the split that the data set's own lists give; images in no list are left out."""
    if not any(path.is_file() for path in lists.values()):
        return rows
    split_of: dict[str, str] = {}
    for split, path in lists.items():
        for line in filter(None, (line.strip() for line in text_of(path).splitlines())):
            if split_of.setdefault(line, split) != split:
                raise DataError(
                    f"{line} is in {split_of[line]} and in {split}.", where=str(path), fix="Get the lists again."
                )
    names = [row["image"].name for row in rows]
    if missing := sorted(split_of.keys() - {*names, *(row["case"] for row in rows)}):
        raise DataError(
            f"The lists name {len(missing)} images that are not there, for example {missing[0]}.",
            where=str(folder),
            fix="Complete the data set, or get the lists again.",
        )
    chosen = [split_of.get(name) or split_of.get(row["case"]) for name, row in zip(names, rows, strict=True)]
    return [{**row, "split": split} for row, split in zip(rows, chosen, strict=True) if split]


def _single(name: str) -> Row:
    return {"case": name, "subject": name}
