"""`GradCamResult`: raw maps by layer, with the image, the region and the numbers that a reader needs beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from toolkit.errors import LayerError
from toolkit.explain.cam_maps import displayed, resized
from toolkit.results import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class GradCamResult(Result):
    """Heat maps of several layers; works like a mapping from layer name to raw signed map.

    Attributes:
        maps: layer -> (B, 1, *layer size), raw and signed, in the order in which the network ran the layers.
        status: layer -> one word per image: "ok", "negative" (no positive value anywhere), "zero" (the map is 0
            everywhere), "empty region" (the target's region has no voxel), "not connected" (the score does not depend
            on this layer).
        image: (B, C, *S) as the network saw it, padded at the end if its sides had to grow.
        label: (B, 1, *S) reference, -1 = padding, or None.
        prediction: (B, *S) most likely class, at the output's size.
        region: (B, 1, *S) bool, the voxels whose logits were summed.
        score: (B,) value of the target.
        cases: names of the images.
        sizes: spatial size of each image without padding.
        spacing: mm per axis or None, per image.
        affine: 4x4 matrix or None, per image.
        classes: class names by index.
        target: what was explained.
        method: "grad_cam" or a variant.
    """

    maps: dict[str, Tensor]
    status: dict[str, list[str]]
    image: Tensor
    label: Tensor | None
    prediction: Tensor
    region: Tensor
    score: Tensor
    cases: list[str]
    sizes: list[tuple[int, ...]]
    spacing: list[tuple[float, ...] | None]
    affine: list[np.ndarray | None]
    classes: dict[int, str]
    target: str
    method: str
    kind: ClassVar[str] = "grad_cam"

    @property
    def layers(self) -> list[str]:
        """Names of the layers."""
        return list(self.maps)

    def __getitem__(self, layer: str) -> Tensor:
        """Raw map (B, 1, *layer size).

        Raises:
            LayerError: no map of this layer.
        """
        if layer not in self.maps:
            raise LayerError(
                f"There is no map of {layer!r}.", fix=f"There are maps of {', '.join(self.maps)}."
            )
        return self.maps[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.maps)

    def __len__(self) -> int:
        return len(self.maps)

    def __contains__(self, layer: object) -> bool:
        return layer in self.maps

    def keys(self) -> KeysView[str]:
        """Layer names."""
        return self.maps.keys()

    def values(self) -> ValuesView[Tensor]:
        """Raw maps."""
        return self.maps.values()

    def items(self) -> ItemsView[str, Tensor]:
        """Pairs of layer name and raw map."""
        return self.maps.items()

    def resized(self, layer: str) -> Tensor:
        """The raw map at the image's size (B, 1, *S), linear with half-pixel centres."""
        return resized(self[layer], self.image.shape[2:])

    def displayed(self, layer: str) -> Tensor:
        """The map as it is usually drawn: rectified, resized to the image, scaled to [0, 1]."""
        return displayed(self[layer], self.image.shape[2:])

    def table(self) -> pd.DataFrame:
        """One row per layer and image: status, range and mean of the raw map, share above 0, score, voxels summed."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for layer, maps in self.maps.items():
            for index, one in enumerate(maps):
                rows.append(
                    {
                        "layer": layer, "case": self.cases[index], "status": self.status[layer][index],
                        "min": float(one.min()), "max": float(one.max()), "mean": float(one.mean()),
                        "positive": float((one > 0).float().mean()), "size": tuple(one.shape[1:]),
                        "score": float(self.score[index]), "region_voxels": int(self.region[index].sum()),
                    }
                )  # fmt: skip
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return f"GradCamResult({self.target}, {len(self.cases)} images, layers {', '.join(self.maps)})"


def status_of(image_map: Tensor, empty: bool, connected: bool) -> str:
    """The state of one map, in a word; see `GradCamResult.status`."""
    if empty:
        return "empty region"
    if not connected:
        return "not connected"
    highest = float(image_map.max())
    if highest == 0 and float(image_map.min()) == 0:
        return "zero"
    return "ok" if highest > 0 else "negative"
