"""`replaced`: run a network with the output (or input) of some layers changed on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn

from toolkit.features.capture import Recorder
from toolkit.features.modules import eager, unwrap
from toolkit.features.names import Request


@contextlib.contextmanager
def replaced(
    model: nn.Module, changes: Mapping[str, Callable[[Tensor], Tensor]], *, aliases: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Replace activations while the network runs inside the block; the hooks are gone afterwards.

    Args:
        model: any network; compiled ones run eagerly inside the block.
        changes: layer name, glob or alias -> function of the activation that gives what the network goes on with.
        aliases: overrides of aliases.

    Raises:
        LayerError: a name that matches nothing, or a layer that never ran.
    """
    replacer = _Replacer(unwrap(model), list(changes), aliases, changes)
    with eager(model):
        try:
            replacer.attach()
            yield
        finally:
            replacer.remove()
    replacer.check()


class _Replacer(Recorder):
    """Hooks that hand the network something else."""

    def __init__(
        self,
        model: nn.Module,
        wanted: list[str],
        aliases: Mapping[str, str] | None,
        changes: Mapping[str, Callable[[Tensor], Tensor]],
    ) -> None:
        super().__init__(model, wanted, aliases)
        self.changes = changes

    def handle(self, requests: list[Request], tensor: Tensor) -> Tensor:
        """Apply every change asked for at this place, in the order given."""
        for request in requests:
            tensor = self.changes[request.pattern](tensor)
            self.done.add(request.key)
        return tensor
