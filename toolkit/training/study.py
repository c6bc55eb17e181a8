"""`compare`: the same training with several methods, seeds and folds, paired, resumable, and judged with its uncertainty."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from toolkit.errors import CheckpointError, ConfigError
from toolkit.features.provenance import FLOOR
from toolkit.files import absolute, make_folder, read_sealed, write_sealed
from toolkit.inference.executors import Submits, hand_out
from toolkit.measure.statistics import Comparison, compare_methods
from toolkit.process_state import thread_count
from toolkit.results import DataFrame
from toolkit.training.arms import Arm, Factory, baseline_of, checked_arms, first_networks, folder
from toolkit.training.config import TrainConfig, as_config
from toolkit.training.directory import check_empty
from toolkit.training.engine import content_hash, environment
from toolkit.training.regularizer import Loss, Objective, Regularizer
from toolkit.training.segmentation import as_objective
from toolkit.training.serialization import describe
from toolkit.training.train import train_or_resume

RECORD = "study.json"
_SCORES = ("method", "seed", "fold", "site", "case", "subject", "class", "metric", "value", "status")


@dataclasses.dataclass(kw_only=True)
class Study(Comparison):
    """What `compare` returns: the comparison with the plain training, and the scores it rests on.

    Attributes:
        scores: one row a method, seed, case and class; in cross-validation with the fold that tested the case.
        runs: directory of every training, by method and seed ("segreg", "0"), in cross-validation by method, seed
            and fold ("segreg", "0/fold-3").
        path: directory of the study.
        settings: its record: arms, training settings, folds, and hashes of the data and of the first weights by seed.
    """

    scores: DataFrame
    runs: dict[str, dict[str, str]]
    path: str
    settings: dict[str, Any]
    kind: ClassVar[str] = "study"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """One training of a study; plain objects, so that any executor can carry it to another process."""

    method: str
    seed: int
    fold: int | None
    split: str
    metric: str
    model: nn.Module
    task: Any
    objective: Objective
    regularizers: list[Regularizer]
    config: TrainConfig
    folder: Path
    options: dict[str, Any]  # of `train`

    def run(self) -> DataFrame:
        """Train, or continue, and score; what is held here stays as it is."""
        model, objective, regularizers = copy.deepcopy((self.model, self.objective, self.regularizers))
        with thread_count(self.config.threads):
            parts = (model, self.task, objective, regularizers, self.config)
            run = train_or_resume(self.folder, *parts, **self.options)
            table = run.evaluate(self.split, self.options["site"], metrics=(self.metric,))
        place = {} if self.fold is None else {"fold": self.fold}
        return table.assign(method=self.method, seed=self.seed, **place)


def compare(
    arms: Mapping[str, Arm | Regularizer | Sequence[Regularizer] | None],
    *,
    task: Any,
    model: Factory | None = None,
    config: TrainConfig | Mapping[str, Any] | None = None,
    seeds: Iterable[int] = range(3),
    folds: int | Sequence[Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    executor: Submits | Callable[[], Submits] | None = None,
    objective: Objective | Loss | None = None,
    baseline: str | None = None,
    metric: str = "dice",
    split: str = "test",
    site: str | Sequence[str] | None = None,
    aliases: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Study:
    """Train several methods under several seeds, and compare them with the plain training.

    Under one seed all arms without a network of their own start from the same weights and see the same batches with
    the same augmentation, so that their differences are paired; arms with their own network are paired by patient,
    seed and fold. Every training is a run directory of its own below `out`: a study that was stopped goes on when it
    is called again, and arms or seeds can be added to one. All trainings use one thread count (the config's, else
    this process's), so that they give the same bits wherever they run.

    Args:
        arms: by name, a regularizer (one, several or None) or an `Arm` with its own network, objective, regularizer
            or settings, for example {"plain": None, "segreg": SegReg(), "cooperative": Arm(model=..., objective=...)}.
        task: data.
        model: makes the network of every arm that has none of its own; called under each seed.
        config: settings of every training; its seed is replaced.
        seeds: at least two for a verdict.
        folds: cross-validation: how many folds (`task.folds(folds)`), or the tasks of the folds themselves
            (`task.folds(5, seed=1)`). Every arm trains once a fold and seed, and every patient is tested once a seed.
        out: directory of the study; None = a new one below `runs/`.
        executor: any `concurrent.futures.Executor` of processes or machines, or a function that makes one (it is
            called again when a pool has lost a worker); None = one training after the other. A training whose
            worker was lost goes on from its newest checkpoint. Threads of one process would share the global random
            state, so give those one worker.
        objective: supervised part; None = cross-entropy plus soft Dice.
        baseline: the arm that the others are compared with; None = the first plain one, else the first.
        metric: dice, iou, hd95 or assd.
        split: what is scored.
        site: train and score on this site or these.
        aliases: layer names for aliases.
        progress: show a bar for each training (never with an executor).

    Returns:
        `.table()` has a row a method: mean with its interval, paired difference to the baseline with its interval,
        smallest detectable difference and verdict; see `toolkit.compare_scores`. `.write_table("table.tex")` writes
        it as it stands in a paper.

    Raises:
        ConfigError: no arms or seeds, names that clash, a factory that gives other weights under the same seed, or
            a study with other settings in `out`.
        CheckpointError: a run below `out` is damaged or is not the one described.
        ResultError: fewer than 2 patients in the split.
        ToolkitError: the executor lost its workers again and again.

    Example:
        >>> arms, make = {"plain": None, "segreg": tk.SegReg()}, lambda: tk.unet(1, 4, channels=(4, 8))
        >>> study = tk.compare(arms, model=make, task=task, config=config, seeds=range(2), out="runs/study")
        >>> table = study.table()
    """
    config = as_config(config)
    chosen = checked_arms(arms, model, config)
    first = baseline_of(chosen, baseline)
    seeds = [int(seed) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"A study needs different seeds, not {seeds}.", where="compare(seeds=...)")
    parts = _fold_tasks(task, folds, split)
    name = f"{getattr(task, 'name', 'task')}-study-{secrets.token_hex(3)}"
    path = absolute(Path("runs") / name if out is None else out)
    objective = as_objective(objective)
    networks, digests = first_networks(chosen, model, seeds)
    record = {
        "config": {**config.to_dict(), "seed": None},
        "objective": describe("objective", objective),
        "data": content_hash(task),
        "folds": None if folds is None else [content_hash(part) for part in parts.values()],
        "site": site if site is None or isinstance(site, str) else list(site),
        "taps": dict(aliases or {}),
        "weights": digests,
        "arms": {name: arm.describe() for name, arm in chosen.items()},
    }
    record = _recorded(path, json.loads(json.dumps(record)))
    config = config.replace(threads=record["threads"])
    options = {"aliases": dict(aliases or {}), "site": site, "progress": progress and executor is None}
    trainings = [
        Training(
            method=name,
            seed=seed,
            fold=fold,
            split=split,
            metric=metric,
            model=networks[name, seed],
            task=part,
            objective=objective if arm.objective is None else as_objective(arm.objective),
            regularizers=arm.regularizers,
            config=config.replace(**{**dict(arm.config or {}), "seed": seed}),
            folder=path / ("" if fold is None else f"fold-{fold}") / f"seed-{seed}" / folder(name),
            options=options,
        )
        for fold, part in parts.items()
        for seed in seeds
        for name, arm in chosen.items()
    ]
    tables = hand_out([training.run for training in trainings], executor, "compare", "trainings")
    return _judged(tables, trainings, first, path, record)


def _fold_tasks(task: Any, folds: int | Sequence[Any] | None, split: str) -> dict[int | None, Any]:
    if folds is None:
        return {None: task}
    if split == "train":
        what = "Cross-validation scores what was not trained on."
        fix = 'Use split="test", which holds every patient once.'
        raise ConfigError(what, where='compare(folds=..., split="train")', fix=fix)
    return dict(enumerate(task.folds(folds) if isinstance(folds, int) else folds))


def _judged(
    tables: list[DataFrame], trainings: list[Training], baseline: str, path: Path, record: dict[str, Any]
) -> Study:
    import pandas as pd

    scores = pd.concat(tables, ignore_index=True)
    scores = scores[[name for name in _SCORES if name in scores.columns]]
    metric = trainings[0].metric
    comparison = compare_methods(scores, baseline, metric=metric)
    runs: dict[str, dict[str, str]] = {}
    for training in trainings:
        place = str(training.seed) if training.fold is None else f"{training.seed}/fold-{training.fold}"
        runs.setdefault(training.method, {})[place] = str(training.folder)
    now = environment(trainings[0].config)
    design = {
        "split": trainings[0].split,
        "seeds": sorted({t.seed for t in trainings}),
        "folds": len({t.fold for t in trainings}) if record["folds"] else None,
        "steps": trainings[0].config.steps,
    }
    return Study(
        baseline=baseline,
        metric=metric,
        numbers=comparison.numbers,
        scores=scores,
        runs=runs,
        path=str(path),
        settings=record,
        provenance={
            "measure": "study",
            "arms": _scored_arms(comparison, design),
            "data": record["data"],
            "parameters": {**comparison.provenance["parameters"], **design},
            "versions": {name: now[name] for name in ("toolkit", "torch", "numpy", "python")},
            "threads": now["threads"],
            "device": now["device"],
        },
    )


def _scored_arms(comparison: Comparison, design: dict[str, Any]) -> list[dict[str, Any]]:
    """Every arm's mean score as a figure's caption tells it, and its stamp where that is below the floor."""
    if comparison.metric != "dice":
        return []
    told = {name: design[name] for name in ("steps", "split")}
    told |= {"seed": ", ".join(map(str, design["seeds"])), "floor": FLOOR}
    return [
        {"network": {**told, "name": row["method"], "dice": float(row["mean"]), "patients": int(row["patients"])}}
        for row in comparison.numbers.to_dict("records")
    ]


def _recorded(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write the study's record, or check that the one here allows these trainings, and add to it.

    The thread count that the study began with is kept, so that a study continued elsewhere gives the same bits.
    """
    file = path / RECORD
    if not file.exists():
        check_empty(path)
        make_folder(path)
        record = {**record, "threads": record["config"]["threads"] or torch.get_num_threads()}
        write_sealed(file, record)
        return record
    try:
        recorded = read_sealed(file)
        threads = recorded["threads"]
        differing = [key for key in record if key not in ("weights", "arms") and recorded[key] != record[key]]
        for key in ("weights", "arms"):
            shared = set(recorded[key]) & set(record[key])
            differing += [f"{key} {name}" for name in sorted(shared) if recorded[key][name] != record[key][name]]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{RECORD} is damaged.", where=path) from error
    if differing:
        what = f"This folder holds a study with other settings: {', '.join(differing)}."
        raise ConfigError(what, where=path, fix="Choose another `out`, or the settings of that study.")
    merged = {key: {**recorded[key], **record[key]} for key in ("weights", "arms")}
    record = {**record, "threads": threads, **merged}
    write_sealed(file, record)
    return record
