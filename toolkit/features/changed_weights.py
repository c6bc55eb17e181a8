"""Copies of a network with other weights: shuffled, which forgets what was learnt, or jittered, which nearly keeps it."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.data.randomness import keyed_random
from toolkit.features.modules import unwrap


def shuffled(model: nn.Module, seed: int = 0, draw: int = 0, modules: Collection[str] | None = None) -> nn.Module:
    """A copy of the network with the entries of every parameter permuted (of the modules named, or of all)."""
    with torch.inference_mode(False), torch.no_grad():
        network = _copy(unwrap(model))
        for name, parameter in network.named_parameters():
            if modules is not None and name.rpartition(".")[0] not in modules:
                continue
            order = keyed_random("shuffled weights", seed, draw, name).permutation(parameter.numel())
            flat = parameter.flatten()
            parameter.copy_(flat[torch.from_numpy(order).to(flat.device)].view_as(parameter))
    return network


def jittered(model: nn.Module, scale: float = 0.01, seed: int = 0) -> nn.Module:
    """A copy of the network with normal noise added to every parameter tensor, `scale` times its root mean square.

    Buffers (statistics of batch norms) and tensors of zeros stay as they are.
    """
    with torch.inference_mode(False), torch.no_grad():
        network = _copy(unwrap(model))
        for name, parameter in network.named_parameters():
            noise = keyed_random("jittered weights", seed, name).normal(size=tuple(parameter.shape))
            size = scale * parameter.double().square().mean().sqrt()
            parameter.add_((size * torch.as_tensor(noise, device=parameter.device)).to(parameter.dtype))
    return network


def _copy(model: nn.Module) -> nn.Module:
    """A deep copy, also of a network that keeps tensors with a graph from its last pass, which torch refuses to copy."""
    copies: dict[int, Any] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor) and not value.is_leaf:
            copies[id(value)] = value.detach().clone()
        elif isinstance(value, (list, tuple, dict)):
            for item in value.values() if isinstance(value, dict) else value:
                visit(item)

    for module in model.modules():
        visit(vars(module))
    return copy.deepcopy(model, copies)
