"""A network's modules by clean name: wrappers removed, compiled parts unwrapped, script modules refused."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

import torch
from torch import nn

from toolkit.errors import DataError, LayerError, ToolkitError

_WRAPPER = "_orig_mod"
_DIMS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
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
    """Parse a layer name."""
    match = _LAYER.match(name)
    if not match:
        fix = "Write 'path', 'path:input', 'path#2' or 'path#2:input'."
        raise LayerError(f"{name!r} is not a layer name.", fix=fix)
    return LayerName(match["path"], match["port"] or "output", int(match["call"] or 1))


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


def named(model: nn.Module) -> dict[str, nn.Module]:
    """Every submodule by `named_modules()` path; the marks of compiled submodules are left out of the paths."""
    refuse_scripted(model)
    paths = ((path.split("."), module) for path, module in model.named_modules(remove_duplicate=False))
    # for a compiled part the inner module comes last and wins
    modules = {".".join(part for part in parts if part != _WRAPPER): module for parts, module in paths}
    modules.pop("", None)
    return modules


def refuse_scripted(model: nn.Module) -> None:
    """Refuse a network with TorchScript in it, and an exported program."""
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = "The layers of a TorchScript module cannot be observed: its hooks never fire."
            fix = "Pass the original torch.nn.Module that was scripted or traced."
            raise LayerError(what, where=path or type(model).__name__, fix=fix)
    if isinstance(model, torch.fx.GraphModule) and "train" in vars(model):  # torch.export replaces it by an error
        what = "An exported program has no layers to observe and no training mode."
        raise LayerError(what, where=type(model).__name__, fix="Pass the original torch.nn.Module that was exported.")


@contextlib.contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Run compiled code eagerly inside the block, because hooks added after compilation are skipped in silence."""
    wrapped = any(type(module).__name__ == "OptimizedModule" for module in model.modules())  # by torch.compile(module)
    compiled = wrapped or any(getattr(module, "_compiled_call_impl", None) for module in model.modules())  # in place
    with torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext():
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


def dims_and_channels(model: nn.Module) -> tuple[int | None, int | None]:
    """Spatial dims and input channels: as the network declares them, else of its first convolution, else None."""
    network = unwrap(model)
    dims, channels = getattr(network, "dims", None), getattr(network, "in_channels", None)
    if isinstance(dims, int) and isinstance(channels, int):
        return dims, channels
    for module in network.modules():
        for kind, count in _DIMS.items():
            if isinstance(module, kind):
                return count, module.in_channels
    return None, None


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU for a network without any."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def example_input(model: nn.Module) -> torch.Tensor:
    """Zeros of a usual size for a trial run."""
    dims, channels = dims_and_channels(model)
    if dims is None or channels is None:
        what = "An example input is needed: this network has no convolution to read its size from."
        raise DataError(what, fix="Pass example=tensor (B, C, *S).")
    return torch.zeros(1, channels, *([64 if dims < 3 else 32] * dims), device=device_of(model))


def own_precision(model: nn.Module) -> torch.dtype:
    """The type of the network's first floating-point parameter; float32 without any."""
    parameters = getattr(unwrap(model), "parameters", tuple)  # a plain function has none
    kinds = (parameter.dtype for parameter in parameters())
    return next((kind for kind in kinds if kind.is_floating_point), torch.float32)


@contextlib.contextmanager
def failure_explained(model: nn.Module, image: torch.Tensor) -> Iterator[None]:
    """Turn an exception of the network itself into a DataError that says on which input it happened."""
    try:
        yield
    except (ToolkitError, NotImplementedError, torch.OutOfMemoryError):
        raise
    except (ValueError, RuntimeError, TypeError, IndexError, AssertionError) as error:
        fix = (
            "Call the network on this input yourself. Often the size is at fault: a side that the network cannot "
            "halve as often as it wants, or that leaves one voxel for an instance norm at the bottom: pass divisor=... "
            "or patch_size=...."
        )
        if isinstance(error, TypeError) and "forward() missing" in str(error):
            fix = "A network is called with the image alone: wrap yours in a module that holds its other inputs."
        what = f"The network failed on an input of shape {tuple(image.shape)}: {type(error).__name__}: {error}"
        raise DataError(what, where=type(unwrap(model)).__name__, fix=fix) from error
