"""`verify` counts the files of each pattern that a manifest expects, and names those that do not belong."""

from __future__ import annotations

import glob
from pathlib import Path

import numpy as np
import official_layouts as official
import pytest

from toolkit import load_task
from toolkit.__main__ import main
from toolkit.data.manifest import find_manifest
from toolkit.data.verify import counted

ROOT = Path(__file__).parents[3]
# What a builder writes on purpose that belongs to no data set.
STRAY = {"msd_hippocampus": "._hippocampus_001.nii.gz", "msd_prostate": "._prostate_001.nii.gz"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_DATA", str(tmp_path))
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("name", sorted(official.BUILDERS))
def test_every_data_set_is_counted_against_its_manifest(name, place):
    """The small sets are incomplete by the numbers of the manifest, and nothing in them is foreign."""
    official.BUILDERS[name](place / name)
    expects = find_manifest(name).files
    found = {pattern: len(glob.glob(pattern, root_dir=place / name, recursive=True)) for pattern in expects}
    short = {pattern for pattern, number in expects.items() if found[pattern] < max(number, 1)}
    table = load_task(name).verify()
    rows = table[table.case == ""]
    incomplete = rows[rows.verdict == "incomplete"]
    assert set(incomplete.source) == {str(place / name / pattern) for pattern in short}
    for source, detail in zip(incomplete.source, incomplete.detail, strict=True):
        pattern = str(Path(source).relative_to(place / name))
        assert detail.startswith(f"{found[pattern]} file")
        assert f"{expects[pattern]} are expected" in detail
    assert [Path(s).name for s in rows[rows.verdict == "foreign"].source] == ([STRAY[name]] if name in STRAY else [])
    assert set(rows.verdict) <= {"incomplete", "foreign"}
    assert set(table[table.case != ""].verdict) == {"ok"}


@pytest.fixture
def slices(place, monkeypatch):
    """Slices and volumes of ACDC, and a manifest to which two volumes are all."""
    official.BUILDERS["acdc_slices"](place / "acdc_slices")
    volumes = place / "acdc_slices" / "ACDC_training_volumes"
    (volumes / "patient001_frame01.h5").unlink()
    official.save_h5(volumes / "patient008_frame01.h5", np.ones((1, 9, 8)), np.zeros((1, 9, 8), np.uint8))
    text = (ROOT / "data_manifests" / "acdc_slices.toml").read_text(encoding="utf-8")
    assert text.count("= 200\n") == 1
    (place / "manifests").mkdir()
    (place / "manifests" / "acdc_slices.toml").write_text(text.replace("= 200\n", "= 2\n"), encoding="utf-8")
    monkeypatch.setenv("TOOLKIT_MANIFESTS", str(place / "manifests"))
    return place / "acdc_slices"


def about_files() -> list[tuple[str, str]]:
    table = load_task("acdc_slices").verify()
    table = table[table.case == ""]
    return [(verdict, Path(source).name) for verdict, source in zip(table.verdict, table.source, strict=True)]


def test_complete_incomplete_and_surplus(slices, capsys):
    assert about_files() == []
    assert main(["data", "verify", "acdc_slices"]) == 0
    extra = slices / "ACDC_training_volumes" / "patient009_frame01.h5"
    official.save_h5(extra, np.ones((1, 9, 8)) * 2, np.ones((1, 9, 8), np.uint8))
    assert about_files() == [("surplus", "*.h5")]
    assert main(["data", "verify", "acdc_slices"]) == 0
    extra.unlink()
    (slices / "ACDC_training_volumes" / "patient008_frame01.h5").unlink()
    assert about_files() == [("incomplete", "*.h5")]
    capsys.readouterr()
    assert main(["data", "verify", "acdc_slices"]) == 1
    assert "1 file found, 2 are expected. The number is not confirmed: Number of slices." in capsys.readouterr().out


def test_what_does_not_belong(slices):
    for name in ("README.txt", "SHA256SUMS", "licence.pdf", "table.csv"):
        (slices / name).write_text("a companion", encoding="utf-8")
    assert about_files() == []
    (slices / "ACDC_training_slices" / "notes.exe").write_bytes(b"x")
    (slices / "deeper").mkdir()
    (slices / "deeper" / "patient001_frame01_slice_1.h5").write_bytes(b"x")
    assert about_files() == [("foreign", "notes.exe"), ("foreign", "patient001_frame01_slice_1.h5")]


def test_a_pattern_without_number_needs_one_file():
    assert counted(0, 0) == ("incomplete", "0 files found, at least one is expected.")
    assert counted(0, 7)[0] == "ok"
