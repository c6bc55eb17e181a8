"""A hash of each file of the user, recorded when it is first read: for formats that carry no checksum of their own."""

from __future__ import annotations

import contextlib
import sqlite3
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

from toolkit.data.manifest import cache_folder
from toolkit.errors import DataError, ToolkitWarning
from toolkit.files import file_sha256

_CHECKED_ANYHOW = (".gz", ".npz")  # read to the end of their stream, where their checksum stands
_TABLE = "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INT, date INT, hash TEXT, day TEXT)"
_ASKED = "SELECT size, date, hash, day FROM files WHERE path = ?"
_said: set[Path] = set()  # folders whose replaced files were mentioned


def record() -> Path:
    """The file that remembers, in the toolkit's cache: path, size, date, hash and first reading of every file."""
    return cache_folder() / "first_reading.sqlite"


def check(files: Iterable[Path]) -> None:
    """Compare files with what they were when they were first read on this account, and remember new ones.

    A file of another size or date was replaced by somebody: its new content is taken, and said once a folder. Files are
    hashed at every reading, outside of any lock: 6 ms for 10 MB, 8 % of what reading the volume takes, and 24 % for
    pictures of 65 kB (benchmarks/first_reading.py).
    """
    if record() in _said:
        return
    now = {}
    for path in files:
        if not path.name.lower().endswith(_CHECKED_ANYHOW) and path.is_file():
            with contextlib.suppress(OSError):  # who reads it says so
                stat = path.stat()
                # a file of this moment may change again without another date; some disks count in seconds
                tick = 2 * 10**9 if stat.st_mtime_ns % 10**9 == 0 else 2 * 10**7
                date = stat.st_mtime_ns if time.time_ns() - stat.st_mtime_ns > tick else 0
                now[str(path.absolute())] = (stat.st_size, date, file_sha256(path))
    if not now:
        return
    try:
        with contextlib.closing(_connected()) as memory:
            memory.execute("PRAGMA synchronous = OFF")  # what a power cut takes is a first reading again
            memory.execute(_TABLE)
            entries = {name: memory.execute(_ASKED, (name,)).fetchone() for name in now}
            new = {name: entries[name] for name, entry in now.items() if (entries[name] or ())[:3] != entry}
            for name, entry in new.items():
                if entry is None or entry[2] == now[name][2]:
                    continue
                size, date, _, day = entry
                if date and (size, date) == now[name][:2]:
                    what = f"The bytes of this file changed since it was read on {day}, but not its size and date."
                    fix = "It is damaged: restore it from a copy. If the new content is right, give it a new date (touch)."
                    raise DataError(what, where=name, fix=fix)
                what = f"{name} was replaced since it was read on {day}: the new content is used,"
                # without a date it may be damage: each file by itself
                _said_once(Path(name).parent if date else Path(name), f"{what} of others in its folder too.")
            with memory:  # a lock for writing is held for these lines alone
                rows = [(name, *now[name], time.strftime("%Y-%m-%d")) for name in new]
                memory.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)
    except (OSError, sqlite3.Error) as error:
        what = f"Files that change are not noticed: their record {record()} cannot be used ({error})."
        _said_once(record(), f"{what} Delete it, or set TOOLKIT_CACHE to a folder that you may write.")


def _connected() -> sqlite3.Connection:
    place = record()
    place.parent.mkdir(parents=True, exist_ok=True)
    return sqlite3.connect(place, timeout=10)


def _said_once(about: Path, what: str) -> None:
    if about not in _said:
        _said.add(about)
        warnings.warn(what, ToolkitWarning, stacklevel=5)
