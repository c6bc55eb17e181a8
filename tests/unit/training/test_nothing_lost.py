"""Run directories: what is there is never overwritten, what is lost is said, and one process trains at a time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from power_cut import Disk, write

import toolkit as tk
from toolkit import locks
from toolkit.files import read_sealed, write_sealed
from toolkit.locks import exclusive
from toolkit.training import loop

SHORT = {"steps": 4, "batch_size": 2, "checkpoint_every": 2, "validate_every": 2, "log_every": 1}


def net() -> Any:
    return tk.unet(1, 2, channels=(4, 8))


def train(task: tk.Task, out: Any, **options: Any) -> tk.Run:
    return tk.train(net(), task, config=SHORT, out=out, progress=False, **options)


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], Any]) -> None:
    whole = loop.seed_step

    def seed_step(seed: int, index: int, rank: int) -> None:
        if index == step:
            action()
        whole(seed, index, rank)

    monkeypatch.setattr(loop, "seed_step", seed_step)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_that_holds_something_is_refused_and_left_as_it_is(discs: tk.Task, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "mine.pt").write_text("precious")
    (tmp_path / "history.jsonl").write_text("mine too")
    before = content(tmp_path)
    for call in (
        lambda: train(discs, tmp_path),
        lambda: tk.train_sequence(net(), discs, sites=discs.sites, config=SHORT, out=tmp_path, progress=False),
        lambda: tk.compare({"plain": None}, model=net, task=discs, config=SHORT, out=tmp_path, progress=False),
    ):
        with pytest.raises(tk.ConfigError, match=r"holds other things: checkpoints, history\.jsonl"):
            call()
        assert content(tmp_path) == before


@pytest.mark.parametrize("out", ["", "file"])
def test_a_name_that_is_no_folder_is_refused(
    discs: tk.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(tk.ConfigError, match="no folder"):
        train(discs, out)
    assert content(tmp_path) == {"file": b"mine"}


def test_a_run_that_was_killed_while_it_was_made_is_made_again(
    discs: tk.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("toolkit.files.write_sealed", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(discs, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
    assert train(discs, tmp_path / "run").finished


def test_what_the_user_puts_beside_a_failing_run_stays(
    discs: tk.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        (tmp_path / "run" / "checkpoints" / "note.txt").write_text("mine")
        raise tk.DataError("broken")

    at_step(monkeypatch, 0, fail)
    with pytest.raises(tk.DataError, match="broken"):
        train(discs, tmp_path / "run")
    assert content(tmp_path) == {"run/checkpoints/note.txt": b"mine"}


def test_a_change_of_the_working_directory_changes_nothing(
    discs: tk.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    at_step(monkeypatch, 1, lambda: os.chdir("elsewhere"))
    run = train(discs, "run")
    assert run.path == tmp_path / "run"
    assert tk.load_run(run.path, model=net(), task=discs).finished
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("lost", ["moved", "deleted", "replaced"])
def test_a_lost_directory_is_an_error_with_the_state_beside_it(
    discs: tk.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    folder, model = tmp_path / "run", net()

    def lose() -> None:
        shutil.rmtree(folder) if lost == "deleted" else folder.rename(tmp_path / "moved")
        if lost == "replaced":
            folder.mkdir()

    with monkeypatch.context() as patched:
        at_step(patched, 2, lose)
        with pytest.raises(tk.CheckpointError, match=r"no longer in its place[\s\S]*rescued-3"):
            tk.train(model, discs, config=SHORT, out=folder, progress=False)
    assert not folder.exists() or not list(folder.iterdir())
    (rescued,) = tmp_path.glob("run.rescued-3-*")
    assert tk.resume(rescued, net(), discs, progress=False).finished
    if lost != "deleted":
        assert tk.resume(tmp_path / "moved", net(), discs, progress=False).finished
        for name, value in tk.load_model(rescued, "last").state_dict().items():
            assert value.equal(tk.load_model(tmp_path / "moved", "last").state_dict()[name])


@pytest.fixture
def stopped(discs: tk.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that vanished in its third step."""

    class Vanished(BaseException):
        pass

    def vanish() -> None:
        raise Vanished

    with monkeypatch.context() as patched:
        at_step(patched, 2, vanish)
        with pytest.raises(Vanished):
            train(discs, tmp_path / "run")
    return tmp_path / "run"


def test_of_many_resumes_at_one_instant_one_trains(stopped: Path, discs: tk.Task) -> None:
    start, outcomes, refusals = threading.Barrier(8), [], []

    def resume() -> None:
        start.wait()
        try:
            outcomes.append(tk.resume(stopped, net(), discs, progress=False).finished)
        except tk.ConfigError as error:
            refusals.append(error.what)

    threads = [threading.Thread(target=resume) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes  # whoever came when it was finished got it as it is
    assert len(outcomes) + len(refusals) == 8
    assert all("is training this run now" in one for one in refusals)
    rows = [json.loads(line) for line in (stopped / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["event"] == "train"] == [1, 2, 3, 4]
    assert not list(stopped.glob(".lock*"))


HOLD = """
import sys, time
from pathlib import Path
from toolkit.locks import exclusive
from toolkit.training import loop
with exclusive(Path(sys.argv[1]), "is training this run", Path(sys.argv[1]).parent):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's list of open files")
def test_after_a_power_cut_a_run_goes_on_from_what_was_flushed(
    discs: tk.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    (tmp_path / "disk").mkdir()
    torch.manual_seed(0)
    with Disk(tmp_path / "disk") as disk, monkeypatch.context() as patched:
        at_step(patched, 0, lambda: begun.append(len(disk.moments)))
        whole = train(discs, tmp_path / "disk" / "new" / "run")
    moments = disk.moments[begun[0] - 1 :]
    for index in (0, 3, len(moments) // 2, len(moments) - 1):
        for kind, image in moments[index].items():
            write(image, tmp_path / f"{index}-{kind}")
            run = tk.resume(tmp_path / f"{index}-{kind}" / "new" / "run", net(), discs, progress=False)
            assert [r["step"] for r in run.history.to_dict("records")] == [
                r["step"] for r in whole.history.to_dict("records")
            ]
            assert all(map(torch.equal, run.model.state_dict().values(), whole.model.state_dict().values()))


def test_another_process_holds_a_run_until_it_ends(stopped: Path, discs: tk.Task) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, stopped / ".lock"], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = content(stopped)
        with pytest.raises(tk.ConfigError, match=f"Process {holder.pid} on .* is training this run now"):
            tk.resume(stopped, net(), discs, progress=False)
        assert content(stopped) == before
    finally:
        holder.kill()
        holder.communicate()
    assert tk.resume(stopped, net(), discs, progress=False).finished  # a kill lets go


def test_another_machine_holds_a_lock_while_it_gives_signs_of_life(tmp_path: Path) -> None:
    note = tmp_path / ".lock.json"
    owner = {"machine": "far", "host": "node7", "process": 12, "alive": time.time() - 30}
    note.write_text(json.dumps(owner))
    expected = r"Process 12 on node7 writes[\s\S]*30 s old[\s\S]*delete \.lock\.json"
    with pytest.raises(tk.ConfigError, match=expected), exclusive(tmp_path / ".lock", "writes", tmp_path):
        pass
    note.write_text(json.dumps({**owner, "alive": time.time() - locks.STALE - 1}))
    with exclusive(tmp_path / ".lock", "writes", tmp_path):
        assert json.loads(note.read_text())["process"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_holder_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.01)
    with exclusive(tmp_path / ".lock", "writes", tmp_path):
        first = json.loads((tmp_path / ".lock.json").read_text())["alive"]
        deadline = time.monotonic() + 10
        while json.loads((tmp_path / ".lock.json").read_text())["alive"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("key", ["seed", "learning_rate", "steps", "batch_size"])
def test_an_edited_setting_does_not_resume(stopped: Path, discs: tk.Task, key: str) -> None:
    file = stopped / "run.json"
    text = file.read_text()
    value = json.loads(text)["config"][key]
    file.write_text(text.replace(f'"{key}": {value}', f'"{key}": {value * 2 + 1}'))
    assert file.read_text() != text
    with pytest.raises(tk.CheckpointError, match=r"run\.json was changed"):
        tk.resume(stopped, net(), discs, progress=False)


def test_a_record_without_a_key_is_named(stopped: Path, discs: tk.Task) -> None:
    record = read_sealed(stopped / "run.json")
    del record["site"]
    write_sealed(stopped / "run.json", record)
    with pytest.raises(tk.CheckpointError, match="lacks site"):
        tk.resume(stopped, net(), discs, progress=False)


def test_every_bit_of_the_records_counts(stopped: Path) -> None:
    """A flipped bit in run.json or a checkpoint's record is found wherever it lies, unless the JSON means the same."""
    for file in (stopped / "run.json", stopped / "checkpoints" / "00000002" / "checkpoint.json"):
        whole = file.read_bytes()
        record = read_sealed(file)
        for place in range(0, len(whole), 7):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            try:
                assert read_sealed(file) == record
            except tk.CheckpointError:
                continue
        file.write_bytes(whole)


def test_a_changed_table_of_scores_is_computed_again(discs: tk.Task, tmp_path: Path) -> None:
    run = train(discs, tmp_path / "run")
    first = run.evaluate("val", metrics=("dice",))
    (file,) = (run.path / "evaluation").glob("*.csv")
    text = file.read_text()
    file.write_text(text.replace("dice,0.", "dice,0.9", 1))
    with pytest.warns(tk.ToolkitWarning, match="computed again"):
        again = run.evaluate("val", metrics=("dice",))
    assert again.equals(first)
    assert file.read_text() == text


def test_changed_first_weights_of_a_sequence_are_found(discs: tk.Task, tmp_path: Path) -> None:
    tk.train_sequence(net(), discs, sites=[discs.sites[0]], config=SHORT, out=tmp_path / "s", progress=False)
    file = tmp_path / "s" / "initial.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    with pytest.raises(tk.CheckpointError, match=r"initial\.safetensors|hash"):
        tk.resume_sequence(tmp_path / "s", net(), discs, progress=False)


def test_switched_off_gradients_are_switched_on_for_a_training(discs: tk.Task, tmp_path: Path) -> None:
    reference = train(discs, tmp_path / "reference").model.state_dict()
    with torch.no_grad():
        run = train(discs, tmp_path / "run")
        assert not torch.is_grad_enabled()
    assert [a.shape for a in run.model.state_dict().values()] == [b.shape for b in reference.values()]
    assert len(run.history.query("event == 'train'")) == SHORT["steps"]


def test_too_many_threads_are_refused() -> None:
    with pytest.raises(tk.ConfigError, match="from 1 to 1024"):
        tk.TrainConfig(threads=10**6)


class Keeping(torch.nn.Module):
    """Keeps its last output, which `deepcopy` refuses."""

    def __init__(self, lock: Any = None) -> None:
        super().__init__()
        self.inner, self.lock, self.last = net(), lock, None

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.last = self.inner(image)
        return self.last


def test_networks_that_cannot_be_copied_in_a_sequence(two_sites: tk.Task, tmp_path: Path) -> None:
    options: dict[str, Any] = {"sites": two_sites.sites, "config": SHORT, "progress": False}
    stages = tk.train_sequence(Keeping(), two_sites, out=tmp_path / "kept", **options)
    assert [run.finished for run in stages.stages] == [True, True]
    with pytest.raises(tk.ConfigError, match=r"cannot be copied[\s\S]*locks"):
        tk.train_sequence(Keeping(threading.Lock()), two_sites, out=tmp_path / "lock", **options)
    assert not (tmp_path / "lock").exists()
