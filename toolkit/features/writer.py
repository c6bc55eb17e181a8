"""Collecting features as they come: into memory, or into a zarr store that appears only when it is complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.errors import ResultError
from toolkit.features.arrays import FORMAT, Contents, MemoryArrays, is_store, read_store, table_of
from toolkit.files import absolute, file_sha256, json_object, seal, sha256, write_atomically
from toolkit.locks import exclusive

_BUFFER = 8 * 2**20  # bytes kept per array before they are written
_CHUNK = 2**20  # bytes per chunk
_PROGRESS = "progress.json"  # in an unfinished store: the batches that are in, the length and hash of every array
CHECKPOINT_SECONDS = 10.0  # longest work that a kill can cost, besides one batch


class MemoryWriter:
    """What `extract` writes to; this one keeps everything in memory."""

    done = 0

    def __init__(self) -> None:
        self.layers: list[str] = []
        self._parts: dict[tuple[str, str], list[Tensor]] = {}
        self._tables: dict[str, list[dict[str, Any]]] = {"cases": [], "images": []}

    def add(self, layer: str, kind: str, values: Tensor) -> None:
        """Append to one array of one layer."""
        if layer not in self.layers:
            self.layers.append(layer)
        self._parts.setdefault((layer, kind), []).append(values)

    def add_records(self, table: str, records: Iterable[dict[str, Any]]) -> None:
        """Append to the table `cases` or `images`."""
        self._tables[table].extend(records)

    def finish(self, provenance: dict[str, Any], weights: Tensor | None, bias: Tensor | None) -> Contents:
        """Close and return what was written."""
        values = {key: torch.cat(parts) for key, parts in self._parts.items()}
        return self.layers, MemoryArrays(values, self._tables), provenance, weights, bias

    def abort(self) -> int:
        """Stop, and drop what nobody could go on with; gives the number of batches that are kept."""
        self._parts.clear()
        return 0

    def checkpoint(self, batches: int, data: Callable[[], str]) -> None:
        """`batches` batches are in whole, and `data()` is the hash of their inputs; a good moment to make that last."""

    def check_inputs(self, batches: int, data: Callable[[], str]) -> None:
        """Refuse inputs other than those of the unfinished store that is going on."""


class StoreWriter(MemoryWriter):
    """Writes a zarr 3 store: one group per layer, the tables as parquet beside them, provenance in the attributes.

    Everything goes to a hidden folder next to `path`, which is renamed when complete; an existing feature store is
    replaced only then. Every now and then the arrays are flushed, and one small file is replaced that says what counts:
    whatever was appended later is cut off again, and a store whose content is not what it says is started anew.
    With a `request`, of what is extracted, the hidden folder outlives a kill or a failure, and a writer with the
    same request goes on where it was, unless `resume` is False: `done` batches need not be run again.
    """

    def __init__(
        self, path: str | os.PathLike[str], request: dict[str, Any] | None = None, resume: bool = True
    ) -> None:
        super().__init__()
        import zarr

        self.path = absolute(path)
        if self.path.exists() and not is_store(self.path):
            what = "This path exists and is not a feature store, so it is not overwritten."
            raise ResultError(what, where=self.path, fix="Choose another name, usually ending in .zarr.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = contextlib.ExitStack()
        lock = self.path.with_name(f".{self.path.name}.lock")
        self._lock.enter_context(exclusive(lock, "writes this feature store", self.path))
        self._request = request
        self._folder = self.path.with_name(f".{self.path.name}.{'partial' if request else 'tmp'}")
        self._arrays: dict[tuple[str, str], Any] = {}
        self._hashes: dict[tuple[str, str], Any] = {}
        self._data, self._saved = "", time.monotonic()
        self._whole: tuple[int, str] = (0, "")  # batches that are in, and the hash of their inputs
        self._counts: dict[tuple[str, str], int] = {}  # parts of those batches that are not on disk yet
        self._writing = False
        if request is None or not resume or not self._reopen(request):
            shutil.rmtree(self._folder, ignore_errors=True)
            self._root: Any = zarr.open_group(str(self._folder), mode="w", zarr_format=3)

    def add(self, layer: str, kind: str, values: Tensor) -> None:
        super().add(layer, kind, values)
        if self._request is None:  # else only whole batches are written, see `abort`
            self._flush(layer, kind, _BUFFER)

    def checkpoint(self, batches: int, data: Callable[[], str]) -> None:
        """Make what is in so far outlive a kill, at most every `CHECKPOINT_SECONDS`."""
        due = time.monotonic() - self._saved >= CHECKPOINT_SECONDS
        for layer, kind in list(self._parts):
            self._flush(layer, kind, 0 if due else _BUFFER)
        self._whole, self._counts = (batches, data()), {key: len(parts) for key, parts in self._parts.items()}
        if due:
            self._write_progress()

    def _write_progress(self) -> None:
        assert self._request is not None
        arrays = [
            [layer, kind, int(array.shape[0]), self._hashes[layer, kind].hexdigest()]
            for (layer, kind), array in self._arrays.items()
        ]
        batches, data = self._whole
        record = {"request": self._request, "batches": batches, "data": data, "layers": self.layers, "arrays": arrays}
        write_atomically(self._folder / _PROGRESS, json.dumps(record))
        self._saved = time.monotonic()

    def check_inputs(self, batches: int, data: Callable[[], str]) -> None:
        """Called while batches that are in already pass by again."""
        if batches == self.done and batches and data() != self._data:
            what = "An unfinished extraction to this path was made from other inputs."
            fix = "Pass the same inputs in the same order to go on, or resume=False to start anew."
            raise ResultError(what, where=self.path, fix=fix)

    def finish(self, provenance: dict[str, Any], weights: Tensor | None, bias: Tensor | None) -> Contents:
        for layer, kind in list(self._parts):
            self._flush(layer, kind)
        head: dict[str, str] = {}
        for name, value in (("weights", weights), ("bias", bias)):
            if value is not None:
                value = value.float().contiguous()
                head[f"head_{name}"] = sha256(value.numpy().data)
                self._root.create_array(f"head_{name}", data=value.numpy(), overwrite=True)
        tables = {}
        for name, records in self._tables.items():
            table_of(name, records).to_parquet(file := self._folder / f"{name}.parquet")
            tables[name] = {"sha256": file_sha256(file), "rows": len(records)}
        entries = [
            {
                "name": layer,
                "group": f"layer{index}",
                "arrays": {
                    kind: {"shape": list(self._arrays[owner, kind].shape), "sha256": digest.hexdigest()}
                    for (owner, kind), digest in self._hashes.items()
                    if owner == layer
                },
            }
            for index, layer in enumerate(self.layers)
        ]
        record = {**FORMAT, "layers": entries, "tables": tables, "head": head, "provenance": provenance}
        self._root.attrs.update({**record, "seal": seal(record)})
        self._publish()
        self._lock.close()
        return read_store(self.path)

    def abort(self) -> int:
        """Keep the batches that are in whole, for the same call to go on with, and drop the rest."""
        with self._lock:
            if self._request is not None and self._whole[0] > self.done and not self._writing:
                with contextlib.suppress(OSError):  # a full disk: what was written before it is still there
                    for key, parts in self._parts.items():
                        del parts[self._counts.get(key, 0) :]
                        self._flush(*key)
                    self._write_progress()
            super().abort()
            progress = None if self._request is None else _progress(self._folder, self._request)
            if progress is None:
                shutil.rmtree(self._folder, ignore_errors=True)
        return progress["batches"] if progress else 0

    def _flush(self, layer: str, kind: str, least: int = 0) -> None:
        parts = self._parts[layer, kind]
        if not parts or sum(part.numel() for part in parts) * 4 < least:
            return
        values = torch.cat(parts).float().contiguous().numpy()
        parts.clear()
        self._writing = True
        if (layer, kind) not in self._arrays:
            row = max(4, values[:1].nbytes)
            name, rest = f"layer{self.layers.index(layer)}/{kind}", values.shape[1:]
            options = {"shape": (0, *rest), "chunks": (max(1, _CHUNK // row), *rest), "dtype": "float32"}
            self._arrays[layer, kind] = self._root.create_array(name, **options)
            self._hashes[layer, kind] = hashlib.sha256()
        self._arrays[layer, kind].append(values)
        self._hashes[layer, kind].update(values.data)
        self._writing = False

    def _reopen(self, request: dict[str, Any]) -> bool:
        """Go on with an unfinished store of the same request, if there is one and it is whole."""
        import zarr

        progress = _progress(self._folder, request)
        if progress is None:
            return False
        try:
            self._root = zarr.open_group(str(self._folder), mode="r+")
            for layer, kind, length, digest in progress["arrays"]:
                array = self._root[f"layer{progress['layers'].index(layer)}/{kind}"]
                running = _cut(array, length, digest)
                if running is None:
                    raise ValueError("the arrays are not what was recorded")
                self._arrays[layer, kind], self._hashes[layer, kind] = array, running
        except Exception:  # whatever is wrong with a leftover: it is only a leftover
            self._arrays.clear()
            self._hashes.clear()
            return False
        self.layers, self.done, self._data = progress["layers"], progress["batches"], progress["data"]
        self._whole = (self.done, self._data)
        self._parts = {key: [] for key in self._arrays}
        return True

    def _publish(self) -> None:
        (self._folder / _PROGRESS).unlink(missing_ok=True)
        if not self.path.exists():
            self._folder.rename(self.path)
            return
        old = self.path.with_name(f".{self.path.name}.{os.getpid()}.old")
        self.path.rename(old)
        self._folder.rename(self.path)
        shutil.rmtree(old)


def _progress(folder: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """The state of an unfinished store of the same request, or None."""
    state = json_object(folder / _PROGRESS)
    same = state.get("batches") and state.get("request") == json.loads(json.dumps(request))
    return state if same else None


def _cut(array: Any, length: int, digest: str) -> Any | None:
    """Shorten an array to the rows that count (its last chunk is rewritten); the running hash, None if it is another."""
    chunk = array.chunks[0]
    whole = length - length % chunk
    running = hashlib.sha256()
    for start in range(0, whole, chunk):
        running.update(np.ascontiguousarray(array[start : start + chunk]).data)
    rest = np.ascontiguousarray(array[whole:length])
    running.update(rest.data)
    if running.hexdigest() != digest or array.shape[0] < length:
        return None
    array.resize((whole, *array.shape[1:]))
    if len(rest):
        array.append(rest)
    return running
