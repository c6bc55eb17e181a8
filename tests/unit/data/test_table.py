"""`task_from_table` and what ends in it: data sets of other libraries, nnU-Net's raw folders; subjects read from names."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from toolkit import (
    load_task,
    registry,
    task_from_arrays,
    task_from_dataset,
    task_from_folder,
    task_from_nnunet,
    task_from_table,
)
from toolkit.data.rows import inferred_subjects
from toolkit.errors import ConfigError, DataError, ToolkitWarning
from toolkit.inference.volumes import volume_spacing

CLASSES = ["background", "low", "high"]
AFFINE = np.array([[-1.5, 0, 0, 10], [0, 2.0, 0, -20], [0, 0, 4.0, 30], [0, 0, 0, 1]])


def nifti(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def picture(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def random_pair(number: int, shape: tuple[int, ...] = (10, 9, 4)) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(number)
    return random.normal(size=shape).astype(np.float32), random.integers(0, 3, shape).astype(np.uint8)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for number in range(3):
        image, label = random_pair(number)
        nifti(tmp_path / "scans" / f"a{number}.nii.gz", image)
        nifti(tmp_path / "truth" / f"b{number}.nii.gz", label)
    return tmp_path


def test_a_csv_file_names_everything(files):
    lines = ["image,label,case,subject,site,split,group"]
    lines += [f"scans/a{n}.nii.gz,truth/b{n}.nii.gz,x{n},ann,north,{'test'},HCM" for n in range(2)]
    lines.append("scans/a2.nii.gz,truth/b2.nii.gz,x2,bob,south,train,")
    (files / "cases.csv").write_text("\n".join(lines))
    task = task_from_table(files / "cases.csv", classes=CLASSES)
    assert [(c.id, c.subject, c.site, c.split, c.group) for c in task.cases()] == [
        ("x0", "ann", "north", "test", "HCM"),
        ("x1", "ann", "north", "test", "HCM"),
        ("x2", "bob", "south", "train", None),
    ]
    stored = nibabel.as_closest_canonical(nibabel.load(files / "truth" / "b1.nii.gz"))
    np.testing.assert_array_equal(task.cases()[1].label.numpy(), np.asarray(stored.dataobj))
    again = registry.build("task", json.loads(json.dumps(registry.describe(task))))
    assert again.content_hash() == task.content_hash()
    assert len(json.dumps(registry.describe(task))) < 600  # the table is named, not copied


def test_a_data_frame_with_channels_and_without_labels(files):
    channels = [[str(files / "scans" / f"a{n}.nii.gz"), str(files / "scans" / "a0.nii.gz")] for n in (1, 2)]
    frame = pd.DataFrame({"image": channels, "label": [None, float("nan")], "split": "test"})
    task = task_from_table(frame, classes=CLASSES)
    assert (task.channels, task.dims, [case.has_label for case in task.cases()]) == (2, 3, [False, False])
    first = nibabel.as_closest_canonical(nibabel.load(files / "scans" / "a1.nii.gz"))
    expected = np.clip(first.get_fdata(), *np.percentile(np.asarray(first.dataobj), (0.5, 99.5)))
    np.testing.assert_allclose(
        task.cases()[0].image[0].numpy(), (expected - expected.mean()) / expected.std(), atol=1e-4
    )
    again = registry.build("task", json.loads(json.dumps(registry.describe(task))))
    assert again.content_hash() == task.content_hash()


def test_pictures_of_one_stack(tmp_path):
    rows = []
    for number in range(4):
        image, label = random_pair(number, (20, 24))
        file = picture(tmp_path / f"i{number}.png", (image * 40 + 128).clip(0, 255).astype(np.uint8))
        rows.append({"image": file, "label": picture(tmp_path / f"l{number}.png", label), "volume": f"v{number // 2}"})
        rows[-1] |= {"position": number % 2, "spacing": (8.0, 1.5, 1.25)}
    task = task_from_table(rows, classes=CLASSES, splits="train")
    assert [(c.volume, c.position, c.subject) for c in task.cases()] == [
        ("v0", 0, "v0"),
        ("v0", 1, "v0"),
        ("v1", 0, "v1"),
        ("v1", 1, "v1"),
    ]
    assert (task.cases()[0].spacing, task.cases()[0].slice_spacing) == ((1.5, 1.25), 8.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"picture": 1}, "columns that are not known: picture"),
        ({"image": None}, "Row 0 has no image"),
        ({"spacing": (1.0, 1.0, 1.0)}, "the table"),
        ({"spacing": (1.0, 1.0)}, "a spacing of 2 numbers"),
        ({"image": "gone.nii.gz"}, "does not exist"),
        ({"image": "a.docx"}, "no image file that can be read"),
    ],
)
def test_rows_that_cannot_be_used(files, change, message):
    row = {"image": files / "scans" / "a0.nii.gz", "label": files / "truth" / "b0.nii.gz", **change}
    with pytest.raises((ConfigError, DataError), match=message):
        task_from_table([row], classes=CLASSES)


def test_regions_are_kept_and_checked(monkeypatch, tmp_path):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path))
    images, labels = zip(*(random_pair(n, (16, 16)) for n in range(3)), strict=True)
    regions = {"whole": (1, 2), "core": [2]}
    task = task_from_arrays(images, labels, classes=CLASSES, regions=regions, splits="train")
    assert task.regions == {"whole": (1, 2), "core": (2,)}
    assert task.restricted(task.cases()).regions == task.regions
    assert task.content_hash() != task_from_arrays(images, labels, classes=CLASSES, splits="train").content_hash()
    heart = load_task("phantom-cardiac", regions={"heart": (1, 2, 3)})
    assert heart.regions == {"heart": (1, 2, 3)}
    assert registry.build("task", json.loads(json.dumps(registry.describe(heart)))).regions == heart.regions
    for wrong in ({}, {"a": ()}, {"a": (0, 1)}, {"a": (3,)}, {"a": "x"}):
        with pytest.raises(ConfigError, match="region"):
            task_from_arrays(images, labels, classes=CLASSES, regions=wrong)


def test_four_dimensional_files_are_channels(tmp_path):
    for number in range(2):
        _, label = random_pair(number)
        image = np.random.default_rng(number).normal(size=(10, 9, 4, 3)).astype(np.float32)
        nifti(tmp_path / "images" / f"m{number}.nii.gz", image)
        nifti(tmp_path / "labels" / f"m{number}.nii.gz", label)
    task = task_from_folder(tmp_path / "images", tmp_path / "labels", classes=CLASSES, normalisation="none")
    assert (task.channels, task.patch_size) == (3, (8, 8, 8))
    np.testing.assert_allclose(task.cases()[1].image.numpy(), np.moveaxis(image, 3, 0)[:, ::-1])


def test_files_as_brats_names_them(tmp_path):
    names = ("flair", "t1", "t1ce", "t2")
    for number in range(2):
        home = tmp_path / f"BraTS_{number:03d}"
        for channel, name in enumerate(names):
            nifti(
                home / f"BraTS_{number:03d}_{name}.nii.gz",
                np.full((6, 5, 4), channel, np.float32) + random_pair(9, (6, 5, 4))[0],
            )
        nifti(home / f"BraTS_{number:03d}_seg.nii.gz", random_pair(number, (6, 5, 4))[1])
    task = task_from_folder(tmp_path, tmp_path, classes=CLASSES, channels=names, normalisation="none", splits="train")
    assert (task.channels, task.sites, len(task)) == (4, ("site",), 2)
    image = task.cases()[0].image
    np.testing.assert_allclose((image[3] - image[0]).numpy(), 3, atol=1e-5)
    again = registry.build("task", json.loads(json.dumps(registry.describe(task))))
    assert again.content_hash() == task.content_hash()


class Pairs(torch.utils.data.Dataset):
    def __init__(self, noise: float = 0) -> None:
        self.noise = noise

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int):
        image, label = random_pair(index, (16, 18))
        return torch.from_numpy(image)[None] + self.noise * torch.rand(1), torch.from_numpy(label).long()


def test_a_torch_data_set():
    task = task_from_dataset(Pairs(), classes=CLASSES, splits="train", normalisation="none")
    assert (task.dims, task.channels, len(task), task.cases()[0].spacing) == (2, 1, 3, None)
    np.testing.assert_array_equal(task.cases()[2].label.numpy(), random_pair(2, (16, 18))[1])
    np.testing.assert_array_equal(task.cases()[2].image[0].numpy(), random_pair(2, (16, 18))[0])
    with pytest.raises(DataError, match="transforms are random"):
        task_from_dataset(Pairs(noise=1), classes=CLASSES)
    with pytest.raises(ConfigError, match="no map-style data set"):
        task_from_dataset(iter([1]), classes=CLASSES)


@pytest.mark.parametrize("dims", [3, 2])
def test_monai_keeps_geometry_and_names(files, dims):
    from monai.data import Dataset
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

    entries = [{"image": files / "scans" / f"a{n}.nii.gz", "label": files / "truth" / f"b{n}.nii.gz"} for n in range(3)]
    data = Dataset(entries, Compose([LoadImaged(["image", "label"]), EnsureChannelFirstd(["image", "label"])]))
    task = task_from_dataset(data, classes=CLASSES, splits="train", dims=dims, normalisation="none")
    case = task.cases()[0]
    np.testing.assert_allclose(case.affine, AFFINE)
    image, label = random_pair(0)
    if dims == 3:
        assert (case.id, case.spacing) == ("a0", (1.5, 2.0, 4.0))
        np.testing.assert_array_equal(case.label.numpy(), label)
        np.testing.assert_array_equal(case.geometry.restore(case.label.numpy()), label)
    else:  # slices along the coarsest axis, which MONAI has last
        assert (case.id, case.spacing, case.slice_spacing) == ("a0/slice00", (1.5, 2.0), 4.0)
        np.testing.assert_array_equal(task.cases()[2].image[0].numpy(), image[:, :, 2])
        stack = np.stack([one.label.numpy() for one in task.cases()[:4]])
        np.testing.assert_array_equal(case.geometry.restore(stack), label)


def test_torchio_keeps_geometry(files):
    import torchio

    subjects = [
        torchio.Subject(
            image=torchio.ScalarImage(files / "scans" / f"a{n}.nii.gz"),
            label=torchio.LabelMap(files / "truth" / f"b{n}.nii.gz"),
            site="north",
        )
        for n in range(3)
    ]
    task = task_from_dataset(torchio.SubjectsDataset(subjects), classes=CLASSES, splits="train")
    case = task.cases()[1]
    assert (case.id, case.site, case.spacing) == ("a1", "north", (1.5, 2.0, 4.0))
    np.testing.assert_allclose(case.affine, AFFINE)
    np.testing.assert_array_equal(case.label.numpy(), random_pair(1)[1])


def raw_data_set(root: Path, ending: str = ".nii.gz") -> Path:
    for part, numbers in (("Tr", range(4)), ("Ts", range(4, 6))):
        for number in numbers:
            image, label = random_pair(number)
            for channel in range(2):
                nifti(root / f"images{part}" / f"c_{number:03d}_{channel:04d}{ending}", image + channel)
            nifti(root / f"labels{part}" / f"c_{number:03d}{ending}", label)
    description = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "whole": [1, 2], "core": 2},
        "regions_class_order": [1, 2],
        "numTraining": 4,
        "file_ending": ending,
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def test_nnunet_raw_with_regions_and_a_test_split(tmp_path):
    task = task_from_nnunet(raw_data_set(tmp_path / "Dataset004_Thing"))
    assert (task.name, task.channels, task.dims) == ("Dataset004_Thing", 2, 3)
    assert task.classes == {0: "background", 1: "class 1", 2: "core"}
    assert task.regions == {"whole": (1, 2), "core": (2,)}
    assert [case.id for case in task.cases("test")] == ["c_004", "c_005"]
    assert [len(task.cases(split)) for split in ("train", "val")] == [3, 1]
    again = registry.build("task", json.loads(json.dumps(registry.describe(task))))
    assert again.content_hash() == task.content_hash()


def test_two_scans_of_a_person_in_nnunet_raw_are_validated_together(tmp_path):
    root = raw_data_set(tmp_path / "Dataset004_Thing")
    for file in [*root.rglob("c_*")]:
        number = int(file.name[2:5])
        file.rename(file.with_name(f"patient{number // 2:03d}_frame{1 + number % 2:02d}{file.name[5:]}"))
    with pytest.warns(ToolkitWarning, match="Subjects were read from the names: 3 in 6 images"):
        task = task_from_nnunet(root)
    subjects = [{case.subject for case in task.cases(split)} for split in ("train", "val", "test")]
    assert [len(task.cases()), *map(len, subjects), len(set.union(*subjects))] == [
        6,
        2,
        0,
        1,
        3,
    ]  # a fifth of 2 is none


def test_switches_and_frames_mean_what_the_table_says(tmp_path):
    label = np.arange(64, dtype=np.uint8).reshape(8, 8) % 3
    for name in ("image", "label"):
        Image.fromarray(label).save(tmp_path / f"{name}.png")
    for text, present in (("False", [0, 1, 2]), ("0", [0, 1, 2]), ("true", [0, 1]), ("1", [0, 1])):
        (tmp_path / "cases.csv").write_text(f"image,label,foreground\nimage.png,label.png,{text}\n")
        (case,) = task_from_table(tmp_path / "cases.csv", classes=CLASSES).cases()
        assert np.unique(case.label).tolist() == present
    (tmp_path / "cases.csv").write_text("image,label,foreground\nimage.png,label.png,perhaps\n")
    with pytest.raises(DataError, match=r"foreground.*'perhaps'"):
        task_from_table(tmp_path / "cases.csv", classes=CLASSES)
    series = np.random.default_rng(0).normal(size=(8, 9, 4, 3)).astype(np.float32)
    nifti(tmp_path / "series.nii.gz", series)
    nifti(tmp_path / "still.nii.gz", series[..., 0])
    files = [str(tmp_path / name) for name in ("series.nii.gz", "still.nii.gz")]
    frame = pd.DataFrame({"image": files, "frame": [2, None], "subject": ["a", "b"]})  # pandas makes it 2.0
    first, _ = task_from_table(frame, classes=CLASSES, normalisation="none", splits="test").cases()
    np.testing.assert_array_equal(np.sort(first.image.numpy(), axis=None), np.sort(series[..., 2], axis=None))


def test_columns_of_pictures_are_refused_for_volumes_and_the_other_way_round(tmp_path):
    image, label = random_pair(0)
    scan = {"image": nifti(tmp_path / "a.nii.gz", image), "label": nifti(tmp_path / "b.nii.gz", label)}
    for column in ("foreground", "threshold", "background"):
        with pytest.raises(ConfigError, match=rf"The column {column} means nothing for a\.nii\.gz"):
            task_from_table([{**scan, column: 1}], classes=CLASSES)
    shot = picture(tmp_path / "c.png", label[..., 0])
    with pytest.raises(ConfigError, match=r"The column frame means nothing for c\.png"):
        task_from_table([{"image": shot, "frame": 1}], classes=CLASSES)


def test_a_stack_without_positions_has_no_spacing_in_its_third_axis(tmp_path):
    rows = [{"image": np.eye(8) * n, "label": np.eye(8, dtype=int), "volume": "v", "spacing": (1, 2)} for n in (1, 2)]
    cases = task_from_table(rows, classes=CLASSES, splits="test").cases()
    assert volume_spacing(cases) is None
    assert volume_spacing(cases[:1]) == (1, 2)


def test_nnunet_raw_that_is_not_whole(tmp_path):
    root = raw_data_set(tmp_path / "Dataset004_Thing")
    (root / "imagesTr" / "c_001_0001.nii.gz").unlink()
    with pytest.raises(DataError, match=r"c_001_0001\.nii\.gz is missing"):
        task_from_nnunet(root)
    (root / "dataset.json").write_text("[]")
    with pytest.raises(DataError, match=r"not a description of a data set"):
        task_from_nnunet(root)


def test_a_folder_of_the_decathlon(tmp_path):
    root = tmp_path / "Task05_Prostate"
    for number in range(3):
        image = np.random.default_rng(number).normal(size=(10, 9, 4, 2)).astype(np.float32)
        nifti(root / "imagesTr" / f"prostate_{number:02d}.nii.gz", image)
        nifti(root / "labelsTr" / f"prostate_{number:02d}.nii.gz", random_pair(number)[1].astype(np.float32))
    training = [
        {"image": f"./imagesTr/prostate_{n:02d}.nii.gz", "label": f"./labelsTr/prostate_{n:02d}.nii.gz"}
        for n in range(3)
    ]
    table = {
        "labels": {"0": "background", "1": "PZ", "2": "TZ"},
        "modality": {"0": "T2", "1": "ADC"},
        "training": training,
    }
    (root / "dataset.json").write_text(json.dumps(table))
    task = task_from_nnunet(root)
    assert (task.channels, task.classes[2], task.regions, len(task)) == (2, "TZ", None, 3)
    assert {case.id for case in task.cases()} == {"prostate_00", "prostate_01", "prostate_02"}


@pytest.mark.parametrize(
    ("names", "subjects"),
    [
        (["patient1_slice1", "patient1_slice2", "patient2_slice1"], ["patient1", "patient1", "patient2"]),
        (["sub-A1_ses-1_T1w", "sub-A1_ses-2_T1w", "sub-B2_ses-1_T1w"], ["sub-A1", "sub-A1", "sub-B2"]),
        (["ann_z01", "ann_z02", "bob_z01"], ["ann", "ann", "bob"]),
        (["north/p1-left", "north/p1-right", "south/p1-left"], ["north/p1", "north/p1", "south/p1"]),
        (["patient7/a", "patient7/b", "patient8/a"], ["patient7", "patient7", "patient8"]),
    ],
)
def test_plain_names_tell_the_subject(names, subjects):
    with pytest.warns(ToolkitWarning, match="Subjects were read from the names: 2 in 3"):
        assert inferred_subjects(names) == subjects


@pytest.mark.parametrize("names", [["img_001", "img_002", "img_003"], ["case001", "case002"], ["p0", "p1"], ["a", "b"]])
def test_numbered_names_are_subjects_of_their_own(names):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert inferred_subjects(names) == names


@pytest.mark.parametrize("names", [["A12_1", "A12_2", "B07_1"], ["brain_slice1", "brain_slice2"]])
def test_names_that_begin_alike_are_a_warning(names):
    with pytest.warns(ToolkitWarning, match="begin alike"):
        assert inferred_subjects(names) == names


def test_slices_of_patients_do_not_leak(tmp_path):
    for patient in range(12):
        for number in range(3):
            image, label = random_pair(patient, (20, 24))
            name = f"patient{patient:02d}_slice{number}.png"
            picture(tmp_path / "images" / name, (image * 40 + 128).clip(0, 255).astype(np.uint8))
            picture(tmp_path / "labels" / name, label)
    with pytest.warns(ToolkitWarning, match="12 in 36"):
        task = task_from_folder(tmp_path / "images", tmp_path / "labels", classes=CLASSES)
    split_of = {(case.id.split("_")[0], case.split) for case in task.cases()}
    assert len(split_of) == 12
    own = task_from_folder(tmp_path / "images", tmp_path / "labels", classes=CLASSES, subjects=lambda case: case)
    leaks = own.verify().query("verdict == 'leak'")
    assert len(leaks) > 0
    assert "patient" in leaks.detail.iloc[0]
    assert set(task.verify().verdict) == {"ok"}


def test_links_to_folders_are_followed(files, tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "more").symlink_to(files / "scans", target_is_directory=True)
    (tmp_path / "linked" / "loop").symlink_to(tmp_path / "linked", target_is_directory=True)
    task = task_from_folder(tmp_path / "linked", None, classes=CLASSES, splits="test")
    assert [case.id for case in task.cases()] == ["more/a0", "more/a1", "more/a2"]


def test_grey_in_three_channels_is_said(tmp_path):
    for number in range(2):
        image, label = random_pair(number, (20, 24))
        grey = (image * 40 + 128).clip(0, 255).astype(np.uint8)
        picture(tmp_path / "images" / f"x{number}.png", np.stack([grey] * 3, axis=-1))
        picture(tmp_path / "labels" / f"x{number}.png", label)
    with pytest.warns(ToolkitWarning, match="same grey channel three times"):
        task = task_from_folder(tmp_path / "images", tmp_path / "labels", classes=CLASSES, splits="train")
    assert (task.channels, task.cases()[0].image.shape) == (1, (1, 20, 24))
    again = registry.build("task", json.loads(json.dumps(registry.describe(task))))
    assert again.content_hash() == task.content_hash()
    assert task_from_folder(tmp_path / "images", tmp_path / "labels", classes=CLASSES, channels=3).channels == 3


def test_channels_that_come_last_are_refused():
    images, labels = [np.zeros((64, 64, 1))], [np.zeros((64, 64, 1), np.uint8)]
    with pytest.raises(DataError, match="channels seem to come last"):
        task_from_arrays(images, labels, classes=CLASSES)
    with pytest.raises(DataError, match="channels seem to come last"):
        task_from_arrays([np.zeros((64, 64, 3))], [np.zeros((64, 64), np.uint8)], classes=CLASSES)


def test_two_labels_of_one_image_are_an_error(files):
    nifti(files / "labels" / "a0.nii.gz", random_pair(0)[1])
    nifti(files / "labels" / "a0_seg.nii.gz", random_pair(1)[1])
    with pytest.raises(DataError, match=r"Two files could be the label of 'a0': a0\.nii\.gz and a0_seg\.nii\.gz"):
        task_from_folder(files / "scans", files / "labels", classes=CLASSES)


def test_a_moved_folder_is_the_same_data_and_a_difference_is_named(files, tmp_path):
    make = {"classes": CLASSES, "splits": "train"}
    rows = [{"image": files / "scans" / f"a{n}.nii.gz", "label": files / "truth" / f"b{n}.nii.gz"} for n in range(3)]
    first = task_from_table(rows, **make)
    first.content_hash()
    moved = tmp_path / "elsewhere"
    (files / "scans").rename(moved)
    rows = [{**row, "image": moved / Path(row["image"]).name} for row in rows]
    second = task_from_table(rows, **make, name="another")
    assert second.content_hash() == first.content_hash()
    assert second.difference(first.contents()) == ""
    nifti(moved / "a1.nii.gz", random_pair(77)[0])
    changed = task_from_table(rows, **make, normalisation="range")
    assert changed.content_hash() != first.content_hash()
    sentence = changed.difference(first.contents())
    assert "normalisation: zscore-clip there, range here" in sentence
    assert "a1" in sentence
    assert "a0" not in sentence
