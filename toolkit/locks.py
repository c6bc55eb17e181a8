"""One writer at a time: a lock that holds between threads, processes and machines, and is let go by a kill."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import ConfigError
from toolkit.files import write_atomically

if TYPE_CHECKING:
    from filelock import FileLock

BEAT = 15.0  # seconds between signs of life
STALE = 120.0  # a machine that was silent for so long is taken to be gone


@contextlib.contextmanager
def exclusive(lock: Path, doing: str, where: Path) -> Iterator[None]:
    """Hold a lock for the length of a `with` block; `doing` ("is training this run") and `where` are for its message.

    On one machine the operating system keeps it (`flock`), so that it ends with its process, however that ends. Other
    machines that see the same folder read who holds it, and since when that machine was silent, from a `.json` file
    beside it. Both files go when the block ends.
    """
    from filelock import FileLock, Timeout

    guard, note = FileLock(lock), lock.with_name(f"{lock.name}.json")
    try:
        _acquire(guard, lock)
    except Timeout:
        raise _taken(_owner(note), note, doing, where) from None
    try:
        owner = _owner(note)
        if owner.get("machine") not in (None, _machine()) and time.time() - owner.get("alive", 0.0) < STALE:
            raise _taken(owner, note, doing, where)
        over = threading.Event()
        _sign(note)
        pulse = threading.Thread(target=_keep_signing, args=(note, over), daemon=True, name="toolkit lock")
        pulse.start()
        try:
            yield
        finally:
            over.set()
            pulse.join()
            note.unlink(missing_ok=True)
    finally:
        with contextlib.suppress(OSError):  # Windows removes no open file; an empty one does no harm
            if not note.exists():
                lock.unlink(missing_ok=True)  # while it is held: who waits for it sees that it is gone and tries again
        guard.release()


def _acquire(guard: FileLock, lock: Path) -> None:
    """Lock the file of this name: one that its last holder removed meanwhile guards nothing."""
    while True:
        lock.touch()
        before = lock.stat()
        guard.acquire(timeout=0)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(before, lock.stat()):
                return
        guard.release()


def _machine() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return f"{socket.gethostname()}/{uuid.getnode():x}"


def _sign(note: Path) -> None:
    owner = {"machine": _machine(), "host": socket.gethostname(), "process": os.getpid(), "alive": time.time()}
    write_atomically(note, json.dumps(owner))


def _keep_signing(note: Path, over: threading.Event) -> None:
    while not over.wait(BEAT):
        with contextlib.suppress(OSError):  # the folder was moved or the disk is full: the next write says so
            _sign(note)


def _owner(note: Path) -> dict[str, Any]:
    try:
        owner = json.loads(note.read_text(encoding="utf-8"))
        return {**owner, "alive": float(owner.get("alive", 0.0))} if isinstance(owner, dict) else {}
    except (OSError, ValueError, TypeError):
        return {}


def _taken(owner: dict[str, Any], note: Path, doing: str, where: Path) -> ConfigError:
    fix = "Wait for it, or stop it (run.stop()), and call again."
    if owner.get("machine") not in (None, _machine()):
        silent = max(0.0, time.time() - owner["alive"])
        fix = f"Its last sign of life is {silent:.0f} s old; after {STALE:.0f} s it is taken to be gone. "
        fix += f"If you know that it is gone, delete {note.name} there and call again."
    process, host = owner.get("process", "(unknown)"), owner.get("host", "this machine")
    return ConfigError(f"Process {process} on {host} {doing} now.", where=where, fix=fix)
