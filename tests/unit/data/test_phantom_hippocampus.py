"""phantom-hippocampus: the interface, reproducible bytes, anatomy, and three intensity families."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from toolkit.data.phantoms.hippocampus import TASK

_held = functools.cache(TASK.generate)


@pytest.mark.parametrize("site", TASK.sites)
def test_a_volume_is_what_the_interface_says(site):
    for subject in (0, 1, 21, 28):
        volume = _held(site, subject)
        assert volume.image.shape == volume.label.shape == (24, 48, 48)
        assert volume.image.max() <= (255 if site == "B" else 4095)
        # Anisotropic: slices are about twice as thick as pixels are wide.
        assert 1.7 < volume.spacing[0] / volume.spacing[1] < 2.3
        # Nothing of it is cut off by the sides of the view.
        assert not volume.label[:, [0, -1]].any()
        assert not volume.label[:, :, [0, -1]].any()
    assert sorted(number for split in TASK.subjects[site].values() for number in split) == list(range(32))


def test_the_two_parts_meet_in_one_plane_and_have_a_plausible_size():
    for site in TASK.sites:
        for subject in range(3):
            volume = _held(site, subject)
            front = np.flatnonzero((volume.label == 1).any((1, 2)))
            back = np.flatnonzero((volume.label == 2).any((1, 2)))
            assert front[0] == back[-1] + 1
            voxel = volume.spacing[1] ** 2 * volume.spacing[0]
            # Published hippocampal volumes of adults are about 2 to 5 mL, with atrophy down to about 1.
            assert 900 < (volume.label > 0).sum() * voxel < 5000


def test_the_head_is_thicker_than_the_tail():
    for site in TASK.sites:
        area = (_held(site, 0).label > 0).sum((1, 2))
        present = np.flatnonzero(area)
        assert area[present[-8:-2]].mean() > 1.3 * area[present[1:7]].mean()


def test_atrophy_shrinks_the_hippocampus():
    sizes: dict[str, list[int]] = {"atrophy": [], "control": []}
    for subject in range(14):
        sizes[TASK.group_of("C", subject)].append((_held("C", subject).label > 0).sum())
    assert min(map(len, sizes.values())) >= 4
    assert np.mean(sizes["atrophy"]) < 0.8 * np.mean(sizes["control"])


def test_the_families_order_the_tissues_differently():
    """Hippocampus against the median of the view, which white matter dominates."""
    ratio = {
        site: np.mean(
            [
                np.median(_held(site, n).image[_held(site, n).label > 0]) / np.median(_held(site, n).image)
                for n in range(3)
            ]
        )
        for site in TASK.sites
    }
    assert ratio["A"] < 0.8
    assert ratio["A"] < ratio["B"] < 1.0
    assert ratio["C"] > 1.2
