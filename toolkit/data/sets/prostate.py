"""Prostate MR: the decathlon, NCI-ISBI, PROMISE12, and the six sites of SAML."""

from __future__ import annotations

from pathlib import Path

from toolkit.data.manifest import Manifest
from toolkit.data.reading import Row
from toolkit.data.sets.decathlon import decathlon_rows
from toolkit.data.sets.files import data_set, matched


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
    found = matched(folder, r"TrainingData/(?P<case>Case\d{2})\.mhd", "TrainingData/{case}_segmentation.mhd")
    return [{"case": f["case"], "subject": f["case"], **row} for f, row in found]


@data_set
def prostate_saml(folder: Path, manifest: Manifest) -> list[Row]:
    """Six sites, a folder each."""
    pattern = r"(?P<site>RUNMC|BMC|I2CVB|UCL|BIDMC|HK)/Case(?P<number>\d+)\.nii\.gz"
    rows: list[Row] = []
    for fields, row in matched(folder, pattern, "{site}/Case{number}_segmentation.nii.gz"):
        name = f"{fields['site']}_{fields['number']}"
        rows.append({"case": name, "subject": name, "site": fields["site"], **row})
    return rows
