"""Every registered regularizer with the network, objective and data it needs: what the contract tests walk."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit import registry
from toolkit.data.table import task_from_arrays
from toolkit.data.task import Task
from toolkit.methods.latent_augmentation.objective import FastSlowObjective
from toolkit.models.unet import unet
from toolkit.training.protocol import Objective, Regularizer
from toolkit.training.segmentation import SegmentationObjective

NAMES = registry.names("regularizer")


def _earlier_network(dims: int) -> nn.Module:
    torch.manual_seed(5)
    return unet(1, 2, channels=(4, 8, 8), norm="batch", dims=dims)


# Regularizers that are skipped until they have an earlier task to remember.
MEMORIES: dict[str, Callable[[Any, nn.Module], None]] = {
    "elastic_weights": lambda one, model: one.remember(
        model, {n: torch.ones_like(p) for n, p in model.named_parameters()}
    ),
    "learning_without_forgetting": lambda one, model: one.remember(model),
}


def weight_arguments(name: str) -> dict[str, float]:
    """Arguments that are a weight, or are named like one of the terms, with their defaults."""
    factory: Any = registry.factory("regularizer", name)
    terms = factory().weights(10**6)
    parameters = inspect.signature(factory).parameters
    return {n: float(parameters[n].default) for n in parameters if n == "weight" or n.endswith("_weight") or n in terms}


def made(name: str, scale: float = 1.0, *, remembering: bool = True, dims: int = 2) -> Regularizer:
    """The registered regularizer with its default settings, all weights multiplied by `scale`."""
    factory: Any = registry.factory("regularizer", name)
    regularizer = factory(**{n: scale * value for n, value in weight_arguments(name).items()})
    assert isinstance(regularizer, Regularizer)
    if remembering and name in MEMORIES:
        MEMORIES[name](regularizer, _earlier_network(dims))
    return regularizer


def network_for(regularizer: Regularizer | None, dims: int = 2) -> nn.Module:
    """A small network that offers what the regularizer requires."""
    torch.manual_seed(4)
    if regularizer is not None and regularizer.requires:
        arguments = {"in_channels": 1, "out_channels": 2, "width": 4, "dims": dims}
        network: nn.Module = registry.build("model", {"name": "fast_slow_network", "arguments": arguments})
        return network
    return unet(1, 2, channels=(4, 8, 8), norm="batch", dims=dims)


def objective_for(regularizer: Regularizer) -> Objective:
    """The fast/slow objective for regularizers of that network, the plain one otherwise."""
    return FastSlowObjective() if regularizer.requires else SegmentationObjective()


def task() -> Task:
    """Twelve random pictures in [0, 1] with a bright class."""
    images = np.random.default_rng(2).random((12, 32, 32)).astype(np.float32)
    return task_from_arrays(
        list(images),
        list((images > 0.8).astype(np.uint8)),
        classes={0: "background", 1: "bright"},
        normalisation="none",
    )


def batch(dims: int = 2, images: int = 3) -> dict[str, Tensor]:
    """One batch in [0, 1], sides divisible by 16."""
    generator = torch.Generator().manual_seed(8)
    shape = (images, 1, *([32, 48] if dims == 2 else [16, 32, 16]))
    image = torch.rand(shape, generator=generator)
    return {"image": image, "label": (image > 0.8).long()}
