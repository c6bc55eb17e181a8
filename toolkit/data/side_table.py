"""Columns from a table that a data set brings along beside its images (grades, patients)."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from toolkit.data.manifest import SideTable
from toolkit.errors import DataError


def with_side_table(table: SideTable, text: str | None, rows: list[dict[str, str]], path: Path) -> list[dict[str, str]]:
    """Rows with the table's columns added, found by the stem of the image.

    Args:
        table: which columns, and what stands in for them where the table is not there.
        text: content of the table; None = it is not there.
        rows: of the index; each has a `stem`.
        path: of the table, for messages.

    Raises:
        DataError: the table lacks a column or an image, or names an image twice.
    """
    if text is None:
        return [{**{name: value.format_map(row) for name, value in table.otherwise.items()}, **row} for row in rows]
    known: dict[str, dict[str, str]] = {}
    for number, entry in enumerate(csv.DictReader(io.StringIO(text), skipinitialspace=True), start=2):
        line = {(key or "").strip(): (value or "").strip() for key, value in entry.items() if isinstance(value, str)}
        missing = [column for column in (table.key, *table.columns.values()) if not line.get(column)]
        if missing:
            raise DataError(
                f"Row {number} has no {' and no '.join(repr(column) for column in missing)}.",
                where=str(path),
                fix=f"Get the table again; its first line names {', '.join((table.key, *table.columns.values()))}.",
            )
        values = {ours: line[theirs] for ours, theirs in table.columns.items()}
        if known.setdefault(line[table.key], values) != values:
            raise DataError(
                f"{line[table.key]} stands in the table twice, with different values.",
                where=str(path),
                fix="Get the table again.",
            )
    if absent := [row["stem"] for row in rows if row["stem"] not in known]:
        raise DataError(
            f"The table has no row for {len(absent)} images, for example {absent[0]}.",
            where=str(path),
            fix="Get the table again, or move it away: the data set can be read without it.",
        )
    return [{**row, **known[row["stem"]]} for row in rows]
