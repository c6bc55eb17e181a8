"""Unpack archives so that nothing in them can reach outside their folder, fill the disk or replace a file."""

from __future__ import annotations

import os
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from toolkit.data.manifest import leaves_folder
from toolkit.data.source import decoding, require_file
from toolkit.errors import DataError

_BLOCK = 2**20
_HEADER = 2**16  # bytes of an extended header of a tar archive: a long name and some numbers
_MOST_BYTES, _MOST_RATIO, _MOST_ENTRIES = 2**38, 200, 2_000_000  # in all, per byte of the archive, and how many
_FIX = "Nothing was unpacked. Get the archive from its publisher again, and do not use it if this stays."


def unpack(archive: str | os.PathLike[str], folder: str | os.PathLike[str], *, inside: str = "") -> list[str]:
    """Unpack a `.zip` or `.tar` archive (also `.gz`, `.bz2`, `.xz`), or its folder `inside`, into a folder.

    All of it or nothing: everything is checked before and while it is written to a hidden folder beside the target, and
    only a complete and clean content is moved to its place. Returns the files' paths relative to `folder`.
    """
    archive, folder = Path(archive), Path(folder)
    require_file(archive)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=folder.parent, ignore_cleanup_errors=True) as temporary:
        hidden = Path(temporary) / "content"
        with decoding(archive, "an archive that can be read to its end", _FIX):
            names = _write_all(archive, hidden, inside)
        _move(hidden, folder, names, archive)
    return names


def _write_all(archive: Path, hidden: Path, inside: str) -> list[str]:
    packed = archive.stat().st_size
    allowed = min(_MOST_BYTES, _MOST_RATIO * packed)
    written, names, taken = 0, [], set()
    for number, (name, size, content) in enumerate(_entries(archive)):
        if number >= _MOST_ENTRIES:
            raise _bad(archive, f"has more than {_MOST_ENTRIES} entries")
        relative = _safe(name, archive)
        if inside:
            if PurePosixPath(inside) not in relative.parents:
                continue
            relative = relative.relative_to(inside)
        target = hidden / relative
        if content is None:
            target.mkdir(parents=True, exist_ok=True)
            continue
        if relative.as_posix().casefold() in taken:
            raise _bad(archive, f"has {name!r} twice")
        taken.add(relative.as_posix().casefold())
        target.parent.mkdir(parents=True, exist_ok=True)
        if written + size > allowed:
            raise _bad(archive, f"would unpack to more than {allowed} bytes (its own size: {packed})")
        with content() as source, target.open("xb") as sink:
            while block := source.read(_BLOCK):  # what is declared may be a lie: count what comes
                written += len(block)
                if written > allowed:
                    raise _bad(archive, f"unpacks to more than {allowed} bytes")
                sink.write(block)
        names.append(relative.as_posix())
    if not names:
        raise _bad(archive, "holds no files")
    return names


class _BoundedHeader(tarfile.TarInfo):
    """Refuses extended headers that no honest archive has: parsing one of 3 MB takes gigabytes and minutes."""

    def _proc_member(self, opened: tarfile.TarFile) -> Any:
        if not (self.isreg() or self.isdir()) and self.size > _HEADER:
            raise DataError(f"The archive has a header of {self.size} bytes.", where=opened.name, fix=_FIX)
        return super()._proc_member(opened)  # type: ignore[misc]


def _entries(archive: Path) -> Iterator[tuple[str, int, Callable[[], Any] | None]]:
    """Name, declared size, and what opens the content (None of a folder) of every entry."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise _bad(archive, f"holds {info.filename!r}, which is a link or a device")
                if info.flag_bits & 1:
                    raise _bad(archive, f"holds {info.filename!r}, which is encrypted")
                yield info.filename, info.file_size, None if info.is_dir() else partial(zipped.open, info)
        return
    with tarfile.open(archive, "r:*", tarinfo=_BoundedHeader) as packed:
        for member in packed:
            if not (member.isreg() or member.isdir()):
                raise _bad(archive, f"holds {member.name!r}, which is a link or a device")
            yield member.name, member.size, None if member.isdir() else partial(packed.extractfile, member)
        stream: Any = packed.fileobj
        while stream.read(_BLOCK):
            pass  # to the end of the stream, where the compression's checksum stands


def _safe(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name)
    if leaves_folder(name) or (not path.parts and name not in (".", "./")):
        raise _bad(archive, f"holds {name!r}, which lies outside its folder")
    if "\\" in name or any(ord(letter) < 32 for letter in name) or any(len(part) > 240 for part in path.parts):
        raise _bad(archive, f"holds {name!r}, which is no portable name")
    return path


def _move(hidden: Path, folder: Path, names: list[str], archive: Path) -> None:
    there = [name for name in names if os.path.lexists(folder / name)]
    if there:
        what = f"{len(there)} files of the archive are already there, for example {there[0]}."
        fix = f"Move them away if {archive.name} shall replace them; nothing was changed."
        raise DataError(what, where=folder, fix=fix)
    if not folder.exists():
        hidden.rename(folder)
        return
    inner = {parent for name in names for parent in (folder / name).parents if folder in parent.parents}
    if any(parent.is_symlink() for parent in inner):
        raise DataError("A folder there is a link.", where=folder, fix="Replace it by a folder.")
    moved: list[Path] = []
    try:
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (hidden / name).rename(target)
            moved.append(target)
    except OSError as error:
        for target in moved:  # all or nothing
            target.unlink(missing_ok=True)
        raise DataError(f"The archive cannot be moved into place ({error}).", where=folder, fix=_FIX) from error


def _bad(archive: Path, what: str) -> DataError:
    return DataError(f"The archive {what}.", where=archive, fix=_FIX)
