"""Abdominal CT: BTCV as released, and the slices and volumes of Synapse that this literature uses."""

from __future__ import annotations

from pathlib import Path

from toolkit.data.manifest import Manifest
from toolkit.data.reading import Row
from toolkit.data.sets.files import data_set, matched


@data_set
def btcv(folder: Path, manifest: Manifest) -> list[Row]:
    """The 30 labelled scans."""
    training = "RawData/Training"
    found = matched(
        folder, rf"{training}/img/img(?P<number>\d{{4}})\.nii\.gz", f"{training}/label/label{{number}}.nii.gz"
    )
    return [{"case": f"case{f['number']}", "subject": f"case{f['number']}", **row} for f, row in found]


@data_set
def synapse(folder: Path, manifest: Manifest) -> list[Row]:
    """Slices to train on, volumes to test on."""
    slices = matched(folder, r"train_npz/(?P<subject>case\d{4})_slice(?P<position>\d+)\.npz")
    volumes = matched(folder, r"test_vol_h5/(?P<subject>case\d{4})\.npy\.h5")
    return [
        {"case": f["stem"], "subject": f["subject"], "volume": f["subject"], "position": f.get("position"), **row}
        for f, row in (*slices, *volumes)
    ]
