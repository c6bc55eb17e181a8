"""`Attribution`: what every input voxel (or every unit of a layer) adds to a score, image by image."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from toolkit.errors import LayerError
from toolkit.explain.cam_maps import on_image
from toolkit.features.layout import to_maps
from toolkit.results import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class AttributionResult(Result):
    """Attributions of a batch of images.

    Attributes:
        attributions: name -> raw signed values: "input" -> (B, C, *S), or for layer conductance the layer's name ->
            its activation's own shape.
        image: (B, C, *S).
        label: (B, 1, *S) reference, or None.
        prediction: (B, *S) labels, or (B, K, *S) masks of overlapping regions: those that `toolkit.predict` gives.
        region: (B, 1, *S) bool, the voxels whose logits were summed.
        score: (B,) value of the target.
        baseline_score: (B,) value of the same voxels on the baseline image.
        cases: names of the images.
        spacing: mm per axis or None, per image.
        classes: class names by index.
        target: what was explained.
        method: captum's method.
        settings: its parameters.
        affine: 4x4 matrix or None, per image.
        volumes: stack that each image belongs to.
        positions: index of the image in its stack, or None.
        geometry: fields of `toolkit.data.geometry.Geometry`, or None, per image: how to write a map as NIfTI.
        padding: (before, after) along every axis that a layer's units cover besides the image; empty = none.
    """

    attributions: dict[str, Tensor]
    image: Tensor
    label: Tensor | None
    prediction: Tensor
    region: Tensor
    score: Tensor
    baseline_score: Tensor
    cases: list[str]
    spacing: list[tuple[float, ...] | None]
    classes: dict[int, str]
    target: str
    method: str
    settings: dict[str, Any]
    affine: list[np.ndarray | None] = dataclasses.field(default_factory=list)
    volumes: list[str] = dataclasses.field(default_factory=list)
    positions: list[int | None] = dataclasses.field(default_factory=list)
    geometry: list[dict[str, Any] | None] = dataclasses.field(default_factory=list)
    padding: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    kind: ClassVar[str] = "attribution"

    def __getitem__(self, name: str) -> Tensor:
        """Raw attributions.

        Raises:
            LayerError: no such name.
        """
        if name not in self.attributions:
            raise LayerError(
                f"There is no attribution of {name!r}.", fix=f"There is one of {', '.join(self.attributions)}."
            )
        return self.attributions[name]

    @property
    def padded_size(self) -> tuple[int, ...]:
        """Spatial size that the maps of a layer cover: the image's and its padding."""
        padding = self.padding or [(0, 0)] * (self.image.ndim - 2)
        return tuple(side + sum(pair) for side, pair in zip(self.image.shape[2:], padding, strict=True))

    @property
    def maps(self) -> dict[str, Tensor]:
        """Signed maps (B, 1, *size): attributions summed over channels."""
        size = self.padded_size
        return {name: to_maps(values, size, name).sum(1, keepdim=True) for name, values in self.attributions.items()}

    @property
    def status(self) -> dict[str, list[str]]:
        """Per name and image: "ok", "zero" or "empty region"."""
        empty = ~self.region.flatten(1).any(1)
        return {
            name: [
                "empty region" if none else "ok" if one.any() else "zero"
                for one, none in zip(values, empty, strict=True)
            ]
            for name, values in self.attributions.items()
        }

    def resized(self, name: str) -> Tensor:
        """The map on the image's grid (B, 1, *S), linear with half-pixel centres."""
        self[name]
        return on_image(self.maps[name], self.image.shape[2:], () if name == "input" else self.padding)

    def save_nifti(self, folder: str | os.PathLike[str], names: Sequence[str] | None = None) -> dict[str, list[Path]]:
        """Write every map as NIfTI on the grid, axes and affine of its image's file, so that viewers overlay them.

        Values are raw and signed, summed over channels; maps of a layer are resized by linear
        interpolation. Slices of one stack become one volume; slices that were not explained are 0. Images without a
        file or an affine get a header that says that their place is unknown; its `descrip` holds method and status.

        Args:
            folder: made if missing; files are called `<volume>_<name>.nii.gz`.
            names: which attributions; None = all.

        Returns:
            The files of each name.

        Raises:
            LayerError: no attribution of a name.
        """
        from toolkit.explain.cam_files import write_maps

        return write_maps(self, Path(folder), list(self.attributions if names is None else names))

    def table(self) -> pd.DataFrame:
        """One row per name and image.

        Columns: status ("ok", "zero" or "empty region"), min, max, sum, the share of the absolute attribution that
        lies inside the region (NaN for layers), score, the baseline's score, and `completeness_gap`: the sum of the
        attributions minus the change of the score, which is near 0 for integrated gradients and layer conductance.
        """
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for name, values in self.attributions.items():
            for index, one in enumerate(values):
                change = float(self.score[index] - self.baseline_score[index])
                rows.append(
                    {
                        "name": name,
                        "case": self.cases[index],
                        "status": self.status[name][index],
                        "min": float(one.min()),
                        "max": float(one.max()),
                        "sum": float(one.sum()),
                        "inside": self._inside(name, index),
                        "score": float(self.score[index]),
                        "baseline_score": float(self.baseline_score[index]),
                        "completeness_gap": float(one.double().sum()) - change,
                        "region_voxels": int(self.region[index].sum()),
                    }
                )
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return f"AttributionResult({self.method} of {self.target}, {len(self.cases)} images)"

    def _inside(self, name: str, index: int) -> float:
        values, region = self.attributions[name][index].abs(), self.region[index]
        if values.shape[1:] != region.shape[1:] or not bool(values.any()):
            return float("nan")
        return float((values * region).sum() / values.sum())
