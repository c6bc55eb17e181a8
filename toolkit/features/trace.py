"""One observed forward pass: which modules ran, in which order, with which shapes; and the aliases found from it."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.features.modules import LayerName, eager, named, unwrap
from toolkit.features.outputs import main_output
from toolkit.features.untouched import untouched

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
_NORMALISATION = ("BatchNorm", "InstanceNorm", "GroupNorm", "LayerNorm", "RMSNorm")


@dataclasses.dataclass
class Call:
    """One call of one module that returned one tensor.

    Attributes:
        name: layer name of the output (`path` or `path#n`).
        kind: class name of the module.
        start: order in which the call began.
        end: order in which it returned.
        shape: shape of the output.
        megabytes: size of the output, 10^6 bytes.
        kernel: largest side of the kernel (1 for Linear), None if it is no convolution.
    """

    name: LayerName
    kind: str
    start: int
    end: int
    shape: tuple[int, ...]
    megabytes: float
    kernel: int | None


@dataclasses.dataclass
class Trace:
    """The calls of one forward pass in the order they returned, and the aliases of the layers."""

    calls: list[Call]
    output: tuple[int, ...]
    aliases: dict[str, str]


_TRACES: weakref.WeakKeyDictionary[nn.Module, tuple[int, Trace]] = weakref.WeakKeyDictionary()


def cached_trace(network: nn.Module) -> Trace | None:
    """The last trace of this network, if its modules are still the same objects."""
    fingerprint, trace = _TRACES.get(network, (None, None))
    return trace if fingerprint == _fingerprint(network) else None


def trace_calls(
    model: nn.Module, inputs: Sequence[Any], keywords: Mapping[str, Any] | None = None, *, mode: str = "eval"
) -> Trace:
    """Observe one forward pass without gradients, and leave the network untouched.

    The trace is remembered for as long as the network lives, so aliases are looked up once.
    """
    network = unwrap(model)
    calls: list[Call] = []
    handles: list[Any] = []
    clock = [0]
    with untouched(network, mode), eager(network), torch.no_grad():
        try:
            for path, module in named(network).items():
                handles += _observe(path, module, calls, clock)
            output = network(*inputs, **(keywords or {}))
        finally:
            for handle in handles:
                handle.remove()
    image = next((one for one in (*inputs, *(keywords or {}).values()) if isinstance(one, Tensor)), None)
    shape = tuple(main_output(output, image).shape)
    trace = Trace(calls, shape, _find_aliases(calls, shape))
    _TRACES[network] = (_fingerprint(network), trace)
    return trace


def _observe(path: str, module: nn.Module, calls: list[Call], clock: list[int]) -> list[Any]:
    starts: list[int] = []
    count = [0]

    def before(_: nn.Module, __: Any) -> None:
        clock[0] += 1
        starts.append(clock[0])

    def after(_: nn.Module, __: Any, output: Any) -> None:
        clock[0] += 1
        count[0] += 1
        start = starts.pop()
        if isinstance(output, Tensor):
            size = output.numel() * output.element_size() / 1e6
            name = LayerName(path, call=count[0])
            calls.append(Call(name, type(module).__name__, start, clock[0], tuple(output.shape), size, _kernel(module)))

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def _kernel(module: nn.Module) -> int | None:
    if not isinstance(module, _CONVOLUTIONS):
        return None
    return max(getattr(module, "kernel_size", (1,)))


def _find_aliases(calls: list[Call], output: tuple[int, ...]) -> dict[str, str]:
    """Aliases by the rule that `toolkit.features.names` states."""
    head = _find_head(calls, output)
    body = [call for call in calls if head is None or call.end < head.start]
    aliases: dict[str, str] = {}
    if head is not None:
        aliases["head_input"] = str(dataclasses.replace(head.name, port="input"))
    norms = [call for call in body if any(kind in call.kind for kind in _NORMALISATION)]
    if norms and head is not None:
        aliases["pre_activation"] = str(norms[-1].name)
    maps = [call for call in body if len(call.shape) == len(output) > 2 and not _is_head(call, output)]
    sizes = {call.shape[2:] for call in maps}
    sizes = {size for size in sizes if torch.Size(size).numel() > 1} or sizes
    if not sizes:
        return aliases
    smallest = min(sizes, key=lambda size: torch.Size(size).numel())
    bottleneck = _last_before_growth(maps, smallest)
    aliases["bottleneck"] = str(bottleneck.name)
    last: dict[tuple[int, ...], Call] = {
        call.shape[2:]: call for call in maps if call.end > bottleneck.end and call.shape[2:] in sizes - {smallest}
    }
    finest_first = sorted(last.values(), key=lambda call: -torch.Size(call.shape[2:]).numel())
    aliases |= {f"decoder_{k}": str(call.name) for k, call in enumerate(finest_first, 1)}
    return aliases


def _last_before_growth(maps: list[Call], smallest: tuple[int, ...]) -> Call:
    """The last call of the smallest size before the first larger one that follows."""
    first = next(i for i, call in enumerate(maps) if call.shape[2:] == smallest)
    run = first
    while run + 1 < len(maps) and maps[run + 1].shape[2:] == smallest:
        run += 1
    return maps[run]


def _is_head(call: Call, output: tuple[int, ...]) -> bool:
    """A kernel-1 layer that makes the output's channels: a head, or the side head of a deep supervision."""
    return call.kernel == 1 and call.shape[1] == output[1]


def _find_head(calls: list[Call], output: tuple[int, ...]) -> Call | None:
    """Last convolution that makes the output's channels; kernel 1 and the output's own shape are preferred in turn."""
    makers = [call for call in calls if call.kernel is not None and output[1] in (call.shape[1], call.shape[-1])]
    for pool in (
        [call for call in makers if call.kernel == 1 and call.shape == output],
        [call for call in makers if call.kernel == 1],
        [call for call in makers if call.shape == output],
        makers,
    ):
        if pool:
            return pool[-1]
    return None


def _fingerprint(network: nn.Module) -> int:
    return hash(tuple((path, id(module)) for path, module in network.named_modules()))
