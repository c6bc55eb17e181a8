"""Training on one site after another: each stage is a run of its own; a strategy says what it keeps of those before."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from toolkit.arguments import checked_methods
from toolkit.errors import CheckpointError, ConfigError, ResultError
from toolkit.features.modules import unwrap
from toolkit.features.provenance import mark_scored, score_of
from toolkit.files import absolute, read_sealed, sha256, write_atomically, write_sealed
from toolkit.measure.segmentation import METRICS
from toolkit.measure.transfer import Transfer, transfer_metrics
from toolkit.models.load import load_weights, tensors_of, weights_bytes
from toolkit.process_state import guarded_random_state
from toolkit.results import DataFrame
from toolkit.training.config import TrainConfig, as_config
from toolkit.training.directory import RunDirectory, check_empty, default_path
from toolkit.training.engine import is_first_process
from toolkit.training.protocol import Loss, Objective, Regularizer, as_regularizers
from toolkit.training.run import Run
from toolkit.training.segmentation import as_objective
from toolkit.training.serialization import described, restore
from toolkit.training.strategies import Strategy, as_strategy
from toolkit.training.train import train_or_resume

RECORD, INITIAL = "sequence.json", "initial.safetensors"


@checked_methods
@dataclasses.dataclass(eq=False)
class Stages:
    """What `train_sequence` returns.

    Attributes:
        path: directory of the sequence, with one run directory a stage.
        stages: the runs in order; each has a network of its own with the weights its stage ended with.
        sites: sites in order: one a stage, unless the strategy trains on all at once.
        initial: the network before the first stage.
        task: that of the sequence; a stage of a rehearsal has a part of it.
        strategy: what the stages keep of those before.
    """

    path: Path
    stages: list[Run]
    sites: tuple[str, ...]
    initial: nn.Module
    task: Any
    strategy: Strategy = dataclasses.field(default_factory=Strategy, kw_only=True)

    @property
    def model(self) -> nn.Module:
        """The network after the last stage."""
        return self.stages[-1].model

    def evaluate(self, split: str = "test", *, metrics: Sequence[str] = METRICS, progress: bool = False) -> DataFrame:
        """Scores on the sites of the sequence after every stage, and before the first (stage -1, trained_on "").

        Returns:
            stage, trained_on, then the columns of `Run.evaluate`. Tables are kept in the stages' directories.
        """
        import pandas as pd

        tables = []
        before = dataclasses.replace(self.stages[0], model=self.initial)
        for stage, run in [(-1, before), *enumerate(self.stages)]:
            run = dataclasses.replace(run, task=self.task)
            table = run.evaluate(split, self.sites, metrics=metrics, progress=progress)
            if stage < 0 and (score := score_of(run.model)):  # not that of a training
                mark_scored(run.model, **{**score, "name": "initial", "steps": 0})
            table.insert(0, "stage", stage)
            table.insert(1, "trained_on", "" if stage < 0 else self.trained_on[stage])
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def dice(self, split: str = "test", *, progress: bool = False) -> DataFrame:
        """Mean foreground Dice per volume: one row a stage (-1 = before training), one column a site."""
        table = self.evaluate(split, metrics=("dice",), progress=progress)
        per_volume = table[table["status"] != "both_absent"].groupby(["stage", "site", "case"])["value"].mean()
        return per_volume.groupby(["stage", "site"]).mean().unstack("site")[list(dict.fromkeys(self.sites))]

    @property
    def trained_on(self) -> tuple[str, ...]:
        """What each stage was trained on: its site, or the sites of a joint training."""
        return ("+".join(self.sites),) if self.strategy.one_stage else self.sites

    def site_scores(self, split: str = "test", *, progress: bool = False) -> list[float]:
        """Mean Dice on each site of the network that last learnt it: S (single task), J (joint), else R's diagonal."""
        matrix = self.dice(split, progress=progress)[list(self.sites)].drop(index=-1).to_numpy()
        return [float(matrix[0 if self.strategy.one_stage else i, i]) for i in range(len(self.sites))]

    def transfer(
        self,
        split: str = "test",
        *,
        single_task: Sequence[float] | Stages | None = None,
        sequential: Stages | None = None,
        progress: bool = False,
    ) -> Transfer:
        """R matrix, mean Dice, backward and forward transfer in all conventions, forgetting.

        Args:
            split: what is scored.
            single_task: score of each site of the same method trained on that site alone, in order, or the stages
                that `strategy="single_task"` gave.
            sequential: the same sequence trained by plain fine-tuning.
            progress: show a bar over volumes.

        Raises:
            ResultError: these stages were not trained one after the other.
        """
        if self.strategy.one_stage or not self.strategy.carries_on:
            what = f"The strategy {self.strategy.name!r} has no sequence, so nothing is transferred."
            fix = "Its scores on the sites: .site_scores(); pass these to a sequence's transfer."
            raise ResultError(what, where=self.path, fix=fix)
        if isinstance(single_task, Stages):  # whose sites may come in another order
            own = dict(zip(single_task.sites, single_task.site_scores(split, progress=progress), strict=True))
            single_task = [own[site] for site in self.sites]
        if sequential is not None and sequential.sites != self.sites:
            raise ResultError(f"The plain sequence is one of {', '.join(sequential.sites)}.", where=self.path)
        untrained, *trained = self.dice(split, progress=progress)[[*self.sites]].to_numpy()
        plain = None if sequential is None else sequential.dice(split, progress=progress)[[*self.sites]].to_numpy()[1:]
        result = transfer_metrics(trained, self.sites, untrained=untrained, single_task=single_task, sequential=plain)
        told = [{"network": score_of(run.model)} for run in self.stages]  # a figure says how much each stage had learnt
        return dataclasses.replace(result, provenance={**result.provenance, "stages": told})

    def history(self) -> DataFrame:
        """The histories of all stages, one below the other, with the site of each."""
        import pandas as pd

        parts = [run.history.assign(site=site) for run, site in zip(self.stages, self.trained_on, strict=True)]
        return pd.concat(parts, ignore_index=True)


def train_sequence(
    model: nn.Module,
    task: Any,
    sites: Sequence[str],
    regularizer: Regularizer | Sequence[Regularizer] | None = None,
    config: TrainConfig | Mapping[str, Any] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    strategy: str | Strategy = "sequential",
    objective: Objective | Loss | None = None,
    aliases: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Stages:
    """Train one network on one site after another.

    Every stage trains with the same settings on the `train` split of its site, selects on the `val` split of that
    site, and hands its selected weights on. Order, patches, augmentation and the regularizers' draws are those of the
    config's seed, the same in every stage. `resume_sequence` continues one that was stopped.

    Args:
        model: trained in place.
        task: has all the sites.
        sites: one a stage, in order.
        regularizer: one, several or none.
        config: settings of every stage.
        out: directory of the sequence; None = a new one below `runs/`.
        strategy: "sequential" (fine-tuning; nothing of earlier sites is kept), "joint" (all sites at once, the upper
            reference), "single_task" (each site from the first weights), "rehearsal", "ewc" or "lwf", or a strategy of
            `toolkit.training.strategies` with other settings. Each goes with or without `regularizer`.
        objective: supervised part; None = cross-entropy plus soft Dice.
        aliases: layer names for aliases.
        progress: show a bar for each stage.

    Raises:
        ConfigError: fewer than one site, an unknown one, an unknown strategy, or a sequence in `out` already.

    Example:
        >>> stages = tk.train_sequence(model, task, ["A", "B"], tk.SegReg(), config, out="runs/sequence")
        >>> forgetting = stages.transfer().table()
    """
    config, strategy = as_config(config), as_strategy(strategy)
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    if not sites:
        raise ConfigError("A sequence needs at least one site.", where="train_sequence(sites=...)")
    for site in sites:
        task.cases("train", site=site)  # an unknown site is an error before anything is written
    regularizers = as_regularizers(regularizer)
    as_regularizers([*regularizers, *strategy.regularizers()])  # a clash of names is an error now
    objective = as_objective(objective)
    path = absolute(default_path(task, regularizers, config.devices) if out is None else out)
    if not is_first_process():
        RunDirectory(path).await_creation(RECORD)
        own: dict[str, Any] = {"progress": progress, "factories": config.factories}
        return resume_sequence(path, model, task, regularizers, objective, **own)
    if (path / RECORD).exists():
        fix = f"Continue it with toolkit.resume_sequence({str(path)!r}), or choose another `out`."
        raise ConfigError("There is a sequence in this folder already.", where=path, fix=fix)
    check_empty(path)
    _copied(unwrap(model))  # one that cannot be copied is an error before anything is written
    parts = {"model": model, "task": task, "objective": objective, "regularizers": regularizers}
    objects = described(parts)
    weights = weights_bytes(tensors_of(unwrap(model)))
    write_atomically(path / INITIAL, weights, parents=True, durable=True)
    record = {"sites": list(sites), "config": config.to_dict(), "taps": dict(aliases or {}), "objects": objects}
    record["strategy"] = {"name": strategy.name, "arguments": dataclasses.asdict(strategy)}
    record["initial"] = sha256(weights)
    write_sealed(path / RECORD, record)
    return _carry_on(path, record, parts, config, progress)


def resume_sequence(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    task: Any = None,
    regularizer: Regularizer | Sequence[Regularizer] | None = None,
    objective: Objective | Loss | None = None,
    *,
    progress: bool = True,
    factories: Mapping[str, Callable[..., Any]] | None = None,
) -> Stages:
    """Continue a sequence that was stopped; a finished one is returned as it is.

    Objects that are not registered toolkit objects must be passed again, as for `resume`.

    Args:
        path: directory of the sequence.
        model: needed if the network is not a registered one.
        task: needed if the task is not.
        regularizer: needed if one is not.
        objective: needed if it is not.
        progress: show a bar for each stage.
        factories: as in `resume`.

    Raises:
        CheckpointError: no sequence here, or see `resume`.

    Example:
        >>> stages = tk.train_sequence(model, task, ["B", "A"], config=config, out="runs/back")
        >>> stages = tk.resume_sequence("runs/back", task=task)
    """
    path = absolute(path, "path")
    if not (path / RECORD).is_file():
        raise CheckpointError(f"There is no readable {RECORD} in this folder.", where=path)
    record = read_sealed(path / RECORD)
    if missing := sorted({"sites", "config", "taps", "objects"} - set(record)):
        raise CheckpointError(f"{RECORD} is damaged: it lacks {', '.join(missing)}.", where=path)
    regularizers = None if regularizer is None else as_regularizers(regularizer)
    given = {"model": model, "task": task, "objective": objective, "regularizers": regularizers}
    with guarded_random_state():
        objects = restore(record["objects"], given, str(path))
    config = TrainConfig.from_dict(record["config"]).with_factories(factories, str(path))
    return _carry_on(path, record, objects, config, progress)


def _carry_on(
    path: Path, record: Mapping[str, Any], objects: Mapping[str, Any], config: TrainConfig, progress: bool
) -> Stages:
    model, task = objects["model"], objects["task"]
    load_weights(unwrap(model), path / INITIAL, sha256=record.get("initial"))
    initial = _copied(unwrap(model))
    strategy, sites = as_strategy(record.get("strategy", "sequential")), tuple(record["sites"])
    regularizers = as_regularizers([*objects["regularizers"], *strategy.regularizers()])
    names = sites
    if strategy.one_stage:
        names, config = (strategy.name,), config.replace(steps=config.steps * len(sites))
    runs: list[Run] = []
    for stage, name in enumerate(names):
        folder = path / f"stage-{stage}-{re.sub(r'[^A-Za-z0-9.+-]+', '_', name)}"
        data, where = strategy.data(task, sites, stage)
        if stage == 1 and strategy.carries_on:
            regularizers = [one.in_later_stage() for one in regularizers]
        if not RunDirectory(folder).exists():  # else the run itself brings back what the strategy had kept
            if not strategy.carries_on:
                load_weights(unwrap(model), path / INITIAL, sha256=record.get("initial"))
            if runs:
                strategy.remember(regularizers, runs[-1])
        place = {"aliases": record["taps"], "site": where, "stage": stage}
        parts = objects["objective"], regularizers
        parts = parts if strategy.carries_on else copy.deepcopy(parts)  # what an objective learnt goes on, or does not
        run = train_or_resume(folder, model, data, *parts, config, progress=progress, **place)
        last = stage == len(names) - 1
        runs.append(run if last else dataclasses.replace(run, model=_copied(unwrap(model), initial)))
    return Stages(path, runs, sites, initial, task, strategy=strategy)


def _copied(model: nn.Module, like: nn.Module | None = None) -> nn.Module:
    """A copy of a network; of one that keeps activations by way of the copy `like` that was made before it ran."""
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError, AttributeError, ValueError, NotImplementedError) as error:
        if like is None:
            what = f"This network cannot be copied, and a sequence keeps one a stage ({type(error).__name__}: {error})."
            fix = "Keep no locks, open files, generators or activations as attributes of the network."
            raise ConfigError(what, where=type(model).__name__, fix=fix) from error
    other = copy.deepcopy(like)
    other.load_state_dict(model.state_dict())
    for module, trained in zip(other.modules(), model.modules(), strict=True):
        module.training = trained.training
    return other
