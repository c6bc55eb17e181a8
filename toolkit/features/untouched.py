"""`untouched`: run any analysis on the user's network and give it back exactly as it was."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.errors import ConfigError

_HOOK_TABLES = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


@contextlib.contextmanager
def untouched(model: nn.Module, mode: str = "eval") -> Iterator[nn.Module]:
    """Guard a network: everything listed below is as before when the block ends, also after an exception.

    Guarded: train/eval mode of every module, buffers (values and objects), `.grad`, `requires_grad`, hooks, and the
    global random state of torch (CPU and CUDA), NumPy and Python.

    Args:
        model: the network; changed to `mode` inside the block.
        mode: "eval", "train", or "keep" (leave each module's own mode).

    Raises:
        ConfigError: unknown mode.
    """
    if mode not in ("eval", "train", "keep"):
        raise ConfigError(
            f"mode must be 'eval', 'train' or 'keep', not {mode!r}.", where="untouched(mode=...)"
        )
    modules = list(model.modules())
    training = [module.training for module in modules]
    hooks = [{name: dict(getattr(module, name, {})) for name in _HOOK_TABLES} for module in modules]
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    buffers = [_remember(module, name) for module in modules for name in module._buffers]
    state = random_state()
    try:
        for parameter, _, _ in parameters:
            parameter.grad = None  # whatever is accumulated inside goes to a new tensor, dropped at the end
        if mode != "keep":
            model.train(mode == "train")
        yield model
    finally:
        for module, was_training, tables in zip(modules, training, hooks, strict=True):
            module.training = was_training
            _restore_hooks(module, tables)
        for parameter, needs_gradient, gradient in parameters:
            parameter.requires_grad_(needs_gradient)
            parameter.grad = gradient
        for entry in buffers:
            _restore_buffer(*entry)
        set_random_state(state)


def random_state() -> dict[str, Any]:
    """The global random state of torch (CPU and, if in use, CUDA), NumPy and Python."""
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - the legacy global state is what user code may draw from
        "python": random.getstate(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put a state from `random_state` back."""
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])


_Buffer = tuple[nn.Module, str, Tensor | None, Tensor | None]


def _remember(module: nn.Module, name: str) -> _Buffer:
    buffer = module._buffers[name]
    return module, name, buffer, None if buffer is None else buffer.detach().clone()


def _restore_buffer(module: nn.Module, name: str, buffer: Tensor | None, value: Tensor | None) -> None:
    # values are compared, not version counters: batch norm updates its statistics without counting
    if buffer is not None and value is not None and not torch.equal(buffer, value):
        with torch.no_grad():
            buffer.copy_(value)
    if module._buffers.get(name) is not buffer:
        module._buffers[name] = buffer


def _restore_hooks(module: nn.Module, tables: dict[str, dict[int, Any]]) -> None:
    for name, before in tables.items():
        table = getattr(module, name, None)
        if table is not None and list(table) != list(before):
            table.clear()
            table.update(before)
