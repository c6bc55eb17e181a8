"""Training in a child process, so that a notebook stays free, and what the child gets from its parent.

Objects that no record can rebuild are pickled into the child's standard input; nothing is stored. The child has the
parent's `sys.path`. If an object's class was defined in the parent's script, the child takes the definitions (imports,
functions, classes and constants) from the script's file and runs nothing else of it, so a script needs no main guard.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import pickle
import signal
import subprocess
import sys
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from toolkit.errors import ConfigError, ToolkitError
from toolkit.training.directory import RunDirectory
from toolkit.training.history import last_step


def start(path: Path, parcel: bytes) -> subprocess.Popen[bytes]:
    """Start the child that carries on a run; its output goes to `background.log` in the run's directory."""
    with (path / "background.log").open("ab") as log:
        process = start_module(
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
    return (process is not None and process.poll() is None) or RunDirectory(path).other_process() is not None


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


_DEFINING = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_OLD_MAIN = "toolkit_child_main"  # keeps the module that `python -m` started alive


def environment() -> dict[str, str]:
    """The environment of a child, which imports what this process imports, the toolkit included."""
    root = str(Path(__file__).parents[2])
    places = [root, *(os.path.abspath(place) for place in sys.path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(places))}


def packed(objects: Mapping[str, Any]) -> bytes:
    """The objects as bytes for `start`."""
    for name, value in objects.items():
        try:
            content = pickle.dumps(value)
        except Exception as error:
            raise ConfigError(
                f"The {name} cannot be handed to a child process: {error}.",
                where="background training, or a check in two processes",
                fix="Define its class or function at the top level of a file, or train in this process (background=False).",
            ) from error
        if b"__main__" in content and not _main_file():
            what = f"The {name} is defined in a notebook or at a prompt, where a child process cannot find it."
            fix = "Put its class into a file and import it, or train in this process (background=False)."
            raise ConfigError(what, where="background training, or a check in two processes", fix=fix)
    content = pickle.dumps(dict(objects))
    main = sys.modules["__main__"]
    package = getattr(main, "__package__", None)
    buffer = io.BytesIO()
    pickle.dump(((_main_file(), package) if b"__main__" in content else None, content), buffer)
    return buffer.getvalue()


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
    main, content = pickle.loads(stream.read())
    if main is not None:
        define_main(*main)
    return pickle.loads(content)


def define_main(file: str, package: str | None) -> None:
    """Make the definitions of a script this process's `__main__`, without running the rest of the script."""
    sys.modules[_OLD_MAIN] = sys.modules["__main__"]
    module = types.ModuleType("__main__")
    module.__file__, module.__package__ = file, package
    sys.modules["__main__"] = module
    for node in ast.parse(Path(file).read_text(encoding="utf-8")).body:
        calling = any(isinstance(part, ast.Call) for part in ast.walk(node))
        constant = isinstance(node, (ast.Assign, ast.AnnAssign)) and not calling
        importing = isinstance(node, ast.Try) and all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in node.body)
        if isinstance(node, _DEFINING) or constant or importing:
            code = compile(ast.Module([node], []), file, "exec")
            with contextlib.suppress(NameError) if constant else contextlib.nullcontext():
                exec(code, vars(module))


def _main_file() -> str:
    file = getattr(sys.modules["__main__"], "__file__", None)
    return str(Path(file).resolve()) if file and Path(file).is_file() else ""
