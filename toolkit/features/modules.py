"""A network's modules by clean name: wrappers removed, compiled parts unwrapped, script modules refused."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

import torch
from torch import nn

from toolkit.errors import LayerError

_WRAPPER = "_orig_mod"
_LAYER = re.compile(r"(?P<path>[^#:]+)(?:#(?P<call>[1-9]\d*))?(?::(?P<port>input))?$")


@dataclasses.dataclass(frozen=True)
class LayerName:
    """A parsed layer name: `path`, `path:input`, `path#2`, `path#2:input`."""

    path: str
    port: str = "output"
    call: int = 1

    def __str__(self) -> str:
        call = "" if self.call == 1 else f"#{self.call}"
        return f"{self.path}{call}{':input' if self.port == 'input' else ''}"


def parse(name: str) -> LayerName:
    """Parse a layer name.

    Raises:
        LayerError: the name does not follow the grammar.
    """
    found = _LAYER.match(name)
    if not found:
        raise LayerError(
            f"{name!r} is not a layer name.", fix="Write 'path', 'path:input', 'path#2' or 'path#2:input'."
        )
    return LayerName(found["path"], found["port"] or "output", int(found["call"] or 1))


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside torch.compile, DataParallel, DistributedDataParallel and Fabric wrappers."""
    while True:
        kind = type(model).__name__
        if kind == "OptimizedModule":
            model = model._orig_mod  # type: ignore[assignment]
        elif kind in ("DataParallel", "DistributedDataParallel", "_FabricModule"):
            model = model.module  # type: ignore[assignment]
        else:
            return model


def named(network: nn.Module) -> dict[str, nn.Module]:
    """Every submodule by `named_modules()` path; the marks of compiled submodules are left out of the paths.

    Raises:
        LayerError: a TorchScript module, whose hooks would never fire.
    """
    modules: dict[str, nn.Module] = {}
    refuse_scripted(network)
    for path, module in network.named_modules(remove_duplicate=False):
        clean = ".".join(part for part in path.split(".") if part != _WRAPPER)
        modules[clean] = module  # for a compiled part the inner module comes last and wins
    modules.pop("", None)
    return modules


def refuse_scripted(network: nn.Module) -> None:
    """Refuse a network with TorchScript in it.

    Raises:
        LayerError: names the first such module.
    """
    for path, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise LayerError(
                "The layers of a TorchScript module cannot be observed: its hooks never fire.",
                where=path or type(network).__name__,
                fix="Pass the original torch.nn.Module that was scripted or traced.",
            )


@contextlib.contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Run compiled code eagerly inside the block, because hooks added after compilation are skipped in silence."""
    if any(
        type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    ):  # by torch.compile(module), or in place by module.compile()
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


def is_container(module: nn.Module) -> bool:
    """True for modules that cannot be called, such as ModuleDict and ModuleList."""
    return type(module).forward is nn.Module.forward


def is_glob(pattern: str) -> bool:
    """True if the pattern holds a wildcard."""
    return any(mark in pattern for mark in "*?[")


def glob_match(name: str, pattern: str) -> bool:
    """`fnmatch` per dotted segment, so `decoder.*` gives the blocks and not what is inside them; `**` spans dots."""
    return _segments_match(name.split("."), pattern.split("."))


def _segments_match(names: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_segments_match(names[i:], patterns[1:]) for i in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], patterns[0]) and _segments_match(names[1:], patterns[1:])
