"""A regularizer with weight 0 is skipped: the training is the plain one bit for bit."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from toolkit import registry
from toolkit.data.arrays import task_from_arrays
from toolkit.data.task import Task
from toolkit.models.unet import unet
from toolkit.regularizers.base import Regularizer, StepContext
from toolkit.training.checkpoint import read
from toolkit.training.objects import load_registry
from toolkit.training.run import Run
from toolkit.training.start import train

load_registry()
CONFIG = {"steps": 6, "batch_size": 4, "validate_every": 3, "checkpoint_every": 6, "log_every": 1}


class Meddler(Regularizer):
    """Would disturb everything that can be disturbed: running statistics and global random numbers."""

    name = "meddler"

    @property
    def taps(self) -> tuple[str, ...]:
        return ("*",)

    def weights(self, step: int) -> dict[str, float]:
        return {"term": 0.0}

    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        context.model(torch.randn_like(context.batch["image"]))
        return {"term": context.outputs.mean()}


# Regularizers that are skipped until they have an earlier task to remember.
MEMORIES: dict[str, Callable[[Any, nn.Module], None]] = {
    "elastic_weights": lambda one, model: one.remember(
        model, {n: torch.ones_like(p) for n, p in model.named_parameters()}
    ),
    "learning_without_forgetting": lambda one, model: one.remember(model),
}


def zero_weight(name: str) -> Regularizer:
    """The registered regularizer with every argument that is a weight, or named like one of its terms, set to 0."""
    factory: Any = registry._FACTORIES["regularizer"][name]
    terms = factory().weights(0)
    weights = [
        n
        for n in inspect.signature(factory).parameters
        if n == "weight" or n.endswith("_weight") or n in terms
    ]
    regularizer, usual = factory(**dict.fromkeys(weights, 0.0)), factory()
    if name in MEMORIES:
        assert not usual.active(0)
        for one in (regularizer, usual):
            MEMORIES[name](one, network_for(None))
    assert usual.active(10**6)
    assert not regularizer.active(10**6)
    return regularizer


def task() -> Task:
    drawn = np.random.default_rng(2)
    images = drawn.standard_normal((12, 32, 32)).astype(np.float32)
    return task_from_arrays(
        list(images), list((images > 1).astype(np.uint8)), classes={0: "background", 1: "bright"}
    )


def network_for(regularizer: Regularizer | None) -> nn.Module:
    torch.manual_seed(4)
    if regularizer is not None and regularizer.requires:
        return registry.build(
            "model",
            {"name": "fast_slow_network", "arguments": {"in_channels": 1, "out_channels": 2, "width": 4}},
        )
    return unet(1, 2, channels=(4, 8, 8), norm="batch")


def trained(model: nn.Module, regularizer: Regularizer | None, folder: Path) -> Run:
    return train(model, task(), regularizer=regularizer, config=CONFIG, out=folder, progress=False)


def rows(run: Run) -> list[dict[str, Any]]:
    from toolkit.training.history import read_rows

    return [
        {k: v for k, v in row.items() if not k.startswith("seconds")}
        for row in read_rows(run.directory.history)
    ]


@pytest.mark.parametrize("name", ["meddler", *registry.names("regularizer")])
def test_weight_zero_is_plain_training(name: str, tmp_path: Path) -> None:
    regularizer = Meddler() if name == "meddler" else zero_weight(name)
    runs = [
        trained(network_for(regularizer), given, tmp_path / label)
        for label, given in (("plain", None), ("zero", regularizer))
    ]
    plain, zero = (read(run.directory.checkpoints, CONFIG["steps"]) for run in runs)
    assert plain.sha256 == zero.sha256
    assert rows(runs[0]) == rows(runs[1])
