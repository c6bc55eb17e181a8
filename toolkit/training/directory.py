"""A run on disk: `run.json`, `history.jsonl`, `state.json` and the checkpoints, complete before the first step."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.errors import CheckpointError, ConfigError
from toolkit.files import write_atomically
from toolkit.training import checkpoint as checkpoints
from toolkit.training.checkpoint import Checkpoint
from toolkit.training.process import is_alive, process_identity

FORMAT = 1


class RunDirectory:
    """Paths and records of one run; holds no open file and no state besides its path."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def record_file(self) -> Path:
        """`run.json`: what is trained, on what, with which settings; written once."""
        return self.path / "run.json"

    @property
    def history(self) -> Path:
        """`history.jsonl`."""
        return self.path / "history.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def state_file(self) -> Path:
        """`state.json`: who trains it now, or how it ended."""
        return self.path / "state.json"

    def exists(self) -> bool:
        """Whether a complete run lies here."""
        return self.record_file.is_file()

    def create(self, record: Mapping[str, Any], first: Checkpoint) -> None:
        """Write checkpoint 0, then `run.json`, whose presence says that the run is complete.

        Raises:
            ConfigError: a run is here already.
        """
        if self.exists():
            raise ConfigError(
                "There is a run in this folder already.",
                where=str(self.path),
                fix=f"Continue it with toolkit.resume({str(self.path)!r}), or choose another `out`.",
            )
        self.path.mkdir(parents=True, exist_ok=True)
        checkpoints.sweep(self.checkpoints)
        checkpoints.write(self.checkpoints, first)
        self.history.write_text("", encoding="utf-8")
        write_json(self.record_file, {"format": FORMAT, "run": first.run, **record})

    def await_creation(self, seconds: float = 300.0) -> None:
        """Wait until the first of several processes has created the run.

        Raises:
            CheckpointError: it did not come about.
        """
        deadline = time.monotonic() + seconds
        while not self.exists():
            if time.monotonic() > deadline:
                raise CheckpointError("The first process did not create the run.", where=str(self.path))
            time.sleep(0.05)

    def remove_if_untrained(self) -> None:
        """Take a run away whose very first step failed: there is nothing in it to continue."""
        if checkpoints.steps_on_disk(self.checkpoints) == [0] and not self.history.read_text(encoding="utf-8").strip():
            shutil.rmtree(self.checkpoints)
            for file in (self.record_file, self.history, self.state_file):
                file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the folder held something else
                self.path.rmdir()

    def record(self) -> dict[str, Any]:
        """The content of `run.json`.

        Raises:
            CheckpointError: no run here, or a damaged or newer record.
        """
        if not self.exists():
            raise CheckpointError(
                "There is no run in this folder: it has no run.json.",
                where=str(self.path),
                fix="Give the folder that was passed to toolkit.train(out=...).",
            )
        try:
            record = json.loads(self.record_file.read_text(encoding="utf-8"))
            known = record["format"] == FORMAT and {"run", "config", "objects"} <= set(record)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError("run.json is damaged.", where=str(self.record_file)) from error
        if not known:
            raise CheckpointError("run.json has an unknown format.", where=str(self.record_file))
        return record

    def newest(self, run: str, fallback: bool = False) -> tuple[Checkpoint, list[str]]:
        """The newest checkpoint, verified, and what was wrong with any newer ones.

        Args:
            run: identity of this run.
            fallback: pass over damaged checkpoints; False = the newest must be intact.

        Raises:
            CheckpointError: the newest is damaged (or, with `fallback`, every one is), or there is none.
        """
        problems: list[str] = []
        steps = checkpoints.steps_on_disk(self.checkpoints)
        for step in reversed(steps):
            try:
                return checkpoints.read(self.checkpoints, step, run), problems
            except CheckpointError as error:
                if not fallback:
                    raise self._with_advice(error, [s for s in steps if s < step], run) from error
                problems.append(f"step {step}: {error.what}")
        raise CheckpointError(
            "This run has no intact checkpoint.",
            where="; ".join(problems) or str(self.checkpoints),
            fix="Restore the folder from a copy, or train again.",
        )

    def _with_advice(self, error: CheckpointError, older: list[int], run: str) -> CheckpointError:
        for step in reversed(older):
            try:
                checkpoints.read(self.checkpoints, step, run)
            except CheckpointError:
                continue
            advice = f"The checkpoint of step {step} is intact: resume(..., fallback=True) continues from there."
            return CheckpointError(error.what, where=error.where, fix=advice)
        return CheckpointError(error.what, where=error.where, fix=error.fix or "No older checkpoint is intact.")

    def set_aside_after(self, step: int) -> None:
        """Rename checkpoints newer than `step` (damaged ones that were passed over) so that none is in the way."""
        for newer in checkpoints.steps_on_disk(self.checkpoints):
            if newer > step:
                source = checkpoints.folder(self.checkpoints, newer)
                source.rename(source.with_name(f"{source.name}.damaged-{secrets.token_hex(4)}"))

    def state(self) -> dict[str, Any]:
        """The content of `state.json`; empty if there is none or it cannot be read."""
        try:
            state = json.loads(self.state_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def set_state(self, state: str, process: int | None = None, **details: Any) -> None:
        """Record that the run is `ready`, `running`, `finished`, `interrupted` or `failed`, and by which process."""
        process = os.getpid() if process is None else process
        owner = {"process": process, "identity": process_identity(process)}
        write_json(self.state_file, {"state": state, **owner, **details})

    def check_not_running(self) -> None:
        """Refuse to train a run that another live process on this machine is training.

        Raises:
            ConfigError: it is being trained.
        """
        state = self.state()
        process = state.get("process")
        if state.get("state") != "running" or not isinstance(process, int) or process == os.getpid():
            return
        if is_alive(process, state.get("identity", "")):
            raise ConfigError(
                f"Process {process} is training this run now.",
                where=str(self.path),
                fix="Wait for it or stop it (run.stop()); then resume.",
            )


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON to a temporary name in the same folder and rename it."""
    write_atomically(path, json.dumps(value, indent=1))
