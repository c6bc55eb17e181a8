"""The distances SegReg can use, by name: value on sampled rows, and expectation for exactly normal rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import ConfigError
from toolkit.features.epps_pulley import null_expectation, sliced_epps_pulley
from toolkit.methods.segreg import normal_distances
from toolkit.methods.segreg.class_reference import class_conditional_epps_pulley
from toolkit.training.sampling import RowSample

SKETCH_COLUMNS = 64


def _covariance(rows: Tensor, sample: RowSample, directions: Tensor, generator: torch.Generator) -> Tensor:
    channels, sketch = rows.shape[1], None
    if channels > SKETCH_COLUMNS:
        sketch = torch.randn(SKETCH_COLUMNS, channels, generator=generator) / math.sqrt(channels)
    return normal_distances.covariance_distance(rows, sketch, sample.weights)


_OTHERS: dict[str, Callable[[Tensor, RowSample, Tensor, torch.Generator], Tensor]] = {
    "sliced_wasserstein": lambda z, s, a, g: normal_distances.sliced_wasserstein(z, a, s.weights),
    "gaussian_kl": lambda z, s, a, g: normal_distances.gaussian_kl(z, s.weights),
    "covariance": _covariance,
    "variance_covariance": lambda z, s, a, g: normal_distances.variance_covariance(z, weights=s.weights),
    "gaussian_kernel": lambda z, s, a, g: normal_distances.gaussian_kernel_distance(z, weights=s.weights),
    "nearest_neighbour": lambda z, s, a, g: normal_distances.nearest_neighbour_entropy(z),
}
DIVERGENCES = ("epps_pulley", *_OTHERS, "class_conditional")


def divergence(
    settings: Any, rows: Tensor, sample: RowSample, directions: Tensor, generator: torch.Generator
) -> Tensor:
    """Value of `settings.divergence` on rows (N, C), less its null expectation if `settings.null_centred`.

    `settings` has the fields divergence, t_max, points, null_centred and classes of `SegReg`.
    """
    grid = {"t_max": settings.t_max, "points": settings.points}
    if settings.divergence == "class_conditional":
        if sample.labels is None:
            raise ConfigError("Class references need labels.", where="SegReg")
        null = null_expectation(**grid) if settings.null_centred else 0.0
        return class_conditional_epps_pulley(rows, sample.labels, directions, settings.classes, null=null, **grid)
    if settings.divergence == "epps_pulley":
        value = sliced_epps_pulley(rows, directions, weights=sample.weights, **grid)
    else:
        value = _OTHERS[settings.divergence](rows, sample, directions, generator)
    if not settings.null_centred:
        return value
    return (value - null_value(settings, sample.effective_size, rows.shape[1])).clamp_min(0)


def null_value(settings: Any, rows: float, channels: int) -> float:
    """Expectation of the divergence for `rows` independent standard normal rows."""
    if settings.divergence == "epps_pulley":
        return null_expectation(settings.t_max, settings.points) / rows
    if settings.divergence == "gaussian_kl":
        return (channels + 3) / (4 * rows)
    if settings.divergence == "gaussian_kernel":
        return (1 - (1 + 2 / channels) ** (-channels / 2)) / rows
    raise ConfigError(
        f"null_centred has no closed form for {settings.divergence!r}.",
        where="SegReg(null_centred=True)",
        fix="Use epps_pulley, class_conditional, gaussian_kl or gaussian_kernel.",
    )
