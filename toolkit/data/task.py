"""`Task`: the cases of one segmentation problem with its classes, sites and splits."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from toolkit import registry
from toolkit.arguments import checked_methods
from toolkit.data.augment import Augmentation, checked_augmentation
from toolkit.data.case import Case
from toolkit.data.labels import checked_classes, checked_regions
from toolkit.data.loader import Loader, Transform
from toolkit.data.manifest import Manifest
from toolkit.data.normalise import DEFAULT, check_rule, fixed_range
from toolkit.data.splits import deal
from toolkit.errors import ConfigError, DataError, choose
from toolkit.registry import register
from toolkit.results import DataFrame, as_table

SPLITS = ("train", "val", "test")
_BUCKETS = 256
_CHOICES = ("frame", "label_frame", "threshold", "image_key", "label_key")  # of other voxels in the same files
_SETTINGS = (
    *("dims", "channels", "classes", "regions", "patch_size", "normalisation"),
    *("sites", "flips", "manifest", "licence", "citation"),
)


@checked_methods
class Task:
    """Cases, classes, sites and splits of one problem; voxels are read when they are asked for.

    Args:
        name: short name.
        cases: all cases, in a stable order.
        dims: 2 or 3, the spatial axes of one case.
        channels: channels of every image.
        classes: class names by index, 0 = background.
        regions: overlapping regions made of classes, {"whole tumour": (1, 2, 3)}, or None.
        patch_size: network input size if none is asked for.
        normalisation: rule that was applied to the images.
        sites: order of the sites (default: as they appear).
        flips: spatial axes of a case along which a mirrored image is as plausible as the original.
        manifest: manifest it was loaded from, or None.
        licence: licence of the data.
        citation: what to cite.
        toolkit_config: registered name and arguments that rebuild the task, or None.

    Raises:
        DataError: no cases, an id used twice, a subject in two splits, an unknown split or site.

    Example:
        >>> len(task.cases("test", site="B")), task.loader("train", batch_size=4).batch(0)["image"].shape
        (2, torch.Size([4, 1, 32, 32]))
    """

    def __init__(
        self,
        name: str,
        cases: Sequence[Case],
        *,
        dims: int,
        channels: int,
        classes: Mapping[int, str],
        regions: Mapping[str, Sequence[int]] | None = None,
        patch_size: Sequence[int],
        normalisation: str = DEFAULT,
        sites: Sequence[str] | None = None,
        flips: Sequence[int] = (),
        manifest: Manifest | None = None,
        licence: str = "",
        citation: str = "",
        toolkit_config: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.dims, self.channels = name, dims, int(channels)
        self.classes = checked_classes(classes)
        self.regions = checked_regions(regions, self.classes)
        self.patch_size = checked_patch(patch_size, dims)
        self.normalisation = check_rule(normalisation)
        self.flips = tuple(int(axis) for axis in flips)
        self.manifest, self.licence, self.citation = manifest, licence, citation
        self.toolkit_config = None if toolkit_config is None else dict(toolkit_config)
        self._cases = list(cases)
        self.sites: tuple[str, ...] = tuple(sites or dict.fromkeys(case.site for case in self._cases))
        self._contents: dict[str, Any] | None = None
        _check_cases(name, self._cases, self.sites)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have cases, in the order train, val, test."""
        present = {case.split for case in self._cases}
        return tuple(split for split in SPLITS if split in present)

    def cases(
        self, split: str | None = None, site: str | Iterable[str] | None = None, *, patients: int | None = None
    ) -> list[Case]:
        """Cases of a split and of one or several sites (None = all), of their first so many patients, always in the same order.

        Raises:
            ConfigError: a split or site that does not exist; the message lists those that do.
        """
        if split is not None:
            choose("split", split, SPLITS, where=f"task {self.name!r}")
        wanted = set(self.checked_sites(site))
        cases = [case for case in self._cases if split in (None, case.split) and case.site in wanted]
        if patients is None:
            return cases
        own = {site: list(dict.fromkeys(c.subject for c in cases if c.site == site))[:patients] for site in wanted}
        return [case for case in cases if case.subject in own[case.site]]

    def checked_sites(self, site: str | Iterable[str] | None) -> tuple[str, ...]:
        """Site names as a tuple (None = all).

        Raises:
            ConfigError: an unknown site; the message lists the known ones.
        """
        wanted = self.sites if site is None else (site,) if isinstance(site, str) else tuple(site)
        for name in wanted or ("",):
            choose("site", name, self.sites, where=f"task {self.name!r}")
        return tuple(wanted)

    def loader(
        self,
        split: str = "train",
        site: str | Iterable[str] | None = None,
        *,
        batch_size: int = 16,
        patch_size: Sequence[int] | None = None,
        seed: int = 0,
        augmentation: str | Augmentation | Transform = "none",
        shuffle: bool = True,
        foreground: float | None = None,
    ) -> Loader:
        """Batches of one split; `loader.batch(step)` depends on nothing but `seed` and `step` (see `Loader`).

        Args:
            split: whose cases.
            site: one, several or all (None).
            batch_size: samples per batch.
            patch_size: size of every sample; default the task's.
            seed: base of all random numbers.
            augmentation: preset name, `Augmentation`, or a callable on the sample, such as MONAI's dictionary transforms
                (see `toolkit.data.loader`), whose random numbers are keyed like all others.
            shuffle: False keeps the order of the cases in every epoch.
            foreground: share of crops that are placed on foreground (default 0.5).

        Raises:
            ConfigError: unknown names, or a split without cases.
        """
        cases = self.cases(split, site)
        if not cases:
            counts = {name: len(self.cases(name, site)) for name in SPLITS}
            what = f"The split {split!r} has no cases{'' if site is None else f' at {site!r}'}."
            raise ConfigError(what, where=f"task {self.name!r}", fix=f"Cases per split there: {counts}.")
        return Loader(
            cases,
            channels=self.channels,
            batch_size=int(batch_size),
            patch_size=self.patch_size if patch_size is None else checked_patch(patch_size, self.dims),
            seed=seed,
            augmentation=None if callable(augmentation) else checked_augmentation(augmentation),
            transform=augmentation if callable(augmentation) else None,
            flips=self.flips,
            shuffle=shuffle,
            foreground=0.5 if foreground is None else float(foreground),
            limits=fixed_range(self.normalisation),
        )

    def content_hash(self) -> str:
        """SHA-256 over every case's identity and the bytes its voxels come from, wherever they lie (computed once)."""
        return hashlib.sha256(json.dumps(self.contents()).encode()).hexdigest()

    def contents(self) -> dict[str, Any]:
        """What `content_hash` is made of, in a size that does not grow with the cases (computed once).

        Returns:
            Counts, class names, regions and rule as they are, and `cases`: 256 short hashes, each of the cases whose
            name falls into it, so that a difference can be narrowed to a few cases (`difference`).
        """
        if self._contents is None:
            prints: dict[int, str] = {}
            buckets: list[Any] = [hashlib.sha256() for _ in range(_BUCKETS)]
            for case in self._cases:
                key = id(case.reader)
                prints[key] = prints.get(key) or case.reader.fingerprint()
                identity = [case.id, case.site, case.split, case.subject, case.index, case.relabel, prints[key]]
                coding: list[Any] = [pair for pair in case.reader.label_values or () if pair[0] != pair[1]]
                read = {key: str(getattr(case.reader, "options", {}).get(key)).removesuffix(".0") for key in _CHOICES}
                coding += [pair for pair in read.items() if pair[1] not in ("None", "0", "128")]  # of official sets
                buckets[_bucket(case.id)].update(json.dumps([*identity, *coding]).encode())
            self._contents = {
                "count": len(self._cases),
                "sites": list(self.sites),
                "classes": list(self.classes.values()),
                "regions": None if self.regions is None else {k: list(v) for k, v in self.regions.items()},
                "normalisation": self.normalisation,
                "cases": [one.hexdigest()[:12] for one in buckets],
            }
        return self._contents

    def difference(self, recorded: Mapping[str, Any]) -> str:
        """What differs from the `contents` of another task, in a sentence; "" if nothing does."""
        now = self.contents()
        other = {name: value for name, value in now.items() if name != "cases" and recorded.get(name) != value}
        words = [f"{name}: {recorded.get(name)} there, {value} here" for name, value in other.items()]
        pairs = zip(now["cases"], recorded.get("cases", ()), strict=False)
        changed = {number for number, (here, there) in enumerate(pairs) if here != there}
        suspects = [case.id for case in self._cases if _bucket(case.id) in changed]
        if suspects:
            words.append(f"voxels, labels, site, split or subject of up to {len(suspects)}: {', '.join(suspects[:5])}")
        return "; ".join(words)

    def table(self) -> DataFrame:
        """One row per case: case, volume, position, subject, site, split, group, spacing, source."""
        names = ["id", "volume", "position", "subject", "site", "split", "group", "spacing", "source"]
        return as_table([[getattr(case, name) for name in names] for case in self._cases], ["case", *names[1:]])

    def verify(self) -> DataFrame:
        """Check every file: one row per file or volume with a verdict (see `toolkit.data.verify`)."""
        from toolkit.data.verify import verify

        return verify(self)

    def usable(self, table: DataFrame | None = None) -> Task:
        """This task without every case that `verify` does not call `ok`; of duplicates across splits none is kept.

        Args:
            table: result of `verify`; default it is made now.

        Raises:
            DataError: nothing is left.
        """
        from toolkit.data.verify import name_of

        table = self.verify() if table is None else table
        good = set(table.case[table.verdict == "ok"])
        return self.restricted([case for case in self._cases if name_of(case) in good])

    def folds(self, count: int = 5, seed: int = 0) -> list[Task]:
        """Cross-validation: as many tasks, each with its own train, val and test split of all patients.

        Patients are dealt into `count` parts, stratified by site and group; all cases of a patient stay together. Task
        i tests on part i, so that every patient is tested exactly once, selects weights on part i + 1 (the val split;
        it is neither trained on nor tested in that fold), and trains on the others. The splits that the task has
        itself are set aside: take a published test set out before (`task.restricted(...)`) if it must stay unseen.

        Args:
            count: number of folds, at least 3 and at most one a patient.
            seed: another seed deals other folds.

        Raises:
            ConfigError: too few or too many folds.
        """
        subjects = {case.subject for case in self._cases}
        if count < 3 or count > len(subjects):
            what = f"{len(subjects)} patients cannot be dealt into {count} folds."
            fix = "Use at least 3 folds (one is tested, one selects the weights, the others train), at most one a patient."
            raise ConfigError(what, where=f"task {self.name!r}, folds({count})", fix=fix)
        places = deal(self._cases, count, seed)
        recipe, folds = registry.describe(self), []
        for index in range(count):
            splits = {index: "test", (index + 1) % count: "val"}
            cases = [dataclasses.replace(case, split=splits.get(places[case.subject], "train")) for case in self._cases]
            arguments = {"task": recipe, "index": index, "count": count, "seed": seed}
            config = None if recipe is None else {"name": "fold", "arguments": arguments}
            folds.append(self.restricted(cases, name=f"{self.name}-fold{index}of{count}", toolkit_config=config))
        return folds

    def restricted(self, cases: Sequence[Case], *, name: str | None = None, **changes: Any) -> Task:
        """A task of these cases with the same settings but for `changes`, which are arguments of `Task`.

        Without `toolkit_config` among them it cannot be rebuilt from its name.
        """
        own = {setting: getattr(self, setting) for setting in _SETTINGS}
        return Task(self.name if name is None else name, cases, **{**own, **changes})

    def __len__(self) -> int:
        return len(self._cases)

    def __repr__(self) -> str:
        counts = ", ".join(f"{split} {len(self.cases(split))}" for split in self.splits)
        return (
            f"Task({self.name!r}, {self.dims}D, {self.channels} channel(s), classes {list(self.classes.values())}, "
            f"sites {list(self.sites)}, cases: {counts})"
        )


@register("task", "fold")
def fold(task: Task | Mapping[str, Any], *, index: int, count: int, seed: int = 0) -> Task:
    """One of `Task.folds`, counted from 0; this is how a run finds its fold again."""
    base = registry.build("task", dict(task)) if isinstance(task, Mapping) else task
    return base.folds(count, seed)[index]


def _bucket(name: str) -> int:
    return hashlib.sha256(name.encode()).digest()[0]


def checked_patch(size: Sequence[int], dims: int) -> tuple[int, ...]:
    """Patch size as a tuple of positive whole numbers."""
    patch = tuple(int(side) for side in size)
    if len(patch) != dims or min(patch) < 1:
        fix = "For example (96, 96) or (32, 48, 32)."
        raise ConfigError(f"patch_size must be {dims} positive numbers, not {patch}.", fix=fix)
    return patch


def _check_cases(name: str, cases: Sequence[Case], sites: Sequence[str]) -> None:
    if not cases:
        raise DataError("The task has no cases.", where=f"task {name!r}", fix="Check the folders or lists given.")
    ids: set[str] = set()
    split_of: dict[str, str] = {}
    for case in cases:
        if case.id in ids:
            raise DataError(f"Two cases are called {case.id!r}.", where=f"task {name!r}", fix="Give each its own id.")
        ids.add(case.id)
        if case.split not in SPLITS:
            what = f"The case {case.id!r} is in the split {case.split!r}."
            raise DataError(what, where=f"task {name!r}", fix=f"Use one of {', '.join(SPLITS)}.")
        if split_of.setdefault(case.subject, case.split) != case.split:
            what = f"The subject {case.subject!r} is in two splits: {split_of[case.subject]} and {case.split}."
            fix = "Put all cases of a subject into one split; otherwise the test scores are too good."
            raise DataError(what, where=f"task {name!r}", fix=fix)
        if case.site not in sites:
            what = f"The case {case.id!r} is from the site {case.site!r}, which is not listed."
            raise DataError(what, where=f"task {name!r}", fix=f"Listed: {', '.join(sites)}.")
