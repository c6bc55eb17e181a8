"""A run on disk: `run.json`, `history.jsonl`, `state.json` and the checkpoints, complete before the first step."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit import files
from toolkit.errors import CheckpointError, ConfigError, choose
from toolkit.locks import exclusive
from toolkit.training import checkpoint as checkpoints
from toolkit.training.checkpoint import Checkpoint
from toolkit.training.process import is_alive, process_identity

_KEYS = {"run", "config", "objects", "taps", "site", "stage", "selection", "environment", "data"}
_UNFINISHED = ".unfinished"  # stands in the folder until `run.json` does: what lies beside it may be replaced
_LOCK = ".lock"


class RunDirectory:
    """Paths and records of one run; holds no open file and no state besides its path, which is absolute."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = files.absolute(path)
        self.record_file = self.path / "run.json"  # what is trained, on what, with which settings; written once
        self.history = self.path / "history.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.state_file = self.path / "state.json"  # who trains it now, or how it ended

    def exists(self) -> bool:
        """Whether a complete run lies here."""
        return self.record_file.is_file()

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the run for the length of a `with` block: nobody else trains it meanwhile."""
        return exclusive(self.path / _LOCK, "is training this run", self.path)

    @contextlib.contextmanager
    def reserved(self) -> Iterator[None]:
        """Hold the folder for a new run; make it where it is missing, and take it away again if nothing came of it."""
        self.check_free()
        missing = not self.path.exists()
        files.make_folder(self.path)
        try:
            with self.locked():
                self.check_free()
                yield
        finally:
            if missing:
                with contextlib.suppress(OSError):  # something is in it
                    self.path.rmdir()

    def check_free(self) -> None:
        """Refuse a folder in which a new run would meet other files."""
        if self.exists():
            fix = f"Continue it with toolkit.resume({str(self.path)!r}), or choose another `out`."
            raise ConfigError("There is a run in this folder already.", where=self.path, fix=fix)
        if not (self.path / _UNFINISHED).is_file():
            check_empty(self.path, besides=(_LOCK, f"{_LOCK}.json"))

    def complete(self) -> bool:
        """Whether the checkpoint of the last step is there; what is damaged counts as not complete."""
        try:
            return self.record()["config"]["steps"] in checkpoints.steps_on_disk(self.checkpoints)
        except (CheckpointError, KeyError, TypeError):
            return False

    def create(self, record: Mapping[str, Any], first: Checkpoint) -> None:
        """Write the first checkpoint, then `run.json`, whose presence says that the run is complete."""
        self.check_free()
        files.make_folder(self.path)
        (self.path / _UNFINISHED).touch()
        shutil.rmtree(self.checkpoints, ignore_errors=True)  # of a process that was killed while it was here
        checkpoints.write(self.checkpoints, first)
        self.history.write_bytes(b"")
        files.write_sealed(self.record_file, {"run": first.run, **record})
        (self.path / _UNFINISHED).unlink()

    def await_creation(self, file: str = "run.json", seconds: float = 300.0) -> None:
        """Wait until the first of several processes has created the run, or a file in its place."""
        deadline = time.monotonic() + seconds
        while not (self.path / file).is_file():
            if time.monotonic() > deadline:
                raise CheckpointError("The first process did not create the run.", where=self.path)
            time.sleep(0.05)

    def remove_if_untrained(self) -> None:
        """Take away what `create` wrote for a run whose very first step failed: there is nothing in it to continue."""
        if checkpoints.steps_on_disk(self.checkpoints) == [0] and not self.history.read_bytes().strip():
            shutil.rmtree(checkpoints.folder(self.checkpoints, 0))
            for file in (self.record_file, self.history, self.state_file):
                file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # somebody put something there meanwhile
                self.checkpoints.rmdir()

    def record(self) -> dict[str, Any]:
        """The content of `run.json`."""
        if not self.exists():
            fix = "Give the folder that was passed to toolkit.train(out=...)."
            raise CheckpointError("There is no run in this folder: it has no run.json.", where=self.path, fix=fix)
        record = files.read_sealed(self.record_file)
        if missing := sorted(_KEYS - set(record)):
            raise CheckpointError(f"run.json is damaged: it lacks {', '.join(missing)}.", where=self.record_file)
        return record

    def newest(self, run: str, fallback: bool = False) -> tuple[Checkpoint, list[str]]:
        """The newest checkpoint, verified, and what was wrong with any newer ones (an error, unless `fallback` passes them over)."""
        problems: list[str] = []
        first: CheckpointError | None = None
        for step in reversed(checkpoints.steps_on_disk(self.checkpoints)):
            try:
                checkpoint = checkpoints.read(self.checkpoints, step, run)
            except CheckpointError as error:
                first = first or error
                problems.append(f"step {step}: {error.what}")
                continue
            if first is None or fallback:
                return checkpoint, problems
            fix = f"The checkpoint of step {step} is intact: resume(..., fallback=True) continues from there."
            raise CheckpointError(first.what, where=first.where, fix=fix) from first
        if first is not None and not fallback:
            fix = first.fix or "No older checkpoint is intact."
            raise CheckpointError(first.what, where=first.where, fix=fix) from first
        what = "This run has no intact checkpoint."
        fix = "Restore the folder from a copy, or train again."
        raise CheckpointError(what, where="; ".join(problems) or str(self.checkpoints), fix=fix)

    def chosen(self, record: Mapping[str, Any], which: str | int = "selected") -> Checkpoint:
        """The checkpoint that `which` means: "selected" (by the run's own rule), "last", "best", or a step."""
        if isinstance(which, int):
            return checkpoints.read(self.checkpoints, which, record["run"])
        choose("set of weights", which, ("selected", "last", "best"), where="which=..., or a step")
        newest, _ = self.newest(record["run"])
        if which == "last" or (which == "selected" and record["selection"]["rule"] == "last"):
            return newest
        if newest.best is None and which == "best":
            raise CheckpointError("This run has no validation yet, so nothing is best.", where=self.path)
        best = newest.step if newest.best is None else newest.best["step"]
        return newest if best == newest.step else checkpoints.read(self.checkpoints, best, record["run"])

    def set_aside_after(self, step: int) -> None:
        """Rename checkpoints newer than `step` (damaged ones that were passed over) so that none is in the way."""
        for newer in checkpoints.steps_on_disk(self.checkpoints):
            if newer > step:
                source = checkpoints.folder(self.checkpoints, newer)
                source.rename(source.with_name(f"{source.name}.damaged-{secrets.token_hex(4)}"))

    def state(self) -> dict[str, Any]:
        """The content of `state.json`; empty if there is none or it cannot be read."""
        return files.json_object(self.state_file)

    def set_state(self, state: str, process: int | None = None, **details: Any) -> None:
        """Record that the run is `ready`, `running`, `finished`, `interrupted` or `failed`, and by which process."""
        process = os.getpid() if process is None else process
        owner = {"process": process, "identity": process_identity(process)}
        files.write_atomically(self.state_file, json.dumps({"state": state, **owner, **details}, indent=1))

    def set_end(self, state: str, **details: Any) -> None:
        """Record how a training ended early, if that can still be written: what ended it is what the user must see."""
        with contextlib.suppress(OSError):
            if self.exists():  # else the folder was lost, and another one may be in its place
                self.set_state(state, **details)

    def other_process(self) -> int | None:
        """The live process of this machine, other than this one, that is training this run."""
        state = self.state()
        process = state.get("process")
        if state.get("state") != "running" or not isinstance(process, int) or process == os.getpid():
            return None
        return process if is_alive(process, state.get("identity", "")) else None


def check_empty(path: Path, besides: Sequence[str] = ()) -> None:
    """Refuse a folder that holds anything: nothing of the user's is ever mixed with what a training writes or deletes."""
    try:
        others = sorted(set(os.listdir(path)) - set(besides)) if os.path.lexists(path) else []
    except OSError as error:
        what = f"This is no folder that can be used ({error.strerror})."
        raise ConfigError(what, where=path, fix="Choose another `out`.") from error
    if others:
        what = f"This folder holds other things: {', '.join(others[:5])}{' ...' if len(others) > 5 else ''}."
        raise ConfigError(what, where=path, fix="Choose an `out` that is empty or does not exist yet.")


def default_path(task: Any, regularizers: Sequence[Any], devices: int = 1) -> Path:
    """A new directory below `runs/`, named after the task, the regularizers and the time."""
    if devices > 1:
        raise ConfigError("Several processes need one `out` to agree on.", fix="Pass out=..., the same for all.")
    method = "-".join(r.name for r in regularizers) or "plain"
    moment = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{getattr(task, 'name', 'task')}-{method}-{moment}-{secrets.token_hex(2)}"
    return Path("runs") / files.distinct_names([name])[0]  # no name leads out of this folder
