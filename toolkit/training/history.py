"""`history.jsonl`: one JSON object per logged step or validation, readable while the run goes on."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Self

from toolkit.errors import ToolkitWarning
from toolkit.files import replacing
from toolkit.results import DataFrame

_AT_ONCE = 5_000  # rows held as Python objects while a table is made


class HistoryWriter:
    """Appends rows to a history file, in a `with` block, and flushes each one; not `active`, it drops them."""

    def __init__(self, path: Path, active: bool = True) -> None:
        self.path, self.active = path, active

    def __enter__(self) -> Self:
        self._stream = self.path.open("ab") if self.active else None
        self._digest: Any
        self._length, self._digest = _digest(self.path) if self.active else (0, hashlib.sha256())
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; numbers that are not finite become null, as JSON has none."""
        if self._stream is not None:
            plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
            line = json.dumps(plain, allow_nan=False).encode() + b"\n"
            self._stream.write(line)
            self._stream.flush()
            self._length += len(line)
            self._digest.update(line)

    def mark(self) -> dict[str, Any]:
        """{"bytes", "sha256"} of all rows so far, for the checkpoint that belongs to them; they are on the disk now."""
        if self._stream is not None:
            os.fsync(self._stream.fileno())
        return {"bytes": self._length, "sha256": self._digest.hexdigest()}


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """All rows that can be read, one by one; a last line that is still being written is left out."""
    damaged: list[int] = []
    if path.is_file():
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                row = _row(line)
                if row is not None:
                    yield row
                elif line.endswith(b"\n"):
                    damaged.append(number)
    if damaged:
        what = f"{len(damaged)} damaged lines of {path} were passed over (line {damaged[0]})."
        warnings.warn(what, ToolkitWarning, stacklevel=3)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """`rows_of` as a list."""
    return list(rows_of(path))


def last_step(path: Path) -> int:
    """The step of the newest row, from the file's last 64 kB; 0 if there is none."""
    if not path.is_file():
        return 0
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 2**16))
        rows = [row for line in stream.read().splitlines() if (row := _row(line)) is not None]
    return max((row["step"] for row in rows), default=0)


def truncate(path: Path, step: int, mark: Mapping[str, Any] | None = None) -> None:
    """Keep the rows up to `step`.

    A file that still begins as the `mark` of that step says is cut there; else its lines are read one by one, those
    that cannot be read are dropped, and the file is replaced at once.
    """
    if mark is not None:
        length, digest = _digest(path, int(mark["bytes"]))
        if length == mark["bytes"] and digest.hexdigest() == mark["sha256"]:
            os.truncate(path, length)
            return
        what = f"{path} is not what was written: rows up to step {step} are damaged or missing."
        warnings.warn(f"{what} The training does not depend on them.", ToolkitWarning, stacklevel=4)
    with replacing(path, durable=True) as temporary, temporary.open("wb") as stream:
        stream.writelines(json.dumps(row).encode() + b"\n" for row in rows_of(path) if row["step"] <= step)


def read_history(path: Path) -> DataFrame:
    """The history as a table: `step`, `event` ("train" or "validation"), then one column a number, NaN where absent."""
    import pandas as pd

    rows, parts = rows_of(path), []
    while part := list(islice(rows, _AT_ONCE)):
        table = pd.DataFrame(part)
        for name in [name for name in table if table[name].isna().all()]:
            table[name] = math.nan  # numbers where a column held nothing else than null so far
        parts.append((len(part), {str(name): values.copy() for name, values in table.items()}))
    names = list(dict.fromkeys(name for _, part in parts for name in part))
    # column by column, so that nothing but the column at hand is there twice
    columns = {
        name: pd.concat([part.pop(name, pd.Series(math.nan, range(size))) for size, part in parts], ignore_index=True)
        for name in names
    }
    return pd.DataFrame(columns, copy=False)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    if isinstance(row.get("event"), str):
        row["event"] = sys.intern(row["event"])  # or a million rows hold a million words
    return row


def _digest(path: Path, length: int | None = None) -> tuple[int, Any]:
    """How many of the first `length` bytes there are (None = all), and their hash."""
    digest, done = hashlib.sha256(), 0
    if path.is_file():
        with path.open("rb") as stream:
            while block := stream.read(2**20 if length is None else min(2**20, length - done)):
                digest.update(block)
                done += len(block)
    return done, digest
