"""`untouched`: run any analysis on the user's network and give it back exactly as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import LayerError, choose
from toolkit.features.modules import refuse_scripted
from toolkit.process_state import random_state, set_random_state

_HOOK_TABLES = (
    *("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"),
    *("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called"),
)
_OWN_TABLES = frozenset(vars(nn.Module()))  # parameters, buffers, submodules and hooks are restored one by one


@contextlib.contextmanager
def untouched(model: nn.Module, mode: str = "eval") -> Iterator[nn.Module]:
    """Guard a network: everything listed below is as before when the block ends, also after an exception.

    Guarded: train/eval mode of every module, buffers (values and objects), `.grad`, `requires_grad`, tensors that a
    forward pass leaves in plain attributes or lists of a module, and the global random state of torch (CPU and CUDA),
    NumPy and Python. Hooks of the toolkit and of captum are removed. What a network does to itself at its first pass
    stays, such as hooks that it adds and remembers having added (transformers). Inside the block the network is in the
    `mode` "eval", "train", or each module in its own ("keep").
    """
    choose("mode", mode, ("eval", "train", "keep"), where="mode=...")
    refuse_scripted(model)
    modules = list(model.modules())
    training = [module.training for module in modules]
    hooks = [{name: set(getattr(module, name, ())) for name in _HOOK_TABLES} for module in modules]
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in modules
        for name, buffer in module._buffers.items()
    ]
    # plain attributes that hold tensors or could: the object, and what it contained if it is a list or dict
    attributes = [
        {
            name: (value, value.copy() if isinstance(value, (list, dict)) else None)
            for name, value in vars(module).items()
            if name not in _OWN_TABLES and (value is None or isinstance(value, (Tensor, list, tuple, dict)))
        }
        for module in modules
    ]
    state = random_state()
    try:
        for parameter, _, _ in parameters:
            parameter.grad = None  # whatever is accumulated inside goes to a new tensor, dropped at the end
        if mode != "keep":
            model.train(mode == "train")
        yield model
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        what = "No gradient can be taken through a part of the network that is checkpointed with use_reentrant=True."
        fix = "Set use_reentrant=False in its calls of torch.utils.checkpoint, or choose a layer after that part."
        raise LayerError(what, where=type(model).__name__, fix=fix) from error
    finally:
        for module, was_training, tables in zip(modules, training, hooks, strict=True):
            module.training = was_training
            _remove_own_hooks(module, tables)
        for parameter, needs_gradient, gradient in parameters:
            # tensors made in inference mode refuse even to be told what they are
            if parameter.requires_grad != needs_gradient:
                parameter.requires_grad_(needs_gradient)
            parameter.grad = gradient
        for module, name, buffer, value in buffers:
            # values are compared, not version counters: batch norm updates its statistics without counting
            if buffer is not None and value is not None and not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer
        for module, before in zip(modules, attributes, strict=True):
            _restore_kept(module, before)
        set_random_state(state)


def _restore_kept(module: nn.Module, before: dict[str, tuple[Any, Any]]) -> None:
    # networks that keep outputs of a pass (deep supervision heads, attention maps) would hold its graph for ever
    for name, value in list(vars(module).items()):
        if name not in before and name not in _OWN_TABLES and _holds_tensor(value):
            object.__delattr__(module, name)
    for name, (value, content) in before.items():
        now = vars(module).get(name, before)
        if now is not value and (_holds_tensor(now) or _holds_tensor(value)):
            object.__setattr__(module, name, value)
        if content is None or _same_objects(value, content) or not (_holds_tensor(value) or _holds_tensor(content)):
            continue
        value.clear()
        value.extend(content) if isinstance(value, list) else value.update(content)


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_tensor, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_tensor, value))
    return isinstance(value, Tensor)


def _same_objects(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return list(first) == list(second) and _same_objects([*first.values()], [*second.values()])
    return len(first) == len(second) and all(a is b for a, b in zip(first, second, strict=True))


def _remove_own_hooks(module: nn.Module, before: dict[str, set[int]]) -> None:
    """Hooks that an analysis left behind go; those that the network gave itself stay, as it may count on them."""
    for name, keys in before.items():
        for key, hook in [(key, hook) for key, hook in getattr(module, name, {}).items() if key not in keys]:
            function = getattr(hook, "func", hook)  # inside functools.partial
            if str(getattr(function, "__module__", "")).partition(".")[0] in ("toolkit", "captum"):
                for other in _HOOK_TABLES:
                    getattr(module, other, {}).pop(key, None)
