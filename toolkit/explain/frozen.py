"""A target held fixed: the same voxels of the same classes are scored however the image is changed.

Regions inside the prediction would move with a perturbed image and mix two effects. A target's score is a sum of
logits, so its gradient with respect to the logits holds every coefficient of that sum, whatever the target.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import LayerError
from toolkit.explain.targets import Target, TargetContext
from toolkit.inference.inputs import InputBatch
from toolkit.inference.network import Predictor
from toolkit.inference.windows import Frame


@dataclasses.dataclass(frozen=True, eq=False)
class Frozen:
    """A target on one batch, its region fixed."""

    weights: Tensor  # (B, K, *S) coefficient of every logit in the score
    score: Tensor  # (B,) value on the images themselves
    region: Tensor  # (B, 1, *S) bool, the voxels that count
    prediction: Tensor  # (B, *S) labels, or (B, K, *S) masks of overlapping regions, as `toolkit.predict` gives them

    def of(self, logits: Tensor) -> Tensor:
        """(n,) scores of other logits (n, K, *S); with one image here, n may be any number."""
        return (self.weights * logits).flatten(1).sum(1)

    @property
    def told(self) -> dict[str, Any]:
        """What a result keeps of it, on the CPU."""
        return {name: getattr(self, name).cpu() for name in ("prediction", "region", "score")}

    def select(self, index: int) -> Frozen:
        part = slice(index, index + 1)
        return Frozen(self.weights[part], self.score[part], self.region[part], self.prediction[part])


def freeze(target: Target, logits: Tensor, batch: InputBatch, predictor: Predictor) -> Frozen:
    """Fix a target's region on the logits (B, K, *S) of a batch."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = logits.detach().clone().requires_grad_()
        context = TargetContext.of(leaf, batch, predictor)
        score, region = target.score(context)
        (weights,) = torch.autograd.grad(score.sum(), leaf)
    return Frozen(weights, score.detach(), region, context.prediction)


class FixedScore:
    """Image (n, C, *S) -> (n,) scores of one frozen image; what perturbation and path methods call.

    Without a frame the images are of a size that the network, which is in evaluation mode, takes.
    """

    def __init__(self, predictor: Predictor, frozen: Frozen, frame: Frame | None = None) -> None:
        self.predictor, self.frozen, self.frame = predictor, frozen, frame

    def __call__(self, image: Tensor) -> Tensor:
        x = image.clone()  # networks may change it in place
        logits = self.predictor.one_pass(x) if self.frame is None else self.predictor.logits(x, self.frame)
        if torch.is_grad_enabled() and image.requires_grad and not logits.requires_grad:
            fix = "The network runs under no_grad or inference_mode: take that out, or use occlusion."
            raise LayerError("No gradient reaches the image.", where=type(self.predictor.model).__name__, fix=fix)
        return self.frozen.of(logits)

    def in_batches(self, images: Tensor, size: int) -> Tensor:
        """(n,) scores without a graph, at most `size` images a pass."""
        with torch.no_grad():
            return torch.cat([self(part) for part in images.split(size)])


def window_parts(frozen: Frozen, frame: Frame) -> Iterator[tuple[Any, Frozen]]:
    """(index in the padded image, target) of every window that matters.

    The windows' scores add up to the score of the stitched logits.
    """
    assert frame.tiling is not None
    whole = frame.pad(frozen.weights, 0.0)
    for window in frame.tiling.windows:
        weights = whole[window] * frame.tiling.share(window)
        if bool(weights.any()):
            yield window, dataclasses.replace(frozen, weights=weights)


class StitchedScore(FixedScore):
    """Image (n, C, *S) -> (n,) scores of the stitched logits of one frozen image (1, C, *S).

    Windows outside the target's region are not run; without gradients neither are windows that a perturbation has not
    touched.
    """

    def __init__(self, predictor: Predictor, frozen: Frozen, frame: Frame, image: Tensor) -> None:
        super().__init__(predictor, frozen, frame)
        self.image = frame.pad(image.detach())
        self.parts = [(inside, FixedScore(predictor, part)) for inside, part in window_parts(frozen, frame)]
        self.known: dict[int, Tensor] = {}

    def __call__(self, image: Tensor) -> Tensor:
        assert self.frame is not None
        total, padded = image.new_zeros(len(image)), self.frame.pad(image)
        for index, (inside, score) in enumerate(self.parts):
            window = padded[inside]
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


def score_of(predictor: Predictor, frozen: Frozen, frame: Frame, image: Tensor) -> FixedScore:
    """The score of one frozen image (1, C, *S), of its own logits or of those stitched from windows."""
    if frame.tiling is None:
        return FixedScore(predictor, frozen, frame)
    return StitchedScore(predictor, frozen, frame, image)
