"""From a manifest and its index table to the cases of a task, one builder per kind of layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.data.case import Case
from toolkit.data.discovery import checked_columns, discovered_rows, split_rows
from toolkit.data.labels import checked_values
from toolkit.data.manifest import Manifest, filled, read_table
from toolkit.data.reading import Row
from toolkit.data.table import cases_of_rows
from toolkit.data.task import Task
from toolkit.errors import DataError


def expected_files(manifest: Manifest) -> list[str]:
    """Paths below the data folder that the layout needs: of the index table, else the patterns it expects."""
    if manifest.layout.rows != "table":
        return list(manifest.layout.expects)
    templates = [template for template in (manifest.layout.image, manifest.layout.label) if template]
    rows = read_table(manifest)
    return list(dict.fromkeys(filled(template, row, manifest) for row in rows for template in templates))


def file_task(
    manifest: Manifest, folder: Path, config: Mapping[str, Any], split_list: str | None = None, regions: Any = None
) -> Task:
    """The task whose files lie in `folder`.

    Args:
        manifest: what the files are.
        folder: where they are.
        config: how to rebuild the task.
        split_list: one of the manifest's split lists; None = its default.
        regions: overlapping regions made of classes.

    Raises:
        DataError: files are missing, or headers are damaged.
        ConfigError: there is no such split list.
    """
    if manifest.layout.rows == "table":
        _require_all(manifest, folder)
        rows = split_rows(manifest, read_table(manifest), split_list)
    else:
        rows = split_rows(manifest, discovered_rows(manifest, folder), split_list)
    values = (
        None if manifest.layout.label_values is None else {float(k): v for k, v in manifest.layout.label_values.items()}
    )
    common = {
        "normalisation": manifest.normalisation,
        "classes": tuple(sorted(manifest.classes)),
        "label_values": checked_values(values, manifest.classes),
    }
    channels = 3 if manifest.channel_rule == "grey-to-rgb" else None
    made = [_row(manifest, folder, row) for row in rows]
    classes = dict(sorted(manifest.classes.items()))
    cases, _ = cases_of_rows(made, manifest.dims, channels, common, classes)
    return task_of(manifest, cases, config, regions)


def _require_all(manifest: Manifest, folder: Path) -> None:
    missing = [name for name in expected_files(manifest) if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} files of {manifest.name!r} are missing, for example {', '.join(missing[:3])}.",
            where=str(folder),
            fix=f"Complete the folder; {manifest.checksum_path} lists every file.",
        )


def generated_task(manifest: Manifest, config: Mapping[str, Any], regions: Any = None) -> Task:
    """The task of an embedded generator."""
    from toolkit.data.generated import generated_cases

    return task_of(manifest, list(generated_cases(manifest)), config, regions)


def task_of(manifest: Manifest, cases: list[Case], config: Mapping[str, Any], regions: Any = None) -> Task:
    """A task with the manifest's settings."""
    return Task(
        manifest.name,
        cases,
        dims=manifest.dims,
        channels=manifest.channels,
        classes=manifest.classes,
        regions=regions,
        patch_size=manifest.patch_size,
        normalisation=manifest.normalisation,
        sites=manifest.sites,
        flips=manifest.flips,
        manifest=manifest,
        licence=manifest.licence,
        citation=manifest.citation,
        toolkit_config=config,
    )


def _row(manifest: Manifest, folder: Path, row: dict[str, str]) -> Row:
    """The row as `task_from_table` knows it: the manifest's templates filled."""
    columns, layout = checked_columns(manifest), manifest.layout
    names = {"case": columns.case, "subject": columns.subject, "split": columns.split, "site": columns.site}
    names |= {"volume": columns.volume, "position": columns.position, "group": columns.group}
    made: Row = {key: text for key, template in names.items() if template and (text := filled(template, row, manifest))}
    made.setdefault("site", manifest.sites[0])
    for target, subjects in manifest.reassign.items():
        made["split"] = target if made["subject"] in subjects else made["split"]
    made["image"] = folder / filled(layout.image or "{image}", row, manifest)
    label = filled(layout.label or ("" if layout.rows == "table" else "{label}"), row, manifest)
    if label:
        made["label"] = folder / label
    numbers = {"frame": layout.frame, "label_frame": layout.label_frame, "slices": layout.slices.replace("header", "")}
    for key, template in numbers.items():
        if template:
            made[key] = _number(template, row, manifest)
    if layout.kind == "picture-pairs":
        made |= {"foreground": layout.foreground, "threshold": layout.threshold}
        made["background"] = row.get("background") == "yes"
    return made


def _number(template: str, row: dict[str, str], manifest: Manifest) -> int:
    text = filled(template, row, manifest)
    try:
        return int(text)
    except ValueError as error:
        raise DataError(
            f"The index has {text!r} where a whole number is needed.",
            where=f"{manifest.name}: {template}",
            fix="Get the table of the data set again.",
        ) from error
