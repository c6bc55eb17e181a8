"""Official data sets: for each one a short function from its folder to the rows of its cases.

A data set of one's own needs a manifest (`$TOOLKIT_MANIFESTS`) and beside it a CSV file with the columns of
`toolkit.task_from_table`, paths below the data folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from toolkit.data.manifest import Manifest, leaves_folder
from toolkit.data.reading import Row
from toolkit.data.rows import completed, table_rows
from toolkit.data.sets import official
from toolkit.data.splits import assign_splits
from toolkit.errors import DataError

# A data set is read by the function that bears its name.
DATA_SETS: dict[str, Callable[[Path, Manifest], list[Row]]] = {
    name: read
    for name, read in vars(official).items()
    if name[0] != "_" and getattr(read, "__module__", "") == official.__name__
}


def rows_of(manifest: Manifest, folder: Path) -> list[Row]:
    """The rows of a data set whose files lie in `folder`, before its split lists are applied."""
    read = DATA_SETS.get(manifest.name)
    if read is None:
        if not manifest.table_path.is_file():
            what = f"The index table of {manifest.name!r} cannot be read: there is none."
            fix = "Put a CSV file with a row a case beside the manifest (columns of toolkit.task_from_table)."
            raise DataError(what, where=manifest.table_path, fix=fix)
        rows = completed([{"site": manifest.sites[0], **row} for row in table_rows(manifest.table_path, folder)])
    else:
        rows = read(folder, manifest)
    outside = [path for row in rows for path in files_of(row) if leaves_folder(os.path.relpath(path, folder))]
    if outside:
        what = f"A file of {manifest.name!r} lies outside the data folder: {outside[0]}."
        raise DataError(what, where=manifest.table_path, fix="Name files below the data folder.")
    if not rows:
        fix = f"Expected: {', '.join(manifest.files)}. {' '.join(manifest.access.steps)}"
        raise DataError(f"No image of {manifest.name!r} was found.", where=folder, fix=fix)
    missing = [str(path.relative_to(folder)) for row in rows for path in files_of(row) if not path.exists()]
    if missing:
        listed = f"; {manifest.checksum_path} lists every file" if manifest.checksum_path.is_file() else ""
        what = f"{len(missing)} files of {manifest.name!r} are missing, for example {', '.join(missing[:3])}."
        raise DataError(what, where=folder, fix=f"Complete the folder{listed}.")
    return rows


def files_of(row: Row) -> list[Path]:
    """Files (or folders) of the image and of the label of a row."""
    images = row["image"] if isinstance(row["image"], tuple) else (row["image"],)
    return [path for path in dict.fromkeys((*images, row.get("label"))) if isinstance(path, Path)]


def split_rows(manifest: Manifest, rows: list[Row], chosen: str | None = None) -> list[Row]:
    """Rows with their split: of a named list, else of the files, else derived by subject (60 / 20 / 20 in a site)."""
    places = [row.get("site", "") for row in rows]
    rows = [{"site": manifest.sites[0], **row} for row in rows]
    lists = manifest.split_lists.get(chosen or manifest.default_split)
    if lists:
        split_of = {subject: split for split, members in lists.items() for subject in members}
        listed = [{**row, "split": split_of[row["subject"]]} for row in rows if row["subject"] in split_of]
        if not listed:
            fix = f"It names {', '.join(list(split_of)[:3])}; found: {', '.join(r['subject'] for r in rows[:3])}."
            raise DataError("None of the subjects of the split list is there.", where=manifest.name, fix=fix)
        return listed
    if all("split" in row for row in rows):
        return rows
    subjects = [row["subject"] for row in rows]
    assigned = assign_splits(subjects, subjects, places, None)
    return [{**row, "split": split} for row, split in zip(rows, assigned, strict=True)]
