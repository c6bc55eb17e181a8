"""The objective protocol: the supervised part of a method, including its forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Objective:
    """Base of all objectives: makes the forward pass and returns named, already weighted loss terms.

    The default pass is `model(batch["image"])`. An objective with a forward pass of its own (input noise, several
    modules, two views) overrides `forward_pass`; whatever that returns becomes `StepContext.outputs`.
    """

    name: ClassVar[str] = "objective"

    @property
    def requires(self) -> tuple[str, ...]:
        """Methods the network must offer."""
        return ()

    def forward_pass(self, model: nn.Module, batch: Mapping[str, Any], generator: torch.Generator) -> Any:
        """Run the network on a batch; layers that run here are what the taps see."""
        return model(batch["image"])

    def __call__(self, outputs: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Weighted scalar terms by name; their sum is the objective."""
        raise NotImplementedError

    def logits(self, outputs: Any) -> Tensor:
        """The segmentation logits (B, K, *S) inside `outputs`, for validation and prediction."""
        return outputs
