"""`Attribution`: what every input voxel (or every unit of a layer) adds to a score, image by image."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from torch import Tensor

from toolkit.explain.cam_maps import on_image
from toolkit.explain.explained import Explained
from toolkit.features.layout import to_maps
from toolkit.results import DataFrame, Result, as_table


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class AttributionResult(Explained, Result):
    """Attributions of a batch of images.

    Attributes:
        attributions: name -> raw signed values: "input" -> (B, C, *S), or for layer conductance the layer's name ->
            its activation's own shape.
        baseline_score: (B,) value of the same voxels on the baseline image.
        method: captum's method.
        settings: its parameters.

    The other attributes are those of `toolkit.explain.explained.Explained`.
    """

    attributions: dict[str, Tensor]
    baseline_score: Tensor
    settings: dict[str, Any]
    kind: ClassVar[str] = "attribution"

    @property
    def raw(self) -> dict[str, Tensor]:
        return self.attributions

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

    def resized(self, layer: str) -> Tensor:
        self[layer]
        return on_image(self.maps[layer], self.image.shape[2:], () if layer == "input" else self.padding)

    def table(self) -> DataFrame:
        """One row per name and image.

        Columns: status ("ok", "zero" or "empty region"), min, max, sum, the share of the absolute attribution that
        lies inside the region (NaN for layers), score, the baseline's score, and `completeness_gap`: the sum of the
        attributions minus the change of the score, which is near 0 for integrated gradients and layer conductance.
        """
        rows: list[dict[str, Any]] = []
        status = self.status
        for name, values in self.attributions.items():
            for index, one in enumerate(values):
                gap = float(one.double().sum()) - float(self.score[index] - self.baseline_score[index])
                row: dict[str, Any] = {"name": name, "case": self.cases[index], "status": status[name][index]}
                row |= {"min": float(one.min()), "max": float(one.max()), "sum": float(one.sum())}
                row |= {"inside": self._inside(name, index), "score": float(self.score[index])}
                row |= {"baseline_score": float(self.baseline_score[index]), "completeness_gap": gap}
                rows.append(row | {"region_voxels": int(self.region[index].sum())})
        return as_table(rows)

    def __repr__(self) -> str:
        return f"AttributionResult({self.method} of {self.target}, {len(self.cases)} images)"

    def _inside(self, name: str, index: int) -> float:
        values, region = self.attributions[name][index].abs(), self.region[index]
        if values.shape[1:] != region.shape[1:] or not bool(values.any()):
            return float("nan")
        return float((values * region).sum() / values.sum())
