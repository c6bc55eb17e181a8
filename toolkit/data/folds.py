"""Cross-validation: the patients of a task dealt into folds, each fold a task of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from toolkit import registry
from toolkit.data.case import Case
from toolkit.data.randomness import keyed_random
from toolkit.errors import ConfigError
from toolkit.registry import register

if TYPE_CHECKING:
    from toolkit.data.task import Task


def make_folds(task: Task, count: int, seed: int = 0) -> list[Task]:
    """See `Task.folds`."""
    subjects = {case.subject for case in task.cases()}
    if count < 3 or count > len(subjects):
        what = f"{len(subjects)} patients cannot be dealt into {count} folds."
        fix = "Use at least 3 folds (one is tested, one selects the weights, the others train), at most one a patient."
        raise ConfigError(what, where=f"task {task.name!r}, folds({count})", fix=fix)
    places = deal(task.cases(), count, seed)
    recipe, folds = registry.describe(task), []
    for index in range(count):
        splits = {index: "test", (index + 1) % count: "val"}
        cases = [dataclasses.replace(case, split=splits.get(places[case.subject], "train")) for case in task.cases()]
        arguments = {"task": recipe, "index": index, "count": count, "seed": seed}
        config = None if recipe is None else {"name": "fold", "arguments": arguments}
        folds.append(task.restricted(cases, name=f"{task.name}-fold{index}of{count}", toolkit_config=config))
    return folds


@register("task", "fold")
def fold(task: Task | Mapping[str, Any], *, index: int, count: int, seed: int = 0) -> Task:
    """One of `Task.folds`, counted from 0; this is how a run finds its fold again."""
    base = registry.build("task", dict(task)) if isinstance(task, Mapping) else task
    return make_folds(base, count, seed)[index]


def deal(cases: Sequence[Case], count: int, seed: int) -> dict[str, int]:
    """The fold of every subject: strata of (sites, groups) are shuffled and dealt out one after the other.

    The dealing goes on where the last stratum ended, so that folds differ by one subject at most, in every stratum
    and altogether.
    """
    strata: dict[str, set[tuple[str, str]]] = {}
    for case in cases:
        strata.setdefault(case.subject, set()).add((case.site, case.group or ""))
    members: dict[str, list[str]] = {}
    for subject in sorted(strata):
        members.setdefault(repr(sorted(strata[subject])), []).append(subject)
    dealt: list[str] = []
    for stratum in sorted(members):
        order = keyed_random("folds", seed, stratum, len(members[stratum])).permutation(len(members[stratum]))
        dealt += [members[stratum][index] for index in order]
    return {subject: place % count for place, subject in enumerate(dealt)}
