"""`Features`: pooled features of a data set, in memory or lazily from disk, with the table that explains the rows."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from toolkit.errors import LayerError, ResultError
from toolkit.features.arrays import Arrays, read_store
from toolkit.features.writer import StoreWriter
from toolkit.results import DataFrame, Result, as_table

_MOMENTS = ("gram", "sum", "count")


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of one layer per image, over the positions of its map."""

    gram: Tensor  # (n, C, C), sum over positions of F F'
    sum: Tensor  # (n, C), sum over positions
    count: Tensor  # (n,), number of positions


class Features(Result):
    """Features of several layers; row i of every layer is row i of `cases`.

    Attributes:
        layers: layer names in the order in which the network ran them.
        head_weights: (classes, C) of the kernel-1 layer behind `head_input`, or None.
        head_bias: (classes,), or None.
        provenance: weights, data, parameters, versions.
    """

    kind: ClassVar[str] = "features"

    def __init__(
        self,
        layers: list[str],
        arrays: Arrays,
        provenance: dict[str, Any],
        head_weights: Tensor | None = None,
        head_bias: Tensor | None = None,
    ) -> None:
        self.layers = list(layers)
        self.provenance = provenance
        self.head_weights, self.head_bias = head_weights, head_bias
        self._arrays = arrays
        self._tables: dict[str, DataFrame] = {}

    @property
    def cases(self) -> DataFrame:
        """One row per feature row: case, volume, subject, site, class (-1 = all), class_name, count, index.

        `count` is the number of voxels of the class in the image, `index` the flat voxel index for pool "voxels".
        """
        return self._table("cases")

    @property
    def images(self) -> DataFrame:
        """One row per image, in the order of `moments`: case, volume, subject, site."""
        return self._table("images")

    def rows(self, layer: str) -> Tensor:
        """(N, C) float32 rows of one layer.

        Raises:
            LayerError: no such layer.
            ResultError: the store on disk is damaged.
        """
        rows = self._arrays.read(self._checked(layer), "rows")
        if rows is None or len(rows) != len(self.cases):
            raise ResultError("The rows of this layer do not fit the case table.", where=layer)
        return rows

    def batches(self, layer: str, size: int = 16384) -> Iterator[Tensor]:
        """The rows of one layer in pieces of `size`, read from the store as they are asked for.

        A store on disk is checked against its hash before the last piece is given out: trust a sum when it is complete.

        Raises:
            LayerError: no such layer.
            ResultError: the store on disk is damaged.
        """
        count = 0
        for piece in self._arrays.batches(self._checked(layer), "rows", size):
            count += len(piece)
            yield piece
        if count != len(self.cases):
            raise ResultError("The rows of this layer do not fit the case table.", where=layer)

    def shape(self, layer: str, kind: str = "rows") -> tuple[int, ...]:
        """Shape of the rows of one layer (or `gram`, second moments), told without reading them; () if there are none."""
        return self._arrays.shape(layer, kind) if layer in self.layers else ()

    def moments(self, layer: str) -> Moments | None:
        """Second moments per image, or None if they were not kept.

        Raises:
            LayerError: no such layer.
        """
        parts = [self._arrays.read(self._checked(layer), kind) for kind in _MOMENTS]
        return None if any(item is None for item in parts) else Moments(*parts)  # type: ignore[arg-type]

    def table(self) -> DataFrame:
        """One row per layer and class: rows, channels, mean norm of the rows."""
        records = []
        for layer in self.layers:
            rows, cases = self.rows(layer), self.cases
            for index, members in cases.groupby("class", sort=True).groups.items():
                class_name = cases.loc[members[0], "class_name"]
                part = rows[torch.tensor(members.to_numpy())]
                records.append([layer, index, class_name, len(part), part.shape[1], float(part.norm(dim=1).mean())])
        return as_table(records, ["layer", "class", "class_name", "rows", "channels", "mean_norm"])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a zarr store (a folder); `toolkit.open_features` reads it back lazily.

        Raises:
            ResultError: the path exists and is not a feature store.
        """
        writer = StoreWriter(path)
        try:
            self.copy_to(writer)
            writer.finish(self.provenance, self.head_weights, self.head_bias)
        except BaseException:
            writer.abort()
            raise
        return Path(path)

    def copy_to(self, writer: StoreWriter) -> None:
        """Append all rows and tables to a store that is being written."""
        for layer in self.layers:
            for kind in ("rows", *_MOMENTS):
                values = self._arrays.read(layer, kind)
                if values is not None:
                    writer.add(layer, kind, values)
        for name in ("cases", "images"):
            writer.add_records(name, self._table(name).to_dict("records"))  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Open a store written by `save`; same as `toolkit.open_features`."""
        return open_features(path)  # type: ignore[return-value]

    def __repr__(self) -> str:
        return f"Features({len(self.cases)} rows of {', '.join(self.layers)})"

    def _checked(self, layer: str) -> str:
        if layer not in self.layers:
            raise LayerError(f"The features hold no layer {layer!r}.", fix=f"They hold: {', '.join(self.layers)}.")
        return layer

    def _table(self, name: str) -> DataFrame:
        if name not in self._tables:
            self._tables[name] = self._arrays.table(name)
        return self._tables[name]


def open_features(path: str | os.PathLike[str]) -> Features:
    """Open a feature store; arrays and tables are read, and their hashes checked, when they are asked for.

    Args:
        path: the .zarr folder that `Features.save` or `toolkit.extract(out=...)` wrote.

    Raises:
        ResultError: no such folder, not a feature store, a newer format, or a damaged one.

    Example:
        >>> features = tk.open_features("features.zarr")
    """
    return Features(*read_store(path))
