"""Trainings of a study on any executor: processes of this machine, dask, joblib's loky, Slurm through submitit."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import nn

from toolkit.errors import ToolkitError
from toolkit.features.process_state import thread_count
from toolkit.training.config import TrainConfig
from toolkit.training.objective import Objective
from toolkit.training.regularizer import Regularizer
from toolkit.training.train import train_or_resume

if TYPE_CHECKING:
    import pandas as pd

RESTARTS = 3  # of trainings whose worker was lost, before a study gives up


@runtime_checkable
class Submits(Protocol):
    """What a study needs of an executor: `concurrent.futures`', dask's, loky's and submitit's all have it."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Any:
        """A future of `function(*arguments)`."""


# Errors by which engines say that a worker went away, beside concurrent.futures' own BrokenExecutor (also loky's).
_LOST = ("KilledWorker", "UncompletedJobError")


@dataclasses.dataclass(frozen=True)
class Training:
    """One training of a study; plain objects, so that any executor can carry it to another process."""

    method: str
    seed: int
    fold: int | None
    model: nn.Module
    task: Any
    objective: Objective
    regularizers: list[Regularizer]
    config: TrainConfig
    folder: Path
    aliases: dict[str, str]
    site: Any
    split: str
    metric: str
    progress: bool

    def run(self) -> pd.DataFrame:
        """Train, or continue, and score; what is held here stays as it is."""
        model, objective, regularizers = copy.deepcopy((self.model, self.objective, self.regularizers))
        with thread_count(self.config.threads):
            parts = (model, self.task, objective, regularizers, self.config)
            options: dict[str, Any] = {"aliases": self.aliases, "site": self.site, "progress": self.progress}
            run = train_or_resume(self.folder, *parts, **options)
            table = run.evaluate(self.split, self.site, metrics=(self.metric,))
        place = {} if self.fold is None else {"fold": self.fold}
        return table.assign(method=self.method, seed=self.seed, **place)


def run_all(trainings: Sequence[Training], executor: Submits | Callable[[], Submits] | None) -> list[pd.DataFrame]:
    """The tables of all trainings in order; without executor one after the other.

    A training whose worker was lost is handed out again and goes on from its newest checkpoint.

    Raises:
        ToolkitError: workers were lost again and again, or the executor broke.
    """
    if executor is None:
        return [training.run() for training in trainings]
    tables: dict[int, pd.DataFrame] = {}
    pool: Any = executor if hasattr(executor, "submit") else None
    lost: BaseException | None = None
    for _ in range(RESTARTS + 1):
        pool = executor() if pool is None else pool  # type: ignore[operator]
        due = [index for index in range(len(trainings)) if index not in tables]
        lost = _one_round(pool, trainings, due, tables)
        if lost is None:
            return [tables[index] for index in range(len(trainings))]
        if not hasattr(executor, "submit") and isinstance(lost, BrokenExecutor):
            pool = None  # a broken pool takes no more work: the next round asks for a new one
    raise ToolkitError(
        f"Workers were lost {RESTARTS + 1} times ({type(lost).__name__}: {lost}).",
        where=f"compare(executor=...), {len(trainings) - len(tables)} of {len(trainings)} trainings are not done",
        fix="Call compare again with the same `out`: trainings go on from their checkpoints. "
        "executor=lambda: ProcessPoolExecutor(2), a function, lets a study replace a broken pool by itself.",
    ) from lost


def _one_round(
    pool: Any, trainings: Sequence[Training], due: Sequence[int], tables: dict[int, pd.DataFrame]
) -> BaseException | None:
    """Hand out what is due; the error of a lost worker, if there was one. Other errors cancel the rest."""
    lost: BaseException | None = None
    futures: dict[int, Any] = {}
    try:
        for index in due:
            futures[index] = pool.submit(trainings[index].run)
        for index, future in futures.items():
            try:
                tables[index] = future.result()
            except Exception as error:
                if not _is_loss(error):
                    raise
                lost = error
    except BrokenExecutor as error:
        lost = error  # submit itself refuses: the pool broke before
    finally:
        for future in futures.values():
            if not future.done():
                future.cancel()
    return lost


def _is_loss(error: BaseException) -> bool:
    return isinstance(error, BrokenExecutor) or type(error).__name__ in _LOST
