"""One observed forward pass: which modules ran, in which order, with which shapes; and the aliases found from it."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import LayerError
from toolkit.features.ladder import Ladder, Span, find_ladder
from toolkit.features.logits import Select, find_logits
from toolkit.features.modules import LayerName, eager, named, unwrap
from toolkit.features.untouched import untouched

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
_NORMALISATION = ("BatchNorm", "InstanceNorm", "GroupNorm", "LayerNorm", "RMSNorm")


@dataclasses.dataclass
class Call:
    """One call of one module that returned one tensor."""

    name: LayerName  # layer name of the output (`path` or `path#n`)
    kind: str  # class name of the module
    start: int  # order in which the call began
    end: int  # order in which it returned
    shape: tuple[int, ...]  # shape of the output
    megabytes: float  # size of the output, 10^6 bytes
    kernel: int | None  # largest side of the kernel (1 for Linear), None if it is no convolution


@dataclasses.dataclass
class Trace:
    """The calls of one forward pass in the order they returned, the aliases of the layers, and the stages."""

    calls: list[Call]
    output: tuple[int, ...]
    aliases: dict[str, str]
    ladder: Ladder


_TRACES: weakref.WeakKeyDictionary[nn.Module, tuple[int, Trace]] = weakref.WeakKeyDictionary()


def cached_trace(model: nn.Module) -> Trace | None:
    """The last trace of this network, if its modules are still the same objects."""
    fingerprint, trace = _TRACES.get(model, (None, None))
    return trace if fingerprint == _fingerprint(model) else None


def trace_calls(
    model: nn.Module,
    inputs: Sequence[Any],
    keywords: Mapping[str, Any] | None = None,
    *,
    mode: str = "eval",
    select: Select | None = None,
) -> Trace:
    """Observe one forward pass without gradients, and leave the network untouched.

    The trace is remembered for as long as the network lives, so aliases are looked up once.
    """
    network = unwrap(model)
    calls: list[Call] = []
    spans: list[Span] = []
    handles: list[Any] = []
    clock = [0]
    with untouched(network, mode), eager(network), torch.no_grad():
        try:
            seen: set[int] = set()
            for path, module in named(network).items():
                handles += _observe(path, module, calls, [] if id(module) in seen else spans, clock)
                seen.add(id(module))
            output = network(*inputs, **(keywords or {}))
        finally:
            for handle in handles:
                handle.remove()
    image = next((one for one in (*inputs, *(keywords or {}).values()) if isinstance(one, Tensor)), None)
    try:
        shape = tuple(find_logits(output, image, select).shape)
    except LayerError:  # without channels, so that no layer passes for the head
        shape = () if image is None else (len(image), -1, *image.shape[2:])
    size = shape[2:] if image is None else tuple(image.shape[2:])
    head = _find_head(calls, shape) if shape else None
    ladder = find_ladder(_body(spans, head, calls, shape), size)
    trace = Trace(calls, shape, _find_aliases(calls, head, ladder), ladder)
    _TRACES[network] = (_fingerprint(network), trace)
    return trace


def _observe(path: str, module: nn.Module, calls: list[Call], spans: list[Span], clock: list[int]) -> list[Any]:
    starts: list[tuple[int, tuple[int, ...] | None]] = []
    count = [0]
    kind, kernel = type(module).__name__, None
    if isinstance(module, _CONVOLUTIONS):
        kernel = max(getattr(module, "kernel_size", (1,)))

    def before(_: nn.Module, arguments: Any) -> None:
        clock[0] += 1
        starts.append((clock[0], _first_shape(arguments[:1])))

    def after(_: nn.Module, __: Any, output: Any) -> None:
        clock[0] += 1
        count[0] += 1
        start, entered = starts.pop()
        name = LayerName(path, call=count[0])
        if isinstance(output, Tensor):
            size = output.numel() * output.element_size() / 1e6
            calls.append(Call(name, kind, start, clock[0], tuple(output.shape), size, kernel))
        listed = str(name) if isinstance(output, Tensor) and output.is_floating_point() else ""
        spans.append(Span(listed, kind, start, clock[0], entered, _first_shape(output)))

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def _first_shape(value: Any) -> tuple[int, ...] | None:
    """Shape of a tensor, or of the first one in a tuple or mapping; a list of several is no single map."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return _first_shape(value[0]) if isinstance(value, tuple) and value else None


def _find_aliases(calls: list[Call], head: Call | None, ladder: Ladder) -> dict[str, str]:
    """Aliases by the rule that `toolkit.features.names` states."""
    aliases: dict[str, str] = {}
    if head is not None:
        aliases["head_input"] = str(dataclasses.replace(head.name, port="input"))
        norms = [c for c in calls if c.end < head.start and any(kind in c.kind for kind in _NORMALISATION)]
        if norms:
            aliases["pre_activation"] = str(norms[-1].name)
    if ladder.bottleneck:
        aliases["bottleneck"] = ladder.bottleneck
    return aliases | {f"decoder_{k}": name for k, name in enumerate(reversed(ladder.decoder), 1)}


def _body(spans: list[Span], head: Call | None, calls: list[Call], output: tuple[int, ...]) -> list[Span]:
    """The calls before the head, without side heads; those around it stay without a name, as they bound what is inside."""
    if head is None:
        return spans
    # kernel-1 layers that make the output's channels: side heads of a deep supervision
    side = {(c.start, c.end) for c in calls if c.kernel == 1 and c.shape[1] == output[1]}
    around = [dataclasses.replace(s, name="") for s in spans if s.start < head.start < s.end]
    return around + [s for s in spans if s.end < head.start and (s.start, s.end) not in side]


def _find_head(calls: list[Call], output: tuple[int, ...]) -> Call | None:
    """The last convolution that makes the output's channels, by the rule that `toolkit.layers` states."""
    makers = [c for c in calls if c.kernel is not None and c.shape[-1 if c.kind == "Linear" else 1] == output[1]]
    makers = [c for c in makers if "aux" not in c.name.path] or makers
    maps = [c for c in makers if len(c.shape) > 2 and torch.Size(c.shape[2:]).numel() > 1] or makers
    ones = [c for c in maps if c.kernel == 1]
    exact = [c for c in ones if c.shape == output]
    if exact:
        return exact[-1]
    finest = max((torch.Size(c.shape[2:]).numel() for c in ones), default=0)
    chosen = [c for c in ones if torch.Size(c.shape[2:]).numel() == finest][-1:]
    chosen += [c for c in maps if c.shape == output][-1:]
    return max(chosen or maps[-1:], key=lambda c: c.end, default=None)


def _fingerprint(model: nn.Module) -> int:
    return hash(tuple((path, id(module)) for path, module in model.named_modules()))
