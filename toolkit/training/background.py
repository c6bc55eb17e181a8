"""Training in a child process, so that a notebook stays free."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.training import handover
from toolkit.training.directory import RunDirectory
from toolkit.training.history import last_step
from toolkit.training.process import is_alive


def start(path: Path, parcel: bytes) -> subprocess.Popen[bytes]:
    """Start the child that carries on a run; its output goes to `background.log` in the run's directory."""
    with (path / "background.log").open("ab") as log:
        process = handover.start(
            "toolkit.training.child",
            [str(path)],
            parcel,
            stdout=log,
            stderr=log,
            start_new_session=os.name == "posix",  # an interrupt of the notebook must not reach it
        )
    RunDirectory(path).set_state("running", process.pid, step=0)
    return process


def is_running(path: Path, process: subprocess.Popen[bytes] | None) -> bool:
    """Whether a process trains this run now, be it a child of this one or not."""
    if process is not None and process.poll() is None:
        return True
    state = RunDirectory(path).state()
    owner = state.get("process")
    if state.get("state") != "running" or not isinstance(owner, int) or owner == os.getpid():
        return False
    return is_alive(owner, state.get("identity", ""))


def wait(
    path: Path, process: subprocess.Popen[bytes] | None, steps: int, timeout: float | None, progress: bool
) -> None:
    """Wait until nobody trains the run any more."""
    from tqdm.auto import tqdm

    directory = RunDirectory(path)
    deadline = None if timeout is None else time.monotonic() + timeout
    with tqdm(total=steps, desc=path.name, unit="step", disable=not progress) as bar:
        while is_running(path, process):
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"The run in {path} is still being trained after {timeout} s.")
            done = last_step(directory.history) if progress else 0
            bar.update(max(0, done - bar.n))
            time.sleep(0.1)
        bar.update(directory.state().get("step", 0) - bar.n)
    _report(directory, process)


def _report(directory: RunDirectory, process: subprocess.Popen[bytes] | None) -> None:
    state = directory.state()
    if state.get("state") in ("finished", "interrupted"):
        return
    status = None if process is None else process.returncode
    if state.get("state") == "failed":
        what = f"The training in the background failed: {state.get('error', 'unknown error')}"
    else:
        what = f"The training in the background ended without a message (exit status {status})."
    fix = f"Read the log; the run can be continued with toolkit.resume({str(directory.path)!r})."
    raise ToolkitError(what, where=str(directory.path / "background.log"), fix=fix)


def stop(path: Path, process: subprocess.Popen[bytes] | None) -> None:
    """Ask whoever trains the run to write a checkpoint after the step at hand and to end."""
    if not is_running(path, process):
        return
    owner = process.pid if process is not None else RunDirectory(path).state()["process"]
    try:
        os.kill(owner, signal.SIGTERM)  # on Windows this ends it at once, which the last checkpoint survives
    except ProcessLookupError:
        return
