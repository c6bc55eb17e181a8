"""Reading a feature store lazily, and refusing one that is damaged or not ours."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from toolkit.errors import ResultError
from toolkit.features.store import Features
from toolkit.features.writer import FORMAT, is_store

if TYPE_CHECKING:
    import pandas as pd

_FIX = "Extract the features again; a store is written whole or not at all, so it was changed later."


def open_features(path: str | os.PathLike[str]) -> Features:
    """Open a feature store; arrays and tables are read, and their hashes checked, when they are asked for.

    Raises:
        ResultError: no such folder, not a feature store, a newer format, or a damaged one.
    """
    import zarr

    folder = Path(path)
    if not is_store(folder):
        what = "There is no feature store here." if not folder.exists() else "This is not a feature store."
        raise ResultError(
            what, where=str(folder), fix="Pass a folder written by Features.save(...) or extract(out=...)."
        )
    try:
        root: Any = zarr.open_group(str(folder), mode="r")
        attributes = root.attrs.asdict()
        if attributes["format"] != FORMAT["format"]:
            raise ResultError(f"This store has format {attributes['format']}; this toolkit reads 1.", where=str(folder))
        arrays = StoredArrays(folder, root, attributes)
        layers = [entry["name"] for entry in attributes["layers"]]
        head = [torch.from_numpy(np.asarray(root[n][:])) if n in root else None for n in ("head_weights", "head_bias")]
        return Features(layers, arrays, attributes["provenance"], *head)
    except ResultError:
        raise
    except Exception as error:
        raise _damaged(folder, error) from error


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
                    raise ResultError(
                        f"{kind} of layer {entry['name']!r} has the shape {shape}, not {expected['shape']}.",
                        where=str(folder),
                        fix=_FIX,
                    )

    def read(self, layer: str, kind: str) -> Tensor | None:
        """See `toolkit.features.store.Arrays`.

        Raises:
            ResultError: the bytes are not those that were written.
        """
        entry = self.entries[layer]
        if kind not in entry["arrays"]:
            return None
        try:
            values = np.ascontiguousarray(self.root[f"{entry['group']}/{kind}"][:], dtype=np.float32)
        except Exception as error:
            raise _damaged(self.folder, error, f"{kind} of layer {layer!r}") from error
        if hashlib.sha256(values.data).hexdigest() != entry["arrays"][kind]["sha256"]:
            raise ResultError(f"{kind} of layer {layer!r} is not what was written.", where=str(self.folder), fix=_FIX)
        return torch.from_numpy(values)

    def table(self, name: str) -> pd.DataFrame:
        """See `toolkit.features.store.Arrays`.

        Raises:
            ResultError: the table is missing or changed.
        """
        import pandas as pd

        file = self.folder / f"{name}.parquet"
        try:
            if hashlib.sha256(file.read_bytes()).hexdigest() != self.tables[name]["sha256"]:
                raise ResultError(f"The table {file.name} is not what was written.", where=str(file), fix=_FIX)
            return pd.read_parquet(file)
        except ResultError:
            raise
        except Exception as error:
            raise _damaged(self.folder, error, file.name) from error


def _damaged(folder: Path, error: Exception, part: str = "The store") -> ResultError:
    return ResultError(f"{part} cannot be read ({type(error).__name__}: {error}).", where=str(folder), fix=_FIX)
