"""Where the numbers of `Features` lie: in memory, or in a store that is read lazily and refused when damaged."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from toolkit.errors import ResultError
from toolkit.files import SEALED, file_sha256, json_object, seal, sha256
from toolkit.results import DataFrame, as_table

_FIX = "Extract the features again; a store is written whole or not at all, so it was changed later."
FORMAT = {"kind": "toolkit-features", "format": SEALED}
COLUMNS = {
    "cases": ("case", "volume", "subject", "site", "class", "class_name", "count", "index"),
    "images": ("case", "volume", "subject", "site"),
}


def table_of(name: str, records: list[dict[str, Any]]) -> DataFrame:
    """The table `cases` or `images`, with its columns also where it has no rows."""
    return as_table(records, None if records else list(COLUMNS[name]))


class MemoryArrays:
    """Numbers that are in memory."""

    def __init__(self, values: Mapping[tuple[str, str], Tensor], tables: Mapping[str, list[dict[str, Any]]]) -> None:
        self.values, self.tables = dict(values), dict(tables)

    def read(self, layer: str, kind: str) -> Tensor | None:
        """`rows`, `gram`, `sum` or `count` of a layer; None if not stored."""
        return self.values.get((layer, kind))

    def batches(self, layer: str, kind: str, size: int) -> Iterator[Tensor]:
        """The same in pieces of `size` (one empty piece if there are no rows)."""
        yield from self.values[layer, kind].split(size)

    def shape(self, layer: str, kind: str) -> tuple[int, ...]:
        """Of what `read` gives, without reading it; () if it is not stored."""
        return tuple(getattr(self.values.get((layer, kind)), "shape", ()))

    def table(self, name: str) -> DataFrame:
        """`cases` (one row per feature row) or `images` (one row per image)."""
        return table_of(name, self.tables[name])


class StoredArrays:
    """Numbers in a zarr store."""

    def __init__(self, folder: Path, root: Any, attributes: dict[str, Any]) -> None:
        self.folder, self.root = folder, root
        self.entries = {entry["name"]: entry for entry in attributes["layers"]}
        self.tables = attributes["tables"]
        for entry in self.entries.values():
            for kind, expected in entry["arrays"].items():
                shape = list(root[f"{entry['group']}/{kind}"].shape)
                if shape != expected["shape"]:
                    what = f"{kind} of layer {entry['name']!r} has the shape {shape}, not {expected['shape']}."
                    raise ResultError(what, where=folder, fix=_FIX)

    def read(self, layer: str, kind: str) -> Tensor | None:
        """As in memory."""
        entry = self.entries[layer]["arrays"].get(kind)
        return None if entry is None else next(self.batches(layer, kind, max(1, entry["shape"][0])))

    def shape(self, layer: str, kind: str) -> tuple[int, ...]:
        """As in memory."""
        return tuple(self.entries[layer]["arrays"].get(kind, {}).get("shape", ()))

    def batches(self, layer: str, kind: str, size: int) -> Iterator[Tensor]:
        """As in memory; the hash is that of all pieces, so it is checked before the last one is given out."""
        entry = self.entries[layer]
        array, digest = self.root[f"{entry['group']}/{kind}"], hashlib.sha256()
        count = array.shape[0]
        step = size * max(1, array.chunks[0] // size)  # so that a chunk is not decompressed for every piece of it
        for start in range(0, max(1, count), step):
            with _reading(self.folder, f"{kind} of layer {layer!r}"):
                values = np.ascontiguousarray(array[start : start + step], dtype=np.float32)
            digest.update(values.data)
            if start + step >= count and digest.hexdigest() != entry["arrays"][kind]["sha256"]:
                raise ResultError(f"{kind} of layer {layer!r} is not what was written.", where=self.folder, fix=_FIX)
            yield from torch.from_numpy(values).split(size)

    def table(self, name: str) -> DataFrame:
        """As in memory."""
        import pandas as pd

        file = self.folder / f"{name}.parquet"
        with _reading(self.folder, file.name):
            if file_sha256(file) != self.tables[name]["sha256"]:
                raise ResultError(f"The table {file.name} is not what was written.", where=file, fix=_FIX)
            return pd.read_parquet(file)


Arrays: TypeAlias = MemoryArrays | StoredArrays
# What Features is made of: layer names, arrays, provenance, weights and bias of the layer behind `head_input`.
Contents: TypeAlias = tuple[list[str], Arrays, dict[str, Any], Tensor | None, Tensor | None]


def read_store(path: str | os.PathLike[str]) -> Contents:
    """What a feature store holds; arrays and tables are read, and their hashes checked, when they are asked for."""
    import zarr

    folder = Path(path)
    if not is_store(folder):
        what = "There is no feature store here." if not folder.exists() else "This is not a feature store."
        raise ResultError(what, where=folder, fix="Pass a folder written by Features.save(...) or extract(out=...).")
    with _reading(folder):
        root: Any = zarr.open_group(str(folder), mode="r")
        attributes = root.attrs.asdict()
        if attributes["format"] != FORMAT["format"]:
            what = f"This store has format {attributes['format']}; this toolkit reads {FORMAT['format']}."
            raise ResultError(what, where=folder)
        if attributes.pop("seal", None) != seal(attributes):
            raise ResultError("The record of this store is not what was written.", where=folder, fix=_FIX)
        arrays = StoredArrays(folder, root, attributes)
        layers = [entry["name"] for entry in attributes["layers"]]
        head: dict[str, Tensor] = {}
        for name, digest in attributes["head"].items():
            values = np.ascontiguousarray(root[name][:], dtype=np.float32)
            if sha256(values.data) != digest:
                raise ValueError(f"{name} is not what was written")
            head[name] = torch.from_numpy(values)
        return layers, arrays, attributes["provenance"], head.get("head_weights"), head.get("head_bias")


def is_store(path: Path) -> bool:
    """Whether a folder says that it is a feature store."""
    attributes = json_object(path / "zarr.json").get("attributes")
    return isinstance(attributes, dict) and attributes.get("kind") == FORMAT["kind"]


@contextlib.contextmanager
def _reading(folder: Path, part: str = "The store") -> Iterator[None]:
    try:
        yield
    except ResultError:
        raise
    except Exception as error:
        what = f"{part} cannot be read ({type(error).__name__}: {error})."
        raise ResultError(what, where=folder, fix=_FIX) from error
