"""An extraction that was killed goes on where it was and gives the same bytes."""

from __future__ import annotations

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

from toolkit.errors import ResultError
from toolkit.features import partial, writer
from toolkit.features.extract import extract
from toolkit.features.store import open_features

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
    assert json.loads((tmp_path / ".killed.zarr.partial" / "progress.json").read_text())["batches"] == 2
    seen = run(out)
    assert sum(seen) == 8  # all but the 4 images whose features were on disk
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
        kept = 2 * max(0, at_hand - 1)  # and is kept when the next one is there
        assert sum(seen) == 12 - kept
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
    assert sum(run(out)) == 8  # what was refused is still there to go on with
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


def test_two_at_once_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.zarr"
    folder = partial.partial_folder(path)
    folder.mkdir()
    (folder / "progress.json").write_text(json.dumps({"process": 1}), encoding="utf-8")
    monkeypatch.setattr(partial, "_alive", lambda process: process == 1)
    assert partial.partial_folder(path) != folder
    monkeypatch.setattr(partial, "_alive", lambda process: False)
    assert partial.partial_folder(path) == folder
    assert torch.get_num_threads() == 1
