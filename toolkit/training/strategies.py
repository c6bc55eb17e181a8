"""Strategies of a sequence: what a stage trains on, where it starts, and what it keeps of the stages before."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from toolkit import registry
from toolkit.data.randomness import keyed_random
from toolkit.errors import ConfigError
from toolkit.registry import register
from toolkit.training.protocol import Regularizer
from toolkit.training.run import Run


@register("strategy", "sequential")
@dataclasses.dataclass(frozen=True)
class Strategy:
    """Sequential fine-tuning, and the base of the others.

    Class attributes:
        name: what `train_sequence(strategy=...)` calls it.
        carries_on: whether a stage starts from the weights of the one before (else from the first weights).
        one_stage: whether all sites are trained on at once.
    """

    name: ClassVar[str] = "sequential"
    carries_on: ClassVar[bool] = True
    one_stage: ClassVar[bool] = False

    def regularizers(self) -> list[Regularizer]:
        """What the strategy adds to the caller's regularizers; one object for the whole sequence."""
        return []

    def data(self, task: Any, sites: tuple[str, ...], stage: int) -> tuple[Any, Any]:
        """The task and the site (or sites) of a stage."""
        return task, sites[stage]

    def remember(self, regularizers: list[Regularizer], run: Run) -> None:
        """Called after a stage, before the next one is made."""


@register("strategy", "joint")
@dataclasses.dataclass(frozen=True)
class Joint(Strategy):
    """All sites at once, with as many steps as the sequence has altogether: the upper reference J."""

    name: ClassVar[str] = "joint"
    one_stage: ClassVar[bool] = True

    def data(self, task: Any, sites: tuple[str, ...], stage: int) -> tuple[Any, Any]:
        """Every site."""
        return task, list(dict.fromkeys(sites))


@register("strategy", "single_task")
@dataclasses.dataclass(frozen=True)
class SingleTask(Strategy):
    """Each site alone, from the first weights: gives S."""

    name: ClassVar[str] = "single_task"
    carries_on: ClassVar[bool] = False


@register("strategy", "rehearsal")
@dataclasses.dataclass(frozen=True)
class Rehearsal(Strategy):
    """The site's training cases and a share of the volumes of every earlier site; stores data.

    Args:
        share: of an earlier site's training volumes, at least one.
        seed: of the choice, with the number of volumes: sites of as many give those in the same places of their lists.
    """

    name: ClassVar[str] = "rehearsal"
    share: float = 0.25
    seed: int = 3299

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"share must be above 0 and at most 1, not {self.share}.", where="Rehearsal")

    def data(self, task: Any, sites: tuple[str, ...], stage: int) -> tuple[Any, Any]:
        """A task whose training cases are those; validation is the site's own, testing everything."""
        seen = list(dict.fromkeys(sites[: stage + 1]))
        rehearsed = [case for site in seen if site != sites[stage] for case in self.stored(task, site)]
        train, val = (task.cases(split, site=sites[stage]) for split in ("train", "val"))
        cases = [*train, *rehearsed, *val, *task.cases("test")]
        names = [site for site in task.sites if any(case.site == site for case in cases)]
        return task.restricted(cases, name=f"{task.name}-rehearsal-{stage}", sites=names, manifest=None), seen

    def stored(self, task: Any, site: str) -> list[Any]:
        """The training cases of a site that are kept: whole volumes."""
        cases = task.cases("train", site=site)
        volumes = list(dict.fromkeys(case.volume for case in cases))
        count = max(1, round(self.share * len(volumes)))
        order = keyed_random("rehearsal", self.seed, len(volumes)).permutation(len(volumes))
        chosen = {volumes[index] for index in np.sort(order[:count])}
        return [case for case in cases if case.volume in chosen]


def as_strategy(value: Any) -> Strategy:
    """A strategy by name, from its stored form, or as it is."""
    if isinstance(value, Strategy):
        return value
    return registry.build("strategy", {"name": value} if isinstance(value, str) else value)
