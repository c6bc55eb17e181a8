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
    os.utime(path / f"scan{suffix}", (10**9 + seed,) * 2)  # not of this moment
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
        os.utime(path, (10**9 + 2,) * 2)  # another date
        read(path)
    volume(tmp_path, seed=1)
    paths[1].write_bytes(paths[0].read_bytes())
    os.utime(paths[1], (10**9 + 3,) * 2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for path in paths:
            read(path)
    assert len(said) == 1


def test_files_with_a_checksum_are_not_recorded_and_a_voxel_file_behind_a_header_is(tmp_path: Path) -> None:
    import SimpleITK as sitk

    read(volume(tmp_path, suffix=".nii.gz"))
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(64, dtype=np.int16).reshape(4, 4, 4)), tmp_path / "scan.mhd")
    for name in ("scan.mhd", "scan.raw"):
        os.utime(tmp_path / name, (1, 1))
    read(tmp_path / "scan.mhd")
    memory = sqlite3.connect(first_reading.record())
    known = {Path(row[0]).name for row in memory.execute("SELECT path FROM files")}
    memory.close()
    assert known == {"scan.mhd", "scan.raw"}
    with_a_flipped_bit(tmp_path / "scan.raw")
    with pytest.raises(tk.DataError, match="but not its size and date"):
        read(tmp_path / "scan.mhd")


def test_without_a_record_everything_is_read_and_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, damaged = volume(tmp_path), tmp_path / "damaged.sqlite"
    damaged.write_bytes(b"nonsense" * 1000)
    monkeypatch.setattr(first_reading, "record", lambda: damaged)
    read(volume(tmp_path, suffix=".nii.gz"))  # needs none
    connect, opened = sqlite3.connect, []
    monkeypatch.setattr(sqlite3, "connect", lambda *place, **more: opened.append(connect(*place, **more)) or opened[-1])
    for place in (path / "no folder" / "x.sqlite", damaged):
        monkeypatch.setattr(first_reading, "record", lambda place=place: place)
        with pytest.warns(tk.ToolkitWarning, match=r"not noticed: .* cannot be used .*TOOLKIT_CACHE"):
            first = read(path)
        assert np.array_equal(read(path), first)  # without another word
    with pytest.raises(sqlite3.ProgrammingError, match="closed database"):  # Python 3.13 warns of one left open
        opened[-1].execute("SELECT 1")


def test_a_busy_record_is_not_waited_for_in_silence_and_hashing_holds_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = volume(tmp_path)
    first_reading._connected().close()
    other, hashed = sqlite3.connect(first_reading.record(), timeout=0), []

    def slow_hash(path: Path) -> str:
        with other:
            other.execute("BEGIN IMMEDIATE")  # another process may write meanwhile
            hashed.append(path)
        return "0"

    with monkeypatch.context() as patch:
        patch.setattr(first_reading, "file_sha256", slow_hash)
        read(path)
    assert hashed == [path]
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda place, timeout: connect(place, timeout=0.1))
    path = path.rename(tmp_path / "other.nii")
    other.execute("BEGIN IMMEDIATE")
    with pytest.warns(tk.ToolkitWarning, match="cannot be used .database is locked"):
        read(path)
    other.close()


def test_a_file_that_is_written_twice_within_one_date_is_said_and_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [volume(tmp_path).rename(tmp_path / f"{index}.nii") for index in range(2)]
    for path in paths:
        os.utime(path, (10**9, 10**9))
    with monkeypatch.context() as patch:
        patch.setattr(first_reading.time, "time_ns", lambda: 10**18 + 10**9)  # a second after it was written
        for path in paths:
            read(path)
    for path in paths:
        with_a_flipped_bit(path)
        with pytest.warns(tk.ToolkitWarning, match=f"{path.name} was replaced since it was read on"):
            read(path)
        with_a_flipped_bit(path)  # by now it has a date
        with pytest.raises(tk.DataError, match="but not its size and date"):
            read(path)


def test_a_file_that_may_not_be_read_is_its_readers_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_reading, "file_sha256", lambda path: (tmp_path / "none").read_bytes())
    read(volume(tmp_path))
