"""Masks for latent codes: targeted at the entries a loss leans on, or random channel dropout.

Source: latent-space augmentation by Chen et al. 2021 (cooperative training), sections on channel-wise and
spatial-wise masking. A masked code is always `code * mask`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import ConfigError, choose

_SCORES: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "signed": lambda gradient, _: gradient,
    "negated": lambda gradient, _: -gradient,
    "absolute": lambda gradient, _: gradient.abs(),
    "product": lambda gradient, code: -gradient * code.detach(),
}


def targeted_mask(
    gradient: Tensor,
    axis: str = "channel",
    fraction: float = 0.5,
    annealing: Tensor | float | None = None,
    *,
    score: str = "signed",
    code: Tensor | None = None,
    inclusive: bool = False,
) -> Tensor:
    """Mask the channels or positions whose mean gradient is largest.

    With n entries (channels, or positions in row-major order) the cut of a sample is the value of rank
    floor(n * fraction), counted from 0, of its scores in decreasing order; entries strictly above the cut are
    multiplied by `annealing`, all others by exactly 1; a fraction of 1 masks all. Without ties exactly floor(n * fraction) entries are masked;
    a cut inside a tie masks fewer.

    Args:
        gradient: gradient of the generator's loss at the code, (N, C, *S).
        axis: "channel" scores channels (mean over positions), "spatial" scores positions (mean over channels).
        fraction: share of the entries to mask, 0 to 1 (the method draws it from [0, 0.5), one per batch).
        annealing: what a masked entry is multiplied with: one factor per entry, (N, entries) or the mask's shape
            (the method: half a uniform draw each), one number for all, or None for 0 (a hard mask).
        score: "signed" (the method's), "negated", "absolute" (mean of |gradient|) or "product" (-gradient * code).
        code: the code itself, needed by "product" only.
        inclusive: mask every entry that reaches the floor(n * fraction)-th largest score (the paper's text) instead
            of those strictly above the next one; differs only in a tie at the cut, which then masks more.

    Returns:
        (N, C, 1, ...) for channels, (N, 1, *S) for positions; no gradient.

    Raises:
        ConfigError: unknown axis or score, fraction outside 0 to 1, or shapes that do not fit.

    Example:
        >>> from toolkit.methods.latent_augmentation import targeted_mask
        >>> targeted_mask(torch.tensor([1.0, 4.0, 2.0, 3.0]).reshape(1, 4, 1, 1), fraction=0.5).flatten()
        tensor([1., 0., 1., 0.])
    """
    choose("axis", axis, ("channel", "spatial"), where="targeted_mask(axis=...)")
    if gradient.ndim < 3:
        raise ConfigError(f"The gradient must be (N, C, *S), not {tuple(gradient.shape)}.")
    choose("score", score, _SCORES)
    if score == "product" and (code is None or code.shape != gradient.shape):
        raise ConfigError("The score 'product' needs the code, of the gradient's shape.", where="targeted_mask")
    values = _SCORES[score](gradient.detach(), code)
    channel = axis == "channel"
    scores = values.flatten(2).mean(2) if channel else values.mean(1).flatten(1)
    rank = math.floor(scores.shape[1] * fraction)
    ranked = scores.sort(dim=1, descending=True).values
    if rank == scores.shape[1]:  # a fraction of 1: there is no next score to be the cut
        masked = torch.ones_like(scores, dtype=torch.bool)
    elif not inclusive:
        masked = scores > ranked[:, rank : rank + 1]
    else:
        masked = scores >= ranked[:, rank - 1 : rank] if rank else torch.zeros_like(scores, dtype=torch.bool)
    if not isinstance(annealing, Tensor):
        annealing = torch.full_like(scores, 0.0 if annealing is None else float(annealing))
    if annealing.numel() not in (1, scores.numel()):
        what = f"annealing holds {annealing.numel()} factors for {tuple(scores.shape)} entries."
        raise ConfigError(what, fix="Give one factor per (sample, entry), one number, or None for a hard mask.")
    factors = annealing.detach().to(scores, non_blocking=True)
    factors = factors.expand_as(scores) if factors.numel() == 1 else factors.reshape(scores.shape)
    mask = torch.where(masked, factors, torch.ones_like(scores))
    spatial = gradient.shape[2:]
    return mask.reshape(*scores.shape, *[1] * len(spatial)) if channel else mask.reshape(-1, 1, *spatial)


def dropout_mask(code: Tensor, rate: float = 0.5, generator: torch.Generator | None = None) -> Tensor:
    """Random channel dropout: every (sample, channel) is dropped with probability `rate`, survivors are scaled up.

    Args:
        code: (N, C, *S); only its shape, type and device are used.
        rate: probability of a zero, 0 <= rate < 1 (the method's is 0.5).
        generator: CPU generator of the draw; None draws afresh without touching the global random state.

    Returns:
        (N, C, 1, ...) with entries 0 or 1/(1 - rate), so the expectation of `code * mask` is the code.

    Raises:
        ConfigError: a rate outside [0, 1).

    Example:
        >>> from toolkit.methods.latent_augmentation import dropout_mask
        >>> dropout_mask(torch.ones(2, 8, 4, 4), rate=0.25, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 8, 1, 1])
    """
    if not 0 <= rate < 1:
        raise ConfigError(f"rate must be at least 0 and below 1, not {rate}.", where="dropout_mask(rate=...)")
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    keep = torch.rand(code.shape[:2], generator=generator) >= rate
    return (keep.to(code, non_blocking=True) / (1 - rate)).reshape(*code.shape[:2], *[1] * (code.ndim - 2))
