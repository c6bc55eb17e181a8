"""A target held fixed: the same voxels of the same classes are scored however the image is changed.

Regions inside the prediction would move with a perturbed image and mix two effects. A target's score is a sum of
logits, so its gradient with respect to the logits holds every coefficient of that sum, whatever the target.
"""

from __future__ import annotations

import dataclasses
import warnings

import torch
from torch import Tensor, nn

from toolkit.errors import DataError, LayerError, ToolkitWarning
from toolkit.explain.targets import Scene, Target
from toolkit.features.inputs import InputBatch
from toolkit.features.modules import unwrap
from toolkit.features.outputs import logits_of


@dataclasses.dataclass(frozen=True, eq=False)
class Frozen:
    """A target on one batch, its region fixed.

    Attributes:
        weights: (B, K, *S) coefficient of every logit in the score.
        score: (B,) value on the images themselves.
        region: (B, 1, *S) bool, the voxels that count.
        prediction: (B, *S) most likely class.
    """

    weights: Tensor
    score: Tensor
    region: Tensor
    prediction: Tensor

    def of(self, logits: Tensor) -> Tensor:
        """(n,) scores of other logits (n, K, *S); with one image here, n may be any number."""
        return (self.weights * logits).flatten(1).sum(1)

    def select(self, index: int) -> Frozen:
        """The target on one image of the batch."""
        part = slice(index, index + 1)
        return Frozen(self.weights[part], self.score[part], self.region[part], self.prediction[part])


def scene_of(logits: Tensor, batch: InputBatch) -> Scene:
    """What a target may look at, at the logits' size.

    Raises:
        DataError: logits that are not numbers.
    """
    check_logits(logits, batch)
    return Scene(logits, label_at(batch.label, logits), batch.classes, batch.ids, sizes_at(batch, logits))


def check_logits(logits: Tensor, batch: InputBatch) -> None:
    """Refuse NaN, which no map could tell from an empty one; warn of one channel of probabilities.

    Raises:
        DataError: the output holds NaN.
        LayerError: it is no map of the image's dimension.
    """
    values = logits.detach()
    if values.ndim != batch.image.ndim:
        raise LayerError(
            f"The network's output has the shape {tuple(values.shape)}; a segmentation has (B, classes, *S) with "
            f"{batch.image.ndim - 2} spatial axes.",
            where="output",
            fix="Wrap the network so that it gives logits of every class at every voxel.",
        )
    if bool(torch.isnan(values.sum())) and bool(torch.isnan(values).any()):
        raise DataError(
            "The network's output holds NaN.",
            where=", ".join(batch.ids[:4]),
            fix="Look for diverged weights, or for values too large for half precision.",
        )
    if values.shape[1] == 1 and float(values.min()) >= 0 and 0 < float(values.max()) <= 1:
        warnings.warn(
            "The network's one output channel lies between 0 and 1, like a probability. It is read as a logit, so every "
            "voxel above 0 counts as foreground: take the sigmoid off the network.",
            ToolkitWarning,
            stacklevel=2,
        )


def freeze(target: Target, logits: Tensor, batch: InputBatch) -> Frozen:
    """Fix a target's region on the logits (B, K, *S) of a batch.

    Raises:
        ConfigError: no such class.
        DataError: no label for a target that needs one.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = logits.detach().clone().requires_grad_()
        scene = scene_of(leaf, batch)
        score, region = target.score(scene)
        (weights,) = torch.autograd.grad(score.sum(), leaf)
    return Frozen(weights, score.detach(), region, scene.prediction()[:, 0])


class FixedScore:
    """image (n, C, *S) -> (n,) scores of one frozen image; what perturbation and path methods call."""

    def __init__(self, network: nn.Module, frozen: Frozen) -> None:
        self.network, self.frozen = unwrap(network), frozen

    def __call__(self, image: Tensor) -> Tensor:
        logits = logits_of(self.network, image.clone())  # networks may change it in place
        if torch.is_grad_enabled() and image.requires_grad and not logits.requires_grad:
            raise LayerError(
                "No gradient reaches the image.",
                where=type(self.network).__name__,
                fix="The network runs under no_grad or inference_mode: take that out, or use occlusion.",
            )
        return self.frozen.of(logits)

    def in_batches(self, images: Tensor, size: int) -> Tensor:
        """(n,) scores without a graph, at most `size` images a pass."""
        with torch.no_grad():
            return torch.cat([self(part) for part in images.split(size)])


def label_at(label: Tensor | None, logits: Tensor) -> Tensor | None:
    """The label at the logits' size, nearest neighbour."""
    if label is None or label.shape[2:] == logits.shape[2:]:
        return label
    return torch.nn.functional.interpolate(label.float(), size=logits.shape[2:], mode="nearest-exact").long()


def sizes_at(batch: InputBatch, logits: Tensor) -> list[tuple[int, ...]]:
    """Sizes without padding, at the logits' size."""
    if logits.shape[2:] == batch.image.shape[2:]:
        return batch.sizes
    return [tuple(logits.shape[2:])] * len(batch)
