"""phantom-glands: the interface, reproducible bytes, crowded instances, and four laboratories' colours."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from scipy import ndimage

from toolkit.data.phantoms.glands import TASK

_held = functools.cache(TASK.generate)


@pytest.mark.parametrize("site", TASK.sites)
def test_a_tile_is_what_the_interface_says(site):
    for subject in (0, 1, 41, 50):
        tile = _held(site, subject)
        assert tile.image.shape == (3, 128, 128)
        assert tile.label.shape == (128, 128)
        assert 0.4 < tile.label.mean() < 0.9
    assert sorted(n for split in TASK.subjects[site].values() for n in split) == list(range(68))


def test_neighbouring_glands_are_often_close():
    """Many pixels of the stroma lie within three pixels of two glands."""
    for site in TASK.sites:
        tile = _held(site, 1)
        numbers, _ = ndimage.label(tile.label)
        padded = np.pad(numbers, 3)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7))[tile.label == 0].reshape(-1, 49)
        owners = [len(set(row) - {0}) for row in windows[::7].tolist()]
        assert np.mean(np.array(owners) >= 2) > 0.15


def test_glands_are_rings_around_pale_lumina():
    """In benign tiles the brightest tenth of the picture lies inside glands, away from their borders."""
    tile = next(_held("A", n) for n in range(10) if TASK.group_of("A", n) == "benign")
    grey = tile.image.mean(0)
    bright = grey > np.quantile(grey, 0.9)
    assert tile.label[bright].mean() > 0.95
    border = np.zeros_like(bright)
    for axis in (0, 1):
        for step in (1, -1):
            border |= np.roll(tile.label, step, axis) != tile.label
    assert grey[border & (tile.label == 1)].mean() < grey[tile.label == 1].mean() - 20


def test_malignant_tiles_hold_more_and_less_regular_glands():
    counts: dict[str, list[int]] = {"malignant": [], "benign": []}
    for subject in range(8):
        counts[TASK.group_of("A", subject)].append(ndimage.label(_held("A", subject).label)[1])
    assert np.mean(counts["malignant"]) > 1.3 * np.mean(counts["benign"])


def test_laboratories_differ_in_colour():
    mean = {site: np.mean([_held(site, n).image.mean((1, 2)) for n in (0, 1, 41)], axis=0) for site in TASK.sites}
    red, green, blue = range(3)
    assert mean["A"][red] > mean["A"][green] + 15
    assert mean["C"][blue] > mean["C"][red] + 30
    assert mean["D"][red] > mean["D"][blue] + 30
    assert mean["B"].mean() > mean["A"].mean() + 5
    edges = {site: np.abs(np.diff(_held(site, 1).image, axis=2)).mean() for site in ("A", "B")}
    assert edges["B"] < 0.75 * edges["A"]
