"""The published lists of ACDC subjects, which the manifest holds."""

from __future__ import annotations

import numpy as np
import pytest
from golden_cases import golden_case

from toolkit.data.manifest import find_manifest

LISTS = golden_case("latent_augmentation", "acdc_splits").document()
OURS = find_manifest("acdc").split_lists


def numbers(subjects: tuple[str, ...]) -> list[str]:
    return [name.removeprefix("patient") for name in subjects]


@pytest.mark.parametrize("split", range(5))
def test_few_subjects(split: int) -> None:
    expected, got = LISTS["ten_subjects"][str(split)], OURS[f"ten_subjects_{split}"]
    assert numbers(got["train"]) == expected["train"], "in the order of the permutation"
    assert sorted(numbers(got["test"])) == sorted(expected["test"])
    # Subjects that were trained and validated on are left out of the validation: one subject, one split.
    overlap = set(expected["train"]) & set(expected["validate"])
    assert set(numbers(got["val"])) == set(expected["validate"]) - overlap
    assert bool(overlap) == (split in (1, 4))


def test_few_subjects_are_drawn_from_the_pool_by_numpys_permutation() -> None:
    pool = [f"{b + k:03d}" for b in range(0, 100, 20) for k in (1, 2, 3, 4, 5, 6, 12, 13)]
    for split in range(5):
        drawn = [pool[k] for k in np.random.RandomState(split).permutation(len(pool))[30:40]]
        assert numbers(OURS[f"ten_subjects_{split}"]["train"]) == drawn


def test_many_subjects() -> None:
    names = {"train": "train", "validate": "val", "test": "test"}
    for theirs, ours in names.items():
        assert sorted(numbers(OURS["large"][ours])) == sorted(LISTS["large"][theirs])
    assert [len(OURS["large"][name]) for name in ("train", "val", "test")] == [70, 10, 20]
