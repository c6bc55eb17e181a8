"""Manifests are checked key by key; absent data give a to-do list; damaged packs are found."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from toolkit import list_tasks, load_task
from toolkit.data.manifest import cache_folder, find_manifest, manifest_names
from toolkit.data.rows import table_of
from toolkit.errors import ConfigError, DataError, ToolkitError, ToolkitWarning

MANIFEST = """
name = "tiny"
title = "Two stacks of squares"
anatomy = "squares"
modality = "drawing"
dims = 2
channels = 1
sites = ["north", "south"]
spacing = "unknown"
normalisation = "zscore-clip"
patch_size = [16, 16]
source = "made for a test"
citation = "none"
licence = "CC0 1.0"

[classes]
0 = "background"
1 = "square"

[access]
kind = "manual"
page = "https://example.org/squares"
steps = ["Ask the curator for the squares."]
"""
TABLE = "case,split,site,slices,image\nann,train,north,3,stacks/ann.npz\nbob,test,south,2,stacks/bob.npz\n"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manifest folder and a data folder with one complete pack; returns the pack."""
    manifests, pack = tmp_path / "manifests", tmp_path / "data" / "tiny"
    (pack / "stacks").mkdir(parents=True)
    manifests.mkdir()
    (manifests / "tiny.toml").write_text(MANIFEST)
    (manifests / "tiny.csv").write_text(TABLE)
    sums = []
    for who, slices in (("ann", 3), ("bob", 2)):
        image = np.arange(slices * 400).reshape(slices, 20, 20).astype(np.int16)
        path = pack / "stacks" / f"{who}.npz"
        np.savez(path, image=image, label=(image % 7 == 0).astype(np.uint8))
        sums.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  stacks/{who}.npz\n")
    (manifests / "tiny.sha256").write_text("".join(sums))
    monkeypatch.setenv("TOOLKIT_MANIFESTS", str(manifests))
    monkeypatch.setenv("TOOLKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    return pack


def test_a_pack_is_loaded(tiny):
    task = load_task("tiny")
    assert [case.id for case in task.cases()] == [
        "ann/slice00",
        "ann/slice01",
        "ann/slice02",
        "bob/slice00",
        "bob/slice01",
    ]
    assert task.sites == ("north", "south")
    assert task.cases("test")[1].spacing is None
    stored = np.load(tiny / "stacks" / "bob.npz")["label"]
    np.testing.assert_array_equal(task.cases("test")[1].label.numpy(), stored[1])
    assert task.verify()[["case", "verdict", "checksum"]].to_numpy().tolist() == [
        ["ann", "ok", "matches"],
        ["bob", "ok", "matches"],
    ]


def test_the_cache_is_looked_at_after_the_data_folder(tiny, monkeypatch, tmp_path):
    monkeypatch.delenv("TOOLKIT_DATA")
    (tmp_path / "cache").mkdir()
    tiny.rename(tmp_path / "cache" / "tiny")
    assert len(load_task("tiny")) == 5


def test_absent_data_give_a_to_do_list(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("TOOLKIT_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError) as caught:
        load_task("tiny")
    text = str(caught.value)
    for part in (
        "1. Ask the curator",
        f"stacks{os.sep}ann.npz" if os.sep != "/" else "stacks/ann.npz",
        "2 files in all",
        "TOOLKIT_DATA",
        "CC0 1.0",
        str(tmp_path / "elsewhere" / "tiny"),
        "verify()",
    ):
        assert part in text
    assert list_tasks().set_index("name").ready.to_dict()["tiny"] is False


def test_missing_files_are_counted(tiny):
    (tiny / "stacks" / "bob.npz").unlink()
    with pytest.raises(DataError, match=r"1 files of 'tiny' are missing, for example stacks/bob.npz"):
        load_task("tiny")


class Payload:
    """An object whose pickle would write a file `ran` where it is told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return (Path.write_text, (self.folder / "ran", "code in a data file ran"))


def bad_empty(path: Path) -> None:
    path.write_bytes(b"")


def bad_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def bad_flipped_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def bad_pickle(path: Path) -> None:
    np.savez(path, image=np.array([Payload(path.parent)], dtype=object), label=np.zeros((2, 20, 20), np.uint8))


def test_the_payload_of_these_tests_would_run(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path)))
    assert (tmp_path / "ran").exists()


def bad_raw_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(path.parent)))


def bad_array_file(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.zeros((2, 20, 20)))


def bad_names(path: Path) -> None:
    np.savez(path, picture=np.zeros((2, 20, 20)), label=np.zeros((2, 20, 20), np.uint8))


def bad_axes(path: Path) -> None:
    np.savez(path, image=np.zeros((20, 20)), label=np.zeros((20, 20), np.uint8))


def bad_shapes(path: Path) -> None:
    np.savez(path, image=np.ones((2, 20, 20)), label=np.zeros((2, 20, 19), np.uint8))


def bad_slices(path: Path) -> None:
    np.savez(path, image=np.random.default_rng(0).random((1, 20, 20)), label=np.zeros((1, 20, 20), np.uint8))


def bad_nan(path: Path) -> None:
    np.savez(path, image=np.full((2, 20, 20), np.nan), label=np.zeros((2, 20, 20), np.uint8))


def bad_classes(path: Path) -> None:
    np.savez(path, image=np.ones((2, 20, 20)), label=np.full((2, 20, 20), 4, np.uint8))


MESSAGES = {
    bad_empty: "0 bytes",
    bad_truncated: "not a readable .npz",
    bad_flipped_bit: "not a readable .npz",
    bad_pickle: "Object arrays cannot be loaded",
    bad_raw_pickle: "Object arrays cannot be loaded|not a readable",
    bad_array_file: "not a readable .npz",
    bad_names: "no array called image",
    bad_axes: "not slices x rows x columns",
    bad_shapes: "and its label",
    bad_slices: "slice 1 of a stack that has 1",
    bad_nan: "800 NaN",
    bad_classes: "no class: 4",
}


@pytest.mark.parametrize("spoil", MESSAGES, ids=lambda make: make.__name__)
def test_bad_archives_are_refused_and_found(spoil, tiny):
    path = tiny / "stacks" / "bob.npz"
    spoil(path)
    task = load_task("tiny")
    with pytest.raises(DataError, match=MESSAGES[spoil]) as caught:
        _ = task.cases("test")[1].image
    assert str(path) in caught.value.where
    assert caught.value.fix
    verdicts = task.verify().set_index("case")
    assert verdicts.verdict["ann"] == "ok"
    assert verdicts.verdict["bob"] in ("wrong", "changed")
    assert verdicts.checksum["bob"] == "differs"
    assert not (path.parent / "ran").exists()


WRONG = {
    'name = "tiny"': ('name = "other"', "name: is 'other'"),
    "dims = 2": ("dims = 4", "dims: "),
    "channels = 1": ('channels = "one"', "channels: "),
    'licence = "CC0 1.0"': ("", "licence: field required"),
    "[access]": ("[access]\nprice = 3", "access.price: unexpected"),
    'kind = "manual"': ('kind = "magic"', "access.kind: "),
    "patch_size = [16, 16]": ("patch_size = [16]", "patch_size: needs 2"),
    'normalisation = "zscore-clip"': ('normalisation = "z"', "Unknown normalisation 'z'"),
    '1 = "square"': ('2 = "square"', "without gaps"),
    "[classes]": ("[clases]", "clases"),
    "dims = 2\n": ("dims = 2\nflips = [2]\n", "flips: axes are 0 to 1"),
    'sites = ["north", "south"]': ("sites = []", "sites: at least one"),
    'modality = "drawing"': ("modality = drawing", "cannot be read"),
    'sites = ["north", "south"] ': ('sites = ["north"]', "is from the site 'south', which is not listed"),
    'steps = ["Ask the curator for the squares."]': ('[files]\n"../*" = 0', "lies outside the data folder"),
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_manifests_name_the_key(line, tiny):
    path = Path(os.environ["TOOLKIT_MANIFESTS"]) / "tiny.toml"
    replacement, message = WRONG[line]
    assert line.strip() in MANIFEST
    path.write_text(MANIFEST.replace(line.strip(), replacement, 1))
    with pytest.raises(DataError) as caught:
        load_task("tiny")
    assert message in str(caught.value)


def test_a_missing_table_is_named(tiny):
    (Path(os.environ["TOOLKIT_MANIFESTS"]) / "tiny.csv").unlink()
    with pytest.raises(DataError, match="index table of 'tiny' cannot be read"):
        load_task("tiny")


@pytest.mark.parametrize("name", ["cardiac_acdc", "cardiac_sunnybrook", "hippocampus_msd04", "nuclei_dsb2018"])
def test_manifests_are_complete(name):
    manifest = find_manifest(name)
    rows = table_of(manifest.table_path)
    assert manifest.licence
    assert manifest.citation
    assert manifest.access.steps
    lines = manifest.checksum_path.read_text().splitlines()
    assert len({line[66:] for line in lines}) == len(lines)
    assert all(len(line.split("  ")[0]) == 64 for line in lines)
    assert len(lines) == len(rows) * (1 if name == "cardiac_acdc" else 2)


def test_list_tasks_needs_no_data(monkeypatch, tmp_path):
    monkeypatch.delenv("TOOLKIT_DATA", raising=False)
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path))
    table = list_tasks().set_index("name")
    assert list(table.columns) == ["anatomy", "modality", "dims", "classes", "sites", "licence", "access", "ready"]
    assert {"cardiac_acdc", "acdc", "mnms", "glas", "synapse"} <= set(table.index[~table.ready])
    assert table.ready["phantom-cardiac"]
    assert list(table.ready) == list(table.access == "embedded")
    assert set(manifest_names()) == set(table.index)
    for name in table.index[~table.ready]:
        with pytest.raises(DataError, match="are not on this machine"):
            load_task(name)


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_manifests_are_found_where_an_installed_package_has_them(monkeypatch, tmp_path):
    import sysconfig

    from toolkit.data import manifest

    folder = tmp_path / "share" / "toolkit" / "data_manifests"
    folder.mkdir(parents=True)
    monkeypatch.setattr(manifest, "__file__", str(tmp_path / "site-packages" / "toolkit" / "data" / "manifest.py"))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert folder in manifest.manifest_folders()


@pytest.mark.parametrize("image", ["../secret.npz", "/etc/secret.npz", "stacks/../../secret.npz"])
def test_an_index_cannot_reach_outside_its_pack(tiny, image):
    np.savez(tiny.parent / "secret.npz", image=np.zeros((2, 20, 20)), label=np.zeros((2, 20, 20), np.uint8))
    path = Path(os.environ["TOOLKIT_MANIFESTS"]) / "tiny.csv"
    path.write_text(TABLE.replace("stacks/bob.npz", image))
    with pytest.raises(DataError, match="lies outside the data folder"):
        load_task("tiny")


@pytest.mark.parametrize("file", ["../tiny/stacks/ann.npz", "/etc/hostname"])
def test_a_table_under_the_name_of_an_official_set_reaches_no_further(tiny, file):
    folder = Path(os.environ["TOOLKIT_MANIFESTS"])
    (folder / "cardiac_acdc.toml").write_text(MANIFEST.replace('name = "tiny"', 'name = "cardiac_acdc"'))
    row = f"patient001,ED,train,DCM,10,256,216,658,{file}"
    (folder / "cardiac_acdc.csv").write_text(f"patient,phase,split,group,slices,rows,cols,k,file\n{row}\n")
    (tiny.parent / "cardiac_acdc").mkdir()
    with pytest.raises(DataError, match="lies outside the data folder"):
        load_task("cardiac_acdc")


def test_a_broken_manifest_leaves_the_other_tasks(tiny):
    (Path(os.environ["TOOLKIT_MANIFESTS"]) / "broken.toml").write_bytes(b"name = '\xff'")
    with pytest.warns(ToolkitWarning, match="'broken' is left out. The manifest cannot be read"):
        names = set(list_tasks().name)
    assert {"tiny", "phantom-cardiac"} <= names
    assert "broken" not in names


@pytest.mark.parametrize("name", ["../tiny", "/tmp/tiny", "manifests/tiny"])
def test_a_name_is_no_path(tiny, name):
    with pytest.raises(ToolkitError, match="no task called"):
        load_task(name)


def test_a_fold_is_that_of_the_whole_task():
    task, whole = load_task("phantom-cardiac", fold=(1, 3)), load_task("phantom-cardiac").folds(3)[1]
    for split in ("train", "val", "test"):
        assert [case.id for case in task.cases(split)] == [case.id for case in whole.cases(split)]
    assert task.content_hash() == whole.content_hash()
    with pytest.raises(ConfigError, match="no fold 3 of 3"):
        load_task("phantom-cardiac", fold=(3, 3))
