"""`list_tasks` and `load_task`: the data sets that have a manifest."""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.data.normalise import check_rule
from toolkit.data.task import Task
from toolkit.errors import ConfigError, DataError
from toolkit.registry import register

if TYPE_CHECKING:
    import pandas as pd

    from toolkit.data.manifest import Manifest


def cache_folder() -> Path:
    """The toolkit's cache: $TOOLKIT_CACHE, else the platform's cache folder for `toolkit`."""
    if own := os.environ.get("TOOLKIT_CACHE"):
        return Path(own)
    home = Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "toolkit"
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "toolkit" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "toolkit"


def data_folders(name: str) -> list[Path]:
    """Folders where the data of a task may lie, in order: below $TOOLKIT_DATA, then below the cache."""
    roots = [Path(part) for part in os.environ.get("TOOLKIT_DATA", "").split(os.pathsep) if part]
    return [root / name for root in (*roots, cache_folder())]


def find_manifest(name: str) -> Manifest:
    """Read the manifest of a task.

    Raises:
        ConfigError: no manifest of that name; the message lists those there are.
        DataError: a manifest that is wrong.
    """
    from toolkit.data.manifest import manifest_folders, manifest_names, read_manifest

    for folder in manifest_folders():
        path = folder / f"{name}.toml"
        if path.is_file():
            return read_manifest(path)
    near = difflib.get_close_matches(name, manifest_names(), n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"There is no task called {name!r}.",
        where="load_task",
        fix=f"{hint}Known: {', '.join(manifest_names()) or 'none (no manifests were found)'}. For one's own data: "
        "toolkit.task_from_folder(images, labels, classes=...).",
    )


@register("task", "load_task")
def load_task(
    name: str,
    normalisation: str | None = None,
    split_list: str | None = None,
    *,
    regions: Mapping[str, Sequence[int]] | None = None,
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

    Raises:
        ConfigError: no such task, rule or split list.
        DataError: the data are not there or not complete; the message is the list of what to do.
    """
    from toolkit.data import layouts

    manifest = find_manifest(name)
    config: dict[str, Any] = {"name": "load_task", "arguments": {"name": name}}
    if normalisation is not None:
        manifest = dataclasses.replace(manifest, normalisation=check_rule(normalisation))
        config["arguments"]["normalisation"] = normalisation
    if split_list is not None:
        config["arguments"]["split_list"] = split_list
    if split_list is not None and split_list not in manifest.split_lists:
        raise ConfigError(
            f"{name!r} has no split list {split_list!r}.",
            where="load_task",
            fix=f"It has: {', '.join(manifest.split_lists) or 'none; leave split_list out'}.",
        )
    if regions is not None:
        config["arguments"]["regions"] = {key: list(members) for key, members in regions.items()}
    if manifest.layout.kind == "generated":
        return layouts.generated_task(manifest, config, regions)
    folder = next((folder for folder in data_folders(name) if folder.is_dir()), None)
    if folder is None:
        raise _to_do(manifest, data_folders(name))
    return layouts.file_task(manifest, folder, config, split_list, regions)


def list_tasks() -> pd.DataFrame:
    """All tasks with a manifest: name, anatomy, modality, dims, classes, sites, licence, access, ready.

    `ready` is True where `load_task` finds the data on this machine.
    """
    import pandas as pd

    from toolkit.data.manifest import manifest_names

    rows = []
    for name in manifest_names():
        manifest = find_manifest(name)
        ready = manifest.layout.kind == "generated" or any(folder.is_dir() for folder in data_folders(name))
        classes = ", ".join(label for index, label in sorted(manifest.classes.items()) if index)
        rows.append(
            [
                name,
                manifest.anatomy,
                manifest.modality,
                manifest.dims,
                classes,
                ", ".join(manifest.sites),
                manifest.licence,
                manifest.access.kind,
                ready,
            ]
        )
    columns = ["name", "anatomy", "modality", "dims", "classes", "sites", "licence", "access", "ready"]
    return pd.DataFrame(rows, columns=columns)


def _to_do(manifest: Manifest, looked: Sequence[Path]) -> DataError:
    numbered = "".join(f"\n    {number}. {step}" for number, step in enumerate(steps(manifest), start=1))
    return DataError(
        f"The data of {manifest.name!r} ({manifest.title}) are not on this machine.",
        where="looked in " + ", ".join(str(folder) for folder in looked),
        fix=f"to do (licence of the data: {manifest.licence}){numbered}",
    )


def steps(manifest: Manifest) -> list[str]:
    """What to do, in order, until `load_task` finds the data."""
    from toolkit.data.layouts import expected_files

    name, folder = manifest.name, data_folders(manifest.name)[0]
    files = expected_files(manifest)
    if manifest.layout.rows == "table":
        known = f" (listed with their sha256 in {manifest.checksum_path})" if manifest.checksum_path.is_file() else ""
        listing = f"Lay the files out as {folder}{os.sep}{files[0]} and so on: {len(files)} files in all{known}."
    else:
        counts = [f"{path} ({count or 'any number of'} files)" for path, count in manifest.layout.expects.items()]
        listing = f"Below {folder} there must then be: {'; '.join(counts)}."
    fetch = [f"Or let it be fetched: python -m toolkit data fetch {name}"] if manifest.access.files else []
    doubts = [f"{fact}: {what}" for fact, what in manifest.unconfirmed.items()]
    return [
        *manifest.access.steps,
        *fetch,
        listing,
        f"Point TOOLKIT_DATA at the folder that contains {name!r}, or put it below {cache_folder()}.",
        f"Check it: toolkit.load_task({name!r}).verify()",
        *([f"Not confirmed, so look twice - {'; '.join(doubts)}"] if doubts else []),
    ]
