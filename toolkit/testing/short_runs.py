"""Small networks, batches and trainings of five steps, with or without a crash, for `toolkit.testing`."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.data.table import task_from_arrays
from toolkit.errors import ToolkitError
from toolkit.models.unet import unet
from toolkit.process_state import seeded
from toolkit.training.checkpoint import read
from toolkit.training.history import read_rows
from toolkit.training.protocol import Loss, Objective, Regularizer
from toolkit.training.segmentation import as_objective
from toolkit.training.step import TrainingStep
from toolkit.training.train import resume, train

Factory = Callable[[int], nn.Module]
STEPS = 5
_TIMES = {"steps": STEPS, "validate_every": STEPS, "checkpoint_every": 2, "log_every": 1}
_CONFIG = {**_TIMES, "batch_size": 4, "select": "last", "device": "cpu"}


class Violation(ToolkitError, AssertionError):
    """A part of the contract that does not hold."""


def demand(holds: bool, what: str) -> None:
    """Raise a `Violation` unless it holds."""
    if not holds:
        raise Violation(what)


def network_of(make: Factory, dims: int) -> nn.Module:
    """A factory's network, the same on every call."""
    with seeded(4):
        return make(dims)


def small_unet(dims: int) -> nn.Module:
    """A U-Net with batch norm of 1 channel and 2 classes."""
    return unet(1, 2, channels=(4, 8, 8), norm="batch", dims=dims)


def surroundings(
    regularizer: Regularizer | None, model: Factory | None, objective: Objective | Loss | None
) -> tuple[Factory, Objective]:
    """The network and the objective of the checks."""
    if regularizer is None or not regularizer.requires:
        return model or small_unet, as_objective(objective)
    from toolkit.methods.latent_augmentation.network import fast_slow_network
    from toolkit.methods.latent_augmentation.objective import FastSlowObjective

    def made(dims: int) -> nn.Module:
        return fast_slow_network(1, 2, width=4, dims=dims)

    return model or made, FastSlowObjective() if objective is None else as_objective(objective)


def batch_of(dims: int) -> dict[str, Tensor]:
    """Three images in [0, 1], sides divisible by 16, with a bright class."""
    shape = (3, 1, *([32, 48] if dims == 2 else [16, 32, 16]))
    image = torch.rand(shape, generator=torch.Generator().manual_seed(8))
    return {"image": image, "label": (image > 0.8).long()}


def one_step(step: TrainingStep, batch: dict[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, float]:
    """Values of the terms of one logged step; finite, as are the gradients."""
    terms: dict[str, float] = {}
    for part in range(step.parts(3)):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            result = step(batch, part=part, step=3, logging=True)
        result.total.backward()
        terms |= {name: float(value) for name, value in result.terms.items()}
    reached = [p.grad for p in step.model.parameters() if p.grad is not None]
    demand(all(map(math.isfinite, terms.values())), f"the terms are {terms}")
    demand(bool(reached) and all(bool(g.isfinite().all()) for g in reached), "gradients are missing or not finite")
    return terms


class _Crash(BaseException):
    """Stands for a process that vanishes."""


def _task(at: int | None) -> Any:
    """A small task whose training batches end with a crash at a step, if one is given."""
    images = np.random.default_rng(2).random((12, 32, 32)).astype(np.float32)
    labels = list((images > 0.8).astype(np.uint8))
    task: Any = task_from_arrays(list(images), labels, classes={0: "background", 1: "bright"}, normalisation="none")
    load = task.loader

    def loader(*values: Any, **named: Any) -> Any:
        batches = load(*values, **named)
        whole, batches.ahead = batches.batch, False

        def batch(index: int) -> Any:
            if index == at:
                raise _Crash
            return whole(index)

        batches.batch = batch
        return batches

    task.loader = loader
    return task


def trained(
    regularizer: Regularizer | None, make: Factory, objective: Objective, folder: Path, at: int | None = None
) -> tuple[str, list[dict[str, Any]]]:
    """Hash of the last checkpoint and rows of the history of a short training, broken off at a step if `at` is given."""
    parts = copy.deepcopy((objective, regularizer))
    with contextlib.suppress(_Crash):
        train(network_of(make, 2), _task(at), *parts, config=_CONFIG, out=folder, progress=False)
    if at is not None:
        again, own = copy.deepcopy((objective, regularizer))
        given: Any = [] if own is None else own
        resume(folder, network_of(make, 2), _task(None), given, again, progress=False)
    rows = [{k: v for k, v in r.items() if not k.startswith("seconds")} for r in read_rows(folder / "history.jsonl")]
    return str(read(folder / "checkpoints", STEPS).sha256), rows
