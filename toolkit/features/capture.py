"""`capture`: live activations of any network by layer name, through hooks that exist only inside the block."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from toolkit.errors import LayerError
from toolkit.features.modules import LayerName, eager, glob_match, is_glob, named, unwrap
from toolkit.features.names import AliasUnknown, Request, closest, find_requests
from toolkit.features.trace import trace_calls


class Tape(dict[str, Tensor]):
    """Captured tensors by the name asked for (globs: by full path), of the network's latest forward pass."""

    def __init__(self, tensors: Mapping[str, Tensor] | None = None, patterns: Mapping[str, str] | None = None):
        super().__init__(tensors or {})
        self.patterns: dict[str, str] = dict(patterns or {})  # what was asked for, by the name under which it is here

    def __missing__(self, name: str) -> Tensor:
        fix = f"It holds: {', '.join(self) or 'nothing yet; run the network first'}."
        raise LayerError(f"{name!r} is not on this tape.", where="tape", fix=fix)

    def matching(self, pattern: str) -> dict[str, Tensor]:
        """Tensors that were asked for with this pattern, or whose name it matches."""
        if pattern in self:
            return {pattern: self[pattern]}
        matches = {
            name: tensor
            for name, tensor in self.items()
            if self.patterns.get(name) == pattern or (is_glob(pattern) and glob_match(name, pattern))
        }
        return matches or {pattern: self[pattern]}

    def detached(self) -> Tape:
        """The same values without their graph (storage is shared)."""
        return Tape({name: tensor.detach() for name, tensor in self.items()}, self.patterns)


@contextlib.contextmanager
def capture(
    model: nn.Module,
    layers: str | Sequence[str],
    *,
    aliases: Mapping[str, str] | None = None,
    detach: bool = False,
    clone: bool = True,
) -> Iterator[Tape]:
    """Record activations while the network runs inside the block.

    The recorded tensor is the one the network goes on with, so losses on it reach the layers before it and
    `torch.autograd.grad(score, tape[name])` is the gradient at that layer. The network itself continues with a copy
    (`clone`), so a later in-place activation cannot overwrite what was recorded. Wrapped networks are unwrapped and
    compiled ones run eagerly inside the block. A new call of the network starts a new recording.

    Args:
        model: any network.
        layers: layer names, globs or aliases; see `toolkit.layers`. None at all means no hooks at all.
        aliases: overrides of aliases, for example {"head_input": "final:input"}.
        detach: record without the graph.
        clone: copy each recorded tensor; turn off only for networks without in-place operations.

    Raises:
        LayerError: a name that matches nothing, or on leaving the block a layer that never ran or that does not
            return one tensor; the message offers the closest names.

    Example:
        >>> with tk.capture(model, ["bottleneck"]) as tape:
        ...     logits = model(image[None])
        >>> (gradient,) = torch.autograd.grad(logits[:, 3].sum(), tape["bottleneck"])
    """
    wanted = [layers] if isinstance(layers, str) else list(layers)
    if not wanted:
        yield Tape()
        return
    recorder = Recorder(unwrap(model), wanted, aliases, detach=detach, clone=clone)
    with _attached(model, recorder):
        yield recorder.tape


def observe(
    model: nn.Module,
    layers: str | Sequence[str],
    consume: Callable[[str, Tensor], None],
    *,
    aliases: Mapping[str, str] | None = None,
) -> contextlib.AbstractContextManager[None]:
    """Hand each activation to `consume(name, tensor)` the moment it exists; nothing is copied or kept.

    For streaming: memory stays flat however many layers are watched. Names, errors and unwrapping as in `capture`.
    """
    wanted = [layers] if isinstance(layers, str) else list(layers)
    return _attached(model, Recorder(unwrap(model), wanted, aliases, consume=consume))


@contextlib.contextmanager
def _attached(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    with eager(model):
        try:
            recorder.attach()
            yield
        finally:
            recorder.remove()
    recorder.check()


class Recorder:
    """The hooks of one block, which keep activations on a tape."""

    def __init__(
        self,
        model: nn.Module,
        wanted: list[str],
        aliases: Mapping[str, str] | None,
        *,
        detach: bool = False,
        clone: bool = True,
        consume: Callable[[str, Tensor], None] | None = None,
    ) -> None:
        self.model, self.wanted, self.aliases = model, wanted, aliases
        self.tape, self.detach, self.clone, self.consume = Tape(), detach, clone, consume
        self.done: set[str] = set()
        self.requests: list[Request] | None = None
        self.handles: list[Any] = []
        self.counts: dict[tuple[str, str], int] = {}
        self.not_tensors: dict[LayerName, str] = {}
        self.observing = False

    def handle(self, requests: list[Request], tensor: Tensor) -> Tensor | None:
        """Record the tensor itself (the network goes on with a copy, which it may change in place), or show it."""
        onward = None
        if self.consume is not None:
            for request in requests:
                self.consume(request.key, tensor.detach())
            return None
        if self.detach:
            tensor = tensor.detach().clone() if self.clone else tensor.detach()
        elif self.clone:
            onward = tensor.clone()
        for request in requests:
            self.tape[request.key] = tensor
            self.tape.patterns[request.key] = request.pattern
        return onward

    def attach(self) -> None:
        """Add the hooks; aliases that only a forward pass can resolve are looked up when the first one begins."""
        self.handles.append(self.model.register_forward_pre_hook(self._begin, with_kwargs=True))
        with contextlib.suppress(AliasUnknown):
            self._attach_layers()

    def remove(self) -> None:
        """Remove every hook."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def check(self) -> None:
        """Refuse to end with a requested layer missing."""
        if self.requests is None:
            what = f"The aliases among {self.wanted} could not be resolved: the network was never called."
            fix = 'Call the network inside the block, or say where they are: aliases={"head_input": "..."}.'
            raise LayerError(what, where=type(self.model).__name__, fix=fix)
        missing = [r for r in self.requests if r.key not in self.done and r.required]
        met = {r.pattern for r in self.requests if r.key in self.done or r.required}
        globs = {r.pattern for r in self.requests} - met
        for request in [*missing, *(r for r in self.requests if r.pattern in globs)]:
            raise self._missing(request)

    def _attach_layers(self) -> None:
        self.requests = find_requests(self.model, self.wanted, self.aliases)
        modules = named(self.model)
        places: dict[tuple[str, str], list[Request]] = {}
        for request in self.requests:
            places.setdefault((request.layer.path, request.layer.port), []).append(request)
        for (path, port), requests in places.items():
            self.handles.append(self._hook(modules[path], path, port, requests))

    def _begin(self, _: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if self.observing:
            return
        if self.requests is None:
            self.observing = True
            try:
                trace_calls(self.model, arguments, keywords, mode="keep")
            finally:
                self.observing = False
            self._attach_layers()
        self.counts.clear()
        self.done.clear()
        self.tape.clear()

    def _hook(self, module: nn.Module, path: str, port: str, requests: list[Request]) -> Any:
        if port == "output":
            return module.register_forward_hook(
                lambda _, __, output: self._take(self._hits(path, port, requests), output), always_call=False
            )
        return module.register_forward_pre_hook(
            lambda _, arguments, keywords: self._input(path, requests, arguments, keywords), with_kwargs=True
        )

    def _input(
        self, path: str, requests: list[Request], arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        hits = self._hits(path, "input", requests)
        if arguments:
            onward = self._take(hits, arguments[0])
            return None if onward is None else ((onward, *arguments[1:]), keywords)
        name = next((name for name, value in keywords.items() if isinstance(value, Tensor)), "")
        onward = self._take(hits, keywords.get(name))
        return None if onward is None else (arguments, {**keywords, name: onward})

    def _take(self, hits: list[Request], value: Any) -> Tensor | None:
        """Deal with what passes a layer that is due; what the network goes on with, if that is something else."""
        if not isinstance(value, Tensor):
            self.not_tensors |= {hit.layer: type(value).__name__ for hit in hits}
            return None
        self.done |= {hit.key for hit in hits}
        return self.handle(hits, value) if hits else None

    def _hits(self, path: str, port: str, requests: list[Request]) -> list[Request]:
        count = self.counts[path, port] = self.counts.get((path, port), 0) + 1
        return [request for request in requests if request.layer.call == count]

    def _missing(self, request: Request) -> LayerError:
        layer = request.layer
        if layer in self.not_tensors:
            children = [n for n in named(self.model) if n.startswith(f"{layer.path}.")]
            what = f"The layer {request.key!r} gives {self.not_tensors[layer]}, not one tensor."
            fix = f"Name a layer inside it: {', '.join(children[:8]) or 'it has none'}."
            return LayerError(what, where=layer, fix=fix)
        calls = self.counts.get((layer.path, layer.port), 0)
        ran = "it never ran" if not calls else f"it ran {calls} time{'s' * (calls > 1)} only"
        names = [n for n in named(self.model) if n != layer.path]
        what = f"The layer {request.key!r} was not captured: {ran} inside the block."
        fix = f"Run the network inside it, or ask for another layer. Closest names: {closest(layer.path, names)}."
        return LayerError(what, where=layer, fix=fix)
