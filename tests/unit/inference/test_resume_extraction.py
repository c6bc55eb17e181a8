"""An extraction that was killed goes on where it was and gives the same bytes."""

from __future__ import annotations

import errno
import importlib.util
import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import zarr

from toolkit.errors import ConfigError, DataError, ResultError
from toolkit.features import writer
from toolkit.features.store import open_features
from toolkit.inference.extract import extract

PROGRAM = Path(__file__).with_name("resume_program.py")
_SPEC = importlib.util.spec_from_file_location("resume_program", PROGRAM)
assert _SPEC is not None
assert _SPEC.loader is not None
program: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(program)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run(out: Path, inputs: Any = None, **options: Any) -> list[int]:
    """Extract as the program does; the images that the network really saw."""
    net, seen = program.network(), []
    net.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
    settings = {"pool": "voxels", "samples": 5, "batch_size": 2, **options}
    extract(net, program.scans() if inputs is None else inputs, program.LAYERS, out=out, **settings)
    return seen


def interrupted(stop: int) -> Iterator[dict[str, object]]:
    yield from itertools.islice(program.scans(), stop)
    raise KeyboardInterrupt


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CHECKPOINT_SECONDS", 0.0)


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_to_the_byte(tmp_path: Path) -> None:
    out, mark = tmp_path / "killed.zarr", tmp_path / "mark"
    child = subprocess.Popen([sys.executable, str(PROGRAM), str(out), str(mark)])
    try:
        end = time.monotonic() + 120
        while not mark.exists() and child.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert mark.exists()
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not out.exists()
    assert json.loads((tmp_path / ".killed.zarr.partial" / "progress.json").read_text())["batches"] == 3
    seen = run(out)
    assert sum(seen) == 6  # all but the 6 images whose features were on disk
    run(tmp_path / "whole.zarr")
    assert content(out) == content(tmp_path / "whole.zarr")
    assert open_features(out).cases["case"].nunique() == 12
    assert not (tmp_path / ".killed.zarr.partial").exists()


@pytest.mark.usefixtures("often")
def test_an_interrupt_at_any_batch_and_small_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_CHUNK", 7 * 4 * 4)  # rows of 4 channels: 7 a chunk, so batches end inside one
    run(tmp_path / "whole.zarr")
    for stop in (0, 1, 2, 5, 12):
        out = tmp_path / f"{stop}.zarr"
        with pytest.raises(KeyboardInterrupt):
            run(out, interrupted(stop))
        seen = run(out)
        at_hand = (stop - 1) // 2  # a batch comes when the image after it is read
        assert sum(seen) == 12 - 2 * max(0, at_hand)
        assert content(out) == content(tmp_path / "whole.zarr")


@pytest.mark.usefixtures("often")
def test_other_requests_start_anew_and_other_inputs_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "f.zarr"

    def interrupt() -> None:
        with pytest.raises(KeyboardInterrupt):
            run(out, interrupted(8))

    interrupt()
    assert sum(run(out, samples=6)) == 12
    assert open_features(out).provenance["parameters"]["samples"] == 6
    interrupt()
    changed = [{**scan, "image": scan["image"] * 2} for scan in program.scans()]
    with pytest.raises(ResultError, match="other inputs") as error:
        run(out, changed)
    assert "resume=False" in error.value.fix
    with pytest.raises(ResultError, match="other inputs"):
        run(out, list(itertools.islice(program.scans(), 4)))
    assert sum(run(out)) == 6  # what was refused is still there to go on with
    interrupt()
    assert sum(run(out, changed, resume=False)) == 12


@pytest.mark.usefixtures("often")
def test_a_damaged_leftover_is_thrown_away(tmp_path: Path) -> None:
    out = tmp_path / "f.zarr"
    with pytest.raises(KeyboardInterrupt):
        run(out, interrupted(8))
    chunk = next((tmp_path / ".f.zarr.partial" / "layer0" / "rows").rglob("c/0/0"))
    chunk.write_bytes(b"torn")
    assert sum(run(out)) == 12
    run(tmp_path / "whole.zarr")
    assert content(out) == content(tmp_path / "whole.zarr")


def test_a_failure_keeps_the_batches_before_it(tmp_path: Path) -> None:
    out, scans = tmp_path / "f.zarr", program.scans()
    broken = [{**scan, "image": scan["image"] * torch.nan} if i == 7 else scan for i, scan in enumerate(scans)]
    with pytest.raises(DataError) as error:
        run(out, broken)
    assert "3 batches are kept" in error.value.__notes__[0]
    assert sum(run(out)) == 6  # the image is mended: the same call goes on
    run(tmp_path / "whole.zarr")
    assert content(out) == content(tmp_path / "whole.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.zarr", "whole.zarr"]


@pytest.mark.usefixtures("often")
def test_a_full_disk_keeps_what_was_written_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, appended, whole = tmp_path / "f.zarr", [], zarr.Array.append

    def append(array: Any, values: Any, axis: int = 0) -> Any:
        appended.append(len(values))
        if len(appended) == 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(array, values, axis)

    with monkeypatch.context() as patched:
        patched.setattr(zarr.Array, "append", append)
        with pytest.raises(ResultError, match=r"No space left[\s\S]*f\.zarr"):
            run(out)
    assert 0 < sum(run(out)) < 12
    run(tmp_path / "whole.zarr")
    assert content(out) == content(tmp_path / "whole.zarr")


def test_two_writers_of_one_store(tmp_path: Path) -> None:
    first = writer.StoreWriter(tmp_path / "f.zarr", {"a": 1})
    for request in ({"a": 1}, None):
        with pytest.raises(ConfigError, match="writes this feature store now"):
            writer.StoreWriter(tmp_path / "f.zarr", request)
    first.abort()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["head_weights", "head_bias", "provenance", "layer"])
def test_a_change_of_the_head_or_the_record_is_found(tmp_path: Path, name: str) -> None:
    out = tmp_path / "f.zarr"
    store = extract(program.network(), program.scans(), program.LAYERS, out=out)
    root = zarr.open_group(str(out), mode="r+")
    if name.startswith("head"):
        assert getattr(store, name) is not None
        root[name][0] = 7.0
    elif name == "provenance":
        root.attrs["provenance"] = {**store.provenance, "weights": "0" * 64}
    else:
        root.attrs["layers"] = [{**entry, "name": f"{entry['name']}x"} for entry in root.attrs["layers"]]
    with pytest.raises(ResultError, match="not what was written"):
        open_features(out)
