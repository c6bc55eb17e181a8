"""Layer names: paths, globs and aliases of any network, and the table that lists them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from toolkit.errors import LayerError
from toolkit.features.ladder import Ladder
from toolkit.features.modules import (
    LayerName,
    example_input,
    failure_explained,
    glob_match,
    is_container,
    is_glob,
    named,
    own_precision,
    parse,
    unwrap,
)
from toolkit.features.trace import Trace, cached_trace, trace_calls
from toolkit.results import DataFrame, as_table

_ALIASES = ("head_input", "pre_activation", "bottleneck", "decoder_")


@dataclasses.dataclass(frozen=True)
class Request:
    """One layer to observe."""

    key: str  # the name under which it is handed out: as asked for, or the full path if a glob found it
    layer: LayerName  # where it is
    pattern: str  # what was asked for
    required: bool  # False if a glob found it, so that a module which never runs is left out in silence


class AliasUnknown(LookupError):
    """An alias that only an observed forward pass can resolve."""


def layer_table(model: nn.Module, trace: Trace, aliases: Mapping[str, str] | None = None) -> DataFrame:
    """The calls of an observed pass with their aliases; see `toolkit.layers`."""
    by_layer: dict[str, list[str]] = {}
    for alias, name in known_aliases(model, aliases, trace).items():
        by_layer.setdefault(str(dataclasses.replace(parse(name), port="output")), []).append(alias)
    rows = [
        [str(c.name), ", ".join(by_layer.get(str(c.name), [])), c.kind, c.shape, round(c.megabytes, 6)]
        for c in trace.calls
    ]
    return as_table(rows, ["name", "aliases", "kind", "shape", "mb"])


def stages(model: nn.Module, example: Tensor | None = None) -> Ladder:
    """The stages of an encoder and decoder: of a pass on the example, else of the last one observed, else of zeros."""
    trace = cached_trace(unwrap(model)) if example is None else None
    return (trace or _trace(model, example)).ladder


def resolve(
    model: nn.Module,
    patterns: str | Sequence[str],
    example: Tensor | None = None,
    aliases: Mapping[str, str] | None = None,
) -> list[str]:
    """Full layer names of paths, globs and aliases, in the order asked for, without repeats."""
    try:
        requests = find_requests(model, patterns, aliases)
    except AliasUnknown:
        _trace(model, example)
        requests = find_requests(model, patterns, aliases)
    return list(dict.fromkeys(str(request.layer) for request in requests))


def find_requests(
    model: nn.Module, patterns: str | Sequence[str], aliases: Mapping[str, str] | None = None
) -> list[Request]:
    """Resolve patterns without running the network."""
    network = unwrap(model)
    modules = named(network)
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    overridable = known_aliases(network, aliases, None)
    trace = None
    if any(_may_be_alias(pattern) and pattern not in overridable and pattern not in modules for pattern in wanted):
        trace = cached_trace(network)
        overridable = known_aliases(network, aliases, trace)
    requests: dict[str, Request] = {}
    for pattern in wanted:
        for request in _match(pattern, modules, overridable, trace is not None):
            requests.setdefault(request.key, request)
    return list(requests.values())


def known_aliases(model: nn.Module, aliases: Mapping[str, str] | None, trace: Trace | None) -> dict[str, str]:
    """Aliases known now: the user's overrides over the network's own statement over its modules over the observed rule."""
    modules, rule = named(model), trace.aliases if trace else {}
    observed = {alias: name for alias, name in rule.items() if alias == name or alias not in modules}
    return {**observed, **getattr(model, "toolkit_taps", {}), **(aliases or {})}


def _match(pattern: str, modules: Mapping[str, nn.Module], aliases: Mapping[str, str], observed: bool) -> list[Request]:
    if pattern in aliases:
        layer = parse(aliases[pattern])
        if layer.path not in modules:
            raise _unknown(str(layer), modules, aliases, f"alias {pattern!r}")
        return [Request(pattern, layer, pattern, True)]
    layer = parse(pattern)
    if is_glob(pattern):
        paths = [p for p, module in modules.items() if glob_match(p, layer.path) and not is_container(module)]
        names = [] if paths else [alias for alias in aliases if glob_match(alias, pattern)]
        if not paths and not names:
            raise _unknown(pattern, modules, aliases, observed=observed)
        layers = [dataclasses.replace(layer, path=path) for path in paths]
        requests = [Request(alias, parse(aliases[alias]), pattern, True) for alias in names]
        return requests or [Request(str(name), name, pattern, False) for name in layers]
    if layer.path not in modules:
        raise _unknown(pattern, modules, aliases, observed=observed)
    if is_container(modules[layer.path]):
        inside = [name for name in modules if name.rpartition(".")[0] == layer.path]
        what = f"{layer.path!r} is a container that is never called, so it has no output."
        fix = f"Name a block inside it: {', '.join(inside[:8])}; or all of them: '{layer.path}.*'."
        raise LayerError(what, where=pattern, fix=fix)
    return [Request(pattern, layer, pattern, True)]


def _unknown(
    name: str, modules: Mapping[str, nn.Module], aliases: Mapping[str, str], where: str = "", observed: bool = True
) -> Exception:
    if _may_be_alias(name) and not observed:
        return AliasUnknown(name)
    fix = f"Closest names: {closest(name, [*aliases, *modules])}."
    return LayerError(f"No layer matches {name!r}.", where=where, fix=fix)


def _may_be_alias(pattern: str) -> bool:
    return pattern.startswith(_ALIASES) and "." not in pattern


def closest(name: str, names: Sequence[str]) -> str:
    """The names most like `name`, comma separated, for error messages."""
    names = list(dict.fromkeys(names))
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.4)
    return ", ".join(near or list(names)[:8]) or "the network has no submodules"


def _trace(model: nn.Module, example: Tensor | None) -> Trace:
    image = example_input(model) if example is None else example
    with failure_explained(model, image):
        return trace_calls(model, [image.to(own_precision(model))])
