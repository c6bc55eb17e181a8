"""What a network remembers of its training, so that every later call treats it alike: its window, regions and logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypedDict

from torch import nn

from toolkit.features.logits import Select
from toolkit.features.modules import unwrap

_ATTRIBUTE = "toolkit_inference"  # a plain attribute: copies of the network carry it, its state_dict does not

Regions = Mapping[str, Sequence[int]]


class Passes(TypedDict, total=False):
    """How a network meets an image, and what its logits mean: keywords of every call that takes a model.

    Attributes:
        select: where the logits are in the network's output, as a name, an index or a function; None = the rule of
            `toolkit.features.logits.find_logits`.
        patch_size: window, one positive whole number per spatial axis; None = the one that the network was trained
            with here, if any; "whole" = one pass.
        overlap: of neighbouring windows, as a share of their side.
        divisor: what the sides must be multiples of; None = the network's attribute, else found by trying.
        precision: "bf16" or "16" for autocast of a float32 network; None = the network's own.
        activation: "softmax" (exclusive classes) or "sigmoid" (each output by itself, or one foreground output);
            None = what the network was trained for here, else softmax of several outputs.
    """

    select: Select | None
    patch_size: Sequence[int] | str | None
    overlap: float
    divisor: int | None
    precision: str | None
    activation: str | None


class Files(Protocol):
    """How another framework reads image files for its network; see `toolkit.integrations.nnunet.results`."""

    def items(self, paths: Sequence[str], label: str | None = None) -> Iterator[dict[str, Any]]:
        """Images as the network sees them, as `toolkit.inference.inputs.read_items` gives them."""

    def predict(self, model: nn.Module, paths: Sequence[str]) -> Any:
        """Labels (*S) on the files' own grid, as an array."""


@dataclasses.dataclass(frozen=True)
class Defaults:
    """How a network is run where a call does not say otherwise."""

    patch_size: tuple[int, ...] | None = None  # sides of the window that it was trained with; None = whole images
    divisor: int | None = None  # what the sides of an image must be multiples of; None = not known
    select: Select | None = None  # where its logits are, see `toolkit.features.logits.find_logits`
    activation: str | None = None  # "softmax" or "sigmoid"; None = softmax of several outputs
    regions: Regions | None = None  # name -> classes of each output of a sigmoid network, in their order
    classes: int | None = None  # that it was trained on, background included; 2 say what a single output is
    files: Files | None = None  # how image files are read for it; None = as a task's


def defaults_of(model: nn.Module) -> Defaults:
    """What is remembered of a network; its own attributes `divisor` (int) and `activation` (str) count where it says so."""
    network = unwrap(model)
    defaults = getattr(network, _ATTRIBUTE, None)
    defaults = defaults if isinstance(defaults, Defaults) else Defaults()
    divisor, activation = getattr(network, "divisor", None), getattr(network, "activation", None)
    if defaults.divisor is None and isinstance(divisor, int) and divisor > 0:
        defaults = dataclasses.replace(defaults, divisor=divisor)
    if defaults.activation is None and activation in ("softmax", "sigmoid"):
        defaults = dataclasses.replace(defaults, activation=activation)
    return defaults


def remember(model: nn.Module, **changes: Any) -> None:
    """Remember how a network is to be run: fields of `Defaults`, the others stay; regions imply "sigmoid"."""
    network = unwrap(model)
    defaults = getattr(network, _ATTRIBUTE, None) or Defaults()
    if changes.get("patch_size") is not None:
        changes["patch_size"] = tuple(int(side) for side in changes["patch_size"])
    if changes.get("regions"):
        changes["regions"] = {name: tuple(classes) for name, classes in changes["regions"].items()}
        changes.setdefault("activation", "sigmoid")
    setattr(network, _ATTRIBUTE, dataclasses.replace(defaults, **changes))
