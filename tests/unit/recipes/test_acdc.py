"""The published lists of ACDC subjects."""

from __future__ import annotations

import pytest
from golden_cases import golden_case

from toolkit.errors import ConfigError
from toolkit.recipes.acdc import acdc_splits

LISTS = golden_case("latent_augmentation", "acdc_splits").document()


@pytest.mark.parametrize("split", range(5))
def test_few_subjects(split: int) -> None:
    expected = LISTS["ten_subjects"][str(split)]
    got = acdc_splits(split)
    assert got["train"] == expected["train"], "in the order of the permutation"
    assert sorted(got["validate"]) == sorted(expected["validate"])
    assert got["test"] == expected["test"]


def test_many_subjects() -> None:
    got = acdc_splits(size="large")
    assert {name: sorted(subjects) for name, subjects in got.items()} == {
        name: sorted(LISTS["large"][name]) for name in got
    }
    assert [len(subjects) for subjects in got.values()] == [70, 10, 20]


def test_validation_without_training_subjects() -> None:
    published, clean = acdc_splits(1), acdc_splits(1, clean=True)
    assert set(published["validate"]) & set(published["train"]) == {"002", "022"}
    assert sorted(clean["validate"]) == ["011", "071", "095"]
    assert clean["train"] == published["train"]


def test_what_there_is_not() -> None:
    for arguments in ((5, "ten_subjects"), (-1, "ten_subjects"), (0, "small")):
        with pytest.raises(ConfigError, match="0 to 4"):
            acdc_splits(*arguments)
