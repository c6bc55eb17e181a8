"""The dispersive regularizer: repulsion between the representations of a batch, at any layer of any network.

Sources: Wang and He, "Diffuse and Disperse" (arXiv 2506.09027), and Med-DisSeg (arXiv 2605.14579).
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from toolkit.errors import ConfigError, RegularizerWarning, choose
from toolkit.methods.med_disseg import dispersion
from toolkit.registry import register
from toolkit.results import DataFrame, as_table
from toolkit.training.protocol import Regularizer, StepContext, linear_warm_up
from toolkit.training.sampling import process, sum_of_all

LAYOUTS = ("pooled", "flatten", "positions")
ACTIVE_BAND = 18.4  # pairs with distance / tau above this contribute less than 1e-8


@register("regularizer", "dispersive")
@dataclasses.dataclass(frozen=True)
class Dispersive(Regularizer):
    """The dispersive loss on tapped layers of any network; see `dispersive_loss` for variants and presets.

    No parameters, no extra passes. The layouts "pooled" and "flatten" need two images a batch. On logging steps it
    measures its own gradient and warns once if it is dead.

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
        ConfigError: an invalid setting.

    Example:
        >>> reg = tk.attach(tk.Dispersive(weight=0.2, tap="bottleneck", variant="infonce_cosine"), model)
    """

    name: ClassVar[str] = "dispersive"

    weight: float = 0.2
    tap: str | tuple[str, ...] = "bottleneck"
    variant: str = "infonce_l2"
    tau: float | str = 0.5
    _: dataclasses.KW_ONLY
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
    _kept: dict[str, Any] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        dispersion.checked_variant(self.variant, self.tau, self.preset)
        choose("layout", self.layout, LAYOUTS)
        choose("reduction", self.reduction, ("mean", "sum"))
        if self.samples < 2:
            raise ConfigError(f"samples must be at least 2, not {self.samples}.")
        object.__setattr__(self, "tap", self.tap if isinstance(self.tap, str) else tuple(self.tap))

    @classmethod
    def from_preset(cls, preset: str, stage: int = 1, **changes: Any) -> Dispersive:
        """The preset with the weight, temperature and layout its source trains with; `changes` win."""
        if preset not in dispersion.PRESETS or stage not in (1, 2):
            what = f"No settings for preset {preset!r} at stage {stage!r}."
            raise ConfigError(what, fix=f"Presets: {', '.join(dispersion.PRESETS)}; stages: 1, 2.")
        values = dispersion.PRESETS[preset]
        own = {"tau": values.tau, "layout": values.layout, "variant": values.variant or "infonce_l2"}
        return cls(**{"preset": preset, "weight": values.weights[stage - 1], **own, **changes})

    def weights(self, step: int) -> dict[str, float]:
        stopped = self.stop_step is not None and step >= self.stop_step
        return {"loss": 0.0 if stopped else self.weight * linear_warm_up(step, self.warm_up_steps)}

    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        if self._kept.get("stage", context.stage) != context.stage or self._kept.get("step", 0) > context.step:
            self._kept.clear()  # representations of another stage's or another training's network
        self._last.clear()
        losses = []
        for name, features in context.features.items():
            rows = self.representation(features, context.generator)
            bank = self._kept.get(f"rows/{name}")
            bank = None if bank is None or bank.shape[1] != rows.shape[1] else bank.to(rows)  # of another resolution
            loss = dispersion.dispersive_loss(rows, self.variant, self.tau, self.preset, bank=bank)
            if context.logging:
                self._measure(name, rows, loss)
            if self.bank_size:
                known = rows.detach() if bank is None else torch.cat([bank, rows.detach()])
                self._kept[f"rows/{name}"] = known[-self.bank_size :].clone()
                self._kept.update(stage=context.stage, step=context.step)
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
            rows = dispersion.token_rows(features)
            if rows.shape[0] > self.samples:
                chosen = torch.randperm(rows.shape[0], generator=generator)[: self.samples]
                rows = rows.index_select(0, chosen.to(rows.device, non_blocking=True))
        else:
            rows = features.flatten(1)
        if self.gather:  # the rows of all ranks, in rank order, with gradient
            rank, ranks = process()
            rows = sum_of_all(functional.pad(rows, (0, 0, rank * len(rows), (ranks - 1 - rank) * len(rows))))
        return rows

    def _measure(self, name: str, rows: Tensor, loss: Tensor) -> None:
        """Numbers of the last call, and a warning the first time they show that the term does nothing."""
        if rows.shape[0] < 2 and not self.bank_size:
            self._warn("single", "A batch of one has no pairs: the dispersive loss is the constant 0.")
            return
        variant = dispersion.PRESETS[self.preset].variant or self.variant
        if variant != "covariance" and len(rows) > 1:  # of one row a bank has pairs, the batch has none
            self._measure_pairs(name, rows.detach(), variant)
        if loss.requires_grad and rows.requires_grad:
            (gradient,) = torch.autograd.grad(loss, rows, retain_graph=True)
            norm = float(gradient.norm())
            self._last[f"{name}/gradient_norm"] = norm
            if norm < 1e-8:
                what = f"The dispersive loss at {name!r} is dead: value {float(loss.detach()):.6g}, "
                what += f"gradient norm {norm:.3g}. Use the preset 'default' or 'default-cosine', which "
                self._warn("dead", f"{what}normalise the distance.")

    def _measure_pairs(self, name: str, rows: Tensor, variant: str) -> None:
        distances = dispersion.pair_distances(rows, None, variant, self.preset)
        itself = dispersion.self_pairs(distances)
        pairs = distances[~itself]
        self._last[f"{name}/mean_distance"] = float(pairs.mean())
        if variant != "hinge":
            active = float((pairs / dispersion.temperature(self.tau, distances, itself) < ACTIVE_BAND).float().mean())
            self._last[f"{name}/active_pairs"] = active
            if active < 0.01:
                what = f"{100 * (1 - active):.4g} % of the pairs at {name!r} are farther apart than {ACTIVE_BAND} tau"
                self._warn("band", f"{what} and hardly repelled; normalise the distance or raise tau.")

    def _warn(self, reason: str, message: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(message, RegularizerWarning, stacklevel=2)


def preset_rows(features: Tensor, preset: str) -> Tensor:
    """The rows (B, D) that a preset disperses: the whole map or its mean over positions, by the preset's layout."""
    if features.ndim < 2 or features.shape[0] < 2:
        what = f"The dispersive loss needs features (B, C, *S) of two images or more, not {tuple(features.shape)}."
        raise ConfigError(what)
    pooled = dispersion.PRESETS[preset].layout == "pooled" and features.ndim > 2
    return features.flatten(2).mean(dim=2) if pooled else features.flatten(1)


def preset_distances(features: Tensor, preset: str) -> Tensor:
    """Distances (B (B - 1) / 2,) between different images in units of tau, as the preset measures them."""
    rows = preset_rows(features.detach(), preset)
    settings = dispersion.PRESETS[preset]
    distances = dispersion.pair_distances(rows, None, settings.variant or "infonce_l2", preset)
    upper = torch.triu_indices(len(rows), len(rows), 1)
    return distances[upper[0], upper[1]] / settings.tau


def preset_check(features: Tensor) -> DataFrame:
    """Every preset of `toolkit.Dispersive` on one batch of features, with the settings its source trains with.

    Args:
        features: (B, C, *S) of a batch, or rows (B, D).

    Returns:
        One row a preset: layout, tau, numbers (D), loss, gradient_norm (at the features), smallest and median distance
        in units of tau, active_pairs (share of the pairs within 18.4 tau), status ("dead" with a gradient norm below
        1e-8, else "ok").

    Raises:
        ConfigError: fewer than two images.
    """
    rows = []
    for name, settings in dispersion.PRESETS.items():
        leaf = features.detach().clone().requires_grad_()
        with torch.enable_grad():
            vectors = preset_rows(leaf, name)
            loss = dispersion.dispersive_loss(vectors, settings.variant or "infonce_l2", settings.tau, name)
            (gradient,) = torch.autograd.grad(loss, leaf)
        distances = preset_distances(features, name)
        norm = float(gradient.norm())
        active = float((distances < ACTIVE_BAND).float().mean())
        row = {"preset": name, "layout": settings.layout, "tau": settings.tau, "numbers": vectors.shape[1]}
        row |= {"loss": float(loss.detach()), "gradient_norm": norm, "smallest": float(distances.min())}
        row |= {"median": float(distances.median()), "active_pairs": active}
        rows.append(row | {"status": "dead" if norm < 1e-8 else "ok"})
    return as_table(rows)
