"""Class-conditional Gaussian references: class means on a simplex, so that the orientation of the space is fixed too.

Our inference, like everything about SegReg's loss: with balanced classes the marginal is N(0, I), as in the plain form.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from toolkit.errors import ConfigError
from toolkit.features.epps_pulley import sliced_epps_pulley
from toolkit.training.regularizer import keyed_generator

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
        raise ConfigError(
            f"Class references need 2 <= classes <= channels + 1 and 0 < radius < sqrt(classes - 1), not "
            f"{classes} classes, {channels} channels and radius {r}.",
            where="SegReg(divergence='class_conditional')",
        )
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
    frame, means = frame.to(z), means.to(z)
    values = []
    for index in range(classes):
        rows = torch.nonzero(labels == index).flatten().to(z.device)
        if len(rows) < MINIMUM_ROWS:
            continue
        centred = z.index_select(0, rows) - means[index]
        white = centred + (1 / math.sqrt(inside) - 1) * (centred @ frame) @ frame.T
        value = sliced_epps_pulley(white, directions, t_max=t_max, points=points)
        values.append((value - null / len(rows)).clamp_min(0) if null else value)
    return torch.stack(values).mean() if values else z.new_zeros(())
