"""Splits and folds by subject: given, or derived in one stated way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.data.case import Case
from toolkit.data.randomness import keyed_random
from toolkit.errors import ConfigError

Splits = Mapping[str, Sequence[str]] | Sequence[str] | str | None


def assign_splits(ids: Sequence[str], subjects: Sequence[str], sites: Sequence[str], splits: Splits) -> list[str]:
    """The split of every case: derived, given, or listed.

    `splits` is None = derived: within each site the subjects, shuffled in a fixed way, are cut 60 / 20 / 20 into train /
    val / test (fewer than three subjects at a site: all of them train); one name = all cases; one name per case; or
    {"train": [ids or subjects], ...}, which must name every case.

    Raises:
        ConfigError: names that do not exist, cases without a split, cases in two.
    """
    if splits is None:
        derived = _derived(subjects, sites)
        return [derived[subject] for subject in subjects]
    if isinstance(splits, str):
        return [splits] * len(ids)
    if not isinstance(splits, Mapping):
        if len(splits) != len(ids):
            raise ConfigError(f"{len(splits)} splits were given for {len(ids)} cases.", where="splits")
        return [str(split) for split in splits]
    return _listed(ids, subjects, splits)


def held_out(rows: Sequence[dict[str, Any]], share: float, key: str, units: Sequence[str] | None = None) -> None:
    """Move a share of the training subjects to `val`, drawn in a fixed way, where nobody published which.

    The key says what the draw is for; `units` are what must stay together, one for each row (default the subject).
    """
    names = list(units or (str(row.get("subject") or row["case"]) for row in rows))
    own = sorted({name for row, name in zip(rows, names, strict=True) if row["split"] == "train"})
    if any(row["split"] == "val" for row in rows):
        return
    chosen = {own[i] for i in keyed_random("validation", key).permutation(len(own))[: round(share * len(own))]}
    for row, name in zip(rows, names, strict=True):
        if name in chosen and row["split"] == "train":
            row["split"] = "val"


def _derived(subjects: Sequence[str], sites: Sequence[str]) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for site in dict.fromkeys(sites):
        own = sorted({subject for subject, place in zip(subjects, sites, strict=True) if place == site})
        order = keyed_random("splits", site, len(own)).permutation(len(own))
        test = max(1, round(0.2 * len(own))) if len(own) >= 3 else 0
        for rank, index in enumerate(order):
            # A subject scanned at two sites keeps the split it got first: one subject, one split.
            chosen.setdefault(own[index], "test" if rank < test else "val" if rank < 2 * test else "train")
    return chosen


def _listed(ids: Sequence[str], subjects: Sequence[str], splits: Mapping[str, Sequence[str]]) -> list[str]:
    named: dict[str, str] = {}
    for split, members in splits.items():
        for member in members:
            if named.setdefault(str(member), split) != split:
                raise ConfigError(f"{member!r} is listed in {named[str(member)]} and in {split}.", where="splits")
    unknown = sorted(set(named) - set(ids) - set(subjects))
    if unknown:
        what = f"The splits name cases that do not exist: {', '.join(unknown[:5])}."
        fix = f"Use case ids or subjects, for example {', '.join(list(ids)[:3])}."
        raise ConfigError(what, where="splits", fix=fix)
    chosen = [named.get(case, named.get(subject, "")) for case, subject in zip(ids, subjects, strict=True)]
    missing = [case for case, split in zip(ids, chosen, strict=True) if not split]
    if missing:
        what = f"{len(missing)} cases are in no split, for example {', '.join(missing[:3])}."
        fix = "List every case, or leave splits out to have them derived by subject."
        raise ConfigError(what, where="splits", fix=fix)
    return chosen


def deal(cases: Sequence[Case], count: int, seed: int) -> dict[str, int]:
    """The fold of every subject: strata of (sites, groups) are shuffled and dealt out one after the other.

    Where one stratum ends the next goes on, so that folds differ by one subject at most, in each stratum and altogether.
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
