"""SegReg: voxel features are pulled towards a fixed standard normal reference.

The paper (Vaish et al., "SegReg: Latent Space Regularization for Improved Medical Image Segmentation", arXiv
2602.23509) names its idea - align embeddings with a fixed reference distribution, no extra parameters, no memory -
but its loss and code are not public. The loss here, a sliced Epps-Pulley distance to N(0, I) ("R1"), is OUR
INFERENCE from the public parts; results made with it are results of this loss, not of the paper's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from toolkit.errors import ConfigError, LayerError, choose
from toolkit.features.epps_pulley import sliced_epps_pulley, unit_directions
from toolkit.methods.segreg.divergences import DIVERGENCES, divergence, null_value
from toolkit.registry import register
from toolkit.training.protocol import Regularizer, StepContext, linear_warm_up
from toolkit.training.sampling import (
    POOLING,
    SAMPLING,
    RowSample,
    choose_rows,
    labels_at,
    labels_of_all,
    process,
    rows_of_all,
)

# The specification's section 2.10. A two-sided grid of 5 points on [-3, 3] is the folded one with 3 points.
_COMMON: dict[str, Any] = {"samples": 4096, "directions": 256, "sampling": "uniform", "pooling": "pooled"}
_LITE: dict[str, Any] = {**_COMMON, "directions": 4096, "points": 3, "scaled": True, "convex": True}

_BY_CLASS: dict[str, Any] = {**_COMMON, "divergence": "class_conditional", "sampling": "class_balanced"}

PRESETS: dict[str, dict[str, Any]] = {
    "segreg_default": {**_COMMON, "tap": "head_input", "weight": 0.1},
    "segreg_preact": {**_COMMON, "tap": "pre_activation", "weight": 0.1},
    "segreg_litessl": {**_LITE, "tap": "head_input", "weight": 0.05},
    # the control: the weight per row instead of the N-scaled statistic's own
    "segreg_litessl_control": {**_LITE, "tap": "head_input", "weight": 0.05 / 4096},
    "segreg_sw": {**_COMMON, "tap": "pre_activation", "divergence": "sliced_wasserstein", "weight": 0.1},
    "segreg_kl": {**_COMMON, "tap": "pre_activation", "divergence": "gaussian_kl", "weight": 0.05},
    "segreg_classcond": {**_BY_CLASS, "tap": "head_input", "weight": 0.1},
    "baseline": {**_COMMON, "tap": "head_input", "weight": 0.0},
}


@register("regularizer", "segreg")
@dataclasses.dataclass(frozen=True)
class SegReg(Regularizer):
    """Sliced Epps-Pulley distance of sampled voxel features to N(0, I); our inference, see the module's text.

    Term: the name of the divergence, `epps_pulley` by default. Each step draws the rows, then the directions, from one generator keyed by (seed, step), tap
    by tap, so augmentation is untouched and resuming is exact. Needs 2 C rows, else the tap is left out that step.
    Under distributed training rows are drawn from the whole batch: W processes of B images equal one of W * B.

    Args:
        weight: factor on the N-free statistic (try 0.01 to 1).
        tap: layer, alias or several of them. "head_input" (the tensor the segmentation head reads; after an
            activation N(0, I) is out of reach and about 0.02 remains) or "pre_activation" (before it; reachable).
        samples: rows drawn in total.
        directions: random unit directions a step.
        t_max: end of the frequency grid.
        points: points of the folded grid.
        sampling: "uniform" or "class_balanced" (labels choose and weight rows, nothing else).
        pooling: "pooled" over the batch, or "per_image" and averaged.
        ignore_label: rows with this label are not used.
        tap_weights: relative weights of several taps, normalised; default 1, 1/2, 1/4, ... in the order given.
        scaled: multiply by the number of rows (the form of LeJEPA); a sensible weight is then about N times smaller.
        convex: the objective is multiplied by (1 - weight).
        null_centred: max(value - E0, 0), E0 the expectation for exactly normal rows at the effective sample size.
        warm_up: steps over which the weight rises linearly; in a sequence of sites, in the first stage only.
        divergence: "epps_pulley", or for comparison "sliced_wasserstein", "gaussian_kl", "covariance" (rows sketched
            to 64 columns if there are more), "variance_covariance", "gaussian_kernel", "nearest_neighbour" (an
            entropy, no reference) or "class_conditional" (Epps-Pulley to one Gaussian a class; needs `classes`).
        classes: number of classes, for "class_conditional".

    Example:
        >>> reg = tk.attach(tk.SegReg(weight=0.05, tap=["head_input", "bottleneck"]), model)
    """

    name: ClassVar[str] = "segreg"
    caveat: ClassVar[str] = (
        "SegReg: the loss is our inference from the public parts of the paper (its own loss and code are not public)."
    )

    weight: float = 0.1
    tap: str | Sequence[str] = "head_input"
    samples: int = 4096
    directions: int = 256
    _: dataclasses.KW_ONLY
    t_max: float = 3.0
    points: int = 17
    sampling: str = "uniform"
    pooling: str = "pooled"
    ignore_label: int | None = None
    tap_weights: Sequence[float] | None = None
    scaled: bool = False
    convex: bool = False
    null_centred: bool = False
    warm_up: int = 0
    divergence: str = "epps_pulley"
    classes: int | None = None
    _last: dict[str, Any] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        choose("sampling", self.sampling, SAMPLING, where="SegReg")
        choose("pooling", self.pooling, POOLING, where="SegReg")
        choose("divergence", self.divergence, DIVERGENCES, where="SegReg")
        if self._by_class and self.classes is None:
            fix = "SegReg(divergence='class_conditional', classes=4)"
            raise ConfigError("class_conditional needs the number of classes.", where="SegReg", fix=fix)
        if self.null_centred and not self._by_class:
            null_value(self, 1.0, 1)
        if self.convex and self.weight > 1:
            raise ConfigError(f"SegReg's weight must be <= 1 if convex, not {self.weight}.")
        if self.tap_weights is not None and len(self.tap_weights) != len(self.taps):
            raise ConfigError(f"{len(self.taps)} taps need as many tap_weights, not {len(self.tap_weights)}.")

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> SegReg:
        """One of the named settings (`PRESETS`: our inference, like the loss); `changes` win.

        The class-conditional one needs the number of classes: `from_preset("segreg_classcond", classes=4)`.

        Raises:
            ConfigError: no such preset.
        """
        choose("preset", name, PRESETS, where="SegReg.from_preset")
        return cls(**{**PRESETS[name], **changes})

    @property
    def _by_class(self) -> bool:
        return self.divergence == "class_conditional"

    def weights(self, step: int) -> dict[str, float]:
        return {self.divergence: self.weight * linear_warm_up(step, self.warm_up)}

    def objective_weight(self, step: int) -> float:
        return 1.0 - self.weights(step)[self.divergence] if self.convex else 1.0

    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        self._last.clear()
        features = list(context.features.items())
        if not features:
            raise LayerError("SegReg was given no features.", where=f"tap={self.tap!r}")
        shares = self._tap_weights(len(features))
        values = [
            share * self._of_tap(name, feature, context)
            for share, (name, feature) in zip(shares, features, strict=True)
        ]
        return {self.divergence: torch.stack(values).sum()}

    def diagnostics(self) -> dict[str, float]:
        """Of the last call: T_over_N, mean_norm, eig_min, eig_max, n_eff, skipped (with several taps `name:tap`)."""
        report: dict[str, float] = {}
        for name, record in self._last.items():
            suffix = f":{name}" if len(self._last) > 1 else ""
            report |= {f"{key}{suffix}": number for key, number in self._numbers(*record).items()}
        return report

    def _numbers(self, rows: list[Tensor], samples: list[RowSample], directions: Tensor) -> dict[str, float]:
        """The diagnostics of one tap; without rows, of one that was left out."""
        if not rows:
            return {"skipped": 1.0, "n_eff": float(sum(map(len, samples)))}
        grid, pairs = {"t_max": self.t_max, "points": self.points}, list(zip(rows, samples, strict=True))
        distances = [sliced_epps_pulley(z, directions, weights=s.weights, **grid) for z, s in pairs]  # type: ignore[arg-type]
        shares = [s.weights if s.weights is not None else torch.full((len(s),), 1 / len(s)) for s in samples]
        return {
            "skipped": 0.0,
            "n_eff": sum(s.effective_size for s in samples),
            "T_over_N": float(torch.stack(distances).mean()),
            **_moments(torch.cat(rows), torch.cat(shares) / len(shares)),
        }

    def _tap_weights(self, count: int) -> list[float]:
        raw = self.tap_weights if self.tap_weights is not None else [0.5**k for k in range(count)]
        if len(raw) != count:
            fix = "Name the layers one by one, or leave tap_weights out."
            raise ConfigError(f"The taps matched {count} layers, but there are {len(raw)} tap_weights.", fix=fix)
        return [float(w) / float(sum(raw)) for w in raw]

    def _of_tap(self, name: str, feature: Tensor, context: StepContext) -> Tensor:
        channels = feature.shape[1]
        samples = self._rows(feature, context)
        directions = unit_directions(channels, self.directions, context.generator)
        usable = [sample for sample in samples if len(sample) >= 2 * channels]
        if not usable:
            self._last[name] = [], samples, directions
            return torch.zeros((), device=feature.device)
        rows = [rows_of_all(feature, sample.index) for sample in usable]
        values = [
            divergence(self, z, sample, directions, context.generator) * (len(sample) if self.scaled else 1)
            for z, sample in zip(rows, usable, strict=True)
        ]
        self._last[name] = [z.detach() for z in rows], usable, directions
        return torch.stack(values).mean()

    def _rows(self, feature: Tensor, context: StepContext) -> list[RowSample]:
        labels = None
        if self.sampling == "class_balanced" or self.ignore_label is not None or self._by_class:
            if "label" not in context.batch:
                raise ConfigError("This SegReg setting needs batch['label'].", where="SegReg")
            labels = labels_of_all(labels_at(context.batch["label"], feature.shape[2:]), feature.device)
        images, positions = feature.shape[0] * process()[1], feature[0, 0].numel()
        rules: dict[str, Any] = {name: getattr(self, name) for name in ("sampling", "pooling", "ignore_label")}
        return choose_rows(images, positions, self.samples, context.generator, labels=labels, **rules)


def _moments(rows: Tensor, weights: Tensor) -> dict[str, float]:
    """Length of the weighted mean and the extreme eigenvalues of the weighted covariance, in float64."""
    rows, weights = rows.double().cpu(), weights.double()
    mean = weights @ rows
    centred = rows - mean
    eigenvalues = torch.linalg.eigvalsh((centred * weights.unsqueeze(1)).T @ centred)
    return {"mean_norm": float(mean.norm()), "eig_min": float(eigenvalues[0]), "eig_max": float(eigenvalues[-1])}
