"""Open a run on disk: read and verify its record and checkpoint and bring its objects back, changing nothing."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from toolkit.errors import CheckpointError, ToolkitWarning
from toolkit.features.modules import unwrap
from toolkit.features.process_state import guarded_random_state
from toolkit.models.load import compare_weights, tensors_of
from toolkit.training.checkpoint import Checkpoint
from toolkit.training.config import TrainConfig
from toolkit.training.directory import RunDirectory
from toolkit.training.environment import content_hash
from toolkit.training.objective import Loss, Objective
from toolkit.training.regularizer import Regularizer
from toolkit.training.run import Run
from toolkit.training.serialization import restore
from toolkit.training.step import TrainingStep


def open_run(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    task: Any = None,
    regularizers: Sequence[Regularizer] | None = None,
    objective: Objective | Loss | None = None,
    *,
    fallback: bool = False,
    factories: Mapping[str, Callable[..., Any]] | None = None,
    training: bool = False,
) -> tuple[Run, TrainingStep, Checkpoint, dict[str, Any]]:
    """Read and verify a run and its newest checkpoint; nothing is written and no object is changed.

    Raises:
        CheckpointError: see `resume`.
    """
    directory = RunDirectory(path)
    record = directory.record()
    newest, problems = directory.newest(record["run"], fallback)
    given = {"model": model, "task": task, "objective": objective, "regularizers": regularizers}
    with guarded_random_state():
        objects = restore(record["objects"], given, str(path))
    config = TrainConfig.from_dict(record["config"])
    if training:  # a run that is only looked at needs no optimizer
        config = config.with_factories(factories, str(path))
    check_task(record, objects["task"], str(path))
    check_fit(objects["model"], newest, str(path))
    step = TrainingStep(
        objects["model"], objects["objective"], objects["regularizers"], seed=config.seed, aliases=record["taps"]
    )
    if problems:
        warnings.warn(
            f"Continuing from the older checkpoint of step {newest.step}, because newer ones are damaged "
            f"({'; '.join(problems)}).",
            ToolkitWarning,
            stacklevel=3,
        )
    regular = tuple(objects["regularizers"])
    run = Run(
        directory.path,
        objects["model"],
        objects["task"],
        config,
        objective=objects["objective"],
        regularizers=regular,
        site=record["site"],
    )
    return run, step, newest, record


def check_fit(model: nn.Module, checkpoint: Checkpoint, where: str) -> None:
    """Compare the names and shapes of a network with those of a checkpoint.

    Raises:
        CheckpointError: they differ; all differences are listed.
    """
    report = compare_weights(tensors_of(unwrap(model)), checkpoint.weights)
    if not report.complete:
        raise CheckpointError(
            f"The network does not fit the weights of this run.\n{report}",
            where=where,
            fix="Pass the network that was trained: toolkit.resume(path, model=...).",
        )


def check_task(record: dict[str, Any], task: Any, where: str) -> None:
    """Compare the content of a task with the recorded one.

    Raises:
        CheckpointError: other data.
    """
    now, then = content_hash(task), record["data"]
    if now != then:
        compare = getattr(task, "difference", None)
        difference = compare(record["contents"]) if callable(compare) and record.get("contents") else ""
        raise CheckpointError(
            "The data are not those this run was trained on (their content hash differs).",
            where=f"{where}: {difference or f'recorded {str(then)[:12]}, now {str(now)[:12]}'}",
            fix="Pass the same task, or restore the files that changed.",
        )
