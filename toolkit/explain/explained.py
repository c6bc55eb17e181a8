"""What every explanation of images holds, and its maps as NIfTI files that lie exactly on the image they explain."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.arguments import checked_methods
from toolkit.data.geometry import Geometry
from toolkit.data.volumes import write_nifti
from toolkit.errors import LayerError, ResultError, ToolkitWarning
from toolkit.explain.cam_maps import TELLING
from toolkit.files import distinct_names
from toolkit.inference.inputs import InputBatch


@checked_methods
@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class Explained:
    """Images, the target that was explained on them, and where their maps lie.

    Attributes:
        image: (B, C, *S).
        label: (B, 1, *S) reference, or None.
        prediction: (B, *S) labels, or (B, K, *S) masks of overlapping regions: those that `toolkit.predict` gives.
        region: (B, 1, *S) bool, the voxels whose logits were summed.
        score: (B,) value of the target.
        cases: names of the images.
        spacing: mm per axis or None, per image.
        classes: class names by index.
        target: what was explained.
        method: how.
        affine: 4x4 matrix or None, per image.
        volumes: stack that each image belongs to.
        positions: index of the image in its stack, or None.
        geometry: fields of `toolkit.data.geometry.Geometry`, or None, per image: how to write a map as NIfTI.
        padding: (before, after) along every axis, by which the image was padded for the network: maps of a layer cover
            the padded image. Empty if nothing was padded, or if the maps are on the image's grid already.
    """

    image: Tensor
    label: Tensor | None
    prediction: Tensor
    region: Tensor
    score: Tensor
    cases: list[str]
    spacing: list[tuple[float, ...] | None]
    classes: dict[int, str]
    target: str
    method: str
    affine: list[np.ndarray | None] = dataclasses.field(default_factory=list)
    volumes: list[str] = dataclasses.field(default_factory=list)
    positions: list[int | None] = dataclasses.field(default_factory=list)
    geometry: list[dict[str, Any] | None] = dataclasses.field(default_factory=list)
    padding: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    @property
    def padded_size(self) -> tuple[int, ...]:
        """Spatial size that the maps of a layer cover: the image's and its padding."""
        padding = self.padding or [(0, 0)] * (self.image.ndim - 2)
        return tuple(side + sum(pair) for side, pair in zip(self.image.shape[2:], padding, strict=True))

    @property
    def layers(self) -> list[str]:
        """Names of the maps."""
        return list(self.raw)

    @property
    def raw(self) -> dict[str, Tensor]:
        """What there is of every layer, raw and signed, by name."""
        raise NotImplementedError

    def __getitem__(self, layer: str) -> Tensor:
        """What there is of one layer.

        Raises:
            LayerError: there is nothing of this layer.
        """
        if layer not in self.raw:
            raise LayerError(f"There is no map of {layer!r}.", fix=f"There are maps of {', '.join(self.raw)}.")
        return self.raw[layer]

    def resized(self, layer: str) -> Tensor:
        """The raw map on the image's grid (B, 1, *S), linear with half-pixel centres."""
        raise NotImplementedError

    def save_nifti(self, folder: str | os.PathLike[str], layers: Sequence[str] | None = None) -> dict[str, list[Path]]:
        """Write every map as NIfTI on the grid, axes and affine of its image's file, so that viewers overlay them.

        Values are raw and signed (attributions: summed over channels), resized to the image by linear interpolation.
        Slices of one stack become one volume; slices that were not explained are 0. Images without a file or an affine
        get a header that says that their place is unknown. The header's `descrip` holds the method and the status; a
        file whose map is not one to read (cancelled, constant, empty) is also warned of.

        Args:
            folder: made if missing; files are called `<volume>_<layer>.nii.gz`.
            layers: which layers (or "input"); None = all.

        Returns:
            The files of each layer.

        Raises:
            LayerError: no map of a layer.
        """
        groups: dict[str, list[int]] = {}
        for index, case in enumerate(self.cases):
            in_stack = self.positions[index] is not None
            groups.setdefault(self.volumes[index] if in_stack else case, []).append(index)
        written: dict[str, list[Path]] = {}
        wanted = self.layers if layers is None else list(layers)
        files, ends = distinct_names(list(groups)), distinct_names(wanted)
        for layer, end in zip(wanted, ends, strict=True):
            maps = self.resized(layer)[:, 0].numpy()
            written[layer] = []
            for (name, indices), file in zip(groups.items(), files, strict=True):
                path, text = Path(folder) / f"{file}_{end}.nii.gz", _described(self, layer, indices)
                written[layer].append(_write(self, maps, path, name, indices, text))
        return written


def fields_of(batches: Sequence[InputBatch]) -> dict[str, Any]:
    """The fields of `Explained` that batches of images give."""
    labels = [batch.label.cpu() for batch in batches if batch.label is not None]
    return {
        "image": torch.cat([batch.image.detach().cpu() for batch in batches]),
        "label": torch.cat(labels) if len(labels) == len(batches) else None,
        "cases": [name for batch in batches for name in batch.ids],
        "spacing": [mm for batch in batches for mm in batch.spacing],
        "affine": [matrix for batch in batches for matrix in batch.affine],
        "volumes": [name for batch in batches for name in batch.volumes],
        "positions": [position for batch in batches for position in batch.positions],
        "geometry": [None if one is None else dataclasses.asdict(one) for batch in batches for one in batch.geometries],
    }


def _described(result: Any, layer: str, indices: list[int]) -> str:
    """The method and the status of every image in a file; warns where a viewer would show what says nothing."""
    counts = Counter(result.status[layer][index] for index in indices)
    words = counts.most_common()
    text = f"{result.method}: {words[0][0] if len(words) == 1 else ', '.join(f'{n} {word}' for word, n in words)}"
    if not set(TELLING) & set(counts) or {"cancelled", "constant"} & set(counts):
        what = f"The map of {layer!r} that is saved for {result.cases[indices[0]]!r} is not one to read ({text})"
        warnings.warn(f"{what}; the file's header says so in `descrip`.", ToolkitWarning, stacklevel=4)
    return text


def _write(result: Explained, maps: np.ndarray, path: Path, name: str, indices: list[int], text: str) -> Path:
    first = indices[0]
    alone = result.positions[first] is None  # else a slice of a stack, whose place is unknown where its file is
    if alone and len(indices) > 1:
        what = f"{len(indices)} images are called {name!r} and would overwrite each other."
        raise ResultError(what, where="save_nifti", fix="Give every image an id of its own.")
    fields = result.geometry[first]
    geometry = None if fields is None else Geometry(**fields)
    cut = [maps[index] for index in indices]
    if alone:
        array = cut[0]
    else:
        places = [int(position) for index in indices if (position := result.positions[index]) is not None]
        count = max(places) + 1
        if geometry is not None and geometry.slice_axis is not None:
            count = geometry.shape[geometry.slice_axis]
        array = np.zeros((count, *cut[0].shape), dtype=np.float32)
        for place, one in zip(places, cut, strict=True):
            array[place] = one
    affine, spacing = (result.affine[first], result.spacing[first]) if alone else (None, None)
    return write_nifti(path, array, geometry, affine=affine, spacing=spacing, description=text)
