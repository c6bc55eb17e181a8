"""What a power cut leaves on a disk: only what `os.fsync` was asked to put there, at every moment of a program."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

Image = dict[Path, bytes | None]  # file -> bytes, folder -> None


class Disk:
    """Remembers after every flush and rename of a program what a power cut would leave below a folder.

    Two disks, both of which a file system may be: `strict` knows of a folder the names that were there at its last
    flush, `eager` knows all names at once. Of a file both know the bytes of its last flush, none if there was none.

    Attributes:
        moments: one pair of images after each flush and rename.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.moments = folder, list[dict[str, Image]]()
        self._bytes: dict[int, bytes] = {}
        self._names: dict[int, dict[str, tuple[int, bool]]] = {}
        self._held: list[int] = []  # open, so that no number of a file is given twice
        self._flushed(folder)

    def __enter__(self) -> Disk:
        calls = {name: getattr(os, name) for name in ("fsync", "rename", "replace")}
        self._patches = [mock.patch.object(os, name, self._watched(call)) for name, call in calls.items()]
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        for patch in self._patches:
            patch.stop()
        for handle in self._held:
            os.close(handle)

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> None:
            call(*arguments, **options)
            if isinstance(arguments[0], int):
                self._flushed(Path(os.readlink(f"/proc/self/fd/{arguments[0]}")))
            self.moments.append({"strict": dict(self._strict(self.folder)), "eager": dict(self._eager())})

        return watched

    def _flushed(self, path: Path) -> None:
        self._held.append(os.open(path, os.O_RDONLY))
        number = os.fstat(self._held[-1]).st_ino
        if path.is_dir():
            self._names[number] = {one.name: (one.stat().st_ino, one.is_dir()) for one in path.iterdir()}
            self._held += [os.open(one, os.O_RDONLY) for one in path.iterdir()]
        else:
            self._bytes[number] = path.read_bytes()

    def _strict(self, folder: Path) -> Iterator[tuple[Path, bytes | None]]:
        waiting = [(Path(), folder.stat().st_ino)]
        while waiting:
            here, number = waiting.pop()
            for name, (inner, is_folder) in self._names.get(number, {}).items():
                yield here / name, None if is_folder else self._bytes.get(inner, b"")
                waiting.append((here / name, inner))

    def _eager(self) -> Iterator[tuple[Path, bytes | None]]:
        for path in sorted(self.folder.rglob("*")):
            yield path.relative_to(self.folder), None if path.is_dir() else self._bytes.get(path.stat().st_ino, b"")


def write(image: Image, folder: Path) -> None:
    """Make a folder with this content."""
    folder.mkdir()
    for path, content in sorted(image.items()):
        if content is None:
            (folder / path).mkdir(parents=True)
        else:
            (folder / path).write_bytes(content)
