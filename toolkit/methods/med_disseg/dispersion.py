"""The dispersive loss as a function: variants, presets, distances, all computed so that nothing underflows unasked.

Sources: Wang and He, "Diffuse and Disperse" (arXiv 2506.09027), and its use for segmentation in Med-DisSeg
(arXiv 2605.14579). With the settings released with the latter the term is numerically dead on real feature maps:
raw distances between long vectors underflow the exponential. The preset `released` keeps that behaviour for
comparison; `default` is the active, bounded form.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from toolkit.errors import ConfigError, choose

VARIANTS = ("infonce_l2", "infonce_cosine", "hinge", "covariance")


@dataclasses.dataclass(frozen=True)
class Preset:
    """How one preset measures distances, which pairs it counts, and what its source trains with."""

    normalised: bool  # squared L2 divided by the number of features (hinge: its root) instead of the raw L2 distance
    self_pairs: bool  # InfoNCE counts the B pairs (i, i) too; they bound the loss from below at -log B
    floor: float  # constant added to the mean inside the logarithm
    variant: str | None  # the variant this preset stands for, or None if every variant can be asked for
    # tau, weights, layout: the source's settings (weights: first and second stage)
    tau: float
    weights: tuple[float, float]
    layout: str


PRESETS: dict[str, Preset] = {
    "released": Preset(False, False, 1e-8, None, 0.5, (0.2, 0.2), "flatten"),
    "original": Preset(True, True, 0.0, None, 1.0, (0.25, 0.25), "flatten"),
    "default": Preset(True, True, 0.0, None, 0.5, (0.2, 0.6), "pooled"),
    "default-cosine": Preset(True, False, 0.0, "infonce_cosine", 0.5, (0.2, 0.6), "pooled"),
}


class _SquaredDistances(torch.autograd.Function):
    """Squared L2 distances between all rows (right=None: to themselves), in O(rows²) memory, zero diagonal."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor | None) -> Tensor:
        ctx.save_for_backward(left, right)
        other = left if right is None else right
        return torch.cdist(left, other, compute_mode="donot_use_mm_for_euclid_dist").square()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None]:
        (gradient,) = gradients
        left, right = ctx.saved_tensors
        # centring costs little (only differences count) and keeps the products free of cancellation
        centre = left.mean(dim=0)
        with torch.autocast(left.device.type, enabled=False):
            if right is None:
                return _pull(gradient + gradient.transpose(0, 1), left - centre, left - centre), None
            left, right = left - centre, right - centre
            return _pull(gradient, left, right), _pull(gradient.transpose(0, 1), right, left)


def _pull(weights: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """2 * sum over j of weights_ij * (rows_i - others_j)."""
    return torch.addmm(weights.sum(dim=1, keepdim=True) * rows, weights, others, alpha=-1).mul(2)


def token_rows(features: Tensor) -> Tensor:
    """(B, C, *S) as one row per position, (B * prod(S), C): image-major, then raster order."""
    return features.movedim(1, -1).reshape(-1, features.shape[1])


def pair_distances(left: Tensor, right: Tensor | None, variant: str, preset: str = "default") -> Tensor:
    """Distances (N, M) between rows (N, D) and (M, D), or of the rows to themselves, as a variant measures them."""
    if variant == "infonce_cosine":
        units = _unit_rows(left, preset)
        return 1 - units @ (units if right is None else _unit_rows(right, preset)).transpose(0, 1)
    squared: Tensor = _SquaredDistances.apply(left, right)
    normalised = PRESETS[preset].normalised
    if normalised:
        squared = squared / left.shape[1]
    if normalised and variant == "infonce_l2":
        return squared
    # the root has no derivative at 0: coincident rows get 0
    coincident = squared == 0
    return squared.masked_fill(coincident, 1.0).sqrt().masked_fill(coincident, 0.0)


def _unit_rows(rows: Tensor, preset: str) -> Tensor:
    if preset == "released":
        return functional.normalize(rows, eps=1e-12)  # an all-zero row gets a gradient of the order 1e11
    zero = (rows == 0).all(dim=1, keepdim=True)
    return functional.normalize(rows.masked_fill(zero, 1.0), eps=1e-12).masked_fill(zero, 0.0)


def dispersive_loss(
    z: Tensor,
    variant: str = "infonce_l2",
    tau: float | str = 0.5,
    preset: str = "default",
    *,
    margin: float = 1.0,
    bank: Tensor | None = None,
) -> Tensor:
    """Repulsion between the rows of a batch; a scalar with gradient, 0 without gradient for a batch of one.

    With d the distance of a pair, P the counted pairs and delta the preset's floor:
    `infonce_l2`, `infonce_cosine`: log(mean over P of exp(-d / tau) + delta); `hinge`: mean over i != j of
    max(0, margin - d)^2; `covariance`: sum over m != n of C_mn^2 with C the unbiased batch covariance of the raw
    features (it does not penalise collapse: 0 for identical rows).

    | preset | d of L2 | d of cosine | d of hinge | P (InfoNCE) | delta |
    |---|---|---|---|---|---|
    | `released` | L2 | 1 - cos | L2 | i != j | 1e-8 |
    | `original`, `default` | squared L2 / D | 1 - cos | L2 / sqrt(D) | all, i = j too | 0 |
    | `default-cosine` | - | 1 - cos | - | i != j | 0 |

    Presets without a floor are computed as log-sum-exp, so that nothing underflows. `default-cosine` always is the
    cosine variant. Half precision is widened to float32 and autocast is off inside.

    Args:
        z: (B, ...); everything after the first axis is flattened to D features. For a map (B, C, *S) this is the
            layout of the released code; pool it or use `token_rows` for others.
        variant: "infonce_l2", "infonce_cosine", "hinge" or "covariance".
        tau: temperature > 0, or "median": the median of the off-diagonal distances, without gradient, which makes
            the loss invariant to the scale of the features. Unused by hinge and covariance.
        preset: see the table.
        margin: hinge only.
        bank: optional (K, D) further negatives without gradient; adds the B * K pairs (z_i, q_k). Not used by
            covariance.

    Raises:
        ConfigError: unknown variant or preset, tau not positive, or a bank of another width.

    Example:
        >>> from toolkit.methods.med_disseg import dispersive_loss
        >>> dispersive_loss(torch.eye(3), "hinge", preset="released", margin=2.0)  # pairs lie sqrt(2) apart
        tensor(0.3431)
    """
    variant = checked_variant(variant, tau, preset)
    with torch.autocast(z.device.type, enabled=False):
        rows = z.reshape(z.shape[0], -1)
        rows = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
        if variant == "covariance":
            return _covariance(rows) if rows.shape[0] > 1 else rows.new_zeros(())
        negatives = rows.new_zeros((0, rows.shape[1])) if bank is None else bank.detach().to(rows)
        if negatives.ndim != 2 or negatives.shape[1] != rows.shape[1]:
            what = f"The bank has shape {tuple(negatives.shape)}, the batch has rows of {rows.shape[1]} features."
            fix = "Give one row per stored representation, with the same layout and resolution as the batch."
            raise ConfigError(what, where="dispersive_loss(bank=...)", fix=fix)
        if rows.shape[0] + len(negatives) < 2:
            return rows.new_zeros(())
        distances = pair_distances(rows, None, variant, preset)
        if len(negatives):
            distances = torch.cat([distances, pair_distances(rows, negatives, variant, preset)], dim=1)
        itself = self_pairs(distances)
        if variant == "hinge":
            return _masked_mean((margin - distances).clamp_min(0).square(), itself)
        scaled, rules = distances.masked_fill(itself, 0.0) / temperature(tau, distances, itself), PRESETS[preset]
        if rules.floor:  # literally the released formula: its exponentials must be able to underflow
            return torch.log(_masked_mean(torch.exp(-scaled), itself) + rules.floor)
        exponents = -scaled if rules.self_pairs else (-scaled).masked_fill(itself, -math.inf)
        count = scaled.numel() - (0 if rules.self_pairs else scaled.shape[0])
        return exponents.flatten().logsumexp(dim=0) - math.log(count)


def _covariance(rows: Tensor) -> Tensor:
    samples, width = rows.shape
    centred = rows - rows.mean(dim=0)
    if width <= samples:
        covariance = centred.transpose(0, 1) @ centred / (samples - 1)
        return covariance.square().sum() - covariance.diagonal().square().sum()
    # the squared Frobenius norms of Z'Z and ZZ' are equal, and ZZ' is only B x B
    gram = centred @ centred.transpose(0, 1) / (samples - 1)
    variances = centred.square().sum(dim=0) / (samples - 1)
    return gram.square().sum() - variances.square().sum()


def self_pairs(distances: Tensor) -> Tensor:
    """Mask of the pairs (i, i) in distances (B, B + K)."""
    return torch.eye(*distances.shape, dtype=torch.bool, device=distances.device)


def _masked_mean(values: Tensor, itself: Tensor) -> Tensor:
    return values.masked_fill(itself, 0.0).sum() / (values.numel() - values.shape[0])


def temperature(tau: float | str, distances: Tensor, itself: Tensor) -> float | Tensor:
    """A number as it is; "median" as the detached median of the distances that are not self-pairs."""
    if not isinstance(tau, str):
        return tau
    apart = distances.detach().masked_fill(itself, math.inf).flatten().sort().values
    median = apart[(apart.numel() - len(distances) - 1) // 2]  # a mask as an index would wait for a GPU
    return torch.where(median > 0, median, torch.ones_like(median))


def checked_variant(variant: str, tau: float | str, preset: str) -> str:
    """The variant to compute (a preset may imply one); raises ConfigError for invalid settings."""
    choose("variant", variant, VARIANTS)
    choose("preset", preset, PRESETS)
    if tau != "median" and (isinstance(tau, str) or not tau > 0):
        raise ConfigError(f"tau must be positive or 'median', not {tau!r}.", where="dispersive loss")
    return PRESETS[preset].variant or variant
