"""phantom-cardiac: what a stack is, that it is reproducible, and that groups and sites differ as they say."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import toolkit
from toolkit.data.phantoms.cardiac import TASK
from toolkit.errors import ConfigError, DataError

PINNED = {
    ("A", 0, 0): "7056b87438cba0712b8fd3c1",
    ("B", 7, 0): "9c088dc1a2da58a4097a19ff",
    ("C", 21, 0): "84c19bf13ef01fce00987f42",
    ("D", 31, 5): "103943a45dceda701e7aeb1b",
}

_held = functools.cache(TASK.generate)


def _digest(site: str, subject: int, seed: int) -> str:
    phantom = TASK.generate(site, subject, seed)
    return hashlib.sha256(phantom.image.tobytes() + phantom.label.tobytes()).hexdigest()[:24]


@pytest.fixture(scope="module")
def stacks():
    return {(site, subject): _held(site, subject) for site in TASK.sites for subject in range(5)}


def test_a_stack_is_what_the_interface_says(stacks):
    assert len(TASK.sites) >= 4
    assert set(TASK.descriptions) == set(TASK.sites)
    for phantom in stacks.values():
        assert phantom.image.shape == phantom.label.shape
        assert phantom.image.shape[1:] == (96, 96)
        assert 6 <= len(phantom.image) <= 8
        assert phantom.image.dtype == np.float32
        assert phantom.label.dtype == np.uint8
        assert np.array_equal(phantom.image, np.rint(phantom.image))
        assert phantom.image.min() >= 0
        assert 100 < phantom.image.max() <= 4095
        assert set(np.unique(phantom.label)) == {0, 1, 2, 3}
        assert 1.0 < phantom.spacing[1] == phantom.spacing[2] < 3.0
        assert 5.0 <= phantom.spacing[0] <= 10.0


def test_splits_share_no_subject():
    for site in TASK.sites:
        numbers = [n for split in ("train", "val", "test") for n in TASK.subjects[site][split]]
        assert len(numbers) == len(set(numbers))
        assert [len(TASK.subjects[site][split]) for split in ("train", "val", "test")] == [20, 4, 8]


@pytest.mark.parametrize(("site", "subject", "seed"), list(PINNED))
def test_bytes_are_pinned(site, subject, seed):
    assert _digest(site, subject, seed) == PINNED[site, subject, seed]


def test_bytes_do_not_depend_on_the_instruction_set():
    """The same stack in a process whose NumPy may not use its vectorised loops."""
    features = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR AVX2 FMA3 X86_V3 X86_V4"
    root = Path(toolkit.__file__).parents[1]
    environment = os.environ | {"NPY_DISABLE_CPU_FEATURES": features}
    code = (
        # A bare parent package keeps torch out of the child.
        f"import hashlib, sys, types; sys.path.insert(0, {str(root)!r}); room = types.ModuleType('toolkit.data');"
        f"room.__path__ = [{str(root / 'toolkit' / 'data')!r}]; sys.modules['toolkit.data'] = room;"
        "from toolkit.data.phantoms.cardiac import TASK; p = TASK.generate('B', 7);"
        "print(hashlib.sha256(p.image.tobytes() + p.label.tobytes()).hexdigest()[:24])"
    )
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == PINNED["B", 7, 0]


def test_generation_needs_no_global_state():
    np.random.seed(1)  # noqa: NPY002 - the global state is what must not matter
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = _digest("D", 3, 0)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    TASK.generate("A", 3)
    assert _digest("D", 3, 0) == first


def test_seed_subject_and_site_each_change_the_stack():
    assert len({_digest("A", 0, 0), _digest("A", 1, 0), _digest("A", 0, 1), _digest("B", 0, 0)}) == 4


@pytest.mark.parametrize("bad", [("Z", 0, 0), ("A", -1, 0), ("A", 0, -2)])
def test_unknown_site_and_negative_numbers_are_errors(bad):
    with pytest.raises(ConfigError if bad[0] == "Z" else DataError, match="phantom-cardiac"):
        TASK.generate(*bad)


def test_the_cavity_lies_inside_the_wall(stacks):
    """In every slice the left ventricle touches neither background nor the right ventricle."""
    for phantom in stacks.values():
        cavity = phantom.label == 3
        for axis in (1, 2):
            for step in (1, -1):
                neighbour = np.roll(phantom.label, step, axis=axis)[cavity]
                assert set(np.unique(neighbour)) <= {2, 3}


def test_the_heart_tapers_to_the_apex(stacks):
    for phantom in stacks.values():
        area = (phantom.label >= 2).sum((1, 2))
        right = (phantom.label == 1).sum((1, 2))
        assert area[-1] < 0.7 * area[0]
        assert right[0] > right[len(right) // 2] > right[-1]
        # Nothing is cut off by the edge of the view.
        edge = np.concatenate([phantom.label[:, 0], phantom.label[:, -1], phantom.label[:, :, 0]])
        assert (edge == 3).sum() == 0


def _mean_of_group(group: str, measure) -> float:
    subjects = [n for n in range(40) if TASK.group_of("A", n) == group][:4]
    return float(np.mean([measure(_held("A", n)) for n in subjects]))


def test_pathology_groups_change_the_geometry():
    def cavity(phantom):  # mL
        return (phantom.label == 3).sum() * phantom.spacing[1] ** 2 * phantom.spacing[0] / 1000

    def right(phantom):
        return (phantom.label == 1).sum() * phantom.spacing[1] ** 2 * phantom.spacing[0] / 1000

    def wall_share(phantom):
        return (phantom.label == 2).sum() / (phantom.label >= 2).sum()

    assert _mean_of_group("dilated", cavity) > 1.5 * _mean_of_group("normal", cavity)
    assert _mean_of_group("hypertrophic", wall_share) > 1.1 * _mean_of_group("normal", wall_share)
    assert _mean_of_group("abnormal_rv", right) > 1.3 * _mean_of_group("normal", right)


def test_an_infarct_thins_one_segment_of_the_wall():
    """Thinnest over median wall thickness around the mid-ventricular ring, by counting along rays."""

    def thinnest(phantom):
        label = phantom.label[len(phantom.label) // 2]
        row, column = np.argwhere(label == 3).mean(0)
        steps = np.arange(0, 40, 0.25)
        depths = []
        for angle in np.linspace(0, 2 * np.pi, 72, endpoint=False):
            at = np.rint([row + steps * np.sin(angle), column + steps * np.cos(angle)]).astype(int).clip(0, 95)
            depths.append((label[at[0], at[1]] == 2).sum() / 4)
        return min(depths) / np.median(depths)

    assert _mean_of_group("infarct", thinnest) < 0.8 * _mean_of_group("normal", thinnest)


def test_groups_follow_each_sites_shares():
    for site, group, share in (("A", "infarct", 0.2), ("B", "hypertrophic", 0.55), ("D", "abnormal_rv", 0.4)):
        found = np.mean([TASK.group_of(site, n) == group for n in range(2000)])
        assert found == pytest.approx(share, abs=0.01)
        train = np.mean([TASK.group_of(site, n) == group for n in TASK.subjects[site]["train"]])
        assert train == pytest.approx(share, abs=0.11)


def test_sites_differ_in_contrast_noise_and_geometry(stacks):
    def ratio(site):  # blood over wall
        values = [
            np.median(p.image[p.label == 3]) / np.median(p.image[p.label == 2])
            for (name, _), p in stacks.items()
            if name == site
        ]
        return float(np.mean(values))

    assert ratio("A") > 2.0
    assert 1.2 < ratio("C") < 0.75 * ratio("A")
    assert ratio("D") < 0.6

    def roughness(site):  # noise in the wall relative to its grey value
        values = []
        for (name, _), p in stacks.items():
            if name == site:
                pair = (p.label[:, 1:] == 2) & (p.label[:, :-1] == 2)
                step = np.diff(p.image, axis=1)[pair]
                values.append(np.median(np.abs(step)) / np.median(p.image[p.label == 2]))
        return float(np.mean(values))

    assert roughness("C") > 1.35 * roughness("A")
    assert len({stacks[site, 0].spacing for site in TASK.sites}) == len(TASK.sites)

    def angle(site):  # direction from the left to the right ventricle, degrees
        found = []
        for (name, _), p in stacks.items():
            if name == site:
                row, column = np.argwhere(p.label == 1)[:, 1:].mean(0) - np.argwhere(p.label == 3)[:, 1:].mean(0)
                found.append(np.rad2deg(np.arctan2(row, -column)))
        return float(np.mean(found))

    assert abs(angle("B") - angle("A")) > 20.0
