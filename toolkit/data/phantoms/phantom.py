"""One generated subject: an image stack with its reference labels and geometry; what all generators share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.data.phantoms.stream import Stream
from toolkit.errors import DataError


@dataclass(frozen=True, eq=False)
class Phantom:
    """A generated stack or volume.

    Attributes:
        image: raw grey values (Z, H, W) float32, whole numbers.
        label: class of every voxel (Z, H, W) uint8.
        spacing: (row, column) mm.
        slice_spacing: mm between slices.
        group: pathology group.
        split: "train", "val" or "test".
        site: name of the site.
        subject: number of the subject within its site.
    """

    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    spacing: tuple[float, float]
    slice_spacing: float
    group: str
    split: str
    site: str
    subject: int


def check_request(task: str, sites: Sequence[str], site: str, subject: int, seed: int) -> None:
    """Refuse a site that is not there and negative numbers.

    Raises:
        DataError: naming the task and the sites there are.
    """
    if site not in sites:
        raise DataError(f"There is no site {site!r}.", where=task, fix=f"Use one of {list(sites)}.")
    if subject < 0 or seed < 0:
        raise DataError(f"Subject and seed must be 0 or more, not {subject} and {seed}.", where=task)


def streams(
    task: str, task_key: int, sites: Sequence[str], site: str, subject: int, seed: int
) -> tuple[Stream, Stream, Stream]:
    """A subject's keyed draws: of its anatomy, of the drawing, and of the noise.

    Raises:
        DataError: for an unknown site or a negative number.
    """
    check_request(task, sites, site, subject, seed)
    key = (seed, task_key, sites.index(site), subject)
    return Stream(*key, 0), Stream(*key, 1), Stream(*key, 2)


def numbered(train: int, val: int, test: int) -> dict[str, list[int]]:
    """Subject numbers of each split: consecutive, training first."""
    return {
        "train": list(range(train)),
        "val": list(range(train, train + val)),
        "test": list(range(train + val, train + val + test)),
    }


def split_of(subjects: Mapping[str, Sequence[int]], subject: int) -> str:
    """Split that lists this subject; subjects beyond the usual ones belong to train."""
    return next((split for split, numbers in subjects.items() if subject in numbers), "train")


def spread(subject: int) -> float:
    """A number in [0, 1) for a subject; any run of subjects fills the interval evenly (golden section, exact)."""
    return ((subject + 1) * 40503 % 65536) / 65536
