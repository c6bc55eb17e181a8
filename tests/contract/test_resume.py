"""A run that was stopped, by whatever means, ends with the same bits; a checkpoint that cannot be trusted is refused."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from toolkit.errors import CheckpointError, ConfigError, ToolkitWarning
from toolkit.files import read_sealed, write_sealed
from toolkit.training import checkpoint as checkpoints

PROGRAM = Path(__file__).parent / "resume_program.py"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("resume_program", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference(program: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("reference") / "run"
    program.begin(folder)
    return folder


def weights_of(folder: Path, step: int) -> bytes:
    return (folder / "checkpoints" / f"{step:08d}" / "weights.safetensors").read_bytes()


def timeless_history(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


def assert_same_run(folder: Path, reference: Path, steps: int) -> None:
    assert weights_of(folder, steps) == weights_of(reference, steps)
    assert timeless_history(folder) == timeless_history(reference)
    states = [
        torch.load(f / "checkpoints" / f"{steps:08d}" / "state.pt", weights_only=True) for f in (folder, reference)
    ]
    for key, moments in states[0]["optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, states[1]["optimizer"]["state"][key][name])
    assert torch.equal(states[0]["regularizers"]["awkward"]["average"], states[1]["regularizers"]["awkward"]["average"])
    state = json.loads((folder / "state.json").read_text())
    assert state["state"] == "finished"
    assert state["selected_step"] == json.loads((reference / "state.json").read_text())["selected_step"]


class Crash(BaseException):
    """Stands for a process that vanishes."""


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [0, 1, 4, 5, 6, 12, 23])
def test_a_crash_in_any_step_leaves_a_run_that_ends_with_the_same_bits(
    program: ModuleType, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, workers: int
) -> None:
    """The reference prepares its batches itself; threads that prepare them ahead change no bit and no step."""
    from toolkit.data.loader import Loader

    whole = Loader.batch

    def batch(self: Loader, index: int) -> dict[str, Any]:
        if index == step:
            raise Crash
        return whole(self, index)

    with monkeypatch.context() as patched:
        patched.setattr(Loader, "batch", batch)
        with pytest.raises(Crash):
            program.begin(tmp_path / "run", program.CONFIG.replace(workers=workers))
    assert [thread for thread in threading.enumerate() if thread.name.startswith("toolkit-batch")] == []
    program.train_to_end(tmp_path / "run")
    assert_same_run(tmp_path / "run", reference, program.STEPS)


@pytest.mark.parametrize("call", range(2, 14, 3))
def test_a_crash_while_a_checkpoint_is_written_leaves_the_older_one_in_force(
    program: ModuleType, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    whole, calls = checkpoints.write_atomically, iter(range(1000))

    def write_half(path: Path, content: bytes, durable: bool) -> Path:
        if next(calls) == call + 1:  # the first three calls write checkpoint 0
            path.write_bytes(content[: len(content) // 2])
            raise Crash
        return whole(path, content, durable=durable)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "write_atomically", write_half)
        patched.setattr(checkpoints.shutil, "rmtree", lambda *_, **__: None)  # a killed process cleans nothing up
        with pytest.raises(Crash):
            program.begin(tmp_path / "run")
    program.train_to_end(tmp_path / "run")
    assert_same_run(tmp_path / "run", reference, program.STEPS)
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_kill_9_three_times_then_resume(program: ModuleType, reference: Path, tmp_path: Path) -> None:
    folder, drawn = tmp_path / "run", random.Random(0)
    for start, target in zip(("", "--resume", "--resume"), sorted(drawn.sample(range(1, 22), 3)), strict=True):
        kill_at(folder, target, start)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, PROGRAM, folder, "--resume"], check=True, timeout=60, env=environment)
    assert_same_run(folder, reference, program.STEPS)


def kill_at(folder: Path, step: int, *arguments: str) -> None:
    """Start the program and send SIGKILL once it has logged `step`."""
    command = [sys.executable, str(PROGRAM), str(folder), *filter(None, arguments)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            history = folder / "history.jsonl"
            if history.exists() and f'"step": {step},' in history.read_text():
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    finally:
        process.wait()


def test_an_interrupt_ends_the_step_and_says_how_to_go_on(
    program: ModuleType, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolkit.data.loader import Loader

    whole = Loader.batch

    def batch(self: Loader, index: int) -> dict[str, Any]:
        if index == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return whole(self, index)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell starts us with it ignored
    try:
        with monkeypatch.context() as patched:
            patched.setattr(Loader, "batch", batch)
            with pytest.raises(KeyboardInterrupt, match=r"after step 9 .*toolkit\.resume"):
                program.begin(tmp_path / "run")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert json.loads((tmp_path / "run" / "state.json").read_text())["state"] == "interrupted"
    program.train_to_end(tmp_path / "run")
    assert_same_run(tmp_path / "run", reference, program.STEPS)


def test_a_finished_run_resumes_to_itself(program: ModuleType, reference: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(reference, tmp_path / "run")
    before = snapshot(folder)
    run = program.train_to_end(folder)
    assert snapshot(folder) == before
    selected = checkpoints.read(folder / "checkpoints", run.selected_step)
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, selected.weights[name])


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def stopped(program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that crashed in step 12: checkpoints 5 and 10, and the best one."""
    from toolkit.data.loader import Loader

    whole = Loader.batch

    def batch(self: Loader, index: int) -> dict[str, Any]:
        if index == 12:
            raise Crash
        return whole(self, index)

    with monkeypatch.context() as patched:
        patched.setattr(Loader, "batch", batch)
        with pytest.raises(Crash):
            program.begin(tmp_path / "run")
    return tmp_path / "run"


class Payload:
    """Would create a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


def newest(folder: Path) -> Path:
    return folder / "checkpoints" / "00000010"


def rehash(folder: Path) -> None:
    """Make the record agree with the files, as an attacker would."""
    import hashlib

    record = read_sealed(folder / "checkpoint.json")
    record["sha256"] = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in record["sha256"]}
    write_sealed(folder / "checkpoint.json", record)


def damage(kind: str, folder: Path, reference: Path, marker: Path) -> None:
    weights, state, record = (folder / n for n in ("weights.safetensors", "state.pt", "checkpoint.json"))
    content = weights.read_bytes()
    if kind == "one bit":
        weights.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    elif kind == "truncated":
        weights.write_bytes(content[: len(content) // 2])
    elif kind == "truncated, hash made to fit":
        weights.write_bytes(content[: len(content) // 2])
        rehash(folder)
    elif kind == "empty state":
        state.write_bytes(b"")
        rehash(folder)
    elif kind == "missing file":
        state.unlink()
    elif kind == "no record":
        record.unlink()
    elif kind == "torn record":
        record.write_text(record.read_text()[:40])
    elif kind == "another run's":
        shutil.rmtree(folder)
        shutil.copytree(sorted((reference / "checkpoints").iterdir())[-1], folder)
    elif kind == "malicious state":
        buffer = io.BytesIO()
        torch.save({"optimizer": Payload(marker)}, buffer)
        state.write_bytes(buffer.getvalue())
        rehash(folder)
    elif kind == "malicious plain pickle":
        state.write_bytes(pickle.dumps(Payload(marker)))
        rehash(folder)
    elif kind == "malicious weights":
        weights.write_bytes(pickle.dumps(Payload(marker)))
        rehash(folder)


DAMAGE = (
    "one bit",
    "truncated",
    "truncated, hash made to fit",
    "empty state",
    "missing file",
    "no record",
    "torn record",
    "another run's",
    "malicious state",
    "malicious plain pickle",
    "malicious weights",
)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_checkpoint_that_cannot_be_trusted_is_refused_and_the_run_left_as_it_was(
    program: ModuleType, reference: Path, stopped: Path, tmp_path: Path, kind: str
) -> None:
    damage(kind, newest(stopped), reference, tmp_path / "executed")
    before = snapshot(stopped)
    with pytest.raises(CheckpointError, match="fallback=True"):
        program.train_to_end(stopped)
    assert snapshot(stopped) == before
    assert not (tmp_path / "executed").exists()
    with pytest.warns(ToolkitWarning, match="older checkpoint of step"):
        program.train_to_end(stopped, fallback=True)
    assert_same_run(stopped, reference, program.STEPS)
    assert not (tmp_path / "executed").exists()


def test_no_intact_checkpoint_at_all(program: ModuleType, stopped: Path) -> None:
    for folder in (stopped / "checkpoints").iterdir():
        (folder / "state.pt").write_bytes(b"nothing")
    for fallback in (False, True):
        with pytest.raises(CheckpointError, match=r"damaged|no intact"):
            program.train_to_end(stopped, fallback=fallback)


def test_missing_objects_are_listed_and_wrong_ones_refused(program: ModuleType, stopped: Path) -> None:
    from toolkit.training.train import resume

    with pytest.raises(CheckpointError, match="passed again") as caught:
        resume(stopped, progress=False)
    assert all(word in str(caught.value) for word in ("model=", "task=", "regularizer=", "Sequential"))
    wrong = {"model": torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1))}
    right = {
        "model": program.awkward_network(),
        "task": program.disc_task(),
        "regularizer": program.AwkwardRegularizer(),
    }
    before = snapshot(stopped)
    with pytest.raises(CheckpointError, match="does not fit") as caught:
        resume(stopped, **{**right, **wrong}, progress=False)
    assert "8.bias" in str(caught.value)
    with pytest.raises(CheckpointError, match="content hash"):
        resume(stopped, **{**right, "task": program.disc_task(count=11)}, progress=False)
    with pytest.raises(CheckpointError, match="not the one of this run"):
        resume(stopped, **{**right, "regularizer": []}, progress=False)
    assert snapshot(stopped) == before


def test_a_resume_uses_the_threads_that_the_run_began_with(program: ModuleType, stopped: Path) -> None:
    record = read_sealed(stopped / "run.json")
    own = torch.get_num_threads()
    record["environment"]["threads"] = own + 1
    write_sealed(stopped / "run.json", record)
    used: set[int] = set()
    program.train_to_end(stopped, on_log=lambda *_: used.add(torch.get_num_threads()))
    assert used == {own + 1}
    assert torch.get_num_threads() == own


def test_a_run_in_training_is_not_trained_twice(program: ModuleType, stopped: Path) -> None:
    from toolkit.training.process import process_identity

    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        owner = {"state": "running", "process": sleeper.pid, "identity": process_identity(sleeper.pid)}
        (stopped / "state.json").write_text(json.dumps(owner))
        with pytest.raises(ConfigError, match=f"Process {sleeper.pid} is training"):
            program.train_to_end(stopped)
    finally:
        sleeper.kill()
        sleeper.communicate()
    assert program.train_to_end(stopped).finished


def test_a_folder_without_a_run(program: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run in this folder"):
        program.train_to_end(tmp_path)


def test_a_second_training_in_one_folder_is_refused(program: ModuleType, stopped: Path) -> None:
    before = snapshot(stopped)
    with pytest.raises(ConfigError, match="already"):
        program.begin(stopped)
    assert snapshot(stopped) == before
