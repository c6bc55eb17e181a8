"""Strategies of a sequence: what a stage trains on, where it starts, and what it keeps of the stages before."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.data.randomness import keyed_random
from toolkit.data.task import Task
from toolkit.errors import ConfigError
from toolkit.features.modules import unwrap
from toolkit.features.untouched import untouched
from toolkit.objectives.base import Objective
from toolkit.objectives.segmentation import fitted_label
from toolkit.regularizers.base import Regularizer
from toolkit.regularizers.continual import ElasticWeights, LearningWithoutForgetting
from toolkit.training.run import Run


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


@dataclasses.dataclass(frozen=True)
class Joint(Strategy):
    """All sites at once, with as many steps as the sequence has altogether: the upper reference J."""

    name: ClassVar[str] = "joint"
    one_stage: ClassVar[bool] = True

    def data(self, task: Any, sites: tuple[str, ...], stage: int) -> tuple[Any, Any]:
        """Every site."""
        return task, list(dict.fromkeys(sites))


@dataclasses.dataclass(frozen=True)
class SingleTask(Strategy):
    """Each site alone, from the first weights: gives S."""

    name: ClassVar[str] = "single_task"
    carries_on: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True)
class Rehearsal(Strategy):
    """The site's training cases and a share of the volumes of every earlier site; stores data.

    Args:
        share: of an earlier site's training volumes, at least one.
        seed: of the choice.
    """

    name: ClassVar[str] = "rehearsal"
    share: float = 0.25
    seed: int = 3299

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"share must be above 0 and at most 1, not {self.share}.", where="Rehearsal")

    def data(self, task: Any, sites: tuple[str, ...], stage: int) -> tuple[Any, Any]:
        """A task whose training cases are those; validation is the site's own, testing everything."""
        kept = [
            case for site in dict.fromkeys(sites[:stage]) if site != sites[stage] for case in self.stored(task, site)
        ]
        cases = [
            *task.cases("train", site=sites[stage]),
            *kept,
            *task.cases("val", site=sites[stage]),
            *task.cases("test"),
        ]
        names = [site for site in task.sites if any(case.site == site for case in cases)]
        view = Task(
            f"{task.name}-rehearsal-{stage}",
            cases,
            dims=task.dims,
            channels=task.channels,
            classes=task.classes,
            patch_size=task.patch_size,
            normalisation=task.normalisation,
            sites=names,
            flips=task.flips,
            licence=task.licence,
            citation=task.citation,
        )
        return view, None

    def stored(self, task: Any, site: str) -> list[Any]:
        """The training cases of a site that are kept: whole volumes."""
        cases = task.cases("train", site=site)
        volumes = list(dict.fromkeys(case.volume for case in cases))
        count = max(1, round(self.share * len(volumes)))
        order = keyed_random("rehearsal", self.seed, len(volumes)).permutation(len(volumes))
        chosen = {volumes[index] for index in np.sort(order[:count])}
        return [case for case in cases if case.volume in chosen]


@dataclasses.dataclass(frozen=True)
class ElasticWeightConsolidation(Strategy):
    """EWC in the paper's form: `ElasticWeights` with the Fisher information of every finished stage.

    Args:
        weight: lambda.
        images: how many training images the Fisher information is averaged over, at most.
    """

    name: ClassVar[str] = "ewc"
    weight: float = 0.4
    images: int = 200

    def regularizers(self) -> list[Regularizer]:
        """An empty memory."""
        return [ElasticWeights(self.weight)]

    def remember(self, regularizers: list[Regularizer], run: Run) -> None:
        """Add the stage's Fisher information."""
        network = unwrap(run.model)
        found = fisher_information(
            network, run.task, run.objective, site=run.site, images=self.images, patch_size=run.config.patch_size
        )
        for regularizer in regularizers:
            if isinstance(regularizer, ElasticWeights):
                regularizer.remember(network, found)


@dataclasses.dataclass(frozen=True)
class Distillation(Strategy):
    """LwF in the paper's form: `LearningWithoutForgetting` with the network of every finished stage.

    Args:
        weight: of the sum over the earlier networks.
        temperature: tau.
        reduction: "mean", or "batchmean" as one published framework codes it.
    """

    name: ClassVar[str] = "lwf"
    weight: float = 1.0
    temperature: float = 2.0
    reduction: str = "mean"

    def regularizers(self) -> list[Regularizer]:
        """An empty memory."""
        return [LearningWithoutForgetting(self.weight, self.temperature, self.reduction)]

    def remember(self, regularizers: list[Regularizer], run: Run) -> None:
        """Add the stage's network."""
        for regularizer in regularizers:
            if isinstance(regularizer, LearningWithoutForgetting):
                regularizer.remember(unwrap(run.model))


STRATEGIES: dict[str, type[Strategy]] = {
    kind.name: kind for kind in (Strategy, Joint, SingleTask, Rehearsal, ElasticWeightConsolidation, Distillation)
}


def as_strategy(value: Any) -> Strategy:
    """A strategy by name, from its stored form, or as it is.

    Raises:
        ConfigError: there is none of that name.
    """
    if isinstance(value, Strategy):
        return value
    name, settings = (value, {}) if isinstance(value, str) else (value["name"], value["arguments"])
    if name not in STRATEGIES:
        raise ConfigError(
            f"There is no strategy {name!r}.",
            where="train_sequence(strategy=...)",
            fix=f"Known: {', '.join(STRATEGIES)}.",
        )
    return STRATEGIES[name](**settings)


def fisher_information(
    network: nn.Module, task: Any, objective: Objective, *, site: Any = None, images: int = 200, patch_size: Any = None
) -> dict[str, Tensor]:
    """Mean over training images of the squared gradient of the log-likelihood of their labels, by parameter.

    The log-likelihood of an image is the mean over its voxels, so that lambda does not depend on the patch. The network
    is in evaluation mode, images are not augmented; nothing about the network changes.

    Args:
        network: after training on the task.
        task: gives the training images.
        objective: finds the logits in the network's output.
        site: of this site or these.
        images: how many at most.
        patch_size: of the images; None = the task's.
    """
    loader = task.loader("train", site=site, batch_size=1, patch_size=patch_size, augmentation="none")
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    device = next(iter(parameters.values())).device
    count = min(images, len(loader))
    with untouched(network, mode="eval"), torch.enable_grad():
        for step in range(count):
            batch = loader.batch(step)
            logits = objective.logits(network(batch["image"].to(device))).float()
            loss = nn.functional.cross_entropy(logits, fitted_label(batch["label"].to(device), logits))
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    total[name] += gradient.detach().float().square() / count
    return total
