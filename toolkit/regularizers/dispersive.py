"""Dispersive loss: repulsion between the representations of a batch, without positives or a second view.

Sources: Wang and He, "Diffuse and Disperse" (arXiv 2506.09027), and its use for segmentation in Med-DisSeg
(arXiv 2605.14579). With the settings released with the latter the term is numerically dead on real feature maps:
raw distances between long vectors underflow the exponential. The preset `released` keeps that behaviour for
comparison; `default` is the active, bounded form.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from toolkit.errors import ConfigError, RegularizerWarning
from toolkit.registry import register
from toolkit.regularizers.base import Regularizer, StepContext, linear_warm_up

VARIANTS = ("infonce_l2", "infonce_cosine", "hinge", "covariance")
LAYOUTS = ("pooled", "flatten", "positions")
ACTIVE_BAND = 18.4  # pairs with distance / tau above this contribute less than 1e-8


@dataclasses.dataclass(frozen=True)
class Preset:
    """How one preset measures distances, which pairs it counts, and what its source trains with.

    Attributes:
        normalised: squared L2 divided by the number of features (hinge: its root) instead of the raw L2 distance.
        self_pairs: InfoNCE counts the B pairs (i, i) too; they bound the loss from below at -log B.
        floor: constant added to the mean inside the logarithm.
        variant: the variant this preset stands for, or None if every variant can be asked for.
        tau, weights, layout: the source's settings (weights: first and second stage).
    """

    normalised: bool
    self_pairs: bool
    floor: float
    variant: str | None
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
    """Squared L2 distances between all rows: from explicit differences, in O(rows²) memory, zero diagonal."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        return torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist").square()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        left, right = ctx.saved_tensors
        # centring costs nothing (only differences count) and keeps the products free of cancellation
        centre = left.mean(dim=0)
        left, right = left - centre, right - centre
        to_left = 2 * (gradient.sum(dim=1, keepdim=True) * left - gradient @ right)
        to_right = 2 * (gradient.sum(dim=0).unsqueeze(1) * right - gradient.transpose(0, 1) @ left)
        return to_left, to_right


def token_rows(features: Tensor) -> Tensor:
    """(B, C, *S) as one row per position, (B * prod(S), C): image-major, then raster order."""
    return features.movedim(1, -1).reshape(-1, features.shape[1])


def pair_distances(left: Tensor, right: Tensor, variant: str, preset: str = "default") -> Tensor:
    """Distances (N, M) between rows (N, D) and (M, D), as a variant and a preset measure them."""
    if variant == "infonce_cosine":
        return 1 - _unit_rows(left, preset) @ _unit_rows(right, preset).transpose(0, 1)
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
    z: Tensor, variant: str = "infonce_l2", tau: float | str = 0.5, preset: str = "default", *, margin: float = 1.0,
    bank: Tensor | None = None,
) -> Tensor:  # fmt: skip
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
    """
    variant = _checked(variant, tau, preset)
    with torch.autocast(z.device.type, enabled=False):
        rows = z.reshape(z.shape[0], -1)
        rows = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
        if variant == "covariance":
            return _covariance(rows) if rows.shape[0] > 1 else rows.new_zeros(())
        negatives = _bank_rows(bank, rows)
        if rows.shape[0] + len(negatives) < 2:
            return rows.new_zeros(())
        blocks = [pair_distances(rows, other, variant, preset) for other in (rows, negatives)]
        distances = torch.cat(blocks, dim=1)
        itself = _self_pairs(distances)
        if variant == "hinge":
            return _masked_mean((margin - distances).clamp_min(0).square(), itself)
        scale = _temperature(tau, distances, itself)
        return _info_nce(distances.masked_fill(itself, 0.0) / scale, itself, PRESETS[preset])


def _info_nce(scaled: Tensor, itself: Tensor, preset: Preset) -> Tensor:
    if preset.floor:
        # literally the released formula: its exponentials must be able to underflow
        return torch.log(_masked_mean(torch.exp(-scaled), itself) + preset.floor)
    exponents = -scaled if preset.self_pairs else (-scaled).masked_fill(itself, -math.inf)
    count = scaled.numel() - (0 if preset.self_pairs else scaled.shape[0])
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


def _self_pairs(distances: Tensor) -> Tensor:
    return torch.eye(*distances.shape, dtype=torch.bool, device=distances.device)


def _masked_mean(values: Tensor, itself: Tensor) -> Tensor:
    return values.masked_fill(itself, 0.0).sum() / (values.numel() - values.shape[0])


def _temperature(tau: float | str, distances: Tensor, itself: Tensor) -> float | Tensor:
    if not isinstance(tau, str):
        return tau
    median = distances.detach()[~itself].median()
    return torch.where(median > 0, median, torch.ones_like(median))


def _bank_rows(bank: Tensor | None, rows: Tensor) -> Tensor:
    if bank is None:
        return rows.new_zeros((0, rows.shape[1]))
    if bank.ndim != 2 or bank.shape[1] != rows.shape[1]:
        raise ConfigError(
            f"The bank has shape {tuple(bank.shape)}, the batch has rows of {rows.shape[1]} features.",
            where="dispersive_loss(bank=...)",
            fix="Give one row per stored representation, with the same layout and resolution as the batch.",
        )
    return bank.detach().to(rows)


def _checked(variant: str, tau: float | str, preset: str) -> str:
    if variant not in VARIANTS:
        raise ConfigError(f"Unknown variant {variant!r}.", fix=f"Use one of {', '.join(VARIANTS)}.")
    if preset not in PRESETS:
        raise ConfigError(f"Unknown preset {preset!r}.", fix=f"Use one of {', '.join(PRESETS)}.")
    if tau != "median" and (isinstance(tau, str) or not tau > 0):
        raise ConfigError(f"tau must be positive or 'median', not {tau!r}.", where="dispersive loss")
    return PRESETS[preset].variant or variant


@register("regularizer", "dispersive")
@dataclasses.dataclass(frozen=True)
class Dispersive(Regularizer):
    """The dispersive loss on tapped layers of any network; see `dispersive_loss` for variants and presets.

    No parameters, no extra passes, nothing at inference. It needs at least two images a batch (layouts "pooled" and
    "flatten"). On logging steps it measures its own gradient and warns once if it is dead.

    Args:
        weight: lambda. The papers use 0.2 and 0.6 (Med-DisSeg, first and second stage), 0.25 to 0.5 (original).
        tap: layer name, alias or glob, or several; the term is their mean or sum (`reduction`). With two views in
            one step, tap the layer's second call as well ("layer3", "layer3#2") and sum: the views are dispersed
            apart from each other, as published.
        variant, tau, preset: as in `dispersive_loss`.
        layout: "pooled" (global average, one row an image), "flatten" (the whole map, one row an image) or
            "positions" (one row a position, at most `samples` of them, drawn by the step's generator).
        samples: rows of the layout "positions".
        reduction: "mean" or "sum" over several taps.
        warm_up_steps: the weight rises linearly over so many steps.
        stop_step: the weight is 0 from this step on (None: never).
        bank_size: rows of earlier batches kept as further negatives (0: none). Stored in checkpoints.
        gather: under distributed training use the rows of all ranks, with gradient, so that W ranks of B images
            equal one process of W * B.

    Raises:
        ConfigError: a setting that cannot work.
    """

    name: ClassVar[str] = "dispersive"

    weight: float = 0.2
    tap: str | tuple[str, ...] = "bottleneck"
    variant: str = "infonce_l2"
    tau: float | str = 0.5
    preset: str = "default"
    layout: str = "pooled"
    samples: int = 1024
    reduction: str = "mean"
    warm_up_steps: int = 0
    stop_step: int | None = None
    bank_size: int = 0
    gather: bool = True
    _last: dict[str, float] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)
    _warned: set[str] = dataclasses.field(default_factory=set, init=False, repr=False, compare=False)
    _bank: dict[str, Any] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _checked(self.variant, self.tau, self.preset)
        if self.layout not in LAYOUTS:
            raise ConfigError(f"Unknown layout {self.layout!r}.", fix=f"Use one of {', '.join(LAYOUTS)}.")
        if self.reduction not in ("mean", "sum"):
            raise ConfigError(f"reduction must be 'mean' or 'sum', not {self.reduction!r}.")
        if self.weight < 0 or self.samples < 2 or self.bank_size < 0 or self.warm_up_steps < 0:
            raise ConfigError("weight, bank_size and warm_up_steps must not be negative, samples at least 2.")
        object.__setattr__(self, "tap", self.tap if isinstance(self.tap, str) else tuple(self.tap))

    @classmethod
    def from_preset(cls, preset: str, stage: int = 1, **changes: Any) -> Dispersive:
        """The preset with the weight, temperature and layout its source trains with; `changes` win."""
        if preset not in PRESETS or stage not in (1, 2):
            what = f"No settings for preset {preset!r} at stage {stage!r}."
            raise ConfigError(what, fix=f"Presets: {', '.join(PRESETS)}; stages: 1, 2.")
        known = PRESETS[preset]
        settings: dict[str, Any] = {
            "preset": preset, "weight": known.weights[stage - 1], "tau": known.tau, "layout": known.layout,
            "variant": known.variant or "infonce_l2",
        }  # fmt: skip
        return cls(**(settings | changes))

    @property
    def taps(self) -> tuple[str, ...]:
        return (self.tap,) if isinstance(self.tap, str) else self.tap

    def weights(self, step: int) -> dict[str, float]:
        stopped = self.stop_step is not None and step >= self.stop_step
        return {"loss": 0.0 if stopped else self.weight * linear_warm_up(step, self.warm_up_steps)}

    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        if self._bank.get("stage", context.stage) != context.stage:
            self._bank.clear()  # representations of another stage's network
        self._last.clear()
        losses = []
        for name, features in context.features.items():
            rows = self.representation(features, context.generator)
            bank = self._stored(name, rows, context.stage)
            loss = dispersive_loss(rows, self.variant, self.tau, self.preset, bank=bank)
            if context.logging:
                self._measure(name, rows, loss)
            self._store(name, rows)
            losses.append(loss)
        if not losses:
            raise ConfigError(f"None of the taps {self.taps} gave a feature.")
        total = torch.stack(losses)
        return {"loss": total.mean() if self.reduction == "mean" else total.sum()}

    def representation(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """The rows (N, D) that are dispersed, float32 or wider, of features (B, C, *S) or (B, C)."""
        features = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
        if self.layout == "pooled" and features.ndim > 2:
            rows = features.flatten(2).mean(dim=2)
        elif self.layout == "positions" and features.ndim > 2:
            rows = token_rows(features)
            if rows.shape[0] > self.samples:
                chosen = torch.randperm(rows.shape[0], generator=generator)[: self.samples]
                rows = rows.index_select(0, chosen.to(rows.device))
        else:
            rows = features.flatten(1)
        return _gathered(rows) if self.gather else rows

    def diagnostics(self) -> dict[str, float]:
        return dict(self._last)

    def state_dict(self) -> dict[str, Any]:
        return dict(self._bank)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._bank.clear()
        self._bank.update(state)

    def _stored(self, name: str, rows: Tensor, stage: int) -> Tensor | None:
        if not self.bank_size:
            return None
        self._bank["stage"] = stage
        stored = self._bank.get(f"rows/{name}")
        comparable = stored is not None and stored.shape[1] == rows.shape[1]  # else another resolution
        return stored.to(rows) if comparable else None

    def _store(self, name: str, rows: Tensor) -> None:
        if self.bank_size:
            stored = self._stored(name, rows, self._bank["stage"])
            rows = rows.detach() if stored is None else torch.cat([stored, rows.detach()])
            self._bank[f"rows/{name}"] = rows[-self.bank_size :].clone()

    def _measure(self, name: str, rows: Tensor, loss: Tensor) -> None:
        """Numbers of the last call, and a warning the first time they show that the term does nothing."""
        if rows.shape[0] < 2 and not self.bank_size:
            self._warn("single", "A batch of one has no pairs: the dispersive loss is the constant 0.")
            return
        variant = PRESETS[self.preset].variant or self.variant
        if variant != "covariance":
            self._measure_pairs(name, rows.detach(), variant)
        if loss.requires_grad and rows.requires_grad:
            (gradient,) = torch.autograd.grad(loss, rows, retain_graph=True)
            norm = float(gradient.norm())
            self._last[f"{name}/gradient_norm"] = norm
            if norm < 1e-8:
                self._warn(
                    "dead",
                    f"The dispersive loss at {name!r} is dead: value {float(loss.detach()):.6g}, gradient norm {norm:.3g}. "
                    "Use the preset 'default' or 'default-cosine', which normalise the distance.",
                )

    def _measure_pairs(self, name: str, rows: Tensor, variant: str) -> None:
        distances = pair_distances(rows, rows, variant, self.preset)
        itself = _self_pairs(distances)
        pairs = distances[~itself]
        self._last[f"{name}/mean_distance"] = float(pairs.mean())
        if variant != "hinge":
            active = float((pairs / _temperature(self.tau, distances, itself) < ACTIVE_BAND).float().mean())
            self._last[f"{name}/active_pairs"] = active
            if active < 0.01:
                self._warn(
                    "band",
                    f"{100 * (1 - active):.4g} % of the pairs at {name!r} are farther apart than {ACTIVE_BAND} tau and "
                    "hardly repelled; normalise the distance or raise tau.",
                )

    def _warn(self, reason: str, message: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(message, RegularizerWarning, stacklevel=2)


def _gathered(rows: Tensor) -> Tensor:
    """The rows of all ranks, in rank order, with gradient; the rows themselves outside distributed training.

    Every rank evaluates the loss of all rows and the backward pass sums the ranks' gradients of each row, so that
    averaged parameter gradients equal those of one process.
    """
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return rows
    from torch.distributed.nn.functional import all_gather

    return torch.cat(list(all_gather(rows.contiguous())))
