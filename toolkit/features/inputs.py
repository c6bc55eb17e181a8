"""Whatever the user has (cases, arrays, paths, dicts) as batches that the network takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.errors import DataError
from toolkit.features.modules import unwrap

_DIMS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}


def first_convolution(model: nn.Module) -> tuple[int | None, int | None]:
    """Spatial dims and input channels of a network, read from its first convolution (None, None without one)."""
    for module in unwrap(model).modules():
        for kind, dims in _DIMS.items():
            if isinstance(module, kind):
                return dims, module.in_channels
    return None, None


def example_input(model: nn.Module, example: Any = None) -> Tensor:
    """One batch for a trial run: the example with its batch axis, or zeros if there is none."""
    network = unwrap(model)
    dims, channels = first_convolution(network)
    parameter = next(network.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    if example is None:
        if dims is None or channels is None:
            raise DataError(
                "An example input is needed: this network has no convolution to read its size from."
            )
        side = 64 if dims < 3 else 32
        return torch.zeros(1, channels, *([side] * dims), device=device)
    if isinstance(example, dict):
        example = example["image"]
    image = getattr(example, "image", example)
    tensor = torch.as_tensor(np.asarray(image) if not isinstance(image, Tensor) else image).float().to(device)
    if dims is not None and tensor.ndim == dims + 1:
        tensor = tensor[None]
    return tensor
