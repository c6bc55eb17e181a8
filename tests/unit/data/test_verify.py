"""`verify` finds what is planted in a data set; what it rejects never reaches a training; the command line shows it."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import zipfile
from pathlib import Path

import numpy as np
import official_layouts as official
import pytest
from PIL import Image

from toolkit import load_task, task_from_arrays
from toolkit.__main__ import main
from toolkit.errors import DataError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_DATA", str(tmp_path))
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def glas(place, monkeypatch):
    """Four images in the layout of GlaS, and a manifest to which four are all."""
    official.BUILDERS["glas"](place / "glas")
    text = (ROOT / "data_manifests" / "glas.toml").read_text(encoding="utf-8")
    assert text.count("= 170") == text.count("= 160") == 1
    (place / "manifests").mkdir()
    (place / "manifests" / "glas.toml").write_text(
        text.replace("= 170", "= 4").replace("= 160", "= 4"), encoding="utf-8"
    )
    monkeypatch.setenv("TOOLKIT_MANIFESTS", str(place / "manifests"))
    return place / "glas"


def verdicts(name: str) -> dict[str, str]:
    table = load_task(name).verify()
    return dict(zip(table.case, table.verdict, strict=True))


def test_a_clean_data_set(glas):
    table = load_task("glas").verify()
    assert set(table.verdict) == {"ok"}
    row = table.set_index("case").loc["train_1"]
    stored = np.asarray(Image.open(glas / "train_1.bmp"))
    assert (row["shape"], row.classes, row.low, row.high) == ("33 x 41", "0 1", stored.min(), stored.max())
    assert (row.split, row.site, row.spacing, row.notes) == ("train", "all", "", "")


def test_the_same_image_in_two_splits(glas):
    shutil.copy(glas / "train_1.bmp", glas / "testA_1.bmp")
    assert verdicts("glas") == {"train_1": "duplicate", "train_2": "ok", "testA_1": "duplicate", "testB_1": "ok"}
    kept = load_task("glas").usable()
    assert [case.id for case in kept.cases()] == ["train_2", "testB_1"]
    assert len(kept.loader("train", batch_size=1, patch_size=(16, 16)).cases) == 1


def test_the_same_image_twice_in_one_split_is_a_note(glas):
    shutil.copy(glas / "testA_1.bmp", glas / "testB_1.bmp")
    table = load_task("glas").verify().set_index("case")
    assert set(table.verdict) == {"ok"}
    assert table.notes["testB_1"] == "same image as testA_1"


def test_damage_missing_and_foreign_files(glas):
    path = glas / "train_2.bmp"
    path.write_bytes(path.read_bytes()[:-500])
    (glas / "stray.bin").write_bytes(b"x")
    (glas / "README.md").write_text("fine")
    task = load_task("glas")
    (glas / "testB_1.bmp").unlink()
    table = task.verify()
    assert list(zip(table.case, table.verdict, strict=True)) == [
        ("train_1", "ok"),
        ("train_2", "wrong"),
        ("testA_1", "ok"),
        ("testB_1", "missing"),
        ("", "incomplete"),
        ("", "foreign"),
    ]
    assert table.source.iloc[-2].endswith("test?_*.bmp")
    assert table.detail.iloc[-2] == "3 files found, 4 are expected."
    assert table.source.iloc[-1].endswith("stray.bin")
    assert [case.id for case in task.usable(table).cases()] == ["train_1", "testA_1"]
    with pytest.raises(DataError, match="not a complete picture"):
        task.loader("train", batch_size=2, patch_size=(16, 16)).batch(0)


def test_nothing_usable_is_an_error(glas):
    for path in glas.glob("*.bmp"):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match="no cases"):
        load_task("glas").usable()


def test_empty_slices_and_tiny_labels_are_noted():
    label = np.zeros((4, 16, 16), np.uint8)
    label[1, 2, 2:5] = 1
    image = np.arange(label.size, dtype=np.float32).reshape(label.shape)
    task = task_from_arrays([image], [label], classes=["background", "a", "b"], dims=2, splits="train")
    row = task.verify().iloc[0]
    assert row.notes == "no b; a: 3 voxels; 3 of 4 slices without foreground"
    assert (row.classes, row.verdict) == ("0 1", "ok")


def test_a_file_with_more_slices_than_its_index(place):
    official.BUILDERS["acdc_slices"](place / "acdc_slices")
    task = load_task("acdc_slices")
    label = np.zeros((3, 9, 8), np.uint8)
    official.save_h5(place / "acdc_slices/ACDC_training_volumes/patient007_frame02.h5", np.ones((3, 9, 8)), label)
    table = task.verify().set_index("case")
    assert table.verdict["patient007_frame02"] == "wrong"
    assert "2 slices, the file 3" in table.detail["patient007_frame02"]


def test_patients_that_a_list_leaves_out_are_not_foreign(place):
    official.BUILDERS["acdc"](place / "acdc")
    table = load_task("acdc", split_list="ten_subjects_0").verify()
    assert dict(zip(table.verdict, table.source.str[-10:], strict=True))["incomplete"] == "*/Info.cfg"
    assert {case[:10] for case in table.case[table.verdict == "ok"]} == {"patient001", "patient007"}
    assert set(table.verdict) == {"ok", "incomplete"}


def test_command_line(glas, tmp_path, capsys):
    assert main(["data", "list"]) == 0
    assert re.search(r"glas +colon glands +2 +manual +True", capsys.readouterr().out)
    assert main(["data", "show", "acdc"]) == 0
    shown = capsys.readouterr().out
    assert "1 RV, 2 myocardium, 3 LV" in shown
    assert "Register at https://www.creatis" in shown
    assert main(["data", "verify", "glas", "--out", str(tmp_path / "t.csv")]) == 0
    assert "4 rows: 4 ok" in capsys.readouterr().out
    assert (tmp_path / "t.csv").read_text().startswith("case,verdict,checksum")
    (glas / "train_1.bmp").write_bytes(b"BM")
    assert main(["data", "verify", "glas"]) == 1
    assert main(["data", "fetch", "glas"]) == 1
    assert "cannot be fetched by a program" in capsys.readouterr().err
    assert main(["data", "show", "no-such"]) == 1


def test_fetch_unpacks_an_archive_into_the_data_folder(place, tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "g.zip", "w") as archive:
        archive.writestr("train_1.bmp", b"x")
    assert main(["data", "fetch", "glas", "--archive", str(tmp_path / "g.zip")]) == 0
    assert "1 files unpacked" in capsys.readouterr().out
    assert os.listdir(place / "glas") == ["train_1.bmp"]


def test_montage_is_a_picture(glas, tmp_path):
    out = tmp_path / "m.png"
    assert main(["data", "montage", "glas", "--out", str(out), "--columns", "2"]) == 0
    with Image.open(out) as picture:
        assert min(picture.size) > 100


def test_the_page_of_data_sets_is_current():
    made = runpy.run_path(str(ROOT / "scripts" / "data_sets_page.py"))["page"]()
    assert (ROOT / "docs" / "data_sets.md").read_text(encoding="utf-8") == made
