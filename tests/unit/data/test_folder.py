"""`task_from_folder`: pairs by name, sites by sub-folder, and complaints that name the file."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from toolkit import load_task, registry, task_from_folder
from toolkit.errors import ConfigError, DataError

CLASSES = {0: "background", 1: "tumour"}


def volume(path: Path, array: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 3.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([*spacing, 1.0])), path)


def picture(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for index in range(6):
        image = random.normal(size=(18, 17, 9)).astype(np.float32)
        volume(tmp_path / "images" / f"p{index}.nii.gz", image)
        volume(tmp_path / "labels" / f"p{index}.nii.gz", (image > 1).astype(np.uint8))
    return tmp_path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for index in range(4):
        image = random.integers(0, 255, (40, 50), dtype=np.uint8)
        site = "north" if index < 2 else "south"
        picture(tmp_path / "images" / site / f"{index}.png", image)
        picture(tmp_path / "labels" / site / f"{index}_mask.png", (image > 99).astype(np.uint8))
    return tmp_path


def test_volumes_in_3d(volumes):
    task = task_from_folder(volumes / "images", volumes / "labels", classes=CLASSES)
    assert (task.dims, task.channels, len(task)) == (3, 1, 6)
    assert task.patch_size == (16, 16, 8)
    case = task.cases()[2]
    assert (case.id, case.spacing, case.volume) == ("p2", (1.0, 1.0, 3.0), "p2")
    stored = np.asarray(nibabel.load(volumes / "labels" / "p2.nii.gz").dataobj)
    np.testing.assert_array_equal(case.label.numpy(), stored)
    assert [len(task.cases(split)) for split in ("train", "val", "test")] == [4, 1, 1]


def test_volumes_slice_by_slice(volumes):
    task = task_from_folder(volumes / "images", volumes / "labels", classes=CLASSES, dims=2)
    assert len(task) == 6 * 9
    case = task.cases()[10]
    assert (case.volume, case.position, case.spacing, case.slice_spacing) == ("p1", 1, (1.0, 1.0), 3.0)
    stored = np.asarray(nibabel.load(volumes / "labels" / "p1.nii.gz").dataobj)
    np.testing.assert_array_equal(case.label.numpy(), stored[:, :, 1])
    assert len({case.split for case in task.cases() if case.volume == "p1"}) == 1


def test_a_turned_copy_on_disk_is_the_same_data(volumes):
    plain = task_from_folder(volumes / "images", volumes / "labels", classes=CLASSES)
    orientation = np.array([[2, -1], [0, 1], [1, -1]])
    for folder in ("images", "labels"):
        path = volumes / folder / "p3.nii.gz"
        turned = nibabel.load(path).as_reoriented(orientation)
        assert turned.shape == (17, 9, 18)
        nibabel.save(nibabel.Nifti1Image(np.asarray(turned.dataobj).copy(), turned.affine), path)
    again = task_from_folder(volumes / "images", volumes / "labels", classes=CLASSES)
    first, second = plain.cases()[3], again.cases()[3]
    np.testing.assert_array_equal(first.image.numpy(), second.image.numpy())
    np.testing.assert_array_equal(first.label.numpy(), second.label.numpy())
    np.testing.assert_allclose(first.affine, second.affine, atol=1e-6)
    assert first.spacing == second.spacing


def test_channel_files(volumes):
    for index in range(6):
        path = volumes / "images" / f"p{index}.nii.gz"
        path.rename(path.with_name(f"p{index}_0000.nii.gz"))
        image = np.asarray(nibabel.load(path.with_name(f"p{index}_0000.nii.gz")).dataobj)
        volume(path.with_name(f"p{index}_0001.nii.gz"), image + index)
    task = task_from_folder(volumes / "images", volumes / "labels", classes=CLASSES)
    assert task.channels == 2
    assert [case.id for case in task.cases()] == [f"p{index}" for index in range(6)]


def test_pictures_with_sites(pictures):
    task = task_from_folder(pictures / "images", pictures / "labels", classes=CLASSES, channels=3)
    assert (task.dims, task.channels, task.sites) == (2, 3, ("north", "south"))
    assert [case.id for case in task.cases(site="south")] == ["south/2", "south/3"]
    assert task.cases()[0].spacing is None
    assert task.patch_size == (32, 48)


def test_sites_subjects_and_splits_by_name(volumes):
    task = task_from_folder(
        volumes / "images",
        volumes / "labels",
        classes=CLASSES,
        sites=lambda case: f"site{int(case[1]) % 2}",
        subjects={f"p{index}": f"s{index // 2}" for index in range(6)},
        splits={"train": ["s0", "s1"], "test": ["s2"]},
    )
    assert task.sites == ("site0", "site1")
    assert [case.id for case in task.cases("test")] == ["p4", "p5"]
    with pytest.raises(ConfigError, match="'p0' has no entry"):
        task_from_folder(volumes / "images", volumes / "labels", classes=CLASSES, sites={"p1": "x"})


def test_hidden_and_other_files_are_passed_over(volumes):
    (volumes / "images" / "._p0.nii.gz").write_bytes(b"resource fork")
    (volumes / "images" / "notes.txt").write_text("hello")
    assert len(task_from_folder(volumes / "images", volumes / "labels", classes=CLASSES)) == 6


def test_labels_coded_otherwise(pictures):
    for path in (pictures / "labels").rglob("*.png"):
        picture(path, np.array(Image.open(path)) * 255)
    with pytest.raises(DataError, match="4 of 4 cases cannot be used") as caught:
        task_from_folder(pictures / "images", pictures / "labels", classes=CLASSES)
    assert "label_values={0: 0, 255: 1}" in str(caught.value)
    task = task_from_folder(pictures / "images", pictures / "labels", classes=CLASSES, label_values={0: 0, 255: 1})
    assert set(task.cases()[0].label.unique().tolist()) == {0, 1}


def test_rebuilt_from_json(volumes):
    task = task_from_folder(
        volumes / "images",
        volumes / "labels",
        classes=CLASSES,
        dims=2,
        sites=lambda case: case[:1],
        label_values={0: 0, 1: 1},
        patch_size=(16, 16),
        flips=(0,),
    )
    again = registry.build("task", json.loads(json.dumps(registry.describe(task))))
    assert again.content_hash() == task.content_hash()
    assert (again.patch_size, again.flips, again.sites) == (task.patch_size, task.flips, task.sites)


def bad_no_folder(root):
    return task_from_folder(root / "imges", root / "labels", classes=CLASSES)


def bad_empty_folder(root):
    (root / "none").mkdir()
    return task_from_folder(root / "none", root / "labels", classes=CLASSES)


def bad_other_files(root):
    (root / "dicom").mkdir()
    (root / "dicom" / "a.xyz").write_bytes(b"x")
    return task_from_folder(root / "dicom", root / "labels", classes=CLASSES)


def bad_no_label(root):
    (root / "labels" / "p4.nii.gz").unlink()
    return task_from_folder(root / "images", root / "labels", classes=CLASSES)


def bad_no_image(root):
    (root / "images" / "p4.nii.gz").unlink()
    return task_from_folder(root / "images", root / "labels", classes=CLASSES)


def bad_mixture(root):
    picture(root / "images" / "q.png", np.zeros((4, 4), np.uint8))
    return task_from_folder(root / "images", root / "labels", classes=CLASSES)


def bad_twice(root):
    volume(root / "images" / "p1.nii", np.ones((18, 17, 9), np.float32))
    return task_from_folder(root / "images", root / "labels", classes=CLASSES)


def bad_one_file(root):
    (root / "images" / "p1.nii.gz").write_bytes((root / "images" / "p1.nii.gz").read_bytes()[:5000])
    return task_from_folder(root / "images", root / "labels", classes=CLASSES)


def bad_grid(root):
    volume(root / "labels" / "p1.nii.gz", np.zeros((18, 17, 8), np.uint8))
    return task_from_folder(root / "images", root / "labels", classes=CLASSES, check=False)


MESSAGES = {
    bad_no_folder: "does not exist",
    bad_empty_folder: "It is empty",
    bad_other_files: "holds .xyz files",
    bad_no_label: "1 images have no label, for example p4",
    bad_no_image: "1 labels have no image, for example p4",
    bad_mixture: "mixes volumes",
    bad_twice: "Two files are called 'p1'",
    bad_one_file: "not a complete NIfTI",
    bad_grid: "different shapes",
}


@pytest.mark.parametrize("make", MESSAGES, ids=lambda make: make.__name__)
def test_bad_folder_is_refused(make, volumes):
    with pytest.raises(DataError, match=MESSAGES[make]) as caught:
        make(volumes)
    assert str(volumes) in caught.value.where
    assert caught.value.fix


def test_verify_reports_every_file(volumes):
    task = task_from_folder(volumes / "images", volumes / "labels", classes=CLASSES)
    (volumes / "images" / "p0.nii.gz").unlink()
    (volumes / "images" / "p1.nii.gz").write_bytes(b"broken")
    volume(volumes / "labels" / "p2.nii.gz", np.full((18, 17, 9), 5, np.uint8))
    verdicts = task.verify().set_index("case")
    assert verdicts.verdict.to_dict() == {
        "p0": "missing",
        "p1": "wrong",
        "p2": "wrong",
        "p3": "ok",
        "p4": "ok",
        "p5": "ok",
    }
    assert "no class: 5" in verdicts.detail["p2"]


def test_names_of_tasks_are_listed(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="phantom-cardiac"):
        load_task("hippocampus")


def test_images_numbered_from_one_are_cases_and_no_channels(tmp_path):
    for number in (1, 2):
        volume(
            tmp_path / "images" / f"person_{number:04d}.nii.gz", np.random.default_rng(number).normal(size=(8, 8, 8))
        )
    task = task_from_folder(tmp_path / "images", None, classes=["background", "tumour"])
    assert ([case.id for case in task.cases()], task.channels) == (["person_0001", "person_0002"], 1)
