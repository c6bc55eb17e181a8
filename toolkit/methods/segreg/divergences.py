"""The distances SegReg can use, by name: value on sampled rows, and expectation for exactly normal rows.

The alternatives to Epps-Pulley are functions of rows (N, C), and return a differentiable scalar in float32 (float64
stays), also under autocast. Which of them, if any, SegReg's authors used is not public.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import ConfigError
from toolkit.features.epps_pulley import null_expectation, sliced_epps_pulley
from toolkit.training.protocol import keyed_generator
from toolkit.training.sampling import RowSample

MINIMUM_ROWS = 64


def simplex(classes: int) -> Tensor:
    """Unit vertices (classes, classes - 1) of a regular simplex, float64: rows sum to 0, v'v = -1/(L-1) between two."""
    corners = torch.zeros(classes, classes - 1, dtype=torch.float64)
    for k in range(1, classes):
        corners[:k, k - 1] = 1 / math.sqrt(k * (k + 1))
        corners[k, k - 1] = -k / math.sqrt(k * (k + 1))
    return corners / corners.norm(dim=1, keepdim=True)


@functools.lru_cache
def class_frame(channels: int, classes: int, radius: float | None = None) -> tuple[Tensor, Tensor, float]:
    """Frame Q (C, L-1) with orthonormal columns, class means (L, C), and the variance inside the span of Q.

    Means are r Q v_c; the covariance of every class is I outside the span of Q and 1 - r^2 / (L-1) inside, r = 0.8
    sqrt(L-1) by default. Q depends on the two numbers only and is never learnt.
    """
    span = classes - 1
    r = 0.8 * math.sqrt(max(span, 0)) if radius is None else radius
    if classes < 2 or channels < span or not 0 < r < math.sqrt(span):
        what = "Class references need 2 <= classes <= channels + 1 and 0 < radius < sqrt(classes - 1), not "
        what += f"{classes} classes, {channels} channels and radius {r}."
        raise ConfigError(what, where="SegReg(divergence='class_conditional')")
    generator = keyed_generator("class reference", channels, classes)
    frame, _ = torch.linalg.qr(torch.randn(channels, span, generator=generator, dtype=torch.float64))
    return frame, r * simplex(classes) @ frame.T, 1 - r**2 / span


def class_conditional_epps_pulley(
    z: Tensor,
    labels: Tensor,
    directions: Tensor,
    classes: int,
    *,
    radius: float | None = None,
    t_max: float = 3.0,
    points: int = 17,
    null: float = 0.0,
) -> Tensor:
    """Mean over the classes with at least 64 rows of the statistic of their whitened rows ("R7"); 0 if there is none.

    Rows z are (N, C) with labels (N,), background included, and unit directions (C, K); `radius` is the length of the
    class means, `null` the expectation of the N-scaled statistic to subtract (over the class's rows) and clip at 0.
    """
    z = z if z.dtype == torch.float64 else z.float()
    frame, means, inside = class_frame(z.shape[1], classes, radius)
    frame, means = frame.to(z, non_blocking=True), means.to(z, non_blocking=True)
    values = []
    for index in range(classes):
        rows = torch.nonzero(labels == index).flatten().to(z.device, non_blocking=True)
        if len(rows) < MINIMUM_ROWS:
            continue
        centred = z.index_select(0, rows) - means[index]
        white = centred + (1 / math.sqrt(inside) - 1) * (centred @ frame) @ frame.T
        value = sliced_epps_pulley(white, directions, t_max=t_max, points=points)
        values.append((value - null / len(rows)).clamp_min(0) if null else value)
    return torch.stack(values).mean() if values else z.new_zeros(())


SKETCH_COLUMNS = 64


def _full(z: Tensor) -> Tensor:
    if z.ndim != 2 or z.shape[0] < 2:
        fix = "Move the channel axis last and flatten the others: feature.movedim(1, -1).flatten(0, -2)."
        raise ConfigError(f"Expected at least two rows (N, C), not {tuple(z.shape)}.", fix=fix)
    return z if z.dtype == torch.float64 else z.float()


def _shares(z: Tensor, weights: Tensor | None) -> Tensor:
    """Row weights that sum to 1."""
    if weights is None:
        return z.new_full((z.shape[0],), 1.0 / z.shape[0])
    weights = weights.detach().to(z, non_blocking=True)
    return weights / weights.sum()


def _moments(z: Tensor, weights: Tensor | None, unbiased: bool = False) -> tuple[Tensor, Tensor]:
    """Weighted mean (C,) and covariance (C, C); unbiased: times n / (n - 1), n the effective number of rows."""
    shares = _shares(z, weights)
    mean = shares @ z
    centred = z - mean
    covariance = (centred * shares.unsqueeze(1)).T @ centred
    return mean, covariance / (1 - shares.square().sum()) if unbiased else covariance


def sliced_wasserstein(z: Tensor, directions: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over directions (C, K) of the squared 2-Wasserstein distance of the projections to N(0, 1) ("R2").

    Sorted projections are compared with the quantiles at the middle of their weight. The pull on outliers and on a
    wrong scale is linear, where Epps-Pulley saturates.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = _full(z)
        projected, order = (z @ directions.detach().to(z, non_blocking=True)).sort(dim=0)
        shares = _shares(z, weights)[order]
        quantiles = torch.special.ndtri((shares.cumsum(0) - shares / 2).clamp(1e-7, 1 - 1e-7))
        return ((projected - quantiles).square() * shares).sum(0).mean()


def gaussian_kl(z: Tensor, weights: Tensor | None = None, jitter: float = 1e-4) -> Tensor:
    """(tr S + m'm - C - log det S) / (2 C) for the mean m and covariance S of the rows, `jitter` added to S ("R3").

    Sees two moments only; punishes a lost direction without bound. Needs many more rows than channels.
    """
    with torch.autocast(z.device.type, enabled=False):
        mean, covariance = _moments(_full(z), weights)
        channels = len(mean)
        covariance = covariance + jitter * torch.eye(channels, dtype=mean.dtype, device=mean.device)
        factor, failed = torch.linalg.cholesky_ex(covariance, check_errors=z.is_cpu)  # an error, or NaN on a GPU
        log_det = 2 * factor.diagonal().log().sum().where(failed == 0, math.nan)
        return (covariance.trace() + mean @ mean - channels - log_det) / (2 * channels)


def covariance_distance(
    z: Tensor, sketch: Tensor | None = None, weights: Tensor | None = None, with_mean: bool = False
) -> Tensor:
    """Frobenius norm of S - I, S the unbiased covariance, the rows first multiplied by a sketch (r, C) if one is given ("R4").

    `with_mean` adds the squared length of the mean. Source: "weak SIGReg", arXiv 2603.05924.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = _full(z)
        rows = z if sketch is None else z @ sketch.detach().to(z, non_blocking=True).T
        mean, covariance = _moments(rows, weights, unbiased=True)
        distance = torch.linalg.matrix_norm(covariance - torch.eye(len(mean), dtype=mean.dtype, device=mean.device))
        return distance + mean @ mean if with_mean else distance


def variance_covariance(
    z: Tensor, variance: float = 25.0, covariance: float = 1.0, weights: Tensor | None = None
) -> Tensor:
    """VICReg's hinge on the standard deviations and its penalty on off-diagonal covariance ("R5").

    variance * mean_c max(0, 1 - sqrt(var_c + 1e-4)) + covariance * sum_{i != j} S_ij^2 / C, both unbiased. Stops collapse, does not cap the scale.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = _full(z)
        _, unbiased = _moments(z, weights, unbiased=True)
        hinge = (1 - (unbiased.diagonal() + 1e-4).sqrt()).clamp_min(0).mean()
        penalty = (unbiased.square().sum() - unbiased.diagonal().square().sum()) / z.shape[1]
        return variance * hinge + covariance * penalty


def gaussian_kernel_distance(z: Tensor, width: float | None = None, weights: Tensor | None = None) -> Tensor:
    """Squared maximum mean discrepancy to N(0, I) with kernel exp(-b^2 |x - y|^2 / 2), closed form ("R6", BHEP).

    `width` is b, in the Henze-Zirkler test ((2 C + 1) N / 4)^(1 / (C + 4)) / sqrt(2); None means 1 / sqrt(C).
    Costs O(N^2 C).
    """
    with torch.autocast(z.device.type, enabled=False):
        z = _full(z)
        channels = z.shape[1]
        b2 = (1 / channels) if width is None else width**2
        shares = _shares(z, weights)
        lengths = z.square().sum(1)
        squared = (lengths.unsqueeze(1) + lengths - 2 * z @ z.T).clamp_min(0)
        within = shares @ torch.exp(-b2 / 2 * squared) @ shares
        across = shares @ torch.exp(-b2 / (2 * (1 + b2)) * lengths)
        return within - 2 * (1 + b2) ** (-channels / 2) * across + (1 + 2 * b2) ** (-channels / 2)


def nearest_neighbour_entropy(z: Tensor, eps: float = 1e-8) -> Tensor:
    """KoLeo ("R8"): minus the mean log distance of every L2-normalised row to its nearest neighbour; no reference."""
    with torch.autocast(z.device.type, enabled=False):
        unit = torch.nn.functional.normalize(_full(z), eps=eps, dim=1)
        with torch.no_grad():
            similarity = unit @ unit.T
            similarity.fill_diagonal_(-1)
            nearest = similarity.argmax(dim=1)
        distance = torch.nn.functional.pairwise_distance(unit, unit.index_select(0, nearest), eps=eps)
        return -(distance + eps).log().mean()


def _covariance(rows: Tensor, sample: RowSample, directions: Tensor, generator: torch.Generator) -> Tensor:
    channels, sketch = rows.shape[1], None
    if channels > SKETCH_COLUMNS:
        sketch = torch.randn(SKETCH_COLUMNS, channels, generator=generator) / math.sqrt(channels)
    return covariance_distance(rows, sketch, sample.weights)


_OTHERS: dict[str, Callable[[Tensor, RowSample, Tensor, torch.Generator], Tensor]] = {
    "sliced_wasserstein": lambda z, s, a, g: sliced_wasserstein(z, a, s.weights),
    "gaussian_kl": lambda z, s, a, g: gaussian_kl(z, s.weights),
    "covariance": _covariance,
    "variance_covariance": lambda z, s, a, g: variance_covariance(z, weights=s.weights),
    "gaussian_kernel": lambda z, s, a, g: gaussian_kernel_distance(z, weights=s.weights),
    "nearest_neighbour": lambda z, s, a, g: nearest_neighbour_entropy(z),
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
    what = f"null_centred has no closed form for {settings.divergence!r}."
    fix = "Use epps_pulley, class_conditional, gaussian_kl or gaussian_kernel."
    raise ConfigError(what, where="SegReg(null_centred=True)", fix=fix)
