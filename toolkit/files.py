"""The one way in which files are written: to a temporary name in the same folder, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.errors import CheckpointError, ConfigError

SEALED = 2  # format of records that carry their own hash


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, parents: bool = False, durable: bool = False) -> Iterator[Path]:
    """A temporary name beside `path`, with its suffix; what the block wrote there takes the place of `path` at its end.

    A reader sees the old file or the new one, never half of it. If the block raises, nothing changes. `parents` makes
    the folder; `durable` flushes file and folder to the disk around the rename, so that this holds for a power cut too.
    """
    path = Path(path)
    if parents:
        make_folder(path.parent, durable=durable)
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


def make_folder(path: Path, *, durable: bool = True) -> None:
    """Make a folder and those that it lies in; their names are flushed to the disk, or a power cut takes all inside."""
    new = [one for one in (path, *path.parents) if durable and not one.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for one in new:
        flush(one.parent)


def write_atomically(
    path: str | os.PathLike[str], content: str | bytes, *, parents: bool = False, durable: bool = False
) -> Path:
    """Write text (UTF-8, line ends as they are) or bytes through `replacing`, and return the path."""
    with replacing(path, parents=parents, durable=durable) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return Path(path)


def absolute(path: str | os.PathLike[str], argument: str = "out") -> Path:
    """The path from the root, so that it means the same after a change of the working directory."""
    if not os.fspath(path):
        raise ConfigError("An empty name is no folder.", where=f"{argument}=''", fix="Name one: out='runs/first'.")
    return Path(os.path.abspath(path))


def seal(values: Mapping[str, Any]) -> str:
    """sha256 of JSON values, whatever the order of their keys."""
    return sha256(json.dumps(values, sort_keys=True))


def sha256(content: str | bytes | memoryview) -> str:
    """SHA-256 of a text (UTF-8) or of bytes, in hexadecimal."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON record with its own hash, so that `read_sealed` finds any later change."""
    record = {"format": SEALED, **values}
    write_atomically(path, json.dumps({**record, "seal": seal(record)}, indent=1), durable=True)


def read_sealed(path: Path) -> dict[str, Any]:
    """The values of a record written by `write_sealed`; one of format 1, which had no hash, is taken as it is."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        digest, version = record.pop("seal", None), record.pop("format", 1)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path.name} cannot be read ({type(error).__name__}).", where=path) from error
    if version not in (1, SEALED):
        raise CheckpointError(f"{path.name} has the unknown format {version!r}.", where=path)
    if (digest is not None or version == SEALED) and digest != seal({"format": version, **record}):
        what = f"{path.name} was changed after it was written: its content does not fit its hash."
        fix = "Restore the file from a copy. Settings are changed by a new call, not in this file."
        raise CheckpointError(what, where=path, fix=fix)
    return record


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none, or nothing that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Ask the operating system to put a file, or a folder's list of names, on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def distinct_names(names: Sequence[str]) -> list[str]:
    """A file name for each of these names, all different even where a file system knows no capitals.

    What is no letter, digit, `.`, `+` or `-` becomes `_`; names that this makes equal get a short hash of their own.
    """
    plain = [re.sub(r"[^\w.+-]+", "_", name).lstrip(".")[:200] or "_" for name in names]
    counts = Counter(name.casefold() for name in plain)
    return [
        short if counts[short.casefold()] == 1 else f"{short}-{sha256(name)[:8]}"
        for short, name in zip(plain, names, strict=True)
    ]
