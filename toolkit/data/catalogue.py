"""`list_tasks` and `load_task`: the data sets that have a manifest."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.data.generated import generated_rows
from toolkit.data.labels import checked_values
from toolkit.data.manifest import Manifest, cache_folder, data_folders, find_manifest, manifest_names
from toolkit.data.normalise import check_rule
from toolkit.data.sets import rows_of, split_rows
from toolkit.data.table import cases_of_rows, recipe
from toolkit.data.task import Task
from toolkit.errors import ConfigError, DataError, ToolkitWarning, choose
from toolkit.registry import register
from toolkit.results import DataFrame, as_table


@register("task", "load_task")
def load_task(
    name: str,
    normalisation: str | None = None,
    split_list: str | None = None,
    *,
    regions: Mapping[str, Sequence[int]] | None = None,
    fold: Sequence[int] | None = None,
) -> Task:
    """Load a task by the name of its manifest.

    Embedded tasks are generated. The files of the others are looked for below `$TOOLKIT_DATA` (one or several
    folders) and then in the toolkit's cache (`$TOOLKIT_CACHE`, default the platform's cache folder).

    Args:
        name: of the manifest.
        normalisation: rule of `toolkit.data.normalise` instead of the manifest's, for example "range:2,98" for a
            network that needs images in [0, 1].
        split_list: one of the published split lists in the manifest (ACDC has several); default the manifest's own
            choice.
        regions: overlapping regions made of classes, for networks with a sigmoid an output: {"whole": (1, 2, 3)}.
        fold: (index, count): the splits of one fold of `task.folds(count)`, counted from 0.

    Raises:
        ConfigError: no such task, rule, split list or fold.
        DataError: the data are not there or not complete; the message is the list of what to do.

    Example:
        >>> tk.load_task("phantom-cardiac", normalisation="range:2,98").classes
        {0: 'background', 1: 'RV', 2: 'myocardium', 3: 'LV'}
    """
    given = dict(locals())
    manifest = find_manifest(name)
    if normalisation is not None:
        manifest = dataclasses.replace(manifest, normalisation=check_rule(normalisation))
    if split_list is not None:
        choose("split list", split_list, manifest.split_lists, where=f"load_task({name!r}, split_list=...)")
    if manifest.generated:
        rows = generated_rows(manifest)
    else:
        folder = next((folder for folder in data_folders(name) if folder.is_dir()), None)
        if folder is None:
            numbered = "".join(f"\n    {number}. {step}" for number, step in enumerate(steps(manifest), start=1))
            what = f"The data of {manifest.name!r} ({manifest.title}) are not on this machine."
            fix = f"to do (licence of the data: {manifest.licence}){numbered}"
            raise DataError(what, where="looked in " + ", ".join(map(str, data_folders(name))), fix=fix)
        rows = split_rows(manifest, rows_of(manifest, folder), split_list)
    classes = dict(sorted(manifest.classes.items()))
    coded = checked_values(manifest.label_values, classes)
    common = {"normalisation": manifest.normalisation, "classes": tuple(classes), "label_values": coded}
    channels = 3 if manifest.channel_rule == "grey-to-rgb" else None
    cases, _ = cases_of_rows(rows, manifest.dims, channels, common, classes)
    own = ("dims", "channels", "patch_size", "normalisation", "sites", "flips", "licence", "citation")
    settings = {name: getattr(manifest, name) for name in own}
    config = recipe("load_task", given)
    named: dict[str, Any] = {"classes": classes, "regions": regions, "manifest": manifest, "toolkit_config": config}
    task = Task(manifest.name, cases, **settings, **named)
    if fold is None:
        return task
    index, count = fold
    if not 0 <= index < count:
        raise ConfigError(f"There is no fold {index} of {count}.", where="load_task(fold=...)", fix="Count from 0.")
    return task.folds(count)[index]


def list_tasks() -> DataFrame:
    """All tasks with a manifest: name, anatomy, modality, dims, classes, sites, licence, access, ready.

    `ready` is True where `load_task` finds the data on this machine. A manifest with errors is left out, with a warning.

    Example:
        >>> tk.list_tasks().query("ready")[["name", "modality", "licence"]]  # doctest: +ELLIPSIS
        name ...
    """
    columns = ["name", "anatomy", "modality", "dims", "classes", "sites", "licence", "access", "ready"]
    rows = []
    for name in manifest_names():
        try:
            manifest = find_manifest(name)
        except DataError as error:
            warnings.warn(f"The task {name!r} is left out. {error}", ToolkitWarning, stacklevel=3)
            continue
        classes = ", ".join(label for index, label in sorted(manifest.classes.items()) if index)
        ready = manifest.generated or any(folder.is_dir() for folder in data_folders(manifest.name))
        seen = {"classes": classes, "sites": ", ".join(manifest.sites), "access": manifest.access.kind, "ready": ready}
        rows.append([seen[column] if column in seen else getattr(manifest, column) for column in columns])
    return as_table(rows, columns)


def steps(manifest: Manifest) -> list[str]:
    """What to do, in order, until `load_task` finds the data."""
    name, folder = manifest.name, data_folders(manifest.name)[0]
    if manifest.files:
        counts = [f"{path} ({count or 'any number of'} files)" for path, count in manifest.files.items()]
        listing = f"Below {folder} there must then be: {'; '.join(counts)}."
    elif files := list(manifest.checksums()):
        amount = f"{len(files)} files in all (listed with their sha256 in {manifest.checksum_path})"
        listing = f"Lay the files out as {folder}{os.sep}{files[0]} and so on: {amount}."
    else:
        listing = f"Lay the files out below {folder} as {manifest.table_path} names them."
    doubts = [f"{fact}: {what}" for fact, what in manifest.unconfirmed.items()]
    return [
        *manifest.access.steps,
        listing,
        f"Point TOOLKIT_DATA at the folder that contains {name!r}, or put it below {cache_folder()}.",
        f"Check it: toolkit.load_task({name!r}).verify()",
        *([f"Not confirmed, so look twice - {'; '.join(doubts)}"] if doubts else []),
    ]
