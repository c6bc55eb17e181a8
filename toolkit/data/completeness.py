"""Whether a data folder holds what its manifest says: files that are missing, too many, or that do not belong."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from toolkit.data.manifest import Manifest
from toolkit.data.sets import files_of, rows_of

_COMPANIONS = (".md", ".txt", ".csv", ".json", ".cfg", ".pdf", ".sha256", ".raw", ".zraw", ".xlsx")
_COMPANION_NAMES = ("SHA256SUMS", "LICENSE", "README")


@dataclasses.dataclass(frozen=True)
class Count:
    """How many files of one pattern there are, beside what the manifest's `files` says.

    Attributes:
        pattern: path below the data folder with wildcards.
        expected: files in the complete data set; 0 = any number from one on.
        found: files that are there.
        doubt: what the manifest does not hold for certain about the number of cases.
    """

    pattern: str
    expected: int
    found: int
    doubt: str = ""

    @property
    def verdict(self) -> str:
        """`ok`, `incomplete` (fewer) or `surplus` (more)."""
        if self.found < max(self.expected, 1):
            return "incomplete"
        return "surplus" if self.expected and self.found > self.expected else "ok"

    @property
    def detail(self) -> str:
        """One sentence."""
        wanted = f"{self.expected} are expected" if self.expected else "at least one is expected"
        doubt = f" The number is not confirmed: {self.doubt}" if self.doubt else ""
        return f"{self.found} {'file' if self.found == 1 else 'files'} found, {wanted}.{doubt}"


def counts(manifest: Manifest, folder: Path) -> list[Count]:
    """One row per pattern of `files`; hidden files do not count."""
    doubt = manifest.unconfirmed.get("cases", "")
    return [
        Count(pattern, expected, len(_matching(folder, pattern)), doubt) for pattern, expected in manifest.files.items()
    ]


def foreign(manifest: Manifest, folder: Path, used: Iterable[Path]) -> list[Path]:
    """Files that nothing accounts for: no case, no pattern of the manifest, no companion (text, table, licence).

    Args:
        manifest: what belongs: `files` and, for files of the release that are no cases, `other_files`.
        folder: the data folder.
        used: files that cases are read from.
    """
    own = {path.resolve() for path in used}
    # a split list may leave out cases that belong all the same
    own |= {path.resolve() for row in rows_of(manifest, folder) for path in files_of(row)}
    for pattern in (*manifest.files, *manifest.other_files):
        own |= {path.resolve() for path in _matching(folder, pattern)}
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.resolve() not in own
        and not path.name.lower().endswith(_COMPANIONS)
        and path.stem not in _COMPANION_NAMES
    ]


def _matching(folder: Path, pattern: str) -> list[Path]:
    return [
        path
        for path in folder.glob(pattern)
        if path.is_file() and not any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts)
    ]
