"""`load_model` and `load_run`: what a run directory holds, without training."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from toolkit.errors import CheckpointError
from toolkit.features.modules import unwrap
from toolkit.features.process_state import guarded_random_state
from toolkit.features.provenance import mark_trained_with
from toolkit.inference.memory import remember
from toolkit.training import checkpoint as checkpoints
from toolkit.training.checkpoint import Checkpoint
from toolkit.training.directory import RunDirectory
from toolkit.training.loop import restore_step
from toolkit.training.run import Run
from toolkit.training.serialization import restore
from toolkit.training.stored_run import check_fit, open_run


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
    checkpoint = choose(directory, record, which)
    with guarded_random_state():
        network = restore(record["objects"], {"model": model}, str(path), only=("model",))["model"]
    check_fit(network, checkpoint, str(path))
    put_weights(network, checkpoint)
    mark_trained_with(network, [one["name"] for one in record["objects"]["regularizers"] if "name" in one])
    remember(network, **record.get("inference", {}))
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
    from toolkit.training.regularizer import as_regularizers

    regularizers = None if regularizer is None else as_regularizers(regularizer)
    run, step, _, record = open_run(path, model, task, regularizers, objective)
    restore_step(step, choose(run.directory, record, which))
    return run


def choose(directory: RunDirectory, record: dict[str, Any], which: str | int) -> Checkpoint:
    """Read the checkpoint that `which` means.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    if isinstance(which, int):
        return checkpoints.read(directory.checkpoints, which, record["run"])
    if which not in ("selected", "last", "best"):
        raise CheckpointError(f"There are no {which!r} weights.", fix='Use "selected", "last", "best" or a step.')
    newest, _ = directory.newest(record["run"])
    if which == "last" or (which == "selected" and record["selection"]["rule"] == "last"):
        return newest
    if newest.best is None:
        if which == "selected":
            return newest
        raise CheckpointError("This run has no validation yet, so nothing is best.", where=str(directory.path))
    return checkpoints.read(directory.checkpoints, newest.best["step"], record["run"])


def put_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the weights of a checkpoint into a network that fits."""
    unwrap(model).load_state_dict({**checkpoint.weights, **checkpoint.state["network"]})
