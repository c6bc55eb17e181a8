"""Embedded tasks: cases from a generator, made when they are needed and kept in the toolkit's cache.

The index table beside the manifest lists every subject with the number of its slices and the SHA-256 of its bytes;
`python -m toolkit.data.generated [name]` writes it again after the generator has been changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.manifest import Manifest, cache_folder, find_manifest
from toolkit.data.reading import Row
from toolkit.data.sets.files import index_of
from toolkit.data.source import Pair, Source, checked_pair, read_npz
from toolkit.errors import DataError
from toolkit.files import replacing

GENERATORS = {
    "phantom-cardiac": "toolkit.data.phantoms.cardiac",
    "phantom-glands": "toolkit.data.phantoms.glands",
    "phantom-hippocampus": "toolkit.data.phantoms.hippocampus",
    "phantom-prostate": "toolkit.data.phantoms.prostate",
}
_COLUMNS = ("site", "subject", "split", "group", "slices", "row_mm", "column_mm", "slice_mm", "sha256", "generator")


@dataclasses.dataclass(frozen=True, eq=False)
class Stack:
    """What a generator made."""

    image: np.ndarray  # stack (Z, H, W) of one channel, or tile (C, H, W)
    label: np.ndarray  # (Z, H, W) or (H, W)
    spacing: tuple[float, ...]  # (slice, row, column) in mm, empty where a tile has none
    group: str  # pathology group or ""

    def sha256(self) -> str:
        """Hash of the shape, the image as little-endian float32 and the label as uint8, in C order."""
        digest = hashlib.sha256(str(self.image.shape).encode())
        digest.update(np.ascontiguousarray(self.image, dtype="<f4").tobytes())
        digest.update(np.ascontiguousarray(self.label, dtype=np.uint8).tobytes())
        return digest.hexdigest()

    def write(self, path: Path) -> None:
        """Store it atomically as `.npz`; whole grey values as uint16."""
        whole = self.image.astype(np.uint16)
        image = whole if (whole == self.image).all() else self.image
        with replacing(path, parents=True) as temporary:
            np.savez_compressed(
                temporary, image=image, label=self.label, spacing=np.asarray(self.spacing), group=np.asarray(self.group)
            )


@dataclasses.dataclass(frozen=True, eq=False)
class GeneratedSource(Source):
    """One subject of a generator; the stack is read from the cache if it was made before."""

    generator: str = ""  # key of `GENERATORS`
    site: str = ""  # site of the subject
    subject: int = 0  # number of the subject
    seed: int = 0  # seed of the population
    version: str = ""  # the generator's version number, part of the cache's path
    sha256: str = ""  # hash of the stack as the index table has it

    def read_raw(self) -> Pair:
        """The stack (1, Z, H, W) or tile (C, H, W) and its label."""
        stack = self.stack()
        image = stack.image[None] if stack.image.ndim == stack.label.ndim else stack.image
        return checked_pair(image, stack.label, self)

    def stack(self) -> Stack:
        """The stack as generated; a cache file that is damaged or holds other bytes is made again."""
        path = self._path()
        with contextlib.suppress(DataError):
            cached = read_npz(path, ["image", "label", "spacing", "group"])
            mm = tuple(float(value) for value in cached["spacing"])
            stack = Stack(
                cached["image"].astype(np.float32), cached["label"].astype(np.uint8), mm, str(cached["group"])
            )
            if not self.sha256 or stack.sha256() == self.sha256:
                return stack
        drawn = _module(self.generator).generate(self.site, self.subject, self.seed)
        spacing = (drawn.slice_spacing, *drawn.spacing) if drawn.spacing else ()
        stack = Stack(drawn.image, drawn.label, spacing, drawn.group or "")
        if self.sha256 and stack.sha256() != self.sha256:
            raise DataError(
                "The generator makes other bytes here than the index table records.",
                where=self.where,
                fix="Install the pinned versions of constraints.txt; after a change of the generator give it a new "
                "VERSION and run python -m toolkit.data.generated.",
            )
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
            stack.write(path)
        return stack

    def _path(self) -> Path:
        name = f"{self.site}_{self.subject:04d}_seed{self.seed}.npz"
        return cache_folder() / self.generator / self.version / name

    @property
    def where(self) -> str:
        return f"{self.generator}: site {self.site}, subject {self.subject}, seed {self.seed}"

    def fingerprint(self) -> str:
        return self.sha256 or self.content_sha256()

    def content_sha256(self) -> str:
        """SHA-256 of the generated bytes (see `Stack.sha256`)."""
        return self.stack().sha256()


def generator_version(name: str) -> str:
    """The generator's `VERSION`, as the index table and the cache's path hold it."""
    return str(_module(name).VERSION)


def generated_rows(manifest: Manifest) -> list[Row]:
    """The volumes or tiles of an embedded set, in the order of sites and subjects."""
    rows: list[Row] = []
    for row in index_rows(manifest):
        name = f"{row['site']}{int(row['subject']):03d}"
        rows.append(
            {
                "case": name,
                "subject": name,
                "site": row["site"],
                "split": row["split"],
                "group": row["group"] or None,
                "spacing": tuple(float(row[key]) for key in ("slice_mm", "row_mm", "column_mm") if row[key]) or None,
                "slices": row["slices"] if manifest.dims == 2 else None,
                "image": _source(manifest, row),
            }
        )
    return rows


def index_rows(manifest: Manifest) -> list[dict[str, str]]:
    """The index table, or the same rows made anew where it belongs to another version of the generator."""
    version = generator_version(manifest.name)
    if manifest.table_path.is_file():
        rows = index_of(manifest)
        if all(row.get("generator") == version for row in rows):
            return rows
    return made_rows(manifest)


def made_rows(manifest: Manifest) -> list[dict[str, str]]:
    """Generate every subject and describe it (tens of seconds the first time, then from the cache)."""
    module, version = _module(manifest.name), generator_version(manifest.name)
    rows = []
    for site in manifest.sites:
        for split, subjects in module.SUBJECTS[site].items():
            for subject in subjects:
                row = {"site": site, "subject": str(subject), "split": split, "generator": version}
                source = _source(manifest, row)
                stack = source.stack()
                names = ("slice_mm", "row_mm", "column_mm")
                row |= dict.fromkeys(names, "") | dict(zip(names, map("{:g}".format, stack.spacing), strict=False))
                row |= {"group": stack.group, "slices": str(len(stack.label)) if stack.spacing else ""}
                row["sha256"] = stack.sha256()
                rows.append(row)
    return rows


def _source(manifest: Manifest, row: dict[str, str]) -> GeneratedSource:
    return GeneratedSource(
        normalisation=manifest.normalisation,
        classes=tuple(sorted(manifest.classes)),
        generator=manifest.name,
        site=row["site"],
        subject=int(row["subject"]),
        version=row["generator"],
        sha256=row.get("sha256", ""),
    )


def _module(name: str) -> Any:
    if name not in GENERATORS:
        raise DataError(f"There is no generator {name!r}.", where="manifest", fix=f"Known: {', '.join(GENERATORS)}.")
    return importlib.import_module(GENERATORS[name])


def write_index(name: str) -> Path:
    """Write the index table of an embedded data set beside its manifest, atomically."""
    import csv

    manifest = find_manifest(name)
    with replacing(manifest.table_path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(made_rows(manifest))
    return manifest.table_path


if __name__ == "__main__":
    for generator in sys.argv[1:] or GENERATORS:
        print(write_index(generator))
