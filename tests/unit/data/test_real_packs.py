"""The public packs, where they are on this machine ($TOOLKIT_DATA)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from toolkit import join_tasks, load_task
from toolkit.data.volumes import write_nifti


def test_hippocampus(real_data: Path, tmp_path):
    task = load_task("hippocampus_msd04")
    assert {split: len(task.cases(split)) for split in task.splits} == {"train": 160, "val": 40, "test": 60}
    assert {site: len(task.cases(site=site)) for site in task.sites} == {
        "uint8": 55,
        "float_1e3": 172,
        "float_1e5+": 33,
    }
    case = task.cases(site="uint8")[0]
    stored = nibabel.load(real_data / "hippocampus_msd04" / "labels" / f"{case.id}.nii.gz")
    np.testing.assert_array_equal(case.label.numpy(), np.asarray(stored.dataobj))
    np.testing.assert_allclose(case.affine, stored.affine)
    assert case.spacing == (1.0, 1.0, 1.0)
    written = nibabel.load(write_nifti(tmp_path / "p.nii.gz", case.label.numpy(), case.geometry))
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(stored.dataobj))
    np.testing.assert_allclose(written.affine, stored.affine)
    batch = task.loader("train", batch_size=4, augmentation="standard").batch(11)
    assert batch["image"].shape == (4, 1, 32, 48, 32)
    assert set(batch["label"].unique().tolist()) == {0, 1, 2}


def test_acdc(real_data: Path):
    task = load_task("cardiac_acdc")
    assert len(task) == 682
    assert {split: len({c.subject for c in task.cases(split)}) for split in task.splits} == {
        "train": 20,
        "val": 5,
        "test": 10,
    }
    case = task.cases("test")[3]
    stored = np.load(real_data / "cardiac_acdc" / "volumes" / f"{case.volume}.npz")
    np.testing.assert_array_equal(case.label.numpy(), stored["label"][case.position])
    scaled = (stored["image"] / stored["k"]).astype("float32")
    clipped = np.clip(scaled, *np.percentile(scaled, (0.5, 99.5)))
    expected = ((clipped - clipped.mean()) / clipped.std())[case.position]
    np.testing.assert_allclose(case.image[0].numpy(), expected, atol=2e-3)
    assert (case.spacing, case.slice_spacing, case.affine) == (None, None, None)
    assert Counter(c.group for c in task.cases("val") if c.position == 0) == dict.fromkeys(
        ("DCM", "HCM", "MINF", "NOR", "RV"), 2
    )


def test_sunnybrook(real_data: Path):
    task = load_task("cardiac_sunnybrook")
    assert len(task) == 539
    subjects = {split: {c.subject for c in task.cases(split)} for split in task.splits}
    assert {split: len(names) for split, names in subjects.items()} == {"train": 11, "val": 4, "test": 15}
    volumes: dict[str, list[int]] = {}
    for case in task.cases():
        volumes.setdefault(case.volume, []).append(case.position)
    assert len(volumes) == 60  # two phases of each subject
    for positions in volumes.values():
        assert positions == list(range(positions[0], positions[0] + len(positions)))
    case = task.cases("train")[0]
    stored = np.array(Image.open(real_data / "cardiac_sunnybrook" / "labels" / "SC-HF-I-01_0048.png"))
    np.testing.assert_array_equal(case.label.numpy(), stored)
    assert case.spacing is None


def test_nuclei(real_data: Path):
    task = load_task("nuclei_dsb2018")
    assert [len(task.cases(site=site)) for site in task.sites] == [120, 40, 24, 32, 16, 8]
    for site in task.sites:
        case = task.cases("train", site=site)[0]
        assert case.image.shape[0] == 3
        assert set(case.label.unique().tolist()) == {0, 1}
        assert torch.equal(case.image[0], case.image[1]) != site.startswith("stain")
    batch = task.loader("train", batch_size=6, augmentation="standard").batch(0)
    assert batch["image"].shape == (6, 3, 256, 256)


def test_left_ventricle_across_sites(real_data: Path):
    acdc, sunnybrook = load_task("cardiac_acdc"), load_task("cardiac_sunnybrook")
    both = join_tasks([acdc, sunnybrook], classes={"LV": {"cardiac_acdc": 3, "cardiac_sunnybrook": 1}})
    assert both.sites == ("dijon", "toronto")
    assert len(both) == 682 + 539
    for joined, own in zip(both.cases("test", "dijon")[:20], acdc.cases("test")[:20], strict=True):
        np.testing.assert_array_equal(joined.label.numpy(), (own.label.numpy() == 3).astype(np.uint8))
    assert all(case.spacing is None for case in both.cases())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hippocampus_msd04", "cardiac_acdc", "cardiac_sunnybrook", "nuclei_dsb2018"])
def test_every_file_is_the_recorded_one(real_data: Path, name: str):
    table = load_task(name).verify()
    assert set(table.verdict) == {"ok"}
    assert set(table.checksum) == {"matches"}
