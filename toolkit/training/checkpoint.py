"""Checkpoints: weights, optimizer and counters of one step, written whole or not at all, and verified when read."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import CheckpointError, ConfigError
from toolkit.features.modules import unwrap
from toolkit.files import flush, read_sealed, sha256, write_atomically, write_sealed
from toolkit.models.load import restricted_load, weights_bytes, weights_from_bytes

WEIGHTS, STATE, RECORD = "weights.safetensors", "state.pt", "checkpoint.json"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The content of one verified checkpoint."""

    step: int  # optimizer steps taken
    run: str  # identity of the run that wrote it
    weights: dict[str, Tensor]  # parameters and buffers of the network by name
    state: dict[str, Any]  # optimizer, gradient scaler, objective and regularizers, and the network's other values
    best: dict[str, Any] | None = None  # {"step", "value"} of the best validation so far, or None
    sha256: str = ""  # hash of the weights file
    # {"bytes", "sha256"} of the history up to this step, or None if that was not recorded
    history: dict[str, Any] | None = None

    def put_into(self, model: nn.Module) -> None:
        """Copy the weights into a network that fits."""
        unwrap(model).load_state_dict({**self.weights, **self.state["network"]})


def folder(root: Path, step: int) -> Path:
    """Where the checkpoint of one step lies below the folder `root` of all of them."""
    return root / f"{step:08d}"


def steps_on_disk(root: Path) -> list[int]:
    """Steps that have a checkpoint, ascending; whether each is intact is not looked at."""
    if not root.is_dir():
        return []
    return sorted(int(path.name) for path in root.iterdir() if path.is_dir() and path.name.isdigit())


def write(root: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint into a temporary folder and rename it into place."""
    weights, state = weights_bytes(checkpoint.weights), _state_bytes(checkpoint.state)
    record = {name: getattr(checkpoint, name) for name in ("run", "step", "best", "history")}
    record["sha256"] = {WEIGHTS: sha256(weights), STATE: sha256(state)}
    target = folder(root, checkpoint.step)
    temporary = root / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    root.mkdir(exist_ok=True)  # never the run's own folder, which may have been moved away
    temporary.mkdir()
    try:
        for name, content in {WEIGHTS: weights, STATE: state}.items():
            write_atomically(temporary / name, content, durable=True)
        write_sealed(temporary / RECORD, record)
        if target.exists():  # the same step again, after a fall back to an older checkpoint
            replaced = target.with_name(f".{target.name}.{os.getpid()}.old")
            target.rename(replaced)
            temporary.rename(target)
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            temporary.rename(target)
        flush(root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def read(root: Path, step: int, run: str | None = None) -> Checkpoint:
    """Read and verify one checkpoint (of this run, if one is named); nothing is written and no stored code can run."""
    path = folder(root, step)
    record = {"best": None, "history": None, **read_sealed(path / RECORD)}
    if not (isinstance(record.get("step"), int) and isinstance(record.get("sha256"), dict) and "run" in record):
        raise CheckpointError("The checkpoint's record is damaged.", where=path / RECORD)
    if run is not None and record["run"] != run:
        fix = "Remove the folder that was copied here, or resume the run it belongs to."
        raise CheckpointError("This checkpoint was written by another run.", where=path, fix=fix)
    if record["step"] != step:
        raise CheckpointError(f"This checkpoint says it is step {record['step']}.", where=path)
    content = {name: _read_verified(path / name, record["sha256"].get(name, "")) for name in (WEIGHTS, STATE)}
    weights = weights_from_bytes(content[WEIGHTS], str(path / WEIGHTS))
    state = restricted_load(io.BytesIO(content[STATE]), str(path / STATE))
    if not isinstance(state, dict):
        raise CheckpointError("The training state is not a dictionary.", where=str(path / STATE))
    return Checkpoint(step, record["run"], weights, state, record["best"], record["sha256"][WEIGHTS], record["history"])


def prune(root: Path, keep: int, always: Iterable[int] = ()) -> None:
    """Delete all but the newest `keep` checkpoints and those named in `always`."""
    for step in set(steps_on_disk(root)[:-keep]) - set(always):
        doomed = root / f".{step:08d}.{os.getpid()}.old"  # renamed first: a kill in between leaves no half folder
        folder(root, step).rename(doomed)
        shutil.rmtree(doomed)


def sweep(root: Path) -> None:
    """Remove the temporary folders that a killed process left behind."""
    for path in root.glob(".*"):
        if path.suffix in (".tmp", ".old"):
            shutil.rmtree(path, ignore_errors=True)


def _state_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    try:
        restricted_load(io.BytesIO(buffer.getvalue()), STATE)
    except CheckpointError as error:
        what = "The training state holds something that cannot be read back safely."
        fix = "state_dict() of objectives and regularizers may hold tensors, numbers, strings, lists and dictionaries."
        raise ConfigError(what, where=error.where, fix=fix) from error
    return buffer.getvalue()


def _read_verified(path: Path, expected: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError("A file of the checkpoint is missing.", where=path) from error
    if sha256(content) != expected:
        what = "The file is damaged or was changed: its hash is not the one recorded."
        fix = "Restore it from a copy, or continue from an older checkpoint with resume(..., fallback=True)."
        raise CheckpointError(what, where=path, fix=fix)
    return content
