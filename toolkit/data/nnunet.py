"""`task_from_nnunet`: a raw data set of nnU-Net (version 2) or of the Medical Segmentation Decathlon, by its dataset.json."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from toolkit.data.reading import Row
from toolkit.data.sets.files import decathlon_rows, read_description
from toolkit.data.splits import held_out
from toolkit.data.table import TaskSettings, recipe, task_from_table
from toolkit.data.task import Task
from toolkit.errors import DataError
from toolkit.registry import register


@register("task", "task_from_nnunet")
def task_from_nnunet(
    folder: str | os.PathLike[str],
    *,
    classes: Mapping[int, str] | Mapping[str, str] | Sequence[str] | None = None,
    dims: int | None = None,
    name: str | None = None,
    check: bool = True,
    **settings: Unpack[TaskSettings],
) -> Task:
    """Make a task from `nnUNet_raw/DatasetXXX_Name` or from a folder of the decathlon (`Task04_Hippocampus`).

    Channels, class names, regions and the file ending come from `dataset.json`. Cases of `imagesTs` whose labels are
    in `labelsTs` are the test split; then a fifth of the training subjects validates. Without them the labelled cases
    are cut 60 / 20 / 20. nnU-Net's own folds stay with its results (`tk.load_nnunet`).

    Args:
        folder: holds `dataset.json`, `imagesTr` and `labelsTr`.
        classes: class names by index; default those of the file.
        dims: 2 cuts volumes into slices; default 3 for volumes, 2 for pictures.
        name: name of the task; default the folder's.
        check: read every file now; False reads headers only.
        **settings: regions and label_values (default those of the file), splits, normalisation, patch_size and flips,
            see `task_from_table`.

    Raises:
        DataError: no `dataset.json` or one that cannot be used; files that are missing or elsewhere.

    Example:
        >>> own = tk.task_from_nnunet("nnUNet_raw/Dataset001_Hearts")
    """
    given = dict(locals())
    root = Path(folder).expanduser().absolute()
    table = read_description(root)
    named, own_regions = _classes(table, root / "dataset.json")
    rows = decathlon_rows(root) if "training" in table else _raw(table, root)
    if settings.get("splits") is None and any("split" in row for row in rows):
        held_out(rows, 0.2, "nnunet")
    settings["regions"] = settings.get("regions") or own_regions
    settings.setdefault("label_values", {float(value): value for value in named})  # the decathlon stores them as float
    task = task_from_table(rows, classes=classes or named, dims=dims, name=name or root.name, check=check, **settings)
    task.toolkit_config = recipe("task_from_nnunet", given, folder=str(root), check=False)
    return task


def _raw(table: Mapping[str, Any], root: Path) -> list[Row]:
    """Rows of `imagesTr` and `labelsTr`, and of `imagesTs` where `labelsTs` has labels."""
    ending, channels = str(table.get("file_ending", ".nii.gz")), len(table.get("channel_names", {})) or 1
    rows: list[Row] = []
    for part, split in (("Tr", "train"), ("Ts", "test")):
        labels = sorted((root / f"labels{part}").glob(f"*{ending}")) if (root / f"labels{part}").is_dir() else []
        for label in labels:
            case = label.name.removesuffix(ending)
            files = tuple(root / f"images{part}" / f"{case}_{channel:04d}{ending}" for channel in range(channels))
            if missing := [file for file in files if not file.is_file()]:
                fix = "dataset.json names the channels; every label needs a file of each."
                raise DataError(f"{missing[0].relative_to(root).as_posix()} is missing.", where=root, fix=fix)
            rows.append({"case": case, "image": files, "label": label, "split": split})
    if not rows:
        raise DataError(f"labelsTr holds no {ending} files.", where=root, fix="Check file_ending in dataset.json.")
    if not any(row["split"] == "test" for row in rows):
        rows = [{key: value for key, value in row.items() if key != "split"} for row in rows]
    return rows


def _classes(table: Mapping[str, Any], path: Path) -> tuple[dict[int, str], dict[str, tuple[int, ...]] | None]:
    """Class names by index, and the regions where labels are lists of values."""
    labels = table.get("labels")
    try:
        if "training" in table:  # the decathlon names values by text: {"1": "Anterior"}
            return {int(value): str(label) for value, label in dict(labels or {}).items()}, None
        values = {
            str(label): tuple(int(one) for one in (value if isinstance(value, list) else [value]))
            for label, value in dict(labels or {}).items()
        }
    except (TypeError, ValueError) as error:
        raise DataError(f"The labels of dataset.json are {labels!r}.", where=path, fix="Name them all.") from error
    if "ignore" in values:
        what = "The data set has a label that is to be ignored, which training here does not know."
        raise DataError(what, where=path, fix="Pass task_from_table the cases that are labelled whole.")
    singles = {members[0]: label for label, members in values.items() if len(members) == 1}
    highest = max((max(members) for members in values.values()), default=0)
    named = {
        value: singles.get(value, "background" if value == 0 else f"class {value}") for value in range(highest + 1)
    }
    several = {label: members for label, members in values.items() if len(members) > 1}
    own = {label: members for label, members in values.items() if members != (0,)}
    return named, own if several else None
