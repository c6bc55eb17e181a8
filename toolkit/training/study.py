"""`compare`: the same training with several methods, seeds and folds, paired, resumable, and judged with its uncertainty."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from toolkit.errors import CheckpointError, ConfigError
from toolkit.features.modules import unwrap
from toolkit.features.provenance import FLOOR
from toolkit.files import absolute, make_folder, read_sealed, sha256, write_sealed
from toolkit.inference.executors import Submits, hand_out
from toolkit.measure.statistics import Comparison, compare_methods
from toolkit.models.load import tensors_of, weights_bytes
from toolkit.process_state import seeded, thread_count
from toolkit.results import DataFrame
from toolkit.training.config import TrainConfig, as_config
from toolkit.training.directory import check_empty
from toolkit.training.engine import content_hash, environment, resolve_device
from toolkit.training.protocol import Loss, Objective, Regularizer, as_regularizers
from toolkit.training.segmentation import as_objective
from toolkit.training.serialization import describe
from toolkit.training.train import train_or_resume

Factory = Callable[[], nn.Module]
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
            worker was lost goes on from its newest checkpoint. A pool of processes trains no more at a time than the
            cores can run. Threads of one process would share the global random state, so give those one worker.
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
    trainings, runs = [], {name: dict[str, str]() for name in chosen}
    for fold, seed, (name, arm) in itertools.product(parts, seeds, chosen.items()):
        own = objective if arm.objective is None else as_objective(arm.objective)
        settings = config.replace(**{**dict(arm.config or {}), "seed": seed})
        where = path / ("" if fold is None else f"fold-{fold}") / f"seed-{seed}" / folder(name)
        runs[name][str(seed) if fold is None else f"{seed}/fold-{fold}"] = str(where)
        objects = networks[name, seed], parts[fold], own, arm.regularizers, settings
        place = {"method": name, "seed": seed} | ({} if fold is None else {"fold": fold})
        trainings.append(functools.partial(_scored, where, objects, options, (split, metric), place))
    threads = (config.threads or 1) * config.devices if resolve_device(config).type == "cpu" else None
    tables = hand_out(trainings, executor, "compare", "trainings", threads)
    config = config.replace(**dict(next(iter(chosen.values())).config or {}))
    design = {"split": split, "seeds": sorted(seeds), "folds": len(parts) if record["folds"] else None}
    design["steps"] = config.steps
    held: dict[str, Any] = {"runs": runs, "path": str(path), "settings": record}
    return _judged(tables, first, metric, design, environment(config), **held)


def _scored(
    folder: Path, objects: tuple[Any, ...], options: dict[str, Any], scored: tuple[str, str], place: dict[str, Any]
) -> DataFrame:
    """One training, or its rest, with its scores; plain objects, which any executor carries, stay as they are."""
    (model, task, objective, regularizers, config), (split, metric) = objects, scored
    model, objective, regularizers = copy.deepcopy((model, objective, regularizers))
    with thread_count(config.threads):
        run = train_or_resume(folder, model, task, objective, regularizers, config, **options)
        return run.evaluate(split, options["site"], metrics=(metric,)).assign(**place)


def _fold_tasks(task: Any, folds: int | Sequence[Any] | None, split: str) -> dict[int | None, Any]:
    if folds is None:
        return {None: task}
    if split == "train":
        what = "Cross-validation scores what was not trained on."
        fix = 'Use split="test", which holds every patient once.'
        raise ConfigError(what, where='compare(folds=..., split="train")', fix=fix)
    return dict(enumerate(task.folds(folds) if isinstance(folds, int) else folds))


def _judged(
    tables: list[DataFrame], baseline: str, metric: str, design: dict[str, Any], now: dict[str, Any], **held: Any
) -> Study:
    import pandas as pd

    scores = pd.concat(tables, ignore_index=True)
    scores = scores[[name for name in _SCORES if name in scores.columns]]
    comparison = compare_methods(scores, baseline, metric=metric)
    return Study(
        baseline=baseline,
        metric=metric,
        numbers=comparison.numbers,
        scores=scores,
        **held,
        provenance={
            "measure": "study",
            "arms": _scored_arms(comparison, design),
            "data": held["settings"]["data"],
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
    """Write the study's record, or add to the one here if it allows these trainings; its thread count stays."""
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


@dataclasses.dataclass(frozen=True)
class Arm:
    """One method of a study; what it leaves out is that of the study.

    Attributes:
        model: function that builds its network; called under each seed.
        objective: its supervised part.
        regularizer: one, several or none.
        config: training settings that differ from the study's, by name; the seed is always the study's.

    Example:
        >>> arm = tk.Arm(lambda: tk.unet(1, 4, norm="batch"), regularizer=tk.SegReg(), config={"learning_rate": 1e-3})
    """

    model: Factory | None = None
    objective: Objective | Loss | None = None
    regularizer: Regularizer | Sequence[Regularizer] | None = None
    config: Mapping[str, Any] | None = None

    @property
    def regularizers(self) -> list[Regularizer]:
        """The regularizers as a list."""
        return as_regularizers(self.regularizer)

    def describe(self) -> dict[str, Any]:
        """What the study's record holds of it."""
        return {
            "objective": None if self.objective is None else describe("objective", as_objective(self.objective)),
            "regularizers": [describe("regularizer", each) for each in self.regularizers],
            "config": dict(self.config or {}),
        }


def checked_arms(
    arms: Mapping[str, Arm | Regularizer | Sequence[Regularizer] | None], model: Factory | None, config: TrainConfig
) -> dict[str, Arm]:
    """Every arm as an `Arm` with a network."""
    chosen = {
        str(name): value if isinstance(value, Arm) else Arm(regularizer=as_regularizers(value))
        for name, value in arms.items()
    }
    folders = [folder(name) for name in chosen]
    if not chosen or len(set(folders)) < len(folders):
        raise ConfigError(f"A study needs arms with different names, not {list(chosen)}.", where="compare")
    for name, arm in chosen.items():
        config.replace(**dict(arm.config or {}))
        if arm.model is None and model is None:
            fix = "Pass model=lambda: toolkit.unet(1, 4) for all arms, or Arm(model=...) for this one."
            raise ConfigError(f"The arm {name!r} has no network.", where="compare(model=...)", fix=fix)
    return chosen


def baseline_of(arms: Mapping[str, Arm], baseline: str | None) -> str:
    """The arm that the others are compared with: the one asked for, else the first plain one, else the first."""
    if baseline is not None and baseline not in arms:
        raise ConfigError(f"There is no arm {baseline!r}.", fix=f"Arms: {', '.join(arms)}.")
    plain = [name for name, arm in arms.items() if not arm.regularizers]
    plainest = [name for name in plain if arms[name].model is None and arms[name].objective is None]
    return baseline if baseline is not None else (plainest or plain or list(arms))[0]


def first_networks(
    arms: Mapping[str, Arm], model: Factory | None, seeds: Sequence[int]
) -> tuple[dict[tuple[str, int], nn.Module], dict[str, str]]:
    """The network of every arm and seed before training, and hashes of their weights for the record.

    Arms without a network of their own share one object a seed; whoever trains it copies it.
    """
    shared = {seed: _network(model, seed) for seed in seeds} if model is not None else {}
    digests = {str(seed): _digest(network) for seed, network in shared.items()}
    networks = {}
    for name, arm in arms.items():
        for seed in seeds:
            networks[name, seed] = shared[seed] if arm.model is None else _network(arm.model, seed)
            if arm.model is not None:
                digests[f"{name}/{seed}"] = _digest(networks[name, seed])
    return networks, digests


def folder(arm: str) -> str:
    """Name of an arm's folder."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", arm).strip(".") or "arm"


def _network(model: Factory, seed: int) -> nn.Module:
    """The factory's network under a seed."""
    if isinstance(model, nn.Module):
        what = "compare needs a function that builds a network: every arm starts from new weights."
        fix = "Pass model=lambda: toolkit.unet(1, 4), or a function that builds your own network."
        raise ConfigError(what, where="compare(model=...)", fix=fix)
    built = []
    for _ in range(2):
        with seeded(seed):
            built.append(model())
    first, second = (unwrap(network) for network in built)
    if first is second or _digest(first) != _digest(second):
        what = "The model factory gives another network each time, or the same object again."
        fix = "Build a new network inside it: model=lambda: toolkit.unet(1, 4)."
        raise ConfigError(what, where="compare(model=...)", fix=fix)
    return first


def _digest(model: nn.Module) -> str:
    return sha256(weights_bytes(tensors_of(model)))
