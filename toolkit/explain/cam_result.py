"""`GradCamResult`: raw maps by layer, with the image, the region and the numbers that a reader needs beside them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any, ClassVar

from torch import Tensor

from toolkit.errors import ResultError
from toolkit.explain.cam_maps import CANCELLED_BELOW, TELLING, on_image
from toolkit.explain.explained import Explained
from toolkit.results import DataFrame, Result, as_table


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class GradCamResult(Explained, Result):
    """Heat maps of several layers; works like a mapping from layer name to raw signed map.

    Attributes:
        maps: layer -> (B, 1, *layer size), raw and signed, in the order in which the network ran the layers.
        status: layer -> one word per image: "ok", "negative" (no positive value anywhere), "constant" (one value
            everywhere), "cancelled" (Grad-CAM only: the mean gradient is below 2 % of the mean |gradient|, so that the
            map is made of rounding and of what the zero padding adds), "zero" (the map is 0 everywhere, as of a dead
            layer), "empty region" (the target's region has no voxel), "not connected" (the score does not depend on
            this layer). Only "ok" and "negative" maps say something: see `telling`.
        net_gradient: layer -> per image, the sum over channels of |mean gradient| over that of the mean |gradient|.
        connected: layer -> whether the score depends on it.
        others: maps of further methods that shared the pass, by method and layer; see `by_method`.
        method: "grad_cam" or a variant.

    The other attributes are those of `toolkit.explain.explained.Explained`.
    """

    maps: dict[str, Tensor]
    status: dict[str, list[str]]
    net_gradient: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    connected: dict[str, bool] = dataclasses.field(default_factory=dict)
    others: dict[str, dict[str, Tensor]] = dataclasses.field(default_factory=dict)
    kind: ClassVar[str] = "grad_cam"

    @property
    def raw(self) -> dict[str, Tensor]:
        return self.maps

    def __iter__(self) -> Iterator[str]:
        return iter(self.maps)

    def __len__(self) -> int:
        return len(self.maps)

    def keys(self) -> KeysView[str]:
        return self.maps.keys()

    def values(self) -> ValuesView[Tensor]:
        return self.maps.values()

    def items(self) -> ItemsView[str, Tensor]:
        return self.maps.items()

    def telling(self, layer: str, index: int = 0) -> bool:
        """Whether this map may enter a mean or a comparison: its status is "ok" or "negative"."""
        return self.status[layer][index] in TELLING

    def by_method(self, method: str) -> GradCamResult:
        """The same result for another method that shared the pass, `grad_cam(method=["grad_cam", "hires_cam"])`.

        Raises:
            ResultError: it did not.
        """
        if method == self.method:
            return self
        if method not in self.others:
            methods = ", ".join((self.method, *self.others))
            fix = f"There are those of {methods}; ask for more with method=[...]."
            raise ResultError(f"There are no maps of {method!r}.", fix=fix)
        empty = (~self.region.flatten(1).any(1)).tolist()
        maps = self.others[method]
        others = {**{name: one for name, one in self.others.items() if name != method}, self.method: self.maps}
        status = statuses(maps, method, empty, self.net_gradient, self.connected)
        return dataclasses.replace(self, maps=maps, status=status, method=method, others=others)

    def resized(self, layer: str) -> Tensor:
        return on_image(self[layer], self.image.shape[2:], self.padding)

    def table(self) -> DataFrame:
        """One row per layer and image: status, range and mean of the raw map, share above 0, score, voxels summed.

        `net_gradient` is the share of the gradient that its mean keeps.
        """
        rows: list[dict[str, Any]] = []
        for layer, maps in self.maps.items():
            net = self.net_gradient.get(layer, [math.nan] * len(maps))
            for index, one in enumerate(maps):
                row: dict[str, Any] = {"layer": layer, "case": self.cases[index], "status": self.status[layer][index]}
                row |= {"min": float(one.min()), "max": float(one.max()), "mean": float(one.mean())}
                row |= {"positive": float((one > 0).float().mean()), "size": tuple(one.shape[1:])}
                row |= {"score": float(self.score[index]), "region_voxels": int(self.region[index].sum())}
                rows.append(row | {"net_gradient": net[index]})
        return as_table(rows)

    def __repr__(self) -> str:
        return f"GradCamResult({self.target}, {len(self.cases)} images, layers {', '.join(self.maps)})"


def statuses(
    maps: Mapping[str, Tensor],
    method: str,
    empty: Sequence[bool],
    net_gradient: Mapping[str, Sequence[float]],
    connected: Mapping[str, bool],
) -> dict[str, list[str]]:
    """One word for every map; see `GradCamResult.status`."""
    return {
        name: [
            "empty region"
            if is_empty
            else "not connected"
            if not connected[name]
            else _state(one, method == "grad_cam" and net_gradient[name][index] < CANCELLED_BELOW)
            for index, (one, is_empty) in enumerate(zip(layer, empty, strict=True))
        ]
        for name, layer in maps.items()
    }


def _state(one: Tensor, cancelled: bool) -> str:
    highest, lowest = float(one.max()), float(one.min())
    if highest == lowest == 0:
        return "zero"
    if cancelled:
        return "cancelled"
    if highest - lowest <= 1e-6 * max(abs(highest), abs(lowest)):
        return "constant"
    return "ok" if highest > 0 else "negative"
