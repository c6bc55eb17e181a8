"""Stacks in TIFF pages and DICOM folders, and damage that only a checksum at the end of a stream can tell."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import nibabel
import numpy as np
import official_layouts as official
import pytest
import tifffile

from toolkit import load_task, task_from_folder
from toolkit.data.archive import unpack
from toolkit.data.images import read_picture
from toolkit.data.stacks import read_pages
from toolkit.data.volumes import read_itk, read_volume
from toolkit.errors import DataError

CLASSES = ["background", "low", "high"]


@pytest.fixture
def stacks(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for number in range(3):
        for kind in ("images", "labels"):
            (tmp_path / kind).mkdir(exist_ok=True)
        tifffile.imwrite(
            tmp_path / "images" / f"x{number}.tif", random.integers(0, 60000, (5, 18, 20), dtype=np.uint16)
        )
        tifffile.imwrite(tmp_path / "labels" / f"x{number}.tif", random.integers(0, 3, (5, 18, 20), dtype=np.uint8))
    return tmp_path


@pytest.mark.parametrize("dims", [None, 2])
def test_pages_of_a_tiff_file_are_slices(stacks, dims):
    task = task_from_folder(
        stacks / "images", stacks / "labels", classes=CLASSES, dims=dims, normalisation="none", splits="train"
    )
    stored, label = (tifffile.imread(stacks / kind / "x1.tif") for kind in ("images", "labels"))
    case = next(case for case in task.cases() if case.volume == "x1")
    assert (task.dims, task.channels) == (dims or 3, 1)
    np.testing.assert_array_equal(case.image[0].numpy(), stored if dims is None else stored[0])
    np.testing.assert_array_equal(case.label.numpy(), label if dims is None else label[0])


def test_tiff_stacks_that_cannot_be_read(stacks):
    path = stacks / "images" / "x1.tif"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match="not a complete TIFF"):
        task_from_folder(stacks / "images", stacks / "labels", classes=CLASSES, splits="train")
    with tifffile.TiffWriter(path) as file:
        for side in (18, 19):
            file.write(np.zeros((side, 20), np.uint8))
    with pytest.raises(DataError, match="grey pages of one size"):
        task_from_folder(stacks / "images", stacks / "labels", classes=CLASSES, splits="train")


def test_folders_of_dicom_series(tmp_path):
    for number in range(2):
        official.save_series(tmp_path / "images" / f"x{number}", official.random_image((6, 5, 4), number))
        official.save_itk(tmp_path / "labels" / f"x{number}.nrrd", official.random_label((6, 5, 4), 3, number))
    task = task_from_folder(tmp_path / "images", tmp_path / "labels", classes=CLASSES, splits="train")
    assert [case.id for case in task.cases()] == ["x0", "x1"]
    case = task.cases()[1]
    assert case.spacing == pytest.approx((0.5, 0.6, 3.0))
    np.testing.assert_array_equal(case.label.numpy(), official.itk_as_read(official.random_label((6, 5, 4), 3, 1)))


def flips(content: bytes, first: int, count: int) -> list[bytes]:
    """The content with one bit flipped, at places drawn anew each time."""
    random = np.random.default_rng(0)
    made = []
    for place, bit in zip(random.integers(first, len(content), count), random.integers(0, 8, count), strict=True):
        changed = bytearray(content)
        changed[place] ^= 1 << int(bit)
        made.append(bytes(changed))
    return made


def test_a_flipped_bit_in_a_compressed_nifti_file_is_found(tmp_path):
    array = np.random.default_rng(1).integers(0, 900, (12, 11, 9)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "v.nii.gz")
    for content in flips((tmp_path / "v.nii.gz").read_bytes(), 20, 60):
        (tmp_path / "v.nii.gz").write_bytes(content)
        try:
            read, _ = read_volume(tmp_path / "v.nii.gz")
        except DataError:
            continue
        np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("name", ["v.mha", "v.mhd", "v.nrrd"])
def test_a_flipped_bit_in_compressed_itk_files_is_found(name, tmp_path):
    import SimpleITK

    array = np.random.default_rng(1).integers(0, 900, (9, 11, 12)).astype(np.int16)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(tmp_path / name), useCompression=True)
    clean, _ = read_itk(tmp_path / name)
    file = tmp_path / ("v.zraw" if name == "v.mhd" else name)
    content = file.read_bytes()
    for changed in flips(content, 0 if name == "v.mhd" else 700, 40):
        file.write_bytes(changed)
        try:
            read, _ = read_itk(tmp_path / name)
        except DataError:
            continue
        np.testing.assert_array_equal(read, clean)


def test_a_flipped_bit_in_a_compressed_archive_is_found(tmp_path):
    inner = np.random.default_rng(0).bytes(3000)
    (tmp_path / "a.bin").write_bytes(inner)
    with tarfile.open(tmp_path / "a.tar", "w") as made:
        made.add(tmp_path / "a.bin", "a.bin")
    content = gzip.compress((tmp_path / "a.tar").read_bytes(), mtime=0)
    for number, changed in enumerate([*flips(content, 10, 40), content[:-5] + b"\0" + content[-4:]]):
        (tmp_path / "a.tar.gz").write_bytes(changed)
        try:
            unpack(tmp_path / "a.tar.gz", tmp_path / f"out{number}")
        except DataError:
            continue
        assert (tmp_path / f"out{number}" / "a.bin").read_bytes() == inner


def test_a_generated_case_that_was_changed_in_the_cache_is_made_again(monkeypatch, tmp_path):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path))
    case = load_task("phantom-glands").cases()[0]
    label, image = case.label, case.image
    (path,) = tmp_path.rglob("*.npz")
    held = dict(np.load(path))
    np.savez_compressed(path, **{**held, "label": 1 - held["label"]})
    again = load_task("phantom-glands").cases()[0]
    assert again.label.equal(label)
    assert again.image.equal(image)
    np.testing.assert_array_equal(np.load(path)["label"], held["label"])


@pytest.mark.parametrize("kind", [np.uint8, np.bool_])
def test_pages_with_white_as_0_are_read_as_pillow_reads_one(tmp_path, kind):
    pages = np.random.default_rng(0).integers(0, 256 if kind is np.uint8 else 2, (2, 4, 5)).astype(kind)
    tifffile.imwrite(tmp_path / "stack.tif", pages, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "page.tif", pages[1], photometric="miniswhite")
    np.testing.assert_array_equal(read_pages(tmp_path / "stack.tif")[1], read_picture(tmp_path / "page.tif")[0])
