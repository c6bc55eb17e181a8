"""Downloads against a server on this machine that misbehaves in every way we know, and archives that attack."""

from __future__ import annotations

import io
import os
import socket
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bad_server import CONTENT, HASH, serving

from toolkit.data import archive as archives
from toolkit.data import download
from toolkit.data.archive import unpack
from toolkit.data.download import fetch, fetch_all
from toolkit.data.manifest import Download, find_manifest
from toolkit.errors import DataError


@pytest.fixture
def server(monkeypatch) -> Iterator[tuple[str, list[str | None]]]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "refuse_private", lambda url: None)  # this server is on this machine
    with serving() as running:
        yield running


def get(server: str, way: str, folder: Path, size: int = len(CONTENT), **options: object) -> Path:
    source = Download(url=f"{server}/{way}/file.bin", bytes=size, hash=f"sha256:{HASH}")
    return fetch(source, folder, progress=False, pause=0.0, **{"timeout": 5.0, **options})


def visible(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if not p.name.startswith("."))


def test_a_good_server(server, tmp_path):
    path = get(server[0], "good", tmp_path)
    assert path.read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["file.bin"]
    assert get(server[0], "good", tmp_path) == path
    assert len(server[1]) == 1  # what is there and right is not fetched again


def test_a_truncated_transfer_is_continued(server, tmp_path):
    assert get(server[0], "truncating", tmp_path).read_bytes() == CONTENT
    assert server[1] == [None, "bytes=60000-", "bytes=120000-", "bytes=180000-"]


def test_a_later_call_continues(server, tmp_path):
    with pytest.raises(DataError, match="broke off 1 times"):
        get(server[0], "truncating", tmp_path, attempts=1)
    assert visible(tmp_path) == []
    assert len(os.listdir(tmp_path)) == 1
    assert get(server[0], "truncating", tmp_path).read_bytes() == CONTENT


def test_a_server_without_ranges_starts_again(server, tmp_path):
    assert get(server[0], "without_ranges", tmp_path).read_bytes() == CONTENT


def test_a_size_that_nobody_recorded(server, tmp_path):
    assert get(server[0], "truncating", tmp_path, size=0).read_bytes() == CONTENT
    assert server[1] == [None, "bytes=60000-", "bytes=120000-", "bytes=180000-"]
    with pytest.raises(DataError, match="has another hash"):
        get(server[0], "corrupting", tmp_path / "other", size=0)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/a.tar",
        "https://localhost/a.tar",
        "https://10.0.0.5/a.tar",
        "https://192.168.1.1:8443/a.tar",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/a.tar",
        "http://1.1.1.1/a.tar",
        "file:///etc/passwd",
        "https://127.0.0.1\\@example.org/a.tar",  # urllib asks example.org, requests 127.0.0.1
        "https://example.org@127.0.0.1/a.tar",
        "https://2130706433/a.tar",
        "https://example.org:99999/a.tar",
        "https://[::1/a.tar",
    ],
)
def test_private_addresses_are_not_fetched(url, tmp_path, monkeypatch):
    monkeypatch.delenv("https_proxy", raising=False)
    with pytest.raises(DataError, match=r"private network|no connection"):
        fetch(Download(url=url, hash=f"sha256:{HASH}", file="a.tar"), tmp_path / "in", progress=False)
    assert not (tmp_path / "in").exists()


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("1.1.1.1", True),
        ("2606:4700::1111", True),
        ("64:ff9b::101:101", True),  # NAT64 of 1.1.1.1
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::a9fe:a9fe", False),  # NAT64 of 169.254.169.254
        ("2002:7f00:1::", False),  # 6to4 of 127.0.0.1
        ("::127.0.0.1", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("ff02::1", False),
    ],
)
def test_names_that_lead_into_private_networks(address, public, monkeypatch):
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("1.1.1.1", 443)), (0, 0, 0, "", (address, 443))]
    )
    if public:
        download.refuse_private("https://data.example.org/a.tar")
    else:
        with pytest.raises(DataError, match="private network"):
            download.refuse_private("https://data.example.org/a.tar")


def test_a_redirect_on_the_same_host_is_followed(server, tmp_path):
    assert get(server[0], "moved", tmp_path).read_bytes() == CONTENT


REFUSED = {
    "corrupting": "has another hash",
    "longer": "announces 200004 bytes",
    "endless": "more than the 200000 bytes",
    "shorter": "announces 500 bytes",
    "error_page": "announces 26 bytes",
    "missing": "answers 404",
    "elsewhere": "sends us elsewhere: http://localhost:9",
    "to_file": "answers|sends us elsewhere|broke off",
    "loop": "answers 302",
    "hanging_up": "broke off 4 times",
}


@pytest.mark.parametrize("way", REFUSED)
def test_bad_servers_leave_nothing(way, server, tmp_path):
    with pytest.raises(DataError, match=REFUSED[way]) as caught:
        get(server[0], way, tmp_path)
    assert way in caught.value.where
    assert caught.value.fix
    assert os.listdir(tmp_path) == []


def test_waiting_is_bounded(server, tmp_path):
    begun = time.monotonic()
    with pytest.raises(DataError, match="timed out"):
        get(server[0], "stalling", tmp_path, timeout=0.4, attempts=2)
    assert time.monotonic() - begun < 10
    assert visible(tmp_path) == []


def test_a_server_that_continues_elsewhere_is_started_again(server, tmp_path):
    with pytest.raises(DataError, match=r"continued at another place|broke off"):
        get(server[0], "wrong_place", tmp_path)
    assert visible(tmp_path) == []


def test_no_connection_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "refuse_private", lambda url: None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DataError, match=f"no connection to 127.0.0.1:{port}") as caught:
        get(f"http://127.0.0.1:{port}", "good", tmp_path)
    assert "download the file elsewhere" in caught.value.fix
    assert os.listdir(tmp_path) == []


def test_another_file_of_that_name_is_not_replaced(server, tmp_path):
    (tmp_path / "file.bin").write_text("mine")
    with pytest.raises(DataError, match="other content"):
        get(server[0], "good", tmp_path)
    assert (tmp_path / "file.bin").read_text() == "mine"


def test_data_that_cannot_be_fetched_give_the_list(tmp_path):
    manifest = find_manifest("acdc")
    with pytest.raises(DataError, match="cannot be fetched by a program") as caught:
        fetch_all(manifest, tmp_path / "acdc")
    assert manifest.access.steps[0] in caught.value.fix
    assert os.listdir(tmp_path) == []


def zipped(path: Path, entries: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if change:
                change(info)
            archive.writestr(info, content)
    return path


def tarred(path: Path, *members: tuple[str, bytes, str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type = {
                "file": tarfile.REGTYPE,
                "link": tarfile.SYMTYPE,
                "hard": tarfile.LNKTYPE,
                "fifo": tarfile.FIFOTYPE,
                "device": tarfile.CHRTYPE,
                "folder": tarfile.DIRTYPE,
            }[kind]
            info.linkname = content.decode() if kind in ("link", "hard") else ""
            info.size = len(content) if kind == "file" else 0
            archive.addfile(info, io.BytesIO(content))
    return path


def as_link(info: zipfile.ZipInfo) -> None:
    info.external_attr = (stat.S_IFLNK | 0o777) << 16


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-30])
    return path


def flipped(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[60] ^= 0xFF
    path.write_bytes(bytes(data))
    return path


ATTACKS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "zip_parent": (lambda p: zipped(p / "a.zip", {"../out.txt": b"x"}), "outside its folder"),
    "zip_absolute": (lambda p: zipped(p / "a.zip", {"/tmp/out.txt": b"x"}), "outside its folder"),
    "zip_drive": (lambda p: zipped(p / "a.zip", {"C:/out.txt": b"x"}), "outside its folder"),
    "zip_link": (lambda p: zipped(p / "a.zip", {"l": b"/etc/passwd"}, as_link), "a link or a device"),
    "zip_same_name": (lambda p: zipped(p / "a.zip", {"a.txt": b"x", "A.TXT": b"y"}), "twice"),
    "zip_newline": (lambda p: zipped(p / "a.zip", {"a\nb": b"y"}), "no portable name"),
    "zip_bomb": (lambda p: zipped(p / "a.zip", {"zeros": bytes(3_000_000)}), "unpack to more than"),
    "zip_cut": (lambda p: cut(zipped(p / "a.zip", {"a": CONTENT})), "not an archive that can be read"),
    "zip_flipped": (lambda p: flipped(zipped(p / "a.zip", {"a": CONTENT})), "not an archive that can be read"),
    "zip_empty": (lambda p: zipped(p / "a.zip", {}), "holds no files"),
    "tar_parent": (lambda p: tarred(p / "a.tgz", ("x/../../out.txt", b"x", "file")), "outside its folder"),
    "tar_absolute": (lambda p: tarred(p / "a.tgz", ("/tmp/out.txt", b"x", "file")), "outside its folder"),
    "tar_link": (lambda p: tarred(p / "a.tgz", ("l", b"/etc", "link"), ("l/out", b"x", "file")), "a link or a device"),
    "tar_hard_link": (lambda p: tarred(p / "a.tgz", ("l", b"/etc/passwd", "hard")), "a link or a device"),
    "tar_fifo": (lambda p: tarred(p / "a.tgz", ("f", b"", "fifo")), "a link or a device"),
    "tar_device": (lambda p: tarred(p / "a.tgz", ("d", b"", "device")), "a link or a device"),
    "tar_twice": (lambda p: tarred(p / "a.tgz", ("a", b"x", "file"), ("a", b"y", "file")), "twice"),
    "tar_bomb": (lambda p: tarred(p / "a.tgz", ("z", bytes(3_000_000), "file")), "unpack to more than"),
    "tar_cut": (lambda p: cut(tarred(p / "a.tgz", ("a", CONTENT, "file"))), "not an archive that can be read"),
    "no_archive": (
        lambda p: Path((p / "a.zip").write_bytes(b"<html>") and p / "a.zip"),
        "not an archive that can be read",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_archives_that_attack_leave_nothing(attack, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_MOST_RATIO", 100)
    build, message = ATTACKS[attack]
    (tmp_path / "in").mkdir()
    archive = build(tmp_path / "in")
    with pytest.raises(DataError, match=message) as caught:
        unpack(archive, tmp_path / "out" / "set")
    assert caught.value.where == str(archive)
    assert [p for p in tmp_path.rglob("*") if p.is_file() or p.is_symlink()] == [archive]
    assert not Path("/tmp/out.txt").exists()


def test_size_and_count_limits(tmp_path, monkeypatch):
    archive = zipped(tmp_path / "a.zip", {f"{i}": os.urandom(100) for i in range(5)})
    for limit, message in (("_MOST_BYTES", "more than 4 bytes"), ("_MOST_ENTRIES", "more than 4 entries")):
        with monkeypatch.context() as patch:
            patch.setattr(archives, limit, 4)
            with pytest.raises(DataError, match=message):
                unpack(archive, tmp_path / "s")


def test_a_good_archive_and_no_overwriting(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"x/one.txt": b"1", "two.txt": b"2"})
    assert sorted(unpack(archive, tmp_path / "s")) == ["two.txt", "x/one.txt"]
    assert (tmp_path / "s" / "x" / "one.txt").read_text() == "1"
    (tmp_path / "s" / "two.txt").write_text("mine")
    with pytest.raises(DataError, match="2 files of the archive are already there"):
        unpack(archive, tmp_path / "s")
    assert (tmp_path / "s" / "two.txt").read_text() == "mine"
    second = tarred(tmp_path / "b.tgz", ("x", b"", "folder"), ("x/three.txt", b"3", "file"))
    assert unpack(second, tmp_path / "s") == ["x/three.txt"]
    assert (tmp_path / "s" / "x" / "three.txt").read_text() == "3"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_the_folder_inside_an_archive(tmp_path):
    members = [("Task04/dataset.json", b"{}", "file"), ("Task04/imagesTr/a", b"1", "file"), ("._Task04", b"x", "file")]
    names = unpack(tarred(tmp_path / "b.tgz", *members), tmp_path / "s", inside="Task04")
    assert sorted(names) == ["dataset.json", "imagesTr/a"]
    assert (tmp_path / "s" / "imagesTr" / "a").read_text() == "1"


def test_a_folder_that_is_a_link_is_not_followed(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"x/one.txt": b"1"})
    (tmp_path / "s").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "s" / "x").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="is a link"):
        unpack(archive, tmp_path / "s")
    assert list((tmp_path / "elsewhere").iterdir()) == []
