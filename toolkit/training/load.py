"""`load_model` and `load_run`: what a run directory holds, verified and brought back; nothing is changed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from toolkit.errors import CheckpointError, ToolkitWarning
from toolkit.features.modules import unwrap
from toolkit.features.provenance import mark_trained_with
from toolkit.inference.memory import remember
from toolkit.models.load import compare_weights, tensors_of
from toolkit.process_state import guarded_random_state
from toolkit.training.checkpoint import Checkpoint
from toolkit.training.config import TrainConfig
from toolkit.training.directory import RunDirectory
from toolkit.training.engine import content_hash
from toolkit.training.loop import restore_step
from toolkit.training.protocol import Loss, Objective, Regularizer, as_regularizers
from toolkit.training.run import Run, recall_scores
from toolkit.training.serialization import restore
from toolkit.training.step import TrainingStep


def load_model(
    path: str | os.PathLike[str], which: str | int = "selected", *, model: nn.Module | None = None
) -> nn.Module:
    """The network of a run, in eval mode, with the weights of one of its checkpoints.

    Args:
        path: the run's directory.
        which: "selected" (by the run's own rule, as far as it has come), "last", "best", or a step.
        model: needed if the network is not a registered one; receives the weights.

    Raises:
        CheckpointError: no run, a damaged or unsafe checkpoint, or a network that does not fit.

    Example:
        >>> network = tk.load_model("runs/segreg", which="last")
    """
    directory = RunDirectory(path)
    record = directory.record()
    checkpoint = directory.chosen(record, which)
    with guarded_random_state():
        network = restore(record["objects"], {"model": model}, str(path), only=("model",))["model"]
    check_fit(network, checkpoint, str(path))
    checkpoint.put_into(network)
    mark_trained_with(network, [one["name"] for one in record["objects"]["regularizers"] if "name" in one])
    remember(network, **record.get("inference", {}))
    recall_scores(network, directory.path, record)
    network.eval()
    return network


def load_run(
    path: str | os.PathLike[str],
    which: str | int = "selected",
    *,
    model: nn.Module | None = None,
    task: Any = None,
    regularizer: Any = None,
    objective: Any = None,
) -> Run:
    """A run to look at, evaluate and predict with; it is neither continued nor changed.

    Args:
        path: the run's directory.
        which: weights of the model, see `load_model`.
        model: needed if it is not a registered one, as are the following.
        task: what it was trained on.
        regularizer: one or several.
        objective: supervised part.

    Raises:
        CheckpointError: see `toolkit.resume`.

    Example:
        >>> scores = tk.load_run("runs/segreg", task=task).evaluate("test")
    """
    regularizers = None if regularizer is None else as_regularizers(regularizer)
    run, step, _, record = open_run(path, model, task, regularizers, objective)
    restore_step(step, run.directory.chosen(record, which))
    recall_scores(run.model, run.path, record)
    return run


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
    """Read and verify a run and its newest checkpoint; nothing is written and no object is changed."""
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
    learning = objects["model"], objects["objective"], objects["regularizers"]
    step = TrainingStep(*learning, seed=config.seed, aliases=record["taps"])
    if problems:
        what = f"Continuing from the older checkpoint of step {newest.step}, because newer ones are damaged"
        warnings.warn(f"{what} ({'; '.join(problems)}).", ToolkitWarning, stacklevel=3)
    parts = {"objective": objects["objective"], "regularizers": tuple(objects["regularizers"])}
    run = Run(directory.path, objects["model"], objects["task"], config, **parts, site=record["site"])
    return run, step, newest, record


def check_fit(model: nn.Module, checkpoint: Checkpoint, where: str) -> None:
    """Compare the names and shapes of a network with those of a checkpoint."""
    report = compare_weights(tensors_of(unwrap(model)), checkpoint.weights)
    if not report.complete:
        fix = "Pass the network that was trained: toolkit.resume(path, model=...)."
        raise CheckpointError(f"The network does not fit the weights of this run.\n{report}", where=where, fix=fix)


def check_task(record: dict[str, Any], task: Any, where: str) -> None:
    """Compare the content of a task with the recorded one."""
    now, then = content_hash(task), record["data"]
    if now != then:
        compare = getattr(task, "difference", None)
        difference = compare(record["contents"]) if callable(compare) and record.get("contents") else ""
        what = "The data are not those this run was trained on (their content hash differs)."
        where += f": {difference or f'recorded {str(then)[:12]}, now {str(now)[:12]}'}"
        raise CheckpointError(what, where=where, fix="Pass the same task, or restore the files that changed.")
