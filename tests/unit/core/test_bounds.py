"""Files from elsewhere cannot take more memory or disk than they say, nor more than is sane."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toolkit as tk
from toolkit.data.archive import unpack


def saved(path: Path, header: dict[str, Any] | str, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("result.json", header if isinstance(header, str) else json.dumps(header))
        for name, content in files.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


RESULT = {"class": "Collapse", "module": "toolkit.measure.collapse", "format": 1, "fields": {}}


@pytest.mark.parametrize(
    ("header", "files", "message"),
    [
        ({**RESULT, "format": 2}, {}, "its format is 2"),
        ({**RESULT, "fields": {"nothing": {"value": 1}}}, {}, "nothing"),
        ("[" * 200_000, {}, "RecursionError"),
        ({**RESULT, "fields": {"a": {}}}, {}, "StopIteration"),
        (RESULT, {"a": npy(np.zeros(3)).replace(b"(3,)", b"(9,)")}, "does not fit"),
        (RESULT, {"a": npy(np.zeros(3)).replace(b"(3,), }   ", b"(9999999,)}")}, "ValueError|does not fit"),
        (RESULT, {"a": npy(np.array([{}], dtype=object))}, "does not fit|allow_pickle"),
        ([1], {}, "TypeError"),
    ],
)
def test_a_foreign_result_is_refused(tmp_path: Path, header: Any, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(tk.ResultError, match=message):
        tk.load_result(saved(tmp_path / "r.zip", header, **files))


def test_a_result_that_unpacks_to_too_much_is_not_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "bomb.zip", RESULT, a=npy(np.zeros(2**20)))
    assert path.stat().st_size < 2**15
    with pytest.raises(tk.ResultError, match="unpacks to 8388") as error:
        tk.load_result(path, most_bytes=2**20)
    assert "most_bytes" in str(error.value)


def test_an_archive_with_a_huge_header_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("x")
        info.pax_headers = {"comment": "1" * 2**20}
        archive.addfile(info, io.BytesIO())
    with pytest.raises(tk.DataError, match=r"header of 10\d+ bytes"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_move_that_fails_half_way_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = tmp_path / "a.zip", tmp_path / "out"
    with zipfile.ZipFile(path, "w") as archive:
        for name in "abc":
            archive.writestr(name, name)
    out.mkdir()
    (out / "mine").write_text("mine")
    whole = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name == "b":
            raise OSError("full")
        return whole(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(tk.DataError, match="full"):
        unpack(path, out)
    assert [p.name for p in out.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.full((2, 4, 1, 1), torch.nan), "NaN"),
        (torch.zeros(2, 4, 1, 1, dtype=torch.complex64), "complex64"),
        (torch.zeros(2, 4, 1, 1, dtype=torch.int32), "int32"),
        (torch.zeros(2, 4, 1, 1).to_sparse(), "sparse"),
        (torch.zeros(2, 4, 1, 1, device="meta"), "meta|damaged"),
    ],
)
def test_tensors_that_are_no_weights_are_refused_by_name(tmp_path: Path, value: torch.Tensor, message: str) -> None:
    net = tk.unet(1, 2, channels=(4, 8))
    state = dict(net.state_dict())
    torch.save({**state, "head.weight": value}, tmp_path / "w.pt")
    before = {name: tensor.clone() for name, tensor in state.items()}
    with pytest.raises(tk.CheckpointError, match=message) as error:
        tk.load_weights(net, tmp_path / "w.pt")
    assert "head.weight" in str(error.value) or "damaged" in str(error.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_a_weights_file_of_another_hash_is_refused(tmp_path: Path) -> None:
    import hashlib

    net = tk.unet(1, 2, channels=(4, 8))
    torch.save(net.state_dict(), tmp_path / "w.pt")
    digest = hashlib.sha256((tmp_path / "w.pt").read_bytes()).hexdigest()
    assert tk.load_weights(net, tmp_path / "w.pt", sha256=digest).complete
    with pytest.raises(tk.CheckpointError, match="SHA-256"):
        tk.load_weights(net, tmp_path / "w.pt", sha256="0" * 64)
