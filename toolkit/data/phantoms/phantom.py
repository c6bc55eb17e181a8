"""One generated subject, and what all generators share: sites, groups, splits, keyed draws."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.phantoms.appearance import Scanner
from toolkit.data.phantoms.fields import Stream
from toolkit.errors import DataError

_SITES = Path(__file__).with_name("sites.toml")


@dataclass(frozen=True, eq=False, kw_only=True)
class Phantom:
    """A generated stack or volume, or a tile of colours."""

    image: NDArray[np.float32]  # raw grey values (Z, H, W), whole numbers; of a tile (3, H, W), 0 to 255
    label: NDArray[np.uint8]  # class of every voxel (Z, H, W) or pixel (H, W)
    instances: NDArray[np.uint8] | None = None  # number of each object of a tile, 0 outside
    spacing: tuple[float, ...]  # (row, column) mm, empty for a tile
    slice_spacing: float  # mm between slices
    group: str  # pathology group
    split: str  # "train", "val" or "test"
    site: str
    subject: int  # within its site


@dataclass(frozen=True, kw_only=True)
class Site:
    """One hospital or laboratory of `sites.toml`; what only one generator needs is a field of its subclass."""

    description: str  # one line for people
    groups: dict[str, float]  # share of each pathology group
    counts: tuple[int, int, int]  # subjects in train, val and test
    signals: dict[str, float] = dataclasses.field(default_factory=dict)  # signal of each tissue, about [0, 1]
    scanner: Scanner = dataclasses.field(default_factory=Scanner)
    spacing: float = 0.0  # side of a pixel, mm; 0 where a tile has none
    slice_spacing: float = 0.0  # distance between slices, mm


class Generator:
    """A generated task.

    Every random number comes from raw PCG64 words keyed by (seed, task, site, subject, purpose), and pixels are made
    with additions, multiplications, divisions and square roots only before they are rounded to whole grey values; so
    the same arguments give the same bytes wherever float64 follows IEEE 754.

    Args:
        name: of the task, "phantom-" and its table of `sites.toml`.
        key: keeps this task's random numbers apart from the other phantoms'.
        settings: class of its sites.
        draw: site, group and `stream(purpose)` -> `image`, `label` and for a tile `instances`.
    """

    def __init__(self, name: str, key: int, settings: type[Any], draw: Callable[..., dict[str, Any]]) -> None:
        self.name, self._key, self._draw = name, key, draw
        tables = tomllib.loads(_SITES.read_text(encoding="utf-8"))[name.removeprefix("phantom-")]
        self._settings = {site: settings(**_values(table)) for site, table in tables.items()}
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
        """Draw one subject; the same arguments give the same bytes.

        Args:
            site: one of `sites`.
            subject: number of the subject, 0 or more; `subjects` lists the usual ones and their splits, others train.
            seed: another seed draws another population.
        """
        if site not in self.sites:
            raise DataError(f"There is no site {site!r}.", where=self.name, fix=f"Use one of {list(self.sites)}.")
        if subject < 0 or seed < 0:
            raise DataError(f"Subject and seed must be 0 or more, not {subject} and {seed}.", where=self.name)
        settings, group = self._settings[site], self.group_of(site, subject)
        key = (seed, self._key, self.sites.index(site), subject)
        return Phantom(
            **self._draw(settings, group, lambda purpose: Stream(*key, purpose)),
            spacing=(settings.spacing,) * 2 if settings.spacing else (),
            slice_spacing=settings.slice_spacing,
            group=group,
            split=next((split for split, numbers in self.subjects[site].items() if subject in numbers), "train"),
            site=site,
            subject=subject,
        )


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
