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
_said: set[Path] = set()  # folders whose replaced files were mentioned


def record() -> Path:
    """The file that remembers, in the toolkit's cache: path, size, date, hash and first reading of every file."""
    return cache_folder() / "first_reading.sqlite"


def check(files: Iterable[Path]) -> None:
    """Compare files with what they were when they were first read on this account, and remember new ones.

    A file of another size or date was replaced by somebody: its new content is taken, and said once a folder. Where no
    record can be kept (a cache that is read-only, or a damaged record), nothing is compared.

    Raises:
        DataError: other bytes under the same size and date.

    Warns:
        ToolkitWarning: a file was replaced.
    """
    plain = [path for path in files if not path.name.lower().endswith(_CHECKED_ANYHOW) and path.is_file()]
    with contextlib.suppress(OSError, sqlite3.Error), contextlib.closing(_opened()) as memory, memory:
        for path in dict.fromkeys(Path(path.absolute()) for path in plain):
            stat, digest = path.stat(), file_sha256(path)
            known = memory.execute("SELECT size, date, hash, day FROM files WHERE path = ?", (str(path),)).fetchone()
            if known is not None and known[2] == digest and known[:2] == (stat.st_size, stat.st_mtime_ns):
                continue
            if known is not None and known[2] != digest:
                _changed(path, known[3], known[:2] == (stat.st_size, stat.st_mtime_ns))
            row = (str(path), stat.st_size, stat.st_mtime_ns, digest, time.strftime("%Y-%m-%d"))
            memory.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", row)


def _opened() -> sqlite3.Connection:
    place = record()
    place.parent.mkdir(parents=True, exist_ok=True)
    memory = sqlite3.connect(place, timeout=10)
    memory.execute("PRAGMA synchronous = OFF")  # what a power cut takes is a first reading again
    memory.execute("CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INT, date INT, hash TEXT, day TEXT)")
    return memory


def _changed(path: Path, day: str, same_date: bool) -> None:
    if same_date:
        raise DataError(
            f"The bytes of this file changed since it was read on {day}, but not its size and date.",
            where=str(path),
            fix="It is damaged: restore it from a copy. If the new content is right, give it a new date (touch).",
        )
    if path.parent not in _said:
        _said.add(path.parent)
        what = f"{path} was replaced since it was read on {day}: the new content is used, of others in its folder too."
        warnings.warn(what, ToolkitWarning, stacklevel=5)
