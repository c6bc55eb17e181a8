"""Check every file of a task: there, unchanged, readable, and with labels that the task knows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.data.generated import GeneratedSource, index_rows
from toolkit.data.source import Source, file_sha256
from toolkit.errors import DataError, ToolkitError

if TYPE_CHECKING:
    import pandas as pd

    from toolkit.data.manifest import Manifest
    from toolkit.data.task import Task


def verify(task: Task) -> pd.DataFrame:
    """Read and check all data of a task; nothing is raised, every finding is a row.

    Returns:
        DataFrame with one row per volume or picture: `case` (the volume), `verdict` (`ok`, `missing`, `changed`,
        `wrong`), `checksum` (`matches`, `differs`, `none` where none is recorded), `detail`, `source`.
    """
    import pandas as pd

    recorded = _recorded(task.manifest) if task.manifest else {}
    seen: set[int] = set()
    rows = []
    for case in task.cases():
        if id(case.reader) not in seen:
            seen.add(id(case.reader))
            rows.append(
                [
                    case.volume if case.index is not None else case.id,
                    *_verdict(case.reader, recorded),
                    case.source,
                ]
            )
    return pd.DataFrame(rows, columns=["case", "verdict", "checksum", "detail", "source"])


def _verdict(reader: Source, recorded: dict[str, str]) -> tuple[str, str, str]:
    missing = [str(path) for path in reader.files() if not path.is_file()]
    if missing:
        return "missing", "none", f"no such file: {', '.join(missing)}"
    checksum = _checksum(reader, recorded)
    try:
        reader.read_raw()
    except ToolkitError as error:
        return "wrong", checksum, f"{error.what} {error.fix}".strip()
    if checksum == "differs":
        return "changed", checksum, "The bytes are not those that the manifest records."
    return "ok", checksum, ""


def _checksum(reader: Source, recorded: dict[str, str]) -> str:
    if isinstance(reader, GeneratedSource):
        expected = recorded.get(f"{reader.site}/{reader.subject}")
        return "none" if expected is None else _word(reader.content_sha256() == expected)
    verdicts = []
    for path in dict.fromkeys(reader.files()):
        expected = next((recorded[key] for key in _tails(path) if key in recorded), None)
        if expected is not None:
            verdicts.append(file_sha256(path) == expected)
    return _word(all(verdicts)) if verdicts else "none"


def _word(same: bool) -> str:
    return "matches" if same else "differs"


def _tails(path: Path) -> list[str]:
    """The last one to four parts of a path, as checksum files name them."""
    return ["/".join(path.parts[-count:]) for count in (4, 3, 2, 1)]


def _recorded(manifest: Manifest) -> dict[str, str]:
    """SHA-256 by relative path, or by `site/subject` for an embedded task.

    Raises:
        DataError: a line of the checksum file that is none.
    """
    if manifest.layout.kind == "generated":
        return {f"{row['site']}/{row['subject']}": row["sha256"] for row in index_rows(manifest)}
    if not manifest.checksum_path.is_file():
        return {}
    sums = {}
    for number, line in enumerate(manifest.checksum_path.read_text(encoding="utf-8").splitlines(), start=1):
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name:
            raise DataError(f"Line {number} is no checksum.", where=str(manifest.checksum_path))
        sums[name.strip()] = digest
    return sums
