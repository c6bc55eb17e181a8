"""Batch normalisation without side effects: batch statistics, no buffer update, no gradient to weight and bias."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


@contextlib.contextmanager
def frozen_batch_norm(modules: nn.Module | Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block every batch norm below `modules` is a fixed function of its batch.

    In training mode it normalises with the statistics of the batch (in evaluation mode with the running ones, as
    ever), leaves `running_mean`, `running_var` and `num_batches_tracked` alone, and gives no gradient to its weight
    and bias; the gradient to its input is the usual one, through the batch statistics. On leaving the block, also
    after an exception, the modules are as before. A synchronised batch norm uses its own device's statistics.

    Source: latent-space augmentation (Chen et al. 2021, later release): how hard examples are made and judged.
    """
    roots = [modules] if isinstance(modules, nn.Module) else list(modules)
    norms = {id(m): m for root in roots for m in root.modules() if isinstance(m, _BatchNorm)}
    before = {key: module.__dict__.get("forward") for key, module in norms.items()}
    try:
        for module in norms.values():
            module.__dict__["forward"] = functools.partial(_frozen_forward, module)
        yield
    finally:
        for key, module in norms.items():
            if before[key] is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = before[key]


def _frozen_forward(module: _BatchNorm, x: Tensor) -> Tensor:
    module._check_input_dim(x)
    from_batch = module.training or module.running_mean is None
    return functional.batch_norm(
        x,
        None if from_batch else module.running_mean,
        None if from_batch else module.running_var,
        None if module.weight is None else module.weight.detach(),
        None if module.bias is None else module.bias.detach(),
        training=from_batch,
        eps=module.eps,
    )
