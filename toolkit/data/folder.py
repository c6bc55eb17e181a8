"""Tasks from folders of one's own, without a manifest: `task_from_folder` of images and labels, `task_from_nnunet`.

A raw data set of nnU-Net (version 2) or of the Medical Segmentation Decathlon tells what it is by its `dataset.json`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from toolkit.data.reading import READABLE, Row, kind_of
from toolkit.data.rows import decathlon_rows, inferred_subjects, person_of, read_description
from toolkit.data.splits import held_out
from toolkit.data.stacks import HDF5_SUFFIXES
from toolkit.data.table import TaskSettings, recipe, task_from_table
from toolkit.data.task import Task
from toolkit.errors import ConfigError, DataError
from toolkit.registry import register

_ENDINGS = re.compile(r"_(label|labels|seg|segmentation|mask|gt)$")
_CHANNEL = re.compile(r"_(\d{4})$")
_DIGITS = re.compile(r"(\d+)")
Names = Mapping[str, str] | Callable[[str], str] | None


@register("task", "task_from_folder")
def task_from_folder(
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None,
    *,
    classes: Mapping[int, str] | Mapping[str, str] | Sequence[str],
    sites: Names | str = None,
    subjects: Names = None,
    volumes: Names = None,
    dims: int | None = None,
    channels: int | Sequence[str] | None = None,
    name: str | None = None,
    check: bool = True,
    **settings: Unpack[TaskSettings],
) -> Task:
    """Make a task from folders of volumes (NIfTI, MetaImage, NRRD, DICOM series) or of pictures (PNG, TIFF, BMP, JPEG).

    Image and label have the same name (the label may end in `_label`, `_seg`, `_mask` or `_gt`; both may lie in one
    folder then); several channels of a volume are files `case_0000.nii.gz`, `case_0001.nii.gz`, or one 4-D file.
    Sub-folders are sites, unless they are persons (`patient01/...`) or hold one case each. Links are followed.

    Args:
        images: folder of the images.
        labels: folder of the labels, or None.
        classes: class names by index, 0 = background.
        sites: site of each case: one name, {case: site} or a function of the case's name; default the sub-folder.
        subjects: subject of each case, {case: subject} or a function; default read from the names where their
            pattern is plain (`patient01_slice03`), which is said, else every file its own subject. Give it where one
            person has several files: splits are made by subject.
        volumes: stack of each picture, {case: volume} or a function, where pictures are slices: scores are then
            per volume and predictions one file a volume.
        dims: 2 cuts volumes into slices along their coarsest axis; default 3 for volumes, 2 for pictures.
        channels: 1 or 3 brings all pictures to that many channels (grey is repeated); or the endings of the files of
            one case, ("flair", "t1", "t1ce", "t2") as BraTS names them.
        name: name of the task; default the name of the folder above the images.
        check: read every file now (default), so that a bad one is found before a training starts; False reads
            headers only.
        **settings: regions, splits, label_values, normalisation, patch_size and flips, see `task_from_table`.

    Raises:
        DataError: no files, an image without a label or the other way round, a file that cannot be trusted.
        ConfigError: an invalid setting.

    Example:
        >>> own = tk.task_from_folder("images/", "labels/", classes={0: "background", 1: "tumour"}, patch_size=(32, 32))
    """
    given = dict(locals())
    root = _folder(images, "images")
    label_root = None if labels is None else _folder(labels, "labels")
    named_channels = None if channels is None or isinstance(channels, int) else tuple(channels)
    pairs = _pairs(root, label_root, named_channels)
    rows: list[Row] = [{"case": case, "image": files, "label": label} for case, (files, label) in pairs.items()]
    folders = [str(Path(case).parent) if "/" in case else "site" for case in pairs]
    persons = all(person_of(f"{folder}/") != f"{folder}/" for folder in folders)
    if persons or len(set(folders)) == len(pairs) > 1:  # folders of persons, or of one case each, are no sites
        folders = ["site"] * len(pairs)
    stored: dict[str, Any] = {"sites": sites, "subjects": subjects, "volumes": volumes}
    stored = {
        column: {case: str(names(case)) for case in pairs} if callable(names) else names
        for column, names in stored.items()
    }
    for row, folder in zip(rows, folders, strict=True):
        row["site"] = folder
        for column, names in stored.items():
            if isinstance(names, Mapping) and row["case"] not in names:
                raise ConfigError(f"The case {row['case']!r} has no entry.", where=column, fix="Name every case.")
            if names is not None:
                row[column.removesuffix("s")] = names if isinstance(names, str) else str(names[row["case"]])
    counts = Counter[str]()  # positions of pictures in their stacks, in the order of the numbers in their names
    for row in sorted(rows, key=lambda one: [int(n) if n.isdigit() else 0 for n in _DIGITS.split(one["case"])]):
        if "volume" in row:
            row["position"] = counts[row["volume"]]
            counts[row["volume"]] += 1
    name, own = name or root.parent.name or root.name, channels if isinstance(channels, int) else None
    task = task_from_table(rows, channels=own, name=name, check=check, classes=classes, dims=dims, **settings)
    grey = channels is None and task.channels == 1 and kind_of(rows[0]["image"][0]) == "picture"
    places = {"images": str(root), "labels": None if label_root is None else str(label_root)}
    known = {"classes": task.classes, "dims": task.dims, "channels": 1 if grey else channels, "check": False}
    task.toolkit_config = recipe("task_from_folder", given, **places, **stored, **known)
    return task


def _folder(path: str | os.PathLike[str], what: str) -> Path:
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        wrong = f"The {what} are not a folder." if folder.exists() else f"The folder of the {what} does not exist."
        raise DataError(wrong, where=folder, fix=f"Pass the folder that holds the {what}.")
    return folder


def _pairs(
    root: Path, label_root: Path | None, channels: tuple[str, ...] | None
) -> dict[str, tuple[tuple[Path, ...], Path | None]]:
    """Image files (one per channel) and label file of every case, sorted by case."""
    images = _files(root)
    labels: dict[str, Path] = {}
    if label_root is not None:
        same = label_root == root  # one folder for both: what ends like a label is one
        for stem, path in _files(label_root).items():
            if same and not _ENDINGS.search(stem):
                continue
            case = _ENDINGS.sub("", stem)
            if case in labels:
                what = f"Two files could be the label of {case!r}: {labels[case].name} and {path.name}."
                raise DataError(what, where=label_root, fix="Keep the right one and move the other away.")
            labels[case] = path
        images = {stem: path for stem, path in images.items() if not (same and _ENDINGS.search(stem))}
    grouped = _by_channel(images, labels, channels)
    without = sorted(set(grouped) - set(labels)) if label_root is not None else []
    alone = sorted(set(labels) - set(grouped))
    if without or alone:
        odd, kind = (without, "images have no label") if without else (alone, "labels have no image")
        fix = "Give both the same name (a label may end in _label, _seg, _mask or _gt), or move the odd files away."
        what = f"{len(odd)} {kind}, for example {', '.join(odd[:3])}."
        raise DataError(what, where=str(root if without else label_root), fix=fix)
    return {stem: (tuple(grouped[stem]), labels.get(stem)) for stem in sorted(grouped)}


def _by_channel(
    images: dict[str, Path], labels: Mapping[str, Path], channels: tuple[str, ...] | None
) -> dict[str, list[Path]]:
    """Files of every case in the order of its channels: `_0000`, `_0001`, ... or the named endings."""
    grouped: dict[str, list[Path]] = {}
    if channels is None:
        first = all(_CHANNEL.search(stem) and f"{stem[:-4]}0000" in images for stem in images)  # else they are cases
        numbered = bool(images) and first and not set(images) <= set(labels)
        for stem, path in images.items():
            grouped.setdefault(_CHANNEL.sub("", stem) if numbered else stem, []).append(path)
        return grouped
    ends = [f"_{channel}" for channel in channels]
    for case in sorted({stem.removesuffix(end) for stem in images for end in ends if stem.endswith(end)}):
        missing = [case + end for end in ends if case + end not in images]
        if missing:
            raise DataError(f"The case {case!r} has no file {missing[0]}.", where="channels", fix="Complete the case.")
        grouped[case] = [images[case + end] for end in ends]
    if not grouped:
        raise DataError(f"No file name ends in {', '.join(ends)}.", where="channels", fix="Check the endings.")
    return grouped


def _files(root: Path) -> dict[str, Path]:
    """Readable files below `root`, links followed, by their relative name without suffix; hidden ones are left out."""
    endings = sorted((end for end in READABLE if end not in (".npz", *HDF5_SUFFIXES)), key=len, reverse=True)
    files: dict[str, Path] = {}
    others: set[str] = set()
    for path in files_below(root):
        suffix = next((end for end in endings if path.name.lower().endswith(end)), None)
        if suffix is None and path.suffix.lower() == ".dcm":
            path, suffix = path.parent, ""
        if suffix is None:
            others.add(path.suffix)
            continue
        stem = path.relative_to(root).as_posix()
        stem = stem[: len(stem) - len(suffix)]
        if files.get(stem, path) != path:
            what = f"Two files are called {stem!r}: {files[stem].name} and {path.name}."
            raise DataError(what, where=root, fix="Keep one of them.")
        files[stem] = path
    if not files:
        kinds = f" It holds {', '.join(sorted(others))} files." if others else " It is empty."
        what = f"The folder has no images that can be read.{kinds}"
        raise DataError(what, where=root, fix=f"Readable: {', '.join(endings)}, and folders of DICOM series (.dcm).")
    if len({kind_of(path) == "picture" for path in files.values()}) > 1:
        raise DataError("The folder mixes volumes and pictures.", where=root, fix="Use one folder for each.")
    return files


def files_below(root: Path) -> list[Path]:
    """Files below a folder, sorted, through links to folders too (each folder once); hidden ones are left out."""
    files: list[Path] = []
    seen: set[str] = set()
    for folder, inner, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(path for path in files if path.is_file())


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
    subjects = inferred_subjects([row["case"] for row in rows])
    return [{**row, "subject": subject} for row, subject in zip(rows, subjects, strict=True)]


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
    named = {one: singles.get(one, f"class {one}" if one else "background") for one in range(highest + 1)}
    several = {label: members for label, members in values.items() if len(members) > 1}
    own = {label: members for label, members in values.items() if members != (0,)}
    return named, own if several else None
