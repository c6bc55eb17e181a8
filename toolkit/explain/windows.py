"""A large image cut into overlapping windows, as in sliding-window prediction, and scores of the stitched logits."""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from toolkit.errors import ConfigError, LayerError
from toolkit.explain.frozen import FixedScore, Frozen
from toolkit.features.modules import unwrap
from toolkit.features.outputs import logits_of

Window = tuple[slice, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Tiling:
    """Windows that cover an image.

    Attributes:
        windows: their places.
        importance: (*patch) weight of every voxel of a window in the stitched logits, Gaussian.
        covered: (*S) sum of the weights at every voxel of the image.
    """

    windows: list[Window]
    importance: Tensor
    covered: Tensor

    @classmethod
    def of(cls, image: Tensor, model: nn.Module, patch_size: Sequence[int], overlap: float, where: str) -> Self:
        """Windows of an image (B, C, *S).

        Raises:
            ConfigError: a window that does not fit the network, or an overlap outside [0, 1).
        """
        size = tuple(image.shape[2:])
        windows, patch = _places(size, getattr(unwrap(model), "divisor", 1), patch_size, overlap, where)
        importance = gaussian(patch, image.device)
        covered = torch.zeros(size, device=image.device)
        for window in windows:
            covered[window] += importance
        return cls(windows, importance, covered)

    def share(self, window: Window) -> Tensor:
        """(*patch) part that the window's logits have in the stitched ones, between 0 and 1."""
        return self.importance / self.covered[window]

    def parts(self, frozen: Frozen) -> Iterator[tuple[Any, Frozen]]:
        """(index, target) of every window that matters: the windows' scores add up to the score of the stitched logits."""
        for window in self.windows:
            inside: Any = (..., *window)
            weights = frozen.weights[inside] * self.share(window)
            if bool(weights.any()):
                prediction, region = frozen.prediction[inside], frozen.region[inside]
                yield (inside, dataclasses.replace(frozen, weights=weights, region=region, prediction=prediction))

    def logits(self, network: nn.Module, image: Tensor) -> Tensor:
        """Stitched logits (B, K, *S), without a graph.

        Raises:
            LayerError: logits of another size than the window.
        """
        total: Tensor | None = None
        with torch.no_grad():
            for window in self.windows:
                inside: Any = (..., *window)
                logits = logits_of(network, image[inside].clone()).float()
                if logits.shape[2:] != self.importance.shape:
                    raise LayerError(
                        f"The network gives logits of size {tuple(logits.shape[2:])} for a window of "
                        f"{tuple(self.importance.shape)}.",
                        where="patch_size",
                        fix="Stitching needs logits of the image's size.",
                    )
                if total is None:
                    total = logits.new_zeros(*logits.shape[:2], *image.shape[2:])
                total[inside] += self.importance * logits
        assert total is not None
        return total / self.covered


class StitchedScore(FixedScore):
    """image (n, C, *S) -> (n,) scores of the stitched logits of one frozen image.

    Windows outside the target's region are not run; without gradients neither are windows that a perturbation has not
    touched.

    Args:
        network: in evaluation mode.
        frozen: the target on the image.
        tiling: the windows.
        image: (1, C, *S) the image itself, for telling which windows were touched.
    """

    def __init__(self, network: nn.Module, frozen: Frozen, tiling: Tiling, image: Tensor) -> None:
        super().__init__(network, frozen)
        self.image = image.detach()
        self.parts = [(inside, FixedScore(network, part)) for inside, part in tiling.parts(frozen)]
        self.known: dict[int, Tensor] = {}

    def __call__(self, image: Tensor) -> Tensor:
        """See the class."""
        total = image.new_zeros(len(image))
        for index, (inside, score) in enumerate(self.parts):
            window = image[inside]
            if torch.is_grad_enabled():
                total = total + score(window)
                continue
            own = self.image[inside]
            changed = (window != own).flatten(1).any(1)
            if not bool(changed.all()):
                self.known[index] = self.known[index] if index in self.known else score(own)
                total[~changed] += self.known[index]
            if bool(changed.any()):
                total[changed] += score(window[changed])
        return total


def score_of(network: nn.Module, frozen: Frozen, tiling: Tiling | None, image: Tensor) -> FixedScore:
    """The score of one frozen image (1, C, *S), of its own logits or of those stitched from windows."""
    return FixedScore(network, frozen) if tiling is None else StitchedScore(network, frozen, tiling, image)


def whole_logits(network: nn.Module, image: Tensor, tiling: Tiling | None) -> Tensor:
    """Logits of the images (B, K, *S), stitched if there are windows."""
    return logits_of(network, image.clone()) if tiling is None else tiling.logits(network, image)


def gaussian(patch: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Weight of every voxel of a window: 1 in the middle, sd an eighth of each side, at least 0.001."""
    weight = torch.ones((), device=device)
    for side in patch:
        offset = (torch.arange(side, device=device) - (side - 1) / 2) / (side / 8)
        weight = weight[..., None] * torch.exp(-offset.square() / 2)
    return weight.clamp_min(1e-3)


def sides_of(patch_size: Sequence[int], where: str) -> tuple[int, ...]:
    """The sides of a window as integers.

    Raises:
        ConfigError: not a sequence of whole numbers.
    """
    try:
        return tuple(operator.index(side) for side in patch_size)
    except TypeError as error:
        raise ConfigError(
            f"patch_size={patch_size!r} is not a window.",
            where=f"{where}(patch_size=...)",
            fix="Give one whole number per spatial axis, for example (96, 96).",
        ) from error


def _places(
    size: tuple[int, ...], divisor: int, patch_size: Sequence[int], overlap: float, where: str
) -> tuple[list[Window], tuple[int, ...]]:
    """Windows that cover the image, and their size."""
    patch_size = sides_of(patch_size, where)
    if len(patch_size) != len(size) or any(side < 1 or side % divisor for side in patch_size):
        raise ConfigError(
            f"patch_size {tuple(patch_size)} does not fit an image of size {size}.",
            where=f"{where}(patch_size=...)",
            fix=f"Give {len(size)} sides, each a multiple of {divisor}.",
        )
    if not 0 <= overlap < 1:
        raise ConfigError(f"overlap must be at least 0 and below 1, not {overlap}.", where=where)
    patch = tuple(min(side, whole) for side, whole in zip(patch_size, size, strict=True))
    starts = []
    for side, whole in zip(patch, size, strict=True):
        step = max(1, int(side * (1 - overlap)))
        starts.append([*range(0, whole - side, step), whole - side])
    windows = [
        tuple(slice(start, start + side) for start, side in zip(corner, patch, strict=True))
        for corner in itertools.product(*starts)
    ]
    return windows, patch
