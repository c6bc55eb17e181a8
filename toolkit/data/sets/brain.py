"""Hippocampus: the decathlon as released and as a fixed pack, HarP, the 25 subjects with subfields."""

from __future__ import annotations

from pathlib import Path

from toolkit.data.manifest import Manifest
from toolkit.data.reading import Row
from toolkit.data.sets.decathlon import decathlon_rows
from toolkit.data.sets.files import data_set, index_of, matched


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
    found = matched(folder, r"(?P<site>1\.5T|3T)/images/(?P<subject>[^/]+?)\.nii\.gz", "{site}/labels/{subject}.nii.gz")
    return [{"case": f["subject"], "subject": f["subject"], "site": f["site"], **row} for f, row in found]


@data_set
def hisub25(folder: Path, manifest: Manifest) -> list[Row]:
    """25 subjects with three subfields."""
    found = matched(folder, r"images/(?P<subject>[^/]+?)\.nii\.gz", "labels/{subject}.nii.gz")
    return [{"case": f["subject"], "subject": f["subject"], **row} for f, row in found]
