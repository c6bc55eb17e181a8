"""From a manifest and its index table to the cases of a task, one builder per kind of layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolkit.data.case import Case
from toolkit.data.images import PictureSource
from toolkit.data.manifest import Manifest, filled, read_table
from toolkit.data.source import NpzSource, Source
from toolkit.data.task import Task
from toolkit.data.volumes import NiftiSource, read_geometry
from toolkit.errors import DataError


def expected_files(manifest: Manifest) -> list[str]:
    """Paths below the data folder that the layout needs, in the order of the index table."""
    templates = [template for template in (manifest.layout.image, manifest.layout.label) if template]
    rows = read_table(manifest)
    return list(dict.fromkeys(filled(template, row, manifest) for row in rows for template in templates))


def file_task(manifest: Manifest, folder: Path, config: Mapping[str, Any]) -> Task:
    """The task whose files lie in `folder`.

    Raises:
        DataError: files are missing, or headers are damaged.
    """
    missing = [name for name in expected_files(manifest) if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} files of {manifest.name!r} are missing, for example {', '.join(missing[:3])}.",
            where=str(folder),
            fix=f"Complete the folder; {manifest.checksum_path} lists every file.",
        )
    cases: list[Case] = []
    for row in read_table(manifest):
        cases += _cases(manifest, folder, row)
    return task_of(manifest, cases, config)


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
    columns, layout = manifest.columns, manifest.layout
    if columns is None:
        raise DataError("The manifest has no [columns].", where=manifest.name)
    subject = filled(columns.subject, row, manifest)
    split = filled(columns.split, row, manifest)
    for target, subjects in manifest.reassign.items():
        split = target if subject in subjects else split
    name = filled(columns.case, row, manifest)
    image = folder / filled(layout.image, row, manifest)
    label = folder / filled(layout.label, row, manifest) if layout.label else None
    reader, details = _reader(manifest, image, label)
    case = Case(
        id=name,
        site=filled(columns.site, row, manifest) if columns.site else manifest.sites[0],
        split=split,
        subject=subject,
        volume=filled(columns.volume or columns.case, row, manifest),
        position=int(filled(columns.position, row, manifest)) if columns.position else None,
        group=(filled(columns.group, row, manifest) or None) if columns.group else None,
        classes=dict(sorted(manifest.classes.items())),
        source=reader.where,
        reader=reader,
        **details,
    )
    if not layout.slices:
        yield case
        return
    for index in range(int(filled(layout.slices, row, manifest))):
        yield dataclasses.replace(case, id=f"{name}/slice{index:02d}", position=index, index=index)


def _reader(manifest: Manifest, image: Path, label: Path | None) -> tuple[Source, dict[str, Any]]:
    from toolkit.data.labels import checked_values

    layout = manifest.layout
    values = None if layout.label_values is None else {float(k): v for k, v in layout.label_values.items()}
    common: dict[str, Any] = {
        "normalisation": manifest.normalisation,
        "classes": tuple(sorted(manifest.classes)),
        "label_values": checked_values(values, manifest.classes),
    }
    details: dict[str, Any] = {"spacing": None, "slice_spacing": None, "affine": None}
    if layout.kind == "nifti-pairs":
        geometry = read_geometry(image, manifest.dims)
        details |= {"spacing": geometry.spacing, "affine": geometry.affine, "geometry": geometry}
        return NiftiSource(images=(image,), label=label, dims=manifest.dims, **common), details
    if layout.kind == "npz-stacks":
        return NpzSource(
            path=image, image_key=layout.image_key, label_key=layout.label_key, **common
        ), details
    channels = 3 if manifest.channel_rule == "grey-to-rgb" else None
    reader = PictureSource(
        image=image, label=label, channels=channels, foreground=layout.foreground, **common
    )
    return reader, details
