"""The objective protocol: the supervised part of a method, including its forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from toolkit import registry
from toolkit.features.logits import find_logits

Loss = Callable[[Tensor, Tensor], Tensor]


class Objective:
    """Base of all objectives: makes the forward pass and returns named, already weighted loss terms.

    The default pass is `model(batch["image"])`. An objective with a forward pass of its own (input noise, several
    modules, two views) overrides `forward_pass`; whatever that returns becomes `StepContext.outputs`. One that learns
    is an `nn.Module` too; its parameters are a group of the optimizer.

    Example:
        >>> class Plain(tk.Objective):
        ...     def __call__(self, outputs, batch):
        ...         return {"nll": torch.nn.functional.cross_entropy(outputs, batch["label"][:, 0].long())}
        >>> run = tk.train(model, task, Plain(), config=config, out="runs/plain")
    """

    name: ClassVar[str] = "objective"

    def __new__(cls, *values: Any, **named: Any) -> Any:
        """Remember the call, so that a run can store it."""
        new = super().__new__(cls)
        registry.remember_new(new, values, named)
        return new

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
        """The segmentation logits (B, K, *S) inside `outputs`, by the rule of `toolkit.features.logits.find_logits`.

        An objective whose network returns something that the rule does not cover overrides this; the network then
        remembers it, and every later call finds the logits so.
        """
        return find_logits(outputs)
