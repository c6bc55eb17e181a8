"""Running a network from one layer on, with a code of our choice there and control over what goes around it.

Skip connections of any encoder/decoder network are found without knowing its structure: whatever a module returned
before the layer, and the output still depends on once the layer's output is held fixed, goes around the layer.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import LayerError
from toolkit.features.capture import capture
from toolkit.features.modules import LayerName, eager, is_container, named, parse
from toolkit.inference.network import Predictor

Place = tuple[str, int, int]  # module path, call, position among the tensors it returned


class Bypass:
    """A network cut at one layer, in the mode it is to be run in.

    After `record`, `code` is the layer's output as a leaf tensor that requires grad, `logits` depends on it, and
    `around` holds the outputs of the modules that ran before. `replay` runs the rest again with other values.
    """

    def __init__(self, predictor: Predictor, layer: str) -> None:
        self.predictor, self.model, self.layer = predictor, predictor.model, parse(layer)
        self.around: dict[Place, Tensor] = {}
        self.code: Tensor | None = None
        self._reached = False
        self._calls: dict[str, int] = {}
        self._inputs: dict[str, int] = {}

    def record(self, image: Tensor) -> Tensor:
        """Run the network once and return its logits; gradients reach `code` and `around`, not through each other."""
        self.around.clear()

        def keep(place: Place, tensor: Tensor) -> Tensor:
            self.around[place] = tensor
            return tensor.clone()  # the network may go on in place

        def cut(tensor: Tensor) -> Tensor:
            self.code = tensor.detach().clone().requires_grad_()
            return self.code.clone()

        # `capture` checks the name and that the layer runs, with its own error messages
        with capture(self.model, [str(self.layer)], detach=True, clone=False), self._hooks(keep, cut):
            return self.predictor.one_pass(image)

    def replay(self, image: Tensor, code: Tensor, change: Callable[[Place, Tensor], Tensor]) -> Tensor:
        """Run again with `code` at the layer and `change(place, recorded)` around it."""

        def put_back(place: Place, _: Tensor) -> Tensor:
            return change(place, self.around[place])

        with self._hooks(put_back, lambda _: code.clone()):
            return self.predictor.one_pass(image)

    @contextlib.contextmanager
    def _hooks(self, before: Callable[[Place, Tensor], Tensor], at_layer: Callable[[Tensor], Tensor]) -> Iterator[None]:
        self._reached = False
        self._calls.clear()
        self._inputs.clear()
        handles = []
        with eager(self.model):
            try:
                for path, module in named(self.model).items():
                    if is_container(module):
                        continue
                    if self.layer.port == "input" and path == self.layer.path:
                        handles.append(module.register_forward_pre_hook(self._enter(at_layer)))
                    handles.append(module.register_forward_hook(self._leave(path, before, at_layer)))
                yield
            finally:
                for handle in handles:
                    handle.remove()

    def _enter(self, at_layer: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
            call = self._inputs[self.layer.path] = self._inputs.get(self.layer.path, 0) + 1
            if self._reached or call != self.layer.call:
                return None
            self._reached = True
            return at_layer(arguments[0]), *arguments[1:]

        return hook

    def _leave(
        self, path: str, before: Callable[[Place, Tensor], Tensor], at_layer: Callable[[Tensor], Tensor]
    ) -> Callable[..., Any]:
        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            if self._reached:
                return None
            call = self._calls[path] = self._calls.get(path, 0) + 1
            if LayerName(path, call=call) == self.layer:
                self._reached = True
                return at_layer(output) if isinstance(output, Tensor) else None  # `capture` refuses the latter
            position = iter(range(10**6))
            return _mapped(output, lambda tensor: before((path, call, next(position)), tensor))

        return hook


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every floating-point tensor in nested lists, tuples, mappings and dataclasses; types stay."""
    if isinstance(value, Tensor):
        return function(value) if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        items = [_mapped(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, MutableMapping):
        mapping = copy.copy(value)
        for key, item in value.items():
            mapping[key] = _mapped(item, function)
        return mapping
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        again: Any = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(again, field.name, _mapped(getattr(value, field.name), function))
        return again
    return value


def gradients(loss: Tensor, bypass: Bypass) -> tuple[Tensor, dict[Place, Tensor]]:
    """Gradient of a loss at the code, and at whatever goes around it and matters."""
    code = bypass.code
    assert code is not None
    if not loss.requires_grad:
        fix = "The network runs under no_grad or inference_mode, or detaches what follows the layer: take that out."
        raise LayerError(f"No gradient reaches {bypass.layer}.", where=bypass.layer, fix=fix)
    tracked = {place: tensor for place, tensor in bypass.around.items() if tensor.requires_grad}
    at_code, *at_rest = torch.autograd.grad(loss, [code, *tracked.values()], allow_unused=True)
    if at_code is None:
        raise LayerError(f"The output does not depend on {bypass.layer}, so masking it changes nothing.")
    around = {place: g for place, g in zip(tracked, at_rest, strict=True) if g is not None}
    return at_code, around
