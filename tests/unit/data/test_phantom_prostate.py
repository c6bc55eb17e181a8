"""phantom-prostate: the interface, reproducible bytes, zonal anatomy, and six sites of different size."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from toolkit.data.phantoms.prostate import TASK

_held = functools.cache(TASK.generate)


@pytest.mark.parametrize("site", TASK.sites)
def test_a_volume_is_what_the_interface_says(site):
    for subject in (0, 3):
        volume = _held(site, subject)
        assert volume.image.shape == volume.label.shape == (16, 64, 64)
        assert volume.spacing[0] > 2 * volume.spacing[1]
        assert not volume.label[:, [0, -1]].any()
        assert not volume.label[:, :, [0, -1]].any()


def test_six_sites_of_different_size_whose_splits_share_no_subject():
    assert len(TASK.sites) == 6
    sizes = [sum(map(len, TASK.subjects[site].values())) for site in TASK.sites]
    assert max(sizes) >= 2 * min(sizes)
    for site, size in zip(TASK.sites, sizes, strict=True):
        numbers = [number for split in TASK.subjects[site].values() for number in split]
        assert sorted(numbers) == list(range(size))


def test_the_peripheral_zone_lies_behind_and_is_brighter():
    """Rows run from front to back; brighter on all sites but the T1-like one, without a coil's flare."""
    for site in TASK.sites:
        for subject in range(2):
            volume = _held(site, subject)
            rows = [np.argwhere(volume.label == k)[:, 1].mean() for k in (1, 2)]
            assert rows[0] > rows[1] + 1
    for site, brighter in (("A", True), ("C", True), ("F", False)):
        volume = _held(site, 0)
        zones = [np.median(volume.image[volume.label == k]) for k in (1, 2)]
        assert (zones[0] > 1.1 * zones[1]) == brighter


def test_an_enlarged_transition_zone_fills_more_of_a_larger_gland():
    shares: dict[str, list[float]] = {"enlarged": [], "normal": []}
    sizes: dict[str, list[float]] = {"enlarged": [], "normal": []}
    for subject in range(12):
        volume = _held("A", subject)
        voxel = volume.spacing[1] ** 2 * volume.spacing[0] / 1000
        whole = (volume.label > 0).sum()
        shares[TASK.group_of("A", subject)].append((volume.label == 2).sum() / whole)
        sizes[TASK.group_of("A", subject)].append(whole * voxel)
        # Glands of adult men: from about 20 mL to over 80 mL when enlarged.
        assert 15 < whole * voxel < 100
    assert np.mean(shares["enlarged"]) > 1.3 * np.mean(shares["normal"])
    assert np.mean(sizes["enlarged"]) > 1.3 * np.mean(sizes["normal"])


def test_a_coil_in_the_rectum_lights_the_back_of_the_gland():
    def slope(site: str) -> float:
        volume = _held(site, 0)
        zone = volume.label == 1
        rows = np.broadcast_to(np.arange(64)[None, :, None], zone.shape)[zone]
        values = volume.image[zone]
        back, front = values[rows > np.median(rows) + 4], values[rows < np.median(rows) - 4]
        return float(back.mean() / front.mean())

    assert slope("B") > 1.15 * slope("A")
