"""Other one-dimensional tests of N(0, 1) for the slices of a sliced distance: alternatives to Epps-Pulley.

For comparison and study; every function takes projections (N, K) and gives one differentiable value a column, (K,).
Forms and constants are those of the public LeJEPA code (arXiv 2511.08544), where they differ from the textbooks'; the
docstrings say how. Which of them, if any, SegReg's authors used is not public.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from toolkit.errors import ConfigError


def _sorted(x: Tensor) -> Tensor:
    return x.sort(dim=0).values


def _places(x: Tensor) -> Tensor:
    """1 to N as a column."""
    return torch.arange(1, x.shape[0] + 1, device=x.device, dtype=x.dtype).unsqueeze(1)


def cramer_von_mises(x: Tensor) -> Tensor:
    """Mean of (Phi(x_(i)) - (2 i - 1) / (2 N))^2: the textbook's sum without its constant, divided by N."""
    return (torch.special.ndtr(_sorted(x)) - (2 * _places(x) - 1) / (2 * len(x))).square().mean(0)


def watson(x: Tensor) -> Tensor:
    """Cramer-von Mises less (mean Phi - 1/2)^2, so that a shift on the circle costs nothing."""
    return cramer_von_mises(x) - (torch.special.ndtr(x).mean(0) - 0.5).square()


def anderson_darling(x: Tensor) -> Tensor:
    """-N - mean (2 i - 1) (log Phi(x_(i)) + log Phi(-x_(N + 1 - i))), with exact logarithms in the tails."""
    ordered = _sorted(x)
    logs = torch.special.log_ndtr(ordered) + torch.special.log_ndtr(-ordered).flip(0)
    return -len(x) - ((2 * _places(x) - 1) * logs).mean(0)


def mean_and_variance(x: Tensor) -> Tensor:
    """N mean^2 / var + (N - 1) / 2 (var - 1)^2 with the unbiased variance: two moments only ("VCReg")."""
    mean, variance = x.mean(0), x.var(0)
    return len(x) * mean.square() / variance + (len(x) - 1) / 2 * (variance - 1).square()


def extended_jarque_bera(x: Tensor) -> Tensor:
    """Jarque and Bera's N / 6 (skew^2 + (kurtosis - 3)^2 / 4), standardised by the unbiased variance, plus both moments."""
    standard = (x - x.mean(0)) / x.var(0).sqrt()
    skew, kurtosis = standard.pow(3).mean(0), standard.pow(4).mean(0)
    return len(x) / 6 * (skew.square() + (kurtosis - 3).square() / 4) + mean_and_variance(x)


def shapiro_wilk(x: Tensor) -> Tensor:
    """1 - the cosine between the ordered values and normal scores at (i - pi / 8) / (N + 1/4).

    Weights of Shapiro and Francia. Not centred, so a shift counts and the scale does not; the cosine is not squared,
    and the positions are not symmetric (the denominator of Blom's with the numerator of Elfving's), as in the source.
    """
    ordered = _sorted(x)
    scores = torch.special.ndtri((_places(x) - math.pi / 8) / (len(x) + 0.25))
    return 1 - (scores / scores.norm() * ordered).sum(0) / ordered.norm(dim=0).clamp_min(1e-12)


TESTS: dict[str, Callable[[Tensor], Tensor]] = {
    "cramer_von_mises": cramer_von_mises,
    "watson": watson,
    "anderson_darling": anderson_darling,
    "mean_and_variance": mean_and_variance,
    "extended_jarque_bera": extended_jarque_bera,
    "shapiro_wilk": shapiro_wilk,
}


def sliced_test(z: Tensor, directions: Tensor, test: str) -> Tensor:
    """Mean over directions (C, K) of a test's statistic of the projected rows (N, C); a differentiable scalar.

    Raises:
        ConfigError: no such test, or fewer than two rows.
    """
    if test not in TESTS or z.ndim != 2 or len(z) < 2:
        raise ConfigError(
            f"There is no test {test!r}, or the rows {tuple(z.shape)} are not (N, C) with N >= 2.",
            where="sliced_test",
            fix=f"Tests: {', '.join(TESTS)}.",
        )
    with torch.autocast(z.device.type, enabled=False):
        z = z if z.dtype == torch.float64 else z.float()
        return TESTS[test](z @ directions.detach().to(z, non_blocking=True)).mean()
