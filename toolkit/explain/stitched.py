"""Scores of logits that are stitched from windows, window by window."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from toolkit.explain.frozen import FixedScore, Frozen
from toolkit.inference.network import Predictor
from toolkit.inference.windows import Frame


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
    """image (n, C, *S) -> (n,) scores of the stitched logits of one frozen image.

    Windows outside the target's region are not run; without gradients neither are windows that a perturbation has not
    touched.

    Args:
        predictor: of the network, in evaluation mode.
        frozen: the target on the image.
        frame: of the image, with windows.
        image: (1, C, *S) the image itself, for telling which windows were touched.
    """

    def __init__(self, predictor: Predictor, frozen: Frozen, frame: Frame, image: Tensor) -> None:
        super().__init__(predictor, frozen, frame)
        self.image = frame.pad(image.detach())
        self.parts = [(inside, FixedScore(predictor, part)) for inside, part in window_parts(frozen, frame)]
        self.known: dict[int, Tensor] = {}

    def __call__(self, image: Tensor) -> Tensor:
        """See the class."""
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
