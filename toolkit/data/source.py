"""Where a case's voxels come from: one `Source` per volume or image, read when needed and kept within a bound."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.first_reading import check as check_first_reading
from toolkit.data.labels import class_indices
from toolkit.data.normalise import DEFAULT, normalise
from toolkit.errors import DataError
from toolkit.files import file_sha256

Arrays = tuple[np.ndarray, np.ndarray | None]  # image (C, *S) and label (*S) or None, as stored


@dataclasses.dataclass(frozen=True)
class Pair:
    """Image (C, *S) float32 and label (*S) uint8 (or None) of one volume; read-only arrays."""

    image: np.ndarray
    label: np.ndarray | None

    @property
    def bytes(self) -> int:
        """Memory held (an axis that is only repeated counts once)."""
        label = 0 if self.label is None else self.label.nbytes
        return self.image[: 1 if self.image.strides[0] == 0 else None].nbytes + label


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Base of the readers. Subclasses define `stored` and `where`."""

    normalisation: str = DEFAULT  # rule of `toolkit.data.normalise`, applied to the whole volume
    # stored label value -> class index for data that is coded otherwise; None = stored as it is
    label_values: tuple[tuple[float, int], ...] | None = None
    classes: tuple[int, ...] = ()  # class indices that may occur

    def stored(self) -> Arrays:
        """Read the volume as it is stored."""
        raise NotImplementedError

    def read_raw(self) -> Pair:
        """Read the volume: image (C, *S) and label with class indices, checked."""
        return checked_pair(*self.stored(), self)

    @property
    def where(self) -> str:
        """File path(s) or recipe, for messages and provenance."""
        raise NotImplementedError

    def files(self) -> tuple[Path, ...]:
        """Files that are read."""
        return ()

    def fingerprint(self) -> str:
        """Hash of what would be read: file contents, array bytes or the recipe."""
        digest, files = hashlib.sha256(), self.files()
        for path in files:
            digest.update(file_sha256(path).encode())
        for array in () if files else self.stored():
            if array is not None:
                digest.update(f"{array.dtype.str}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def pair(self) -> Pair:
        """The normalised volume, from memory if it is there."""
        pair = MEMORY.get(self)
        if pair is None:
            check_first_reading(self.files())
            raw = self.read_raw()
            image = normalise(raw.image, self.normalisation)
            image.setflags(write=False)
            if raw.label is not None:
                raw.label.setflags(write=False)
            pair = Pair(image, raw.label)
            MEMORY.put(self, pair)
        return pair


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FunctionSource(Source):
    """What a function reads: the files of an image and of its label, an item of a data set, arrays in memory."""

    read: Callable[..., Arrays]  # called with `images`, `label` and the options
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    images: tuple[Path, ...] = ()  # files of the image, in the order of its channels, or one folder
    label: Path | None = None  # file of the label, or a folder
    name: str = ""  # of what lies in no file
    kind: str = ""  # as `toolkit.data.reading.kind_of` names it
    suffixes: tuple[str, ...] = ()  # of the files in a folder that are read; none = all

    def stored(self) -> Arrays:
        return self.read(self.images, self.label, **self.options)

    @property
    def where(self) -> str:
        return ", ".join(map(str, self._paths())) or self.name

    def files(self) -> tuple[Path, ...]:
        """The files, those in a folder by name; with the header of a MetaImage the file of its voxels."""
        files: list[Path] = []
        for path in self._paths():
            inside = sorted(path.iterdir()) if path.is_dir() else []
            files += [one for one in inside if not self.suffixes or one.suffix.lower() in self.suffixes]
            files += [] if path.is_dir() else [path]
            if path.suffix.lower() == ".mhd" and path.is_file():
                named = re.findall(rb"^ElementDataFile *= *(.+?)\s*$", path.read_bytes()[:65536], flags=re.MULTILINE)
                voxels = (path.with_name(name.decode(errors="replace")) for name in named)
                files += [one for one in voxels if one.is_file()]
        return tuple(files)

    def _paths(self) -> tuple[Path, ...]:
        return self.images if self.label is None else (*self.images, self.label)


class Memory:
    """Least-recently-used store of read volumes, bounded in bytes and shared by all tasks of the process."""

    def __init__(self, limit: int = 2**30) -> None:
        self.limit = limit
        self._pairs: weakref.WeakKeyDictionary[Source, Pair] = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()

    @property
    def held(self) -> int:
        """Bytes of all volumes in it."""
        return sum(pair.bytes for pair in self._pairs.values())

    def get(self, source: Source) -> Pair | None:
        """The stored volume, or None."""
        with self._lock:
            pair = self._pairs.pop(source, None)
            if pair is not None:
                self._pairs[source] = pair  # the last one used goes last
            return pair

    def put(self, source: Source, pair: Pair) -> None:
        """Store a volume and drop the least recently used ones beyond the limit."""
        with self._lock:
            if pair.bytes > self.limit:
                return
            self._pairs[source] = pair
            while self.held > self.limit:
                del self._pairs[next(iter(self._pairs))]


MEMORY = Memory()


def in_memory(images: tuple[Path, ...], label: None, *, arrays: Arrays) -> Arrays:
    """Arrays that are there already."""
    return arrays


def read_npz(path: Path, keys: list[str]) -> dict[str, np.ndarray]:
    """Read named arrays of an `.npz` file without running anything stored in it."""
    require_file(path)
    fix = "Copy or download it again; what holds objects, which could run code, must be written as plain numbers."
    with (
        decoding(path, "a readable .npz archive", fix),
        path.open("rb") as stream,
        np.load(stream, allow_pickle=False) as archive,
    ):
        if missing := [key for key in keys if key not in archive.files]:
            what = f"The archive has no array called {', '.join(missing)}."
            names = ", ".join(archive.files) or "nothing"
            raise DataError(what, where=path, fix=f"It holds {names}; name the arrays accordingly.")
        return {key: archive[key] for key in keys}


def require_file(path: Path, most: float = float("inf")) -> None:
    """Check that a file exists, is not empty, and has at most so many bytes."""
    if not path.is_file():
        fix = "Check the path and that the data set is complete (task.verify() lists what is missing)."
        raise DataError("The file does not exist." if not path.exists() else "This is not a file.", where=path, fix=fix)
    if path.stat().st_size == 0:
        raise DataError("The file is empty (0 bytes).", where=path, fix="Copy or download it again.")
    if path.stat().st_size > most:
        raise DataError(f"The file is larger than {most} bytes.", where=path, fix="It is not the expected file.")


@contextlib.contextmanager
def decoding(path: Path, what: str, fix: str = "") -> Iterator[None]:
    """Turn whatever a decoder raises of a damaged file into an error that says `what` the file is not."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")[:120] or "no text"
        fix = fix or "It is truncated, damaged or of another format: copy or export it again."
        raise DataError(f"The file is not {what} ({type(error).__name__}: {reason}).", where=path, fix=fix) from error


def checked_pair(image: np.ndarray, label: np.ndarray | None, source: Source) -> Pair:
    """Image and label as float32 and class indices, or an error that names the source."""
    image = checked_image(image, source.where)
    if label is None:
        return Pair(image, None)
    if label.shape != image.shape[1:]:
        what = f"The image has shape {image.shape[1:]} and its label {label.shape}."
        fix = "Give the label the image's grid (resample it with nearest-neighbour interpolation)."
        raise DataError(what, where=source.where, fix=fix)
    file = source.label if isinstance(source, FunctionSource) else None
    return Pair(image, class_indices(label, source.classes, source.label_values, str(file or source.where)))


def checked_image(image: np.ndarray, where: str) -> np.ndarray:
    """The image as float32."""
    if image.dtype.kind not in "buif":
        fix = "Store it as one number per voxel and channel (for complex data: the magnitude)."
        raise DataError(f"The image holds {image.dtype} values, not real numbers.", where=where, fix=fix)
    if image.ndim and image.shape[0] > 1 and image.strides[0] == 0:  # a grey channel that is only repeated
        return np.broadcast_to(checked_image(image[:1], where), image.shape)
    if image.size == 0:
        raise DataError(f"The image has no voxels: shape {image.shape}.", where=where, fix="Export it again.")
    with np.errstate(over="ignore"):
        image = image.astype(np.float32)
    bad = ~np.isfinite(image)
    if bad.any():
        nans = int(np.isnan(image).sum())
        what = f"The image has {nans} NaN and {int(bad.sum()) - nans} infinite of {image.size} voxels."
        fix = "Replace them, for example numpy.nan_to_num(image), if you know why they are there."
        raise DataError(what, where=where, fix=fix)
    return image
