"""What holds of every phantom: pinned bytes, whole grey values, splits that share no subject, clear refusals."""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import pytest

from toolkit.data.generated import generator
from toolkit.data.manifest import find_manifest
from toolkit.data.phantoms.phantom import Generator, numbered, spread
from toolkit.errors import ConfigError, DataError

TOP = {"phantom-glands": 255, "phantom-hippocampus": 4095, "phantom-prostate": 4095}
TASKS = {name: generator(name) for name in TOP}
PINNED = {
    ("phantom-glands", "A", 0, 0): "28f3a5c2914336e52b59142e",
    ("phantom-glands", "B", 1, 0): "f127b75249c55c67e6d25c75",
    ("phantom-glands", "D", 60, 8): "9667240e1a94ee3cbd10ef0c",
    ("phantom-hippocampus", "A", 0, 0): "2e4e5e1abeae7025d37ce54e",
    ("phantom-hippocampus", "B", 9, 0): "c6ca75541ddcaa1a4c17c475",
    ("phantom-hippocampus", "C", 30, 4): "3337ebffb44fa74230ee0b92",
    ("phantom-prostate", "A", 0, 0): "77c468eeffb088e5e5dbd665",
    ("phantom-prostate", "E", 5, 0): "beb2880bed01d5d69bff1a75",
    ("phantom-prostate", "F", 11, 2): "63c8abdb9be8191b1a4e2125",
}
SITES = [(name, site) for name, task in TASKS.items() for site in task.sites]


@functools.cache
def held(name: str, site: str, subject: int):
    return TASKS[name].generate(site, subject)


@pytest.mark.parametrize(("name", "site", "subject", "seed"), list(PINNED))
def test_bytes_are_pinned(name, site, subject, seed):
    made = TASKS[name].generate(site, subject, seed)
    digest = hashlib.sha256(made.image.tobytes() + made.label.tobytes()).hexdigest()[:24]
    assert digest == PINNED[name, site, subject, seed]


@pytest.mark.parametrize(("name", "site"), SITES)
def test_grey_values_are_whole_and_every_class_occurs(name, site):
    assert set(TASKS[name].descriptions) == set(TASKS[name].sites)
    for subject in (0, 3):
        made = held(name, site, subject)
        assert made.image.dtype == np.float32
        assert made.label.dtype == np.uint8
        assert made.image.shape[-2:] == made.label.shape[-2:]
        assert np.array_equal(made.image, np.rint(made.image))
        assert 0 <= made.image.min() < made.image.max() <= TOP[name]
        assert set(np.unique(made.label)) == set(find_manifest(name).classes)


@pytest.mark.parametrize(("name", "site"), SITES)
def test_splits_are_numbered_without_gaps_and_share_no_subject(name, site):
    splits = TASKS[name].subjects[site]
    assert list(splits) == ["train", "val", "test"]
    numbers = [number for split in splits.values() for number in split]
    assert numbers == list(range(len(numbers)))
    assert min(map(len, splits.values())) >= 2


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("bad", [("Z", 0, 0), ("A", -1, 0), ("A", 0, -2)])
def test_unknown_site_and_negative_numbers_are_errors(name, bad):
    with pytest.raises(ConfigError if bad[0] == "Z" else DataError, match=name):
        TASKS[name].generate(*bad)


def test_streams_of_a_subject_are_keyed_apart():
    """Other purpose, site, subject or seed: other numbers; the same key: the same numbers."""

    def draw(settings, group, stream):
        return np.stack([stream(purpose).uniforms(4) for purpose in range(3)]), np.zeros(1)

    generator = Generator("phantom-glands", 1, 99, draw)

    def draws(*key):
        return [tuple(row) for row in generator.generate(*key).image]

    first = draws("A", 0, 0)
    assert first == draws("A", 0, 0)
    others = [first, draws("B", 0, 0), draws("A", 1, 0), draws("A", 0, 1)]
    assert len({numbers for three in others for numbers in three}) == 12


def test_numbers_of_splits_and_even_spread():
    assert numbered(2, 1, 3) == {"train": [0, 1], "val": [2], "test": [3, 4, 5]}
    places = sorted(spread(n) for n in range(50))
    assert 0 <= places[0] < places[-1] < 1
    assert max(np.diff(places)) < 0.06
