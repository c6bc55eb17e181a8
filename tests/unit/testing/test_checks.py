"""The checks pass what keeps the contract and name what a class breaks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toolkit as tk
from toolkit.testing import Violation, check_network, check_objective, check_regularizer, without_weight
from toolkit.training.protocol import StepContext


class Pull(tk.Regularizer):
    """Keeps the contract."""

    name = "pull"

    def __init__(self, weight: float = 0.1) -> None:
        self.weight = weight

    @property
    def taps(self) -> tuple[str, ...]:
        return ("bottleneck",)

    def weights(self, step: int) -> dict[str, float]:
        return {"pull": self.weight}

    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        return {"pull": context.features["bottleneck"].square().mean()}


class Global(Pull):
    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        return {"pull": torch.rand(()) * context.features["bottleneck"].square().mean()}


class Misnamed(Pull):
    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        return {"push": context.features["bottleneck"].square().mean()}


class Rough(Pull):
    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        feature = context.features["bottleneck"]
        return {"pull": (feature / (context.batch["image"].sum() * 0)).mean()}


class Forgetful(Pull):
    """Counts its calls and does not say so in its state."""

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__(weight)
        self.calls = 0

    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        self.calls += 1
        return {"pull": self.calls * context.features["bottleneck"].square().mean()}


class Stubborn(Pull):
    """Acts though its weight is 0."""

    def active(self, step: int) -> bool:
        return True

    def weights(self, step: int) -> dict[str, float]:
        return {"pull": self.weight + 0.1}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Global(), r"2D: the same generator gives"),
        (Misnamed(), r"2D: .*push"),
        (Rough(), r"2D: the terms are"),
        (Forgetful(), r"resume is exact: other weights"),
        (Pull(0.0), r"has weight 0 itself|gradients are missing|no gradient"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_broken_regularizer_is_named_with_what_it_breaks(broken: Any, message: str) -> None:
    with pytest.raises(Violation, match=message):
        check_regularizer(broken, dims=(2,), processes=1)


def test_a_class_inside_a_function_cannot_be_stored() -> None:
    class Hidden(Pull):
        pass

    with pytest.raises(Violation, match="top level of a file"):
        check_regularizer(Hidden(), dims=(2,), processes=1)


def test_the_weights_of_a_copy_are_set_to_zero() -> None:
    assert not without_weight(Pull(0.3)).active(0)
    assert not any(without_weight(Stubborn(0.3)).weights(0).values())
    assert without_weight(tk.SelfReg()) == tk.SelfReg(scr=0.0, ifd=0.0)


def test_objectives() -> None:
    table = check_objective(nn.CrossEntropyLoss(), dims=(2,))
    assert set(table["result"]) == {"ok"}
    with pytest.raises(Violation, match="2D"):
        check_objective(lambda logits, label: logits.log().mean(), dims=(2,))


def test_networks() -> None:
    class Restless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(1, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + torch.rand_like(x))

    table = check_network(lambda dims: tk.unet(1, 2, channels=(4, 8), dims=dims), dims=(2, 3))
    assert table["check"].tolist()[-1] == "resume is exact"
    with pytest.raises(Violation, match="eval mode or a copy gives others"):
        check_network(Restless())
