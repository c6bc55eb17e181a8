"""The arithmetic of class activation maps: from an activation and its gradient to one map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from toolkit.features.logits import interpolated

METHODS = ("grad_cam", "grad_cam++", "hires_cam", "layer_cam")
TELLING = ("ok", "negative")  # statuses of maps that say something
CANCELLED_BELOW = 0.02  # measured: docs/grad_cam_and_instance_norm.md
Padding = Sequence[tuple[int, int]]  # (before, after) along every axis; empty = none


def raw_map(activation: Tensor, gradient: Tensor, method: str = "grad_cam") -> Tensor:
    """One raw map (B, 1, *S) of an activation A and the gradient G of the score at it, not rectified and not scaled.

    * grad_cam: sum_k mean(G_k) A_k
    * grad_cam++: sum_k w_k A_k with w_k = sum of a relu(G_k), a = G² / (2 G² + sum(A_k) G³), 0 where G is 0
    * hires_cam: sum_k G_k A_k
    * layer_cam: sum_k relu(G_k) A_k
    """
    spatial = tuple(range(2, activation.ndim))
    if method == "hires_cam":
        return (gradient * activation).sum(1, keepdim=True)
    if method == "layer_cam":
        return (gradient.relu() * activation).sum(1, keepdim=True)
    if method == "grad_cam++":
        square = gradient.square()
        below = 2 * square + activation.sum(spatial, keepdim=True) * square * gradient
        alpha = torch.where(below.abs() > 0, square / below, torch.zeros_like(below))
        weights = (alpha * gradient.relu()).sum(spatial, keepdim=True)
    else:
        weights = gradient.mean(spatial, keepdim=True)
    return (weights * activation).sum(1, keepdim=True)


def gradient_parts(gradient: Tensor) -> Tensor:
    """(2, B): sum over channels of |mean gradient|, and of the mean |gradient|; their ratio is what the mean keeps.

    A constant added to a channel passes a convolution and is removed by the instance norm after it, so the mean
    gradient before such a pair is zero except through the padding, while the gradient itself is not.
    """
    flat = gradient.flatten(2)
    return torch.stack((flat.mean(2).abs().sum(1), flat.abs().mean(2).sum(1)))


def net_gradient(parts: Sequence[Tensor]) -> Tensor:
    """(B,) share of the gradient that its mean keeps, the smallest over a target's parts; 1 where there is none."""
    kept, whole = torch.stack(list(parts)).unbind(1)
    return torch.where(whole > 0, kept / whole.clamp_min(1e-38), torch.ones_like(whole)).amin(0)


def stretched(maps: Tensor, epsilon: float = 1e-7) -> Tensor:
    """Each map minus its minimum, divided by its maximum plus `epsilon`."""
    flat = maps.flatten(1)
    shape = (-1, *[1] * (maps.ndim - 1))
    lowered = maps - flat.amin(1).reshape(shape)
    return lowered / (lowered.flatten(1).amax(1).reshape(shape) + epsilon)


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Linear interpolation with half-pixel centres."""
    return maps if tuple(maps.shape[2:]) == tuple(size) else interpolated(maps, size)


def on_image(maps: Tensor, size: Sequence[int], padding: Padding = ()) -> Tensor:
    """Maps of a padded image, resized to it and cropped to the image's own grid."""
    if not padding:
        return resized(maps, size)
    target = [before + side + after for side, (before, after) in zip(size, padding, strict=True)]
    place: Any = (..., *(slice(before, before + side) for side, (before, _) in zip(size, padding, strict=True)))
    return resized(maps, target)[place]


def displayed(maps: Tensor, size: Sequence[int], padding: Padding = ()) -> Tensor:
    """Rectified, scaled to [0, 1], resized, clipped at 0 and scaled again (SelfReg-UNet Fig. 1b, steps 2 to 4)."""
    return stretched(on_image(stretched(maps.relu()), size, padding).clamp_min(0))


def normalised_sum(maps: Sequence[Tensor], size: Sequence[int], padding: Padding = ()) -> Tensor:
    """Sum of the displayed maps of several classes, divided by its maximum; zeros stay zeros."""
    total = torch.stack([displayed(one, size, padding) for one in maps]).sum(0)
    highest = total.flatten(1).amax(1).reshape(-1, *[1] * (total.ndim - 1))
    return torch.where(highest > 0, total / highest.clamp_min(1e-30), torch.zeros_like(total))
