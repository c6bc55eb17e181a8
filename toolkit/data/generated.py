"""Embedded tasks: cases from a generator, made when they are needed and kept in the toolkit's cache.

The index table beside the manifest lists every subject with the number of its slices and the SHA-256 of its bytes;
`python scripts/phantom_index.py [name]` writes it again after the generator has been changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from typing import Any

import numpy as np

from toolkit.data.manifest import Manifest, cache_folder
from toolkit.data.phantoms.phantom import Generator, Phantom
from toolkit.data.reading import Row
from toolkit.data.rows import table_of
from toolkit.data.source import Arrays, Source, read_npz
from toolkit.errors import DataError, choose
from toolkit.files import replacing

GENERATORS = ("phantom-cardiac", "phantom-glands", "phantom-hippocampus", "phantom-prostate")


@dataclasses.dataclass(frozen=True, eq=False)
class GeneratedSource(Source):
    """One subject of a generator; the stack is read from the cache if it was made before."""

    generator: str = ""  # key of `GENERATORS`
    site: str = ""  # site of the subject
    subject: int = 0  # number of the subject
    seed: int = 0  # seed of the population
    version: str = ""  # the generator's version number, part of the cache's path
    sha256: str = ""  # hash of the stack as the index table has it

    def stored(self) -> Arrays:
        """The stack (1, Z, H, W) or tile (C, H, W) and its label."""
        stack = self.stack()
        image = stack.image[None] if stack.image.ndim == stack.label.ndim else stack.image
        return image, stack.label

    def stack(self) -> Phantom:
        """The stack as generated; a cache file that is damaged or holds other bytes is made again."""
        path = cache_folder() / self.generator / self.version / f"{self.site}_{self.subject:04d}_seed{self.seed}.npz"
        with contextlib.suppress(DataError):
            cached = read_npz(path, ["image", "label", "spacing", "group"])
            mm = tuple(float(value) for value in cached["spacing"])
            image, label = cached["image"].astype(np.float32), cached["label"].astype(np.uint8)
            stack = Phantom(image, label, mm, str(cached["group"]))
            if not self.sha256 or stack.sha256() == self.sha256:
                return stack
        stack = generator(self.generator).generate(self.site, self.subject, self.seed)
        if self.sha256 and stack.sha256() != self.sha256:
            what = "The generator makes other bytes here than the index table records."
            fix = "Install the pinned versions of constraints.txt. After a change of the generator, raise its version and run "
            raise DataError(what, where=self.where, fix=f"{fix}python scripts/phantom_index.py.")
        whole = stack.image.astype(np.uint16)
        grey = whole if (whole == stack.image).all() else stack.image
        # a cache that cannot be written costs time, nothing else
        with contextlib.suppress(OSError), replacing(path, parents=True) as temporary:
            arrays: dict[str, Any] = {"image": grey, "label": stack.label, "spacing": np.asarray(stack.spacing)}
            np.savez_compressed(temporary, **arrays, group=stack.group)
        return stack

    @property
    def where(self) -> str:
        return f"{self.generator}: site {self.site}, subject {self.subject}, seed {self.seed}"

    def fingerprint(self) -> str:
        return self.sha256 or self.stack().sha256()


def generated_rows(manifest: Manifest) -> list[Row]:
    """The volumes or tiles of an embedded set, in the order of sites and subjects."""
    rows: list[Row] = []
    for row in index_rows(manifest):
        name = f"{row['site']}{int(row['subject']):03d}"
        mm = tuple(float(row[key]) for key in ("slice_mm", "row_mm", "column_mm") if row[key])
        own: Row = {"case": name, "subject": name, "group": row["group"] or None, "spacing": mm or None}
        own |= {"site": row["site"], "split": row["split"], "image": _source(manifest, row)}
        rows.append({**own, "slices": row["slices"] if manifest.dims == 2 else None})
    return rows


def index_rows(manifest: Manifest) -> list[dict[str, str]]:
    """The index table, or the same rows made anew where it belongs to another version of the generator."""
    rows = table_of(manifest.table_path) if manifest.table_path.is_file() else [{}]
    version = generator(manifest.name).version
    return rows if all(row.get("generator") == version for row in rows) else made_rows(manifest)


def made_rows(manifest: Manifest) -> list[dict[str, str]]:
    """Generate every subject and describe it (tens of seconds the first time, then from the cache)."""
    made, rows = generator(manifest.name), []
    for site in manifest.sites:
        for split, subjects in made.subjects[site].items():
            for subject in subjects:
                row = {"site": site, "subject": str(subject), "split": split, "generator": made.version}
                stack = _source(manifest, row).stack()
                names = ("slice_mm", "row_mm", "column_mm")
                row |= dict.fromkeys(names, "") | dict(zip(names, map("{:g}".format, stack.spacing), strict=False))
                row |= {"group": stack.group, "slices": str(len(stack.label)) if stack.spacing else ""}
                rows.append(row | {"sha256": stack.sha256()})
    return rows


def _source(manifest: Manifest, row: dict[str, str]) -> GeneratedSource:
    place: dict[str, Any] = {"generator": manifest.name, "site": row["site"], "subject": int(row["subject"])}
    return GeneratedSource(**place, version=row["generator"], sha256=row.get("sha256", ""))


def generator(name: str) -> Generator:
    """The generator of an embedded task."""
    choose("generator", name, GENERATORS, where="manifest")
    return importlib.import_module(f"toolkit.data.phantoms.{name.removeprefix('phantom-')}").TASK
