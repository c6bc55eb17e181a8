"""Files without a checksum of their own: changed bytes are found, replaced files said, nothing else noticed."""

from __future__ import annotations

import os
import sqlite3
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest

import toolkit as tk
from toolkit.data import first_reading


@pytest.fixture(autouse=True)
def _own_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_reading, "record", lambda: tmp_path / "cache" / "first_reading.sqlite")
    monkeypatch.setattr(first_reading, "_said", set())


def volume(path: Path, seed: int = 0, suffix: str = ".nii") -> Path:
    voxels = np.random.default_rng(seed).integers(1, 100, (8, 8, 4)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path / f"scan{suffix}")
    return path / f"scan{suffix}"


def read(path: Path) -> np.ndarray:
    """The voxels as a new task reads them."""
    return tk.task_from_table([{"image": path}], classes=["background", "x"], dims=3).cases()[0].image.numpy()


def with_a_flipped_bit(path: Path) -> None:
    """Changed as a disk changes it: no size, no date."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[-9] ^= 16
    path.write_bytes(bytes(content))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_flipped_bit_is_found_and_the_restored_file_is_read(tmp_path: Path) -> None:
    path = volume(tmp_path)
    first = read(path)
    with_a_flipped_bit(path)
    with pytest.raises(tk.DataError, match=r"changed since it was read on \d{4}-\d\d-\d\d, but not its size and date"):
        read(path)
    with_a_flipped_bit(path)  # the same bit: as it was
    assert np.array_equal(read(path), first)


def test_a_new_date_makes_changed_bytes_a_replaced_file(tmp_path: Path) -> None:
    path = volume(tmp_path)
    first = read(path)
    with_a_flipped_bit(path)
    os.utime(path, (1, 1))
    with pytest.warns(tk.ToolkitWarning, match="scan.nii was replaced since it was read on"):
        assert not np.array_equal(read(path), first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(path)  # said once, and known from now on
    with_a_flipped_bit(path)
    with pytest.raises(tk.DataError, match="but not its size and date"):
        read(path)


def test_a_folder_of_replaced_files_is_said_once_and_a_copy_of_the_same_bytes_not_at_all(tmp_path: Path) -> None:
    paths = [volume(tmp_path), tmp_path / "other.nii"]
    paths[1].write_bytes(paths[0].read_bytes())
    for path in paths:
        read(path)
        path.write_bytes(path.read_bytes())  # another date
        read(path)
    volume(tmp_path, seed=1)
    paths[1].write_bytes(paths[0].read_bytes())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for path in paths:
            read(path)
    assert len(said) == 1


def test_files_with_a_checksum_are_not_recorded_and_a_voxel_file_behind_a_header_is(tmp_path: Path) -> None:
    import SimpleITK as sitk

    read(volume(tmp_path, suffix=".nii.gz"))
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(64, dtype=np.int16).reshape(4, 4, 4)), tmp_path / "scan.mhd")
    read(tmp_path / "scan.mhd")
    memory = sqlite3.connect(first_reading.record())
    known = {Path(row[0]).name for row in memory.execute("SELECT path FROM files")}
    memory.close()
    assert known == {"scan.mhd", "scan.raw"}
    with_a_flipped_bit(tmp_path / "scan.raw")
    with pytest.raises(tk.DataError, match="but not its size and date"):
        read(tmp_path / "scan.mhd")


def test_without_a_record_everything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = volume(tmp_path)
    monkeypatch.setattr(first_reading, "record", lambda: path / "no folder" / "x.sqlite")
    read(path)
    damaged = tmp_path / "damaged.sqlite"
    damaged.write_bytes(b"nonsense" * 1000)
    monkeypatch.setattr(first_reading, "record", lambda: damaged)
    read(path)
