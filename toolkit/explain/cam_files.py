"""Maps as NIfTI files that lie exactly on the image they explain."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from toolkit.data.geometry import Geometry
from toolkit.data.volumes import write_nifti
from toolkit.errors import ResultError, ToolkitWarning
from toolkit.explain.cam_maps import TELLING
from toolkit.files import distinct_names


class Mapped(Protocol):
    """What a result needs to be written; see `GradCamResult` for the fields."""

    cases: list[str]
    method: str
    spacing: list[tuple[float, ...] | None]
    affine: list[np.ndarray | None]
    volumes: list[str]
    positions: list[int | None]
    geometry: list[dict[str, Any] | None]

    @property
    def status(self) -> Mapping[str, list[str]]:
        """One word per image, by layer."""

    def resized(self, layer: str) -> Tensor:
        """The map at the image's size (B, 1, *S)."""


def write_maps(result: Mapped, folder: Path, layers: list[str]) -> dict[str, list[Path]]:
    """One file per layer and volume; see `GradCamResult.save_nifti`."""
    groups: dict[str, list[int]] = {}
    for index, case in enumerate(result.cases):
        in_stack = result.positions[index] is not None
        groups.setdefault(result.volumes[index] if in_stack else case, []).append(index)
    written: dict[str, list[Path]] = {}
    files, ends = distinct_names(list(groups)), distinct_names(layers)
    for layer, end in zip(layers, ends, strict=True):
        maps = result.resized(layer)[:, 0].numpy()
        written[layer] = [
            _write(result, maps, folder / f"{file}_{end}.nii.gz", name, indices, _described(result, layer, indices))
            for (name, indices), file in zip(groups.items(), files, strict=True)
        ]
    return written


def _described(result: Mapped, layer: str, indices: list[int]) -> str:
    """The method and the status of every image in a file; warns where a viewer would show what says nothing."""
    counts = Counter(result.status[layer][index] for index in indices)
    words = counts.most_common()
    text = f"{result.method}: {words[0][0] if len(words) == 1 else ', '.join(f'{n} {word}' for word, n in words)}"
    if not set(TELLING) & set(counts) or {"cancelled", "constant"} & set(counts):
        warnings.warn(
            f"The map of {layer!r} that is saved for {result.cases[indices[0]]!r} is not one to read ({text}); the "
            "file's header says so in `descrip`.",
            ToolkitWarning,
            stacklevel=5,
        )
    return text


def _write(result: Mapped, maps: np.ndarray, path: Path, name: str, indices: list[int], text: str) -> Path:
    first = indices[0]
    if result.positions[first] is None and len(indices) > 1:
        raise ResultError(
            f"{len(indices)} images are called {name!r} and would overwrite each other.",
            where="save_nifti",
            fix="Give every image an id of its own.",
        )
    fields = result.geometry[first]
    geometry = None if fields is None else Geometry(**fields)
    cut = [maps[index] for index in indices]
    if result.positions[first] is None:
        array = cut[0]
    else:
        places = [int(position) for index in indices if (position := result.positions[index]) is not None]
        count = max(places) + 1
        if geometry is not None and geometry.slice_axis is not None:
            count = geometry.shape[geometry.slice_axis]
        array = np.zeros((count, *cut[0].shape), dtype=np.float32)
        for place, one in zip(places, cut, strict=True):
            array[place] = one
    if geometry is None and result.positions[first] is not None:  # a stack of an unknown file: so is its place
        return write_nifti(path, array, description=text)
    if geometry is None:
        place = {"affine": result.affine[first], "spacing": result.spacing[first]}
        return write_nifti(path, array, **place, description=text)
    return write_nifti(path, array, geometry, description=text)
