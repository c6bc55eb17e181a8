"""One generated subject, and what all generators share: sites, groups, splits, keyed draws."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.phantoms.fields import Scanner, Stream
from toolkit.errors import DataError, choose

Drawn = tuple[NDArray[np.float32], NDArray[np.uint8]]
_SITES = Path(__file__).with_name("sites.toml")
Site = SimpleNamespace  # one hospital or laboratory: a table of `sites.toml`, whose head explains the fields
_UNSAID = {"spacing": 0.0, "turn": 0.0, "round_view": False, "coil_flare": 0.0}


@dataclass(frozen=True, eq=False)
class Phantom:
    """A generated stack or volume, or a tile of colours."""

    image: NDArray[np.float32]  # raw grey values (Z, H, W), whole numbers; of a tile (3, H, W), 0 to 255
    label: NDArray[np.uint8]  # class of every voxel (Z, H, W) or pixel (H, W)
    spacing: tuple[float, ...] = ()  # (slice, row, column) in mm, empty for a tile
    group: str = ""  # pathology group

    def sha256(self) -> str:
        """Hash of the shape, the image as little-endian float32 and the label as uint8, in C order."""
        digest = hashlib.sha256(str(self.image.shape).encode())
        digest.update(np.ascontiguousarray(self.image, dtype="<f4").tobytes())
        digest.update(np.ascontiguousarray(self.label, dtype=np.uint8).tobytes())
        return digest.hexdigest()


class Generator:
    """A generated task.

    Every random number comes from raw PCG64 words keyed by (seed, task, site, subject, purpose), and pixels are made
    with additions, multiplications, divisions and square roots only before they are rounded to whole grey values; so
    the same arguments give the same bytes wherever float64 follows IEEE 754. `name` is "phantom-" and a table of
    `sites.toml`; `version` is raised with every change of the bytes; `key` keeps this task's random numbers apart from
    the other phantoms'; `draw` makes image and label of a site, a group and `stream(purpose)`.
    """

    def __init__(self, name: str, version: int, key: int, draw: Callable[..., Drawn]) -> None:
        self.name, self.version, self._key, self._draw = name, str(version), key, draw
        tables = tomllib.loads(_SITES.read_text(encoding="utf-8"))[name.removeprefix("phantom-")]
        self._settings = {site: Site(**_UNSAID | _values(table)) for site, table in tables.items()}
        self.sites: tuple[str, ...] = tuple(tables)
        self.descriptions = {site: one.description for site, one in self._settings.items()}
        self.subjects = {site: numbered(*one.counts) for site, one in self._settings.items()}

    def group_of(self, site: str, subject: int) -> str:
        """Pathology group of a subject: the site's shares, evenly spread over any run of subject numbers."""
        groups, total = self._settings[site].groups, 0.0
        for name, share in groups.items():
            total += share
            if spread(subject) < total:
                return name
        return list(groups)[-1]

    def generate(self, site: str, subject: int, seed: int = 0) -> Phantom:
        """Draw one subject of a site (`subjects` lists the usual ones); another seed draws another population."""
        choose("site", site, self.sites, where=self.name)
        if subject < 0 or seed < 0:
            raise DataError(f"Subject and seed must be 0 or more, not {subject} and {seed}.", where=self.name)
        settings, group = self._settings[site], self.group_of(site, subject)
        key = (seed, self._key, self.sites.index(site), subject)
        drawn = self._draw(settings, group, lambda purpose: Stream(*key, purpose))
        spacing = (settings.slice_spacing, settings.spacing, settings.spacing) if settings.spacing else ()
        return Phantom(*drawn, spacing, group)


def numbered(train: int, val: int, test: int) -> dict[str, list[int]]:
    """Subject numbers of each split: consecutive, training first."""
    ends = {"train": (0, train), "val": (train, train + val), "test": (train + val, train + val + test)}
    return {split: list(range(*between)) for split, between in ends.items()}


def spread(subject: int) -> float:
    """A number in [0, 1) for a subject; any run of subjects fills the interval evenly (golden section, exact)."""
    return ((subject + 1) * 40503 % 65536) / 65536


def _values(table: dict[str, Any]) -> dict[str, Any]:
    """Fields of a site or a scanner: arrays as tuples."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}
    return values | ({"scanner": Scanner(**_values(table["scanner"]))} if "scanner" in table else {})
