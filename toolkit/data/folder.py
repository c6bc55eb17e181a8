"""`task_from_folder`: a task from one's own folders of images and labels, without a manifest."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.data import images as pictures
from toolkit.data import volumes
from toolkit.data.arrays import cases_of_volume, default_patch
from toolkit.data.case import Case
from toolkit.data.images import PictureSource
from toolkit.data.labels import checked_classes, checked_values
from toolkit.data.normalise import DEFAULT, check_rule
from toolkit.data.source import Source
from toolkit.data.splits import Splits, assign_splits
from toolkit.data.task import Task
from toolkit.data.volumes import NiftiSource, read_geometry
from toolkit.errors import ConfigError, DataError
from toolkit.registry import register

_ENDINGS = re.compile(r"_(label|labels|seg|segmentation|mask|gt)$")
_CHANNEL = re.compile(r"_(\d{4})$")
Names = Mapping[str, str] | Callable[[str], str] | None


@register("task", "task_from_folder")
def task_from_folder(
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None,
    *,
    classes: Mapping[int, str] | Sequence[str],
    sites: Names | str = None,
    subjects: Names = None,
    splits: Splits = None,
    dims: int | None = None,
    channels: int | None = None,
    label_values: Mapping[float, int] | None = None,
    normalisation: str = DEFAULT,
    patch_size: Sequence[int] | None = None,
    flips: Sequence[int] = (),
    name: str | None = None,
    check: bool = True,
) -> Task:
    """Make a task from folders of NIfTI volumes or of pictures (PNG, TIFF, BMP, JPEG).

    Image and label have the same name (the label may end in `_label`, `_seg`, `_mask` or `_gt`); several channels
    of a volume are files `case_0000.nii.gz`, `case_0001.nii.gz`. Sub-folders are sites.

    Args:
        images: folder of the images.
        labels: folder of the labels, or None.
        classes: class names by index, 0 = background.
        sites: site of each case: one name, {case: site} or a function of the case's name; default the sub-folder.
        subjects: subject of each case, {case: subject} or a function; default every file its own subject. Give it
            where one person has several files: splits are made by subject.
        splits: see `toolkit.data.splits.assign_splits`; default 60 / 20 / 20 by subject within each site.
        dims: 2 cuts volumes into slices along their coarsest axis; default 3 for volumes, 2 for pictures.
        channels: 1 or 3 brings all pictures to that many channels (grey is repeated).
        label_values: stored value -> class index if the labels are coded otherwise, for example {0: 0, 255: 1}.
        normalisation: rule of `toolkit.data.normalise`, applied per file.
        patch_size: network input size; default from the median size.
        flips: axes along which mirroring is allowed.
        name: name of the task; default the name of the folder above the images.
        check: read every file now (default), so that a bad one is found before a training starts; False reads
            headers only.

    Raises:
        DataError: no files, an image without a label or the other way round, a file that cannot be trusted.
        ConfigError: a setting that cannot work.
    """
    named = checked_classes(classes)
    check_rule(normalisation)
    root = _folder(images, "images")
    label_root = None if labels is None else _folder(labels, "labels")
    found = _pairs(root, label_root)
    ids = list(found)
    site_of = [_name_of(sites, case, str(Path(case).parent) if "/" in case else "site") for case in ids]
    subject_of = [_name_of(subjects, case, case) for case in ids]
    split_of = assign_splits(ids, subject_of, site_of, splits)
    common: dict[str, Any] = {
        "normalisation": normalisation,
        "label_values": checked_values(label_values, named),
        "classes": tuple(named),
    }
    dims = dims or _dims_of(next(iter(found.values()))[0][0])
    cases: list[Case] = []
    for index, (case, (files, label)) in enumerate(found.items()):
        details = {
            "site": site_of[index],
            "split": split_of[index],
            "subject": subject_of[index],
            "group": None,
            "classes": named,
        }
        cases += _cases(case, files, label, dims, channels, details, common)
    counted = _checked_channels(cases, check)
    sizes = [_size(case, dims) for case in cases]
    arguments = {
        "images": str(root),
        "labels": None if label_root is None else str(label_root),
        "classes": named,
        "sites": dict(zip(ids, site_of, strict=True)),
        "subjects": dict(zip(ids, subject_of, strict=True)),
        "splits": split_of,
        "dims": dims,
        "channels": channels,
        "label_values": None if label_values is None else {str(k): int(v) for k, v in label_values.items()},
        "normalisation": normalisation,
        "patch_size": None if patch_size is None else list(patch_size),
        "flips": list(flips),
        "name": name,
        "check": False,
    }
    return Task(
        name or root.parent.name or root.name,
        cases,
        dims=dims,
        channels=counted,
        classes=named,
        patch_size=patch_size or default_patch(sizes),
        normalisation=normalisation,
        flips=flips,
        toolkit_config={"name": "task_from_folder", "arguments": arguments},
    )


def _folder(path: str | os.PathLike[str], what: str) -> Path:
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise DataError(
            f"The folder of the {what} does not exist." if not folder.exists() else f"The {what} are not a folder.",
            where=str(folder),
            fix=f"Pass the folder that holds the {what}.",
        )
    return folder


def _pairs(root: Path, label_root: Path | None) -> dict[str, tuple[tuple[Path, ...], Path | None]]:
    """Image files (one per channel) and label file of every case, sorted by case."""
    images = _files(root)
    labels = {} if label_root is None else {_ENDINGS.sub("", stem): path for stem, path in _files(label_root).items()}
    numbered = bool(images) and all(_CHANNEL.search(stem) for stem in images) and not set(images) <= set(labels)
    grouped: dict[str, list[Path]] = {}
    for stem, path in images.items():
        grouped.setdefault(_CHANNEL.sub("", stem) if numbered else stem, []).append(path)
    without = sorted(set(grouped) - set(labels)) if label_root is not None else []
    alone = sorted(set(labels) - set(grouped))
    if without or alone:
        kind = "images have no label" if without else "labels have no image"
        raise DataError(
            f"{len(without or alone)} {kind}, for example {', '.join((without or alone)[:3])}.",
            where=str(root if without else label_root),
            fix="Give image and label the same name (a label may end in _label, _seg, _mask or _gt), or move the "
            "odd files away.",
        )
    return {stem: (tuple(grouped[stem]), labels.get(stem)) for stem in sorted(grouped)}


def _files(root: Path) -> dict[str, Path]:
    """Readable files below `root` by their relative name without suffix; hidden ones are passed over."""
    known = (*volumes.SUFFIXES, *pictures.SUFFIXES)
    found: dict[str, Path] = {}
    kinds: set[str] = set()
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        suffix = next((end for end in sorted(known, key=len, reverse=True) if path.name.lower().endswith(end)), None)
        if not path.is_file() or any(part.startswith(".") for part in relative.parts):
            continue
        if suffix is None:
            kinds.add(path.suffix)
            continue
        stem = relative.as_posix()[: -len(suffix)]
        if stem in found:
            raise DataError(
                f"Two files are called {stem!r}: {found[stem].name} and {path.name}.",
                where=str(root),
                fix="Keep one of them.",
            )
        found[stem] = path
    if not found:
        others = f" It holds {', '.join(sorted(kinds))} files." if kinds else " It is empty."
        raise DataError(
            f"The folder has no images that can be read.{others}", where=str(root), fix=f"Readable: {', '.join(known)}."
        )
    volumetric = {path.name.lower().endswith(volumes.SUFFIXES) for path in found.values()}
    if len(volumetric) > 1:
        raise DataError("The folder mixes NIfTI volumes and pictures.", where=str(root), fix="Use one folder for each.")
    return found


def _dims_of(path: Path) -> int:
    if not path.name.lower().endswith(volumes.SUFFIXES):
        return 2
    return 2 if min(read_geometry(path).shape) == 1 else 3


def _name_of(names: Names | str, case: str, default: str) -> str:
    if names is None:
        return default
    if isinstance(names, str):
        return names
    if callable(names):
        return str(names(case))
    if case not in names:
        raise ConfigError(f"The case {case!r} has no entry.", where="sites or subjects", fix="Name every case.")
    return str(names[case])


def _cases(
    name: str,
    files: tuple[Path, ...],
    label: Path | None,
    dims: int,
    channels: int | None,
    details: Mapping[str, Any],
    common: Mapping[str, Any],
) -> list[Case]:
    if not files[0].name.lower().endswith(volumes.SUFFIXES):
        if len(files) > 1:
            raise DataError(f"The picture {name!r} has several channel files.", where=str(files[0]), fix="Use NIfTI.")
        reader: Source = PictureSource(image=files[0], label=label, channels=channels, **common)
        shape: tuple[int, ...] = pictures.picture_shape(files[0])
        whole = {**details, "reader": reader, "source": reader.where, "affine": None}
        return cases_of_volume(name, whole, shape, 2, dims, None)
    geometry = read_geometry(files[0], dims)
    if label is not None:
        volumes.require_same_grid(geometry, read_geometry(label, dims), files[0], label)
    reader = NiftiSource(images=files, label=label, dims=dims, **common)
    whole = {**details, "reader": reader, "source": reader.where, "affine": geometry.affine, "geometry": geometry}
    if dims == 3:
        return cases_of_volume(name, whole, geometry.shape, 3, 3, geometry.spacing)
    in_plane, between = geometry.slice_spacings()
    spacing = None if in_plane is None or between is None else (between, *in_plane)
    depth = geometry.shape[geometry.slice_axis or 0]
    return cases_of_volume(name, whole, (depth,), 3, 2, spacing)


def _checked_channels(cases: Sequence[Case], check: bool) -> int:
    """Channels of the images; with `check` every file is read, else the first."""
    counted: dict[int, Case] = {}
    errors: list[DataError] = []
    seen: set[int] = set()
    for case in cases if check else cases[:1]:
        if id(case.reader) in seen:
            continue
        seen.add(id(case.reader))
        try:
            counted.setdefault(case.reader.read_raw().image.shape[0], case)
        except DataError as error:
            errors.append(error)
    if len(errors) > 1:
        others = "; ".join(f"{error.where}: {error.what}" for error in errors[1:5])
        raise DataError(
            f"{len(errors)} of {len(seen)} cases cannot be used. The first: {errors[0].what}",
            where=f"{errors[0].where} (next: {others})",
            fix=errors[0].fix,
        )
    if errors:
        raise errors[0]
    if len(counted) > 1:
        (first, one), (second, other), *_ = counted.items()
        raise DataError(
            f"{one.id!r} has {first} channel(s) and {other.id!r} {second}.",
            where=f"{one.source}; {other.source}",
            fix="Pass channels=1 or channels=3, or convert the images.",
        )
    return next(iter(counted))


def _size(case: Case, dims: int) -> tuple[int, ...]:
    if case.geometry is None:
        return pictures.picture_shape(case.reader.files()[0])
    sides = case.geometry.shape
    return sides if dims == 3 else tuple(side for axis, side in enumerate(sides) if axis != case.geometry.slice_axis)
