"""Groups of parameters with learning rates of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_networks import layered, weights_of
from torch import nn

from toolkit.errors import ConfigError
from toolkit.training.config import TrainConfig
from toolkit.training.optimizer import build_optimizer, set_learning_rate
from toolkit.training.run import Run
from toolkit.training.segmentation import SegmentationObjective
from toolkit.training.step import TrainingStep

Trainer = Callable[..., Run]


def test_frozen_parameters_stay_and_named_groups_have_their_own_rates(trained: Trainer) -> None:
    class Grouped(nn.Sequential):
        def parameter_groups(self) -> list[dict[str, Any]]:
            return [
                {"name": "first", "params": self[0].parameters(), "learning_rate_scale": 0.0, "weight_decay": 0.0},
                {"name": "rest", "params": self[1:].parameters()},
            ]

    model = Grouped(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model[2].requires_grad_(False)
    before = weights_of(model)
    run = trained(model=model, select="last")
    after = weights_of(model)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True] * 4 + [False] * 2
    from toolkit.training.checkpoint import read

    groups = read(run.directory.checkpoints, 6).state["optimizer"]["param_groups"]
    assert [group["name"] for group in groups] == ["first", "rest"]


def test_rate_factors_multiply_the_rate_of_the_layers_that_they_name(trained: Trainer) -> None:
    """SGD without momentum, one step: a step is rate times gradient, so it scales with the factor."""
    options: dict[str, Any] = {
        "steps": 1,
        "optimizer": "sgd",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "schedule": "constant",
        "select": "last",
        "learning_rate": 0.5,
    }
    start = weights_of(layered())
    moved = []
    for factors in ({}, {"0.*": 0.1, "2.bias": 0.0, "2.*": 3.0}):
        model = layered()
        trained(model=model, rate_factors=factors, name=f"rates-{len(factors)}", **options)
        moved.append([after - before for after, before in zip(weights_of(model), start, strict=True)])
    for factor, plain, scaled in zip([0.1, 0.1, 3.0, 0.0, 1.0, 1.0], *moved, strict=True):
        assert float(plain.abs().max()) > 0
        torch.testing.assert_close(scaled, factor * plain, rtol=1e-3, atol=1e-6)


def test_rate_factors_split_the_groups_that_a_network_has() -> None:
    class Grouped(nn.Sequential):
        def parameter_groups(self) -> list[dict[str, Any]]:
            return [
                {"name": "first", "params": self[0].parameters(), "learning_rate_scale": 0.5},
                {"name": "rest", "params": self[1:].parameters(), "weight_decay": 0.0},
            ]

    model = Grouped(*layered())
    config = TrainConfig(learning_rate=1.0, schedule="constant", rate_factors={"0.bias": 0.5, "4.*": 0.1})
    optimizer = build_optimizer(TrainingStep(model, SegmentationObjective()), config)
    set_learning_rate(optimizer, 1.0)
    found = {g["name"]: (g["lr"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups}
    assert found == {
        "first": (0.5, 0.01, 1),
        "first: 0.bias": (0.25, 0.01, 1),
        "rest": (1.0, 0.0, 2),
        "rest: 4.*": (0.1, 0.0, 2),
    }
    with pytest.raises(ConfigError, match=r"No parameter matches 'encoder\.\*'"):
        build_optimizer(
            TrainingStep(layered(), SegmentationObjective()), config.replace(rate_factors={"encoder.*": 0.1})
        )


def test_a_parameter_left_out_of_the_groups_is_an_error(trained: Trainer) -> None:
    class Forgetful(nn.Sequential):
        def parameter_groups(self) -> list[dict[str, Any]]:
            return [{"name": "first", "params": self[0].parameters()}]

    with pytest.raises(ConfigError, match="2 trainable parameters are in no group"):
        trained(model=Forgetful(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1)))
