"""`history.jsonl`: one JSON object per logged step or validation, readable while the run goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from toolkit.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

TIME_PREFIX = "seconds"  # columns that start so are wall-clock times: the only ones that differ between equal runs


class HistoryWriter:
    """Appends rows to a history file and flushes each one; use it as a context manager.

    Args:
        path: the file; created if it is not there.
        active: False on all ranks but the first: rows are accepted and dropped.
    """

    def __init__(self, path: Path, active: bool = True) -> None:
        self.path, self.active = path, active

    def __enter__(self) -> Self:
        self._stream = self.path.open("a", encoding="utf-8") if self.active else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; numbers that are not finite become null, as JSON has none."""
        if self._stream is not None:
            self._stream.write(json.dumps({k: _plain(v) for k, v in row.items()}, allow_nan=False) + "\n")
            self._stream.flush()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All complete rows; a line that is still being written is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break  # nothing after a torn line can be trusted
        rows.append(row)
    return rows


def truncate(path: Path, step: int) -> int:
    """Keep the rows up to `step`, the file replaced at once; returns how many rows are left."""
    rows = [row for row in read_rows(path) if row["step"] <= step]
    write_atomically(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    return len(rows)


def read_history(path: Path) -> pd.DataFrame:
    """The history as a table: `step`, `event` ("train" or "validation"), then one column a number, NaN where absent."""
    import pandas as pd

    return pd.DataFrame(read_rows(path), columns=None) if path.is_file() else pd.DataFrame()


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
