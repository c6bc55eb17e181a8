"""`toolkit data fetch NAME` from a manifest with addresses to a task that loads, and every way in which it must not."""

from __future__ import annotations

import hashlib
import io
import os
import re
import socket
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import official_layouts as official
import pytest
from bad_server import serving

from toolkit import list_tasks, load_task
from toolkit.__main__ import main
from toolkit.data import download, manifest
from toolkit.data.download import fetch_all
from toolkit.data.manifest import data_folders, find_manifest
from toolkit.errors import DataError

MANIFEST = """
name = "squares"
title = "Stacks of squares"
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
kind = "download"
page = "https://example.org/squares"
{files}

[files]
"north/*.npz" = 2
"south/*.npz" = 1
"""
FILE = """
[[access.files]]
url = "{url}"
bytes = {size}
hash = "sha256:{sha256}"
"""


def stacks(names: list[str]) -> dict[str, bytes]:
    """Path -> content of small stacks whose first voxels hold the length of their name."""
    files = {}
    for number, name in enumerate(names):
        image = np.random.default_rng(number).normal(size=(3, 16, 16)).astype(np.float32)
        label = np.zeros((3, 16, 16), np.uint8)
        label[:, 2 : 6 + number, 3:9] = 1
        stream = io.BytesIO()
        np.savez(stream, image=image, label=label)
        files[name] = stream.getvalue()
    return files


def archive(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        for name, content in files.items():
            made.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()


FILES = stacks(["north/ann.npz", "north/bob.npz", "south/cem.npz"])
ARCHIVE = archive(FILES)
SPLITS = {"north/ann.npz": "train", "north/bob.npz": "train", "south/cem.npz": "test"}
Offer = Callable[..., Path]


@pytest.fixture
def offer(tmp_path, monkeypatch) -> Offer:
    """offer(*urls, content=..., **changes of size, sha256) writes the manifest; returns the data folder."""
    (tmp_path / "manifests").mkdir()
    monkeypatch.setenv("TOOLKIT_MANIFESTS", str(tmp_path / "manifests"))
    monkeypatch.setenv("TOOLKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(manifest, "ADDRESS", re.compile(r"(https://|http://127\.0\.0\.1:).*"))
    monkeypatch.setattr(download, "refuse_private", lambda url: None)

    def write(*urls: str, content: bytes = ARCHIVE, extra: str = "", **changes: object) -> Path:
        known = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), **changes}
        entries = "".join(FILE.format(url=url, **known) + extra for url in urls)
        lines = [f"{name},{name.split('/')[0]},{Path(name).stem},{split}" for name, split in SPLITS.items()]
        (tmp_path / "manifests" / "squares.csv").write_text("\n".join(["image,site,case,split", *lines]))
        (tmp_path / "manifests" / "squares.toml").write_text(MANIFEST.format(files=entries), encoding="utf-8")
        return tmp_path / "data" / "squares"

    return write


def hidden_only(folder: Path) -> list[Path]:
    """Files below the data root that are no part of a hidden file or folder."""
    return [
        p for p in folder.rglob("*") if p.is_file() and not any(q.startswith(".") for q in p.relative_to(folder).parts)
    ]


def quick(name: str = "squares", **options: object) -> list[Path]:
    return fetch_all(
        find_manifest(name), data_folders(name)[0], progress=False, pause=0.0, **{"timeout": 5.0, **options}
    )


def test_fetch_ends_in_a_task_that_loads(offer, capsys):
    with serving(ARCHIVE) as (address, asked):
        folder = offer(f"{address}/good/squares.zip")
        assert not list_tasks().set_index("name").ready["squares"]
        with pytest.raises(DataError, match="are not on this machine"):
            load_task("squares")
        assert main(["data", "fetch", "squares"]) == 0
        shown = capsys.readouterr().out
        assert "Licence of the data: CC0 1.0" in shown
        task = load_task("squares")
        assert sorted(case.id for case in task.cases()) == sorted(
            f"{who}/slice{k:02d}" for who in ("ann", "bob", "cem") for k in range(3)
        )
        for name, content in FILES.items():
            assert (folder / name).read_bytes() == content
        assert set(task.verify().verdict) == {"ok"}
        assert task.loader("train", batch_size=2).batch(0)["image"].shape == (2, 1, 16, 16)
        assert main(["data", "verify", "squares"]) == 0
        assert main(["data", "fetch", "squares"]) == 0  # again: nothing is asked for, nothing is replaced
    assert asked == [None]
    assert sorted(hidden_only(folder.parent)) == sorted(folder / name for name in FILES)


def test_what_was_unpacked_and_lost_is_said(offer):
    """A second fetch leaves a complete folder alone, and never mixes an archive with what is left of it."""
    with serving(ARCHIVE) as (address, asked):
        folder = offer(f"{address}/good/squares.zip")
        quick()
        (folder / "south" / "cem.npz").unlink()
        with pytest.raises(DataError, match="2 files of the archive are already there") as caught:
            quick()
        assert "nothing was changed" in caught.value.fix
        for path in folder.rglob("*.npz"):
            path.unlink()
        quick()
    assert asked == [None]
    assert len(load_task("squares")) == 9


def test_several_files_unpacked_and_as_they_are(offer):
    north, south = archive({n: c for n, c in FILES.items() if "north" in n}), FILES["south/cem.npz"]
    with serving(north) as (one, _), serving(south) as (two, _):
        folder = offer(f"{one}/good/north.zip", content=north)
        path = folder.parents[1] / "manifests" / "squares.toml"
        entry = FILE.format(url=f"{two}/good/cem.npz", size=len(south), sha256=hashlib.sha256(south).hexdigest())
        text = path.read_text(encoding="utf-8").replace("\n[files]", f"{entry}unpack = false\n\n[files]")
        path.write_text(text.replace('"south/*.npz" = 1', '"cem.npz" = 1'), encoding="utf-8")
        table = path.with_suffix(".csv")
        table.write_text(table.read_text().replace("south/cem.npz", "cem.npz"))
        quick()
    assert (folder / "cem.npz").read_bytes() == south
    assert {case.subject for case in load_task("squares").cases()} == {"ann", "bob", "cem"}


def test_a_transfer_that_breaks_off_is_continued(offer):
    big = archive({**FILES, "north/README.txt": np.random.default_rng(0).bytes(150_000)})
    with serving(big) as (address, asked):
        offer(f"{address}/truncating/squares.zip", content=big)
        quick()
    assert asked[:2] == [None, "bytes=60000-"]
    assert len(load_task("squares")) == 9


def test_a_broken_fetch_goes_on_where_it_stopped(offer):
    big = archive({**FILES, "north/README.txt": np.random.default_rng(0).bytes(150_000)})
    with serving(big) as (address, asked):
        folder = offer(f"{address}/truncating/squares.zip", content=big)
        with pytest.raises(DataError, match="continues where this one stopped"):
            quick(attempts=1)
        assert hidden_only(folder.parent) == []
        with pytest.raises(DataError, match="are not on this machine"):
            load_task("squares")
        quick()
    assert asked[1] == "bytes=60000-"
    assert len(load_task("squares")) == 9


REFUSED = {
    "corrupting": "has another hash",
    "longer": "announces",
    "endless": "sends more than",
    "shorter": "announces 500 bytes",
    "error_page": "announces 26 bytes",
    "missing": "answers 404",
    "elsewhere": "sends us elsewhere: http://localhost:9",
    "hanging_up": "broke off 4 times",
}


@pytest.mark.parametrize("way", REFUSED)
def test_bad_servers_leave_no_data_set(way, offer):
    with serving(ARCHIVE) as (address, _):
        folder = offer(f"{address}/{way}/squares.zip")
        with pytest.raises(DataError, match=REFUSED[way]) as caught:
            quick()
    assert caught.value.fix
    assert not folder.exists()
    assert [p for p in folder.parent.rglob("*") if p.is_file()] == []
    with pytest.raises(DataError, match="are not on this machine"):
        load_task("squares")


def test_a_stalled_server_is_given_up(offer):
    with serving(ARCHIVE) as (address, _):
        folder = offer(f"{address}/stalling/squares.zip")
        with pytest.raises(DataError, match="timed out"):
            quick(timeout=0.4, attempts=2)
    assert not folder.exists()


def test_offline_is_one_message_on_the_command_line(offer, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = offer(f"http://127.0.0.1:{port}/squares.zip")
    assert main(["data", "fetch", "squares"]) == 1
    told = capsys.readouterr().err
    assert f"no connection to 127.0.0.1:{port}" in told
    assert "Traceback" not in told
    assert "download the file elsewhere" in told
    assert not folder.exists()


def test_what_was_downloaded_by_hand_is_unpacked(offer, tmp_path):
    folder = offer("https://example.org/squares.zip")
    (tmp_path / "squares.zip").write_bytes(ARCHIVE)
    assert main(["data", "fetch", "squares", "--archive", str(tmp_path / "squares.zip")]) == 0
    assert len(load_task("squares")) == 9
    assert os.listdir(folder.parent) == ["squares"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"sha256": "0" * 63}, "files.0.hash: is no sha256"), ({"size": -3}, "files.0: needs an https address")],
)
def test_a_manifest_that_cannot_be_checked_is_refused(changes, message, offer):
    offer("https://example.org/squares.zip", **changes)
    with pytest.raises(DataError, match=message):
        load_task("squares")


@pytest.mark.parametrize("url", ["http://example.org/a.zip", "ftp://example.org/a.zip", "file:///etc/passwd"])
def test_only_https_is_fetched(url, offer):
    offer(url)
    with pytest.raises(DataError, match="needs an https address"):
        load_task("squares")


@pytest.mark.parametrize(
    ("name", "task"), [("msd_hippocampus", "Task04_Hippocampus"), ("msd_prostate", "Task05_Prostate")]
)
def test_the_decathlon_is_fetched_from_where_monai_fetches_it(name, task):
    from monai.apps.datasets import DecathlonDataset

    (file,) = find_manifest(name).access.files
    assert file.url == DecathlonDataset.resource[task]
    assert file.hash == f"md5:{DecathlonDataset.md5[task]}"


def test_the_decathlons_archive_becomes_a_task(tmp_path, monkeypatch):
    """The archive as it is published, one folder inside, through the command that fetches it."""
    official.BUILDERS["msd_hippocampus"](tmp_path / "in" / "Task04_Hippocampus")
    with tarfile.open(tmp_path / "t.tar", "w") as made:
        made.add(tmp_path / "in" / "Task04_Hippocampus", "Task04_Hippocampus")
    content = (tmp_path / "t.tar").read_bytes()
    text = (Path(__file__).parents[3] / "data_manifests" / "msd_hippocampus.toml").read_text(encoding="utf-8")
    monkeypatch.setattr(manifest, "ADDRESS", re.compile(r"(https://|http://127\.0\.0\.1:).*"))
    monkeypatch.setattr(download, "refuse_private", lambda url: None)
    for variable, folder in (("MANIFESTS", "manifests"), ("DATA", "data"), ("CACHE", "cache")):
        monkeypatch.setenv(f"TOOLKIT_{variable}", str(tmp_path / folder))
    with serving(content) as (address, _):
        text = text.replace("https://msd-for-monai.s3-us-west-2.amazonaws.com", f"{address}/good")
        text = text.replace("9d24dba78a72977dbd1d2e110310f31b", hashlib.md5(content, usedforsecurity=False).hexdigest())
        (tmp_path / "manifests").mkdir()
        (tmp_path / "manifests" / "msd_hippocampus.toml").write_text(text, encoding="utf-8")
        assert main(["data", "fetch", "msd_hippocampus"]) == 0
    assert {case.id for case in load_task("msd_hippocampus").cases()} == {f"hippocampus_{n:03d}" for n in (1, 4, 7)}
