"""Training in a child process, so that a notebook stays free, and what the child gets from its parent.

Objects that no record can rebuild are pickled into the child's standard input; nothing is stored. The child has the
parent's `sys.path`. What was defined in the parent's script or notebook goes with them (cloudpickle takes it by value),
so a script needs no main guard.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from toolkit import registry
from toolkit.errors import ConfigError
from toolkit.training.directory import RunDirectory


def start(path: Path, parcel: bytes) -> subprocess.Popen[bytes]:
    """Start the child that carries on a run; its output goes to `background.log` in the run's directory."""
    with (path / "background.log").open("ab") as log:
        apart = os.name == "posix"  # an interrupt of the notebook must not reach it
        options = {"stdout": log, "stderr": log, "start_new_session": apart}
        process = start_module("toolkit.training.child", [str(path)], parcel, **options)
    RunDirectory(path).set_state("running", process.pid, step=0)
    return process


def is_running(path: Path, process: subprocess.Popen[bytes] | None) -> bool:
    """Whether a process trains this run now, be it a child of this one or not."""
    return (process is not None and process.poll() is None) or RunDirectory(path).other_process() is not None


def stop(path: Path, process: subprocess.Popen[bytes] | None) -> None:
    """Ask whoever trains the run to write a checkpoint after the step at hand and to end."""
    if not is_running(path, process):
        return
    own = process is not None and process.poll() is None  # else another has gone on since
    owner = process.pid if process is not None and own else RunDirectory(path).state()["process"]
    with contextlib.suppress(ProcessLookupError):
        os.kill(owner, signal.SIGTERM)  # on Windows this ends it at once, which the last checkpoint survives


def environment() -> dict[str, str]:
    """The environment of a child, which imports what this process imports, the toolkit included."""
    places = [str(Path(__file__).parents[2]), *(os.path.abspath(place) for place in sys.path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(places))}


def packed(objects: Mapping[str, Any]) -> bytes:
    """The objects as bytes for `start`, with what their script or notebook has registered."""
    import cloudpickle

    for name, value in objects.items():
        try:
            cloudpickle.dumps(value)
        except Exception as error:
            what = f"The {name} cannot be handed to a child process: {error}."
            fix = "Keep no open files, locks or generators in it, or train in this process (background=False)."
            raise ConfigError(what, where="background training, or a check in two processes", fix=fix) from error
    return cloudpickle.dumps((registry.registered_by("__main__"), dict(objects)))


def start_module(module: str, arguments: list[str], parcel: bytes, **options: Any) -> subprocess.Popen[bytes]:
    """Start `python -m module arguments` and hand it what was `packed`; the child calls `received`."""
    command = [sys.executable, "-m", module, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment(), **options)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:  # a child that died says why itself
        process.stdin.write(parcel)
    return process


def received(stream: IO[bytes]) -> dict[str, Any]:
    """What the parent handed over."""
    registered, objects = pickle.loads(stream.read())
    for kind, name, factory in registered:
        registry.register(kind, name)(factory)
    return objects
