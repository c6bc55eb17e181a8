"""`compare`: the same training with several regularizers and seeds, paired, resumable, and judged with its uncertainty."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from toolkit.errors import CheckpointError, ConfigError
from toolkit.features.modules import unwrap
from toolkit.measure.statistics import Comparison, compare_methods
from toolkit.models.load import tensors_of, weights_bytes
from toolkit.training.config import TrainConfig, as_config
from toolkit.training.directory import RunDirectory, write_json
from toolkit.training.environment import content_hash, environment
from toolkit.training.objective import Objective
from toolkit.training.regularizer import Regularizer, as_regularizers
from toolkit.training.seeding import seeded
from toolkit.training.serialization import describe
from toolkit.training.train import default_objective, resume, train

if TYPE_CHECKING:
    import pandas as pd

RECORD = "study.json"
Arm = Regularizer | Sequence[Regularizer] | None
_SCORES = ("method", "seed", "site", "case", "subject", "class", "metric", "value", "status")


@dataclasses.dataclass(kw_only=True)
class Study(Comparison):
    """What `compare` returns: the comparison with the plain training, and the scores it rests on.

    Attributes:
        scores: one row a method, seed, case and class.
        runs: directory of every training, by method and seed ("segreg", "0").
        path: directory of the study.
        settings: its record: arms, training settings, and hashes of the data and of the first weights by seed.
    """

    scores: pd.DataFrame
    runs: dict[str, dict[str, str]]
    path: str
    settings: dict[str, Any]
    kind: ClassVar[str] = "study"


@dataclasses.dataclass(frozen=True)
class _Training:
    """One training of a study; plain objects, so that any executor can carry it to another process."""

    method: str
    seed: int
    network: nn.Module
    task: Any
    objective: Objective
    regularizers: list[Regularizer]
    config: TrainConfig
    folder: Path
    taps: dict[str, str]
    site: Any
    split: str
    metric: str
    progress: bool

    def run(self) -> pd.DataFrame:
        """Train, or continue, and score."""
        if RunDirectory(self.folder).exists():
            run = resume(
                self.folder, self.network, self.task, self.regularizers, self.objective, progress=self.progress
            )
        else:
            run = train(
                self.network,
                self.task,
                self.objective,
                self.regularizers,
                self.config,
                self.folder,
                taps=self.taps,
                site=self.site,
                progress=self.progress,
            )
        table = run.evaluate(self.split, self.site, metrics=(self.metric,))
        return table.assign(method=self.method, seed=self.seed)


def compare(
    arms: Mapping[str, Arm],
    *,
    model: Callable[[], nn.Module],
    task: Any,
    config: TrainConfig | Mapping[str, Any] | None = None,
    seeds: Iterable[int] = range(3),
    out: str | os.PathLike[str] | None = None,
    executor: Executor | None = None,
    objective: Objective | None = None,
    baseline: str | None = None,
    metric: str = "dice",
    split: str = "test",
    site: str | Sequence[str] | None = None,
    taps: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Study:
    """Train one network with several regularizers under several seeds, and compare them with the plain training.

    Under one seed all arms start from the same weights and see the same batches with the same augmentation, so that
    their differences are paired. Every training is a run directory of its own below `out`: a study that was stopped
    goes on when it is called again, and arms or seeds can be added to one.

    Args:
        arms: regularizers (one, several or None) by name, for example {"plain": None, "segreg": SegReg()}.
        model: makes the network; called under each seed.
        task: data.
        config: settings of every training; its seed is replaced.
        seeds: at least two for a verdict.
        out: directory of the study; None = a new one below `runs/`.
        executor: any `concurrent.futures.Executor` of processes or machines; None = one training after the other.
            Threads of one process would share the global random state, so give those one worker.
        objective: supervised part; None = cross-entropy plus soft Dice.
        baseline: the arm that the others are compared with; None = the one without regularizer, else the first.
        metric: dice, iou, hd95 or assd.
        split: what is scored.
        site: train and score on this site or these.
        taps: layer names for aliases.
        progress: show a bar for each training (never with an executor).

    Returns:
        `.table()` has a row a method: mean with patient-bootstrap interval, paired difference to the baseline,
        smallest detectable difference and verdict; see `toolkit.compare_scores`.

    Raises:
        ConfigError: no arms or seeds, names that clash, a factory that gives other weights under the same seed, or
            a study with other settings in `out`.
        CheckpointError: a run below `out` is damaged or is not the one described.
        ResultError: fewer than 2 patients in the split.
    """
    config = as_config(config)
    chosen = _checked_arms(arms, baseline)
    seeds = [int(seed) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"A study needs different seeds, not {seeds}.", where="compare(seeds=...)")
    name = f"{getattr(task, 'name', 'task')}-study-{secrets.token_hex(3)}"
    path = Path("runs") / name if out is None else Path(out)
    objective = default_objective() if objective is None else objective
    networks = {seed: _network(model, seed) for seed in seeds}
    record = {
        "config": {**config.to_dict(), "seed": None},
        "objective": describe("objective", objective),
        "data": content_hash(task),
        "site": site if site is None or isinstance(site, str) else list(site),
        "taps": dict(taps or {}),
        "weights": {str(seed): _digest(network) for seed, network in networks.items()},
        "arms": {arm: [describe("regularizer", r) for r in rs] for arm, rs in chosen.items()},
    }
    record = _recorded(path, record)
    trainings = [
        _Training(
            method=arm,
            seed=seed,
            network=copy.deepcopy(networks[seed]),
            task=task,
            objective=copy.deepcopy(objective),
            regularizers=copy.deepcopy(regularizers),
            config=config.replace(seed=seed),
            folder=path / f"seed-{seed}" / _folder(arm),
            taps=dict(taps or {}),
            site=site,
            split=split,
            metric=metric,
            progress=progress and executor is None,
        )
        for seed in seeds
        for arm, regularizers in chosen.items()
    ]
    tables = [training.run() for training in trainings] if executor is None else _spread(executor, trainings)
    return _judged(tables, trainings, _baseline(chosen, baseline), metric, path, record)


def _judged(
    tables: list[pd.DataFrame],
    trainings: list[_Training],
    baseline: str,
    metric: str,
    path: Path,
    record: dict[str, Any],
) -> Study:
    import pandas as pd

    scores = pd.concat(tables, ignore_index=True)[list(_SCORES)]
    comparison = compare_methods(scores, baseline, metric=metric)
    runs: dict[str, dict[str, str]] = {}
    for training in trainings:
        runs.setdefault(training.method, {})[str(training.seed)] = str(training.folder)
    known = environment(trainings[0].config)
    design = {
        "split": trainings[0].split,
        "seeds": sorted({t.seed for t in trainings}),
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
            "data": record["data"],
            "parameters": {**comparison.provenance["parameters"], **design},
            "versions": {name: known[name] for name in ("toolkit", "torch", "numpy", "python")},
            "threads": known["threads"],
            "device": known["device"],
        },
    )


def _spread(executor: Executor, trainings: list[_Training]) -> list[pd.DataFrame]:
    """The tables in order; if one training fails, those that have not begun are cancelled."""
    futures: list[Future[pd.DataFrame]] = [executor.submit(training.run) for training in trainings]
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()


def _network(model: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The factory's network under a seed.

    Raises:
        ConfigError: the factory does not depend on the seed alone, or gives a network it keeps.
    """
    if isinstance(model, nn.Module):
        raise ConfigError(
            "compare needs a function that builds a network: every arm starts from new weights.",
            where="compare(model=...)",
            fix="Pass model=lambda: toolkit.unet(1, 4), or a function that builds your own network.",
        )
    made = []
    for _ in range(2):
        with seeded(seed):
            made.append(model())
    first, second = (unwrap(network) for network in made)
    if first is second or _digest(first) != _digest(second):
        raise ConfigError(
            "The model factory gives another network each time, or the same object again.",
            where="compare(model=...)",
            fix="Build a new network inside it: model=lambda: toolkit.unet(1, 4).",
        )
    return first


def _digest(network: nn.Module) -> str:
    return hashlib.sha256(weights_bytes(tensors_of(network))).hexdigest()


def _checked_arms(arms: Mapping[str, Arm], baseline: str | None) -> dict[str, list[Regularizer]]:
    chosen = {str(name): as_regularizers(value) for name, value in arms.items()}
    folders = [_folder(name) for name in chosen]
    if not chosen or len(set(folders)) < len(folders):
        raise ConfigError(f"A study needs arms with different names, not {list(chosen)}.", where="compare")
    if baseline is not None and baseline not in chosen:
        raise ConfigError(f"There is no arm {baseline!r}.", fix=f"Arms: {', '.join(chosen)}.")
    return chosen


def _baseline(arms: Mapping[str, list[Regularizer]], baseline: str | None) -> str:
    plain = [name for name, regularizers in arms.items() if not regularizers]
    return baseline if baseline is not None else (plain or list(arms))[0]


def _folder(arm: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", arm).strip(".") or "arm"


def _recorded(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write the study's record, or check that the one here allows these trainings, and add to it.

    Raises:
        ConfigError: settings, data, first weights or an arm differ from those of the study in this folder.
        CheckpointError: the record cannot be read.
    """
    file = path / RECORD
    if not file.exists():
        path.mkdir(parents=True, exist_ok=True)
        write_json(file, record)
        return record
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        differing = [key for key in record if key not in ("weights", "arms") and known[key] != record[key]]
        for key in ("weights", "arms"):
            shared = set(known[key]) & set(record[key])
            differing += [f"{key} {name}" for name in sorted(shared) if known[key][name] != record[key][name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{RECORD} is damaged.", where=str(path)) from error
    if differing:
        raise ConfigError(
            f"This folder holds a study with other settings: {', '.join(differing)}.",
            where=str(path),
            fix="Choose another `out`, or the settings of that study.",
        )
    merged = {**record, **{key: {**known[key], **record[key]} for key in ("weights", "arms")}}
    write_json(file, merged)
    return merged
