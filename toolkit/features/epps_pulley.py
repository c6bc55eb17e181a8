"""The sliced Epps-Pulley statistic against N(0, I), with its gradient computed in the same pass.

The empirical characteristic function is needed at t_m = m D only. With theta = D <z, a>, every e^{i m theta} is a
product of one of r small powers and one of g large powers (m = i + r j), so its mean over the rows is an entry of a
small matrix product, and so is the closed-form gradient. Two trigonometric calls a projection are left, and a block
of directions is processed at a time: memory O(N C) plus a constant block instead of O(N K M).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import ConfigError

# Elements of one (directions, rows) block: small enough that the block's arrays stay in a core's cache.
_BLOCK_ELEMENTS = {"cpu": 1 << 16}
_DEFAULT_BLOCK_ELEMENTS = 1 << 22


def quadrature(t_max: float = 3.0, points: int = 17) -> tuple[Tensor, Tensor, Tensor]:
    """Grid t_m, window phi_m = exp(-t_m^2 / 2) and weights w_m = q_m phi_m, each (points,) float64.

    The trapezoid rule on [-t_max, t_max] with 2 points - 1 knots, folded by symmetry: q is twice the knot distance
    inside and once at both ends. A two-sided rule with an odd number n of knots is the folded one with (n + 1) / 2.
    """
    knots = torch.linspace(0.0, t_max, points, dtype=torch.float64)
    distance = t_max / (points - 1)
    rule = torch.full((points,), 2 * distance, dtype=torch.float64)
    rule[0] = rule[-1] = distance
    window = torch.exp(-knots.square() / 2)
    return knots, window, rule * window


@functools.lru_cache
def null_expectation(t_max: float = 3.0, points: int = 17) -> float:
    """Expectation of the N-scaled statistic T for independent N(0, 1) rows: sum_m w_m (1 - phi_m^2), for any N.

    Example:
        >>> from toolkit.methods.segreg import null_expectation
        >>> round(null_expectation(), 2)
        1.05
    """
    _, window, weights = quadrature(t_max, points)
    return float((weights * (1 - window.square())).sum())


def unit_directions(channels: int, count: int, generator: torch.Generator) -> Tensor:
    """(channels, count) float32 on the CPU: independent uniform directions as unit columns.

    Example:
        >>> from toolkit.methods.segreg import unit_directions
        >>> directions = unit_directions(8, 64, torch.Generator().manual_seed(0))
    """
    directions = torch.randn(channels, count, generator=generator)
    return directions / directions.norm(dim=0, keepdim=True).clamp_min(1e-12)


@functools.lru_cache
def _factored(t_max: float, points: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Knots, window and weights of the grid without t = 0 (which never contributes), laid out as m = (row + 1) + rows * column."""
    inner = points - 1
    rows = math.isqrt(inner - 1) + 1
    columns = -(-inner // rows)

    def table(values: Tensor) -> Tensor:
        padded = values.new_zeros(rows * columns)
        padded[:inner] = values[1:]
        return padded.view(columns, rows).T.to(device, dtype).contiguous()

    knots, window, weights = map(table, quadrature(t_max, points))
    return knots, window, weights


def _multiply(target: Tensor, position: int, left: Tensor, i: int, right: Tensor, j: int) -> None:
    """target[position] = left[i] * right[j] as complex numbers; each holds cosines, then sines, along axis 1."""
    to, a, b = target.shape[1] // 2, left.shape[1] // 2, right.shape[1] // 2
    real, imaginary = target[:, position], target[:, position + to]
    torch.mul(left[:, i], right[:, j], out=real).addcmul_(left[:, i + a], right[:, j + b], value=-1)
    torch.mul(left[:, i], right[:, j + b], out=imaginary).addcmul_(left[:, i + a], right[:, j])


def _fill_powers(angles: Tensor, small: Tensor, large: Tensor) -> None:
    """Small powers e^{i theta (1..r)}, large ones e^{i theta r (0..g-1)}; (block, 2 r, N) and (block, 2 g, N)."""
    rows, columns = small.shape[1] // 2, large.shape[1] // 2
    torch.cos(angles, out=small[:, 0])
    torch.sin(angles, out=small[:, rows])
    for power in range(1, rows):
        _multiply(small, power, small, power - 1, small, 0)
    large[:, 0] = 1.0
    large[:, columns] = 0.0
    for power in range(1, columns):
        _multiply(large, power, large, power - 1, small, rows - 1)


def statistic_and_gradient(
    z: Tensor, directions: Tensor, row_weights: Tensor | None, t_max: float, points: int, gradient: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Statistic of every direction (K,) and the gradient (N, C) of their mean; no autograd graph.

    `row_weights` (N,) must sum to 1; None means 1/N. Closed form: dE_k/dp_nk = 2 omega_n sum_m w_m t_m
    [-(c_mk - phi_m) sin(t_m p_nk) + s_mk cos(t_m p_nk)], which is again a matrix product in the same powers.
    """
    knots, window, weights = _factored(t_max, points, z.dtype, z.device)
    (r, g), (n, total) = knots.shape, (z.shape[0], directions.shape[1])
    limit = _BLOCK_ELEMENTS.get(z.device.type, _DEFAULT_BLOCK_ELEMENTS)
    block = min(total, max(1, limit // n))
    scaled_rows = (z * (t_max / (points - 1))).T.contiguous()
    small, large, product = (z.new_empty(block, 2 * size, n) for size in (r, g, r))
    statistic, slope = z.new_empty(total), torch.zeros_like(z) if gradient else None
    for start in range(0, total, block):
        axes = directions[:, start : start + block]
        u, v, y = (buffer[: axes.shape[1]] for buffer in (small, large, product))
        _fill_powers(axes.T @ scaled_rows, u, v)
        weighted = u if row_weights is None else torch.mul(u, row_weights, out=y)
        sums = torch.bmm(weighted, v.transpose(1, 2))
        if row_weights is None:
            sums /= n
        cosine = sums[:, :r, :g] - sums[:, r:, g:] - window
        sine = sums[:, r:, :g] + sums[:, :r, g:]
        statistic[start : start + block] = ((cosine.square() + sine.square()) * weights).sum((1, 2))
        if slope is not None:
            factor = 2 / total * weights * knots
            of_cosine, of_sine = factor * sine, -factor * cosine
            coefficients = torch.cat((torch.cat((of_cosine, of_sine), 2), torch.cat((of_sine, -of_cosine), 2)), 1)
            torch.bmm(coefficients, v, out=y).mul_(u)
            slope.addmm_(y.sum(1).T, axes.T)
    if slope is not None:
        slope = slope / n if row_weights is None else slope * row_weights.unsqueeze(1)
    return statistic, slope


class _SlicedEppsPulley(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, directions: Tensor, row_weights: Tensor | None, t_max: float, points: int
    ) -> Tensor:
        statistic, gradient = statistic_and_gradient(z, directions, row_weights, t_max, points, ctx.needs_input_grad[0])
        ctx.save_for_backward(gradient)
        return statistic.mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None, None, None


def _prepared(z: Tensor, directions: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Checked, in float32 (float64 stays), the row weights normalised to sum 1."""
    if z.ndim != 2 or directions.ndim != 2 or z.shape[1] != directions.shape[0] or z.shape[0] == 0:
        what = f"Expected z (N, C) and directions (C, K), not {tuple(z.shape)} and {tuple(directions.shape)}."
        fix = "Move the channel axis last and flatten the others: feature.movedim(1, -1).flatten(0, -2)."
        raise ConfigError(what, fix=fix)
    z = z if z.dtype == torch.float64 else z.float()
    directions = directions.detach().to(z, non_blocking=True)
    if weights is not None:
        if weights.shape != z.shape[:1]:
            raise ConfigError(f"Expected one weight a row, {tuple(z.shape[:1])}, not {tuple(weights.shape)}.")
        if not (weights.min() >= 0 and weights.sum() > 0):  # asked where they lie: the device is not waited for
            raise ConfigError("Row weights must be non-negative and not all zero.")
        weights = weights.detach().to(z, non_blocking=True)
        weights = weights / weights.sum()
    return z, directions, weights


def sliced_epps_pulley(
    z: Tensor,
    directions: Tensor,
    *,
    t_max: float = 3.0,
    points: int = 17,
    weights: Tensor | None = None,
    scaled: bool = False,
) -> Tensor:
    """Mean over directions of the Epps-Pulley distance of the projected rows to N(0, 1); a differentiable scalar.

    E_k = sum_m w_m [(c_mk - phi_m)^2 + s_mk^2] with c, s the (weighted) means of cos(t_m <z_n, a_k>) and sin(...);
    the result is mean_k E_k ("T / N"), or N times that. Computed in float32 (float64 for float64 input), also under
    autocast. Differentiable once, with respect to `z` only.

    Args:
        z: (N, C) rows.
        directions: (C, K) unit columns.
        t_max: end of the grid of frequencies.
        points: points of the folded grid, t = 0 included.
        weights: (N,) non-negative row weights, normalised to sum 1 here; None means equal.
        scaled: multiply by N, the form in which the statistic's null distribution does not depend on N.

    Raises:
        ConfigError: shapes that do not fit, an impossible grid, or unusable weights.

    Source: Epps and Pulley 1983; sliced form (SIGReg) of Balestriero and LeCun, arXiv 2511.08544, section 4.

    Example:
        >>> from toolkit.methods.segreg import sliced_epps_pulley
        >>> z, directions = torch.randn(2000, 8), torch.nn.functional.normalize(torch.randn(8, 64), dim=0)
        >>> bool(sliced_epps_pulley(z, directions) < 0.1 * sliced_epps_pulley(z + 2, directions))
        True
    """
    with torch.autocast(z.device.type, enabled=False):
        rows, axes, row_weights = _prepared(z, directions, weights)
        value: Tensor = _SlicedEppsPulley.apply(rows, axes, row_weights, float(t_max), int(points))
    return value * z.shape[0] if scaled else value


def epps_pulley_by_direction(
    z: Tensor,
    directions: Tensor,
    *,
    t_max: float = 3.0,
    points: int = 17,
    weights: Tensor | None = None,
    scaled: bool = False,
) -> Tensor:
    """The same statistic, one value a direction (K,), without a graph: for diagnostics and tests of single axes."""
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        rows, axes, row_weights = _prepared(z, directions, weights)
        values, _ = statistic_and_gradient(rows, axes, row_weights, float(t_max), int(points), gradient=False)
    return values * z.shape[0] if scaled else values
