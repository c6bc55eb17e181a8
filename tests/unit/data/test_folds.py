"""Cross-validation folds against brute-force counts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from toolkit import registry
from toolkit.data.catalogue import load_task
from toolkit.data.table import task_from_arrays
from toolkit.data.task import Task
from toolkit.errors import ConfigError


def clinic() -> Task:
    """26 patients of two sites and two groups, two scans each; patient p03 was scanned at both sites."""
    patients = [f"p{i:02d}" for i in range(26)]
    sites = {p: "left" if i < 15 else "right" for i, p in enumerate(patients)}
    groups = {p: "ill" if i % 3 == 0 else "well" for i, p in enumerate(patients)}
    rows = [(p, scan, sites[p], groups[p]) for p in patients for scan in "ab"]
    rows[7] = ("p03", "b", "right", "ill")
    return task_from_arrays(
        np.zeros((len(rows), 8, 8)),
        np.zeros((len(rows), 8, 8), dtype=np.uint8),
        classes={0: "background", 1: "organ"},
        ids=[f"{p}{scan}" for p, scan, _, _ in rows],
        subjects=[row[0] for row in rows],
        sites=[row[2] for row in rows],
        groups=[row[3] for row in rows],
    )


@pytest.mark.parametrize("count", [3, 5, 26])
def test_every_patient_is_tested_once_and_never_crosses(count: int) -> None:
    task = clinic()
    folds = task.folds(count)
    tested = Counter(subject for fold in folds for subject in {c.subject for c in fold.cases("test")})
    assert tested == Counter({case.subject: 1 for case in task.cases()})
    for index, fold in enumerate(folds):
        parts = [{case.subject for case in fold.cases(split)} for split in ("train", "val", "test")]
        assert sum(len(part) for part in parts) == len(set.union(*parts)) == 26
        assert len(fold) == len(task)
        assert parts[1] == {case.subject for case in folds[(index + 1) % count].cases("test")}


def test_sites_and_groups_are_spread_as_evenly_as_whole_patients_allow() -> None:
    folds = clinic().folds(5, seed=3)
    kinds = [Counter({c.subject: (c.site, c.group) for c in fold.cases("test")}.values()) for fold in folds]
    for kind in {("left", "ill"), ("left", "well"), ("right", "ill"), ("right", "well")}:
        counts = [count[kind] for count in kinds]
        assert max(counts) - min(counts) <= 2 if kind[1] == "ill" else max(counts) - min(counts) <= 1
    assert max(map(len, (f.cases("test") for f in folds))) - min(map(len, (f.cases("test") for f in folds))) <= 2


def test_a_seed_deals_the_same_folds_again_and_another_seed_others() -> None:
    def tested(seed: int) -> list[set[str]]:
        return [{case.id for case in fold.cases("test")} for fold in clinic().folds(5, seed=seed)]

    assert tested(0) == tested(0)
    assert tested(0) != tested(1)


def test_a_fold_of_a_named_task_is_rebuilt_from_its_record() -> None:
    fold = load_task("phantom-glands").folds(4, seed=2)[1]
    again = registry.build("task", registry.describe(fold) or {})
    assert again.name == fold.name == "phantom-glands-fold1of4"
    assert again.content_hash() == fold.content_hash()
    assert [c.id for c in again.cases("test")] == [c.id for c in fold.cases("test")]


def test_too_few_and_too_many_folds() -> None:
    for count in (1, 2, 27):
        with pytest.raises(ConfigError, match=f"26 patients cannot be dealt into {count} folds"):
            clinic().folds(count)
