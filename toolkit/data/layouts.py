"""From a manifest and its index table to the cases of a task, one builder per kind of layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolkit.data.case import Case
from toolkit.data.discovery import checked_columns, discovered_rows, split_rows
from toolkit.data.manifest import Manifest, filled, read_table
from toolkit.data.opening import open_source
from toolkit.data.task import Task
from toolkit.errors import DataError


def expected_files(manifest: Manifest) -> list[str]:
    """Paths below the data folder that the layout needs: of the index table, else the patterns it expects."""
    if manifest.layout.rows != "table":
        return list(manifest.layout.expects)
    templates = [template for template in (manifest.layout.image, manifest.layout.label) if template]
    rows = read_table(manifest)
    return list(dict.fromkeys(filled(template, row, manifest) for row in rows for template in templates))


def file_task(manifest: Manifest, folder: Path, config: Mapping[str, Any], split_list: str | None = None) -> Task:
    """The task whose files lie in `folder`.

    Args:
        manifest: what the files are.
        folder: where they are.
        config: how to rebuild the task.
        split_list: one of the manifest's split lists; None = its default.

    Raises:
        DataError: files are missing, or headers are damaged.
        ConfigError: there is no such split list.
    """
    if manifest.layout.rows == "table":
        _require_all(manifest, folder)
        rows = split_rows(manifest, read_table(manifest), split_list)
    else:
        rows = split_rows(manifest, discovered_rows(manifest, folder), split_list)
    cases: list[Case] = []
    for row in rows:
        cases += _cases(manifest, folder, row)
    return task_of(manifest, cases, config)


def _require_all(manifest: Manifest, folder: Path) -> None:
    missing = [name for name in expected_files(manifest) if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} files of {manifest.name!r} are missing, for example {', '.join(missing[:3])}.",
            where=str(folder),
            fix=f"Complete the folder; {manifest.checksum_path} lists every file.",
        )


def generated_task(manifest: Manifest, config: Mapping[str, Any]) -> Task:
    """The task of an embedded generator."""
    from toolkit.data.generated import generated_cases

    return task_of(manifest, list(generated_cases(manifest)), config)


def task_of(manifest: Manifest, cases: list[Case], config: Mapping[str, Any]) -> Task:
    """A task with the manifest's settings."""
    return Task(
        manifest.name,
        cases,
        dims=manifest.dims,
        channels=manifest.channels,
        classes=manifest.classes,
        patch_size=manifest.patch_size,
        normalisation=manifest.normalisation,
        sites=manifest.sites,
        flips=manifest.flips,
        manifest=manifest,
        licence=manifest.licence,
        citation=manifest.citation,
        toolkit_config=config,
    )


def _cases(manifest: Manifest, folder: Path, row: dict[str, str]) -> Iterator[Case]:
    """The cases of one row: a volume, a picture, or the slices of a stack."""
    columns = checked_columns(manifest)
    subject = filled(columns.subject, row, manifest)
    split = filled(columns.split, row, manifest)
    for target, subjects in manifest.reassign.items():
        split = target if subject in subjects else split
    name = filled(columns.case, row, manifest)
    opened = open_source(manifest, folder, row)
    position = filled(columns.position, row, manifest) if columns.position else ""
    case = Case(
        id=name,
        site=filled(columns.site, row, manifest) if columns.site else manifest.sites[0],
        split=split,
        subject=subject,
        volume=filled(columns.volume or columns.case, row, manifest),
        position=int(position) if position else None,
        group=(filled(columns.group, row, manifest) or None) if columns.group else None,
        classes=dict(sorted(manifest.classes.items())),
        spacing=opened.spacing,
        slice_spacing=opened.slice_spacing,
        affine=None if opened.geometry is None else opened.geometry.affine,
        geometry=opened.geometry,
        source=opened.reader.where,
        reader=opened.reader,
    )
    if opened.slices is None:
        yield case
        return
    for index in range(opened.slices):
        yield dataclasses.replace(case, id=f"{name}/slice{index:02d}", position=index, index=index)
