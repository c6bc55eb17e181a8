"""The one way in which files are written: to a temporary name in the same folder, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, parents: bool = False, durable: bool = False) -> Iterator[Path]:
    """A temporary name beside `path`, with its suffix; what the block wrote there takes the place of `path` at its end.

    A reader sees the old file or the new one, never half of it. If the block raises, nothing changes.

    Args:
        path: the file.
        parents: make its folder where it is missing.
        durable: flush the file and its folder to the disk before and after the rename, so that a power cut leaves the
            old file or the new one as well.
    """
    path = Path(path)
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.{path.name}")
    try:
        yield temporary
        if durable:
            flush(temporary)
        temporary.replace(path)
        if durable:
            flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(
    path: str | os.PathLike[str], content: str | bytes, *, parents: bool = False, durable: bool = False
) -> Path:
    """Write text (UTF-8, line ends as they are) or bytes through `replacing`, and return the path."""
    with replacing(path, parents=parents, durable=durable) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return Path(path)


def flush(path: Path) -> None:
    """Ask the operating system to put a file, or a folder's list of names, on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
