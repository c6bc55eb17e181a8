"""How the arm of a study is trained: functions of (study, arm, seed, folder, fold) to runs, each resumable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import toolkit as tk
from toolkit.process_state import seeded

STRATEGIES = ("rehearsal", "ewc", "lwf")
ELAT, CBAM = ("head.att1", "head.att2", "head.att3", "head.att4"), ("small", "middle", "large")


@dataclasses.dataclass(frozen=True)
class Study:
    """One protocol.

    Attributes:
        task: loads the data.
        arms: by name, what is trained: a `tk.Arm` (or a function that makes it), or `Stages` of Med-DisSeg.
        config: settings of every training.
        measures: functions of (runs, arm) that give rows of results.
        train: one of this module's functions.
        site: what it is trained on; None = all sites.
        seeds: of the arms that no claim names get the first.
        folds: trainings of a cross-validation (or sites left out, or strategies); 0 = the task's own splits.
        places: names of sites in the results, where they differ.
    """

    task: Callable[[], Any]
    arms: Mapping[str, Any]
    config: Mapping[str, Any]
    measures: tuple[Callable[..., Iterator[dict[str, Any]]], ...]
    train: Callable[..., list[Any]]
    site: str | Sequence[str] | None = "A"
    seeds: tuple[int, ...] = (0, 1, 2)
    folds: int = 0
    places: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Stages:
    """An arm of Med-DisSeg: the preset of the loss in each stage (None = without), and its two kinds of attention."""

    first: str | None = None
    second: str | None = None
    elat: bool = True
    cbat: bool = True


def one_network(study: Study, arm: str, seed: int, folder: Path, fold: int | None = None) -> list[Any]:
    """An arm of a comparison; all arms of a network share first weights, data order and augmentation."""
    task = study.task()
    part = task if fold is None else task.folds(study.folds)[fold]
    return [_compared(study, arm, seed, folder, part, study.site)]


def one_left_out(study: Study, arm: str, seed: int, folder: Path, fold: int | None = None) -> list[Any]:
    """An arm trained on all sites but one."""
    task = study.task()
    return [_compared(study, arm, seed, folder, task, [s for i, s in enumerate(task.sites) if i != fold])]


def _compared(study: Study, arm: str, seed: int, folder: Path, task: Any, site: Any) -> Any:
    settings = {"config": study.config, "seeds": [seed], "site": site, "out": folder, "progress": False}
    result = tk.compare({arm: _arm(study, arm)}, task=task, **settings)
    return tk.load_run(next(iter(result.runs[arm].values())), task=task)


def one_sequence(study: Study, arm: str, seed: int, folder: Path, fold: int | None = None) -> list[Any]:
    """An arm trained on one site after another; folds are the strategies of continual learning."""
    task, given = study.task(), _arm(study, arm)
    if (folder / "sequence.json").exists():
        return tk.resume_sequence(folder, progress=False).stages
    with seeded(seed):
        model = given.model()
    config = tk.TrainConfig(**{**study.config, "seed": seed})
    options = {"strategy": "sequential" if fold is None else STRATEGIES[fold], "progress": False}
    return tk.train_sequence(model, task, task.sites, given.regularizer, config, out=folder, **options).stages


def _arm(study: Study, arm: str) -> Any:
    """The arm, made now where its settings are the outcome of another study."""
    given = study.arms[arm]
    return given() if callable(given) else given


def two_stages(study: Study, arm: str, seed: int, folder: Path, fold: int | None = None) -> list[Any]:
    """Both stages of Med-DisSeg."""
    given: Stages = study.arms[arm]
    runs: list[Any] = []
    for index, preset in enumerate((given.first, given.second)):
        settings = {**study.config, "seed": seed}
        network = settings.pop("network")
        recipe = tk.recipes.med_disseg(study.task(), preset or "default", model=network, **settings)
        stage, place = recipe.stages[index], folder / f"stage-{index + 1}"
        model, term = _without(stage.build(), given, index), stage.regularizer if preset else None
        if (place / "run.json").exists():
            runs.append(tk.resume(place, model, stage.task, term, stage.objective, progress=False))
            continue
        if runs:
            tk.transfer_encoder(runs[-1].model, model)
        parts = {**stage, "model": model, "regularizer": term}
        runs.append(tk.train(**parts, site=study.site, out=place, progress=False))
    return runs


def _without(model: Any, given: Stages, index: int) -> Any:
    """The network without the attention that the arm leaves out."""
    gone: tuple[str, ...] = () if given.elat or index else ELAT
    gone += () if given.cbat or not index else tuple(f"decoder_{size}.cbam" for size in CBAM)
    for module in gone:
        model.set_submodule(module, torch.nn.Identity())
        vars(model).pop("toolkit_config", None)  # the registry could not build this one again
    return model
