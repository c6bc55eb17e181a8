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

from toolkit.errors import ConfigError, LayerError
from toolkit.registry import register
from toolkit.regularizers.base import Regularizer, StepContext, linear_warm_up
from toolkit.regularizers.epps_pulley import (
    epps_pulley_by_direction,
    null_expectation,
    sliced_epps_pulley,
    unit_directions,
)
from toolkit.regularizers.sampling import POOLING, SAMPLING, RowSample, choose_rows, labels_at, rows_at

__all__ = ["SegReg", "epps_pulley_by_direction", "null_expectation", "sliced_epps_pulley", "unit_directions"]


@register("regularizer", "segreg")
@dataclasses.dataclass(frozen=True)
class SegReg(Regularizer):
    """Sliced Epps-Pulley distance of sampled voxel features to N(0, I); our inference, see the module's text.

    Term: `epps_pulley`. Each step draws the rows, then the directions, from one generator keyed by (seed, step), tap
    by tap, so augmentation is untouched and resuming is exact. Needs 2 C rows, else the tap is left out that step.

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
        warm_up: steps over which the weight rises linearly.
    """

    name: ClassVar[str] = "segreg"

    weight: float = 0.1
    tap: str | Sequence[str] = "head_input"
    samples: int = 4096
    directions: int = 256
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
    _last: dict[str, Any] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.sampling not in SAMPLING or self.pooling not in POOLING:
            raise ConfigError(
                f"Unknown sampling {self.sampling!r} or pooling {self.pooling!r}.",
                where="SegReg",
                fix=f"sampling is one of {SAMPLING}, pooling one of {POOLING}.",
            )
        if self.weight < 0 or (self.convex and self.weight > 1):
            raise ConfigError(f"SegReg's weight must be >= 0 (and <= 1 if convex), not {self.weight}.")
        if min(self.samples, self.directions) < 1 or self.points < 2 or not self.t_max > 0:
            raise ConfigError("SegReg needs samples >= 1, directions >= 1, points >= 2 and t_max > 0.")
        if self.tap_weights is not None and len(self.tap_weights) != len(self.taps):
            raise ConfigError(f"{len(self.taps)} taps need as many tap_weights, not {len(self.tap_weights)}.")

    @property
    def taps(self) -> tuple[str, ...]:
        """The tap or taps."""
        return (self.tap,) if isinstance(self.tap, str) else tuple(self.tap)

    def weights(self, step: int) -> dict[str, float]:
        """The ramped weight of the one term."""
        return {"epps_pulley": self.weight * linear_warm_up(step, self.warm_up)}

    def objective_weight(self, step: int) -> float:
        """1, or 1 - weight in the convex form."""
        return 1.0 - self.weights(step)["epps_pulley"] if self.convex else 1.0

    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        """The statistic of this step's rows, as a scalar."""
        self._last.clear()
        features = list(context.features.items())
        if not features:
            raise LayerError("SegReg was given no features.", where=f"tap={self.tap!r}")
        shares = self._tap_weights(len(features))
        values = [
            share * self._of_tap(name, feature, context)
            for share, (name, feature) in zip(shares, features, strict=True)
        ]
        return {"epps_pulley": torch.stack(values).sum()}

    def diagnostics(self) -> dict[str, float]:
        """Of the last call: T_over_N, mean_norm, eig_min, eig_max, n_eff, skipped (with several taps `name:tap`)."""
        report: dict[str, float] = {}
        for name, (rows, weights, n_eff, value) in self._last.items():
            suffix = f":{name}" if len(self._last) > 1 else ""
            numbers = {"skipped": float(value is None), "n_eff": n_eff}
            if value is not None:
                numbers |= {"T_over_N": float(value), **_moments(rows, weights)}
            report |= {f"{key}{suffix}": number for key, number in numbers.items()}
        return report

    def _tap_weights(self, count: int) -> list[float]:
        raw = self.tap_weights if self.tap_weights is not None else [0.5**k for k in range(count)]
        if len(raw) != count:
            raise ConfigError(
                f"The taps matched {count} layers, but there are {len(raw)} tap_weights.",
                fix="Name the layers one by one, or leave tap_weights out.",
            )
        return [float(w) / float(sum(raw)) for w in raw]

    def _of_tap(self, name: str, feature: Tensor, context: StepContext) -> Tensor:
        channels = feature.shape[1]
        samples = self._rows(feature, context)
        directions = unit_directions(channels, self.directions, context.generator)
        usable = [sample for sample in samples if len(sample) >= 2 * channels]
        if not usable:
            self._last[name] = (None, None, float(sum(map(len, samples))), None)
            return torch.zeros((), device=feature.device)
        rows = [rows_at(feature, sample.index) for sample in usable]
        pairs = [self._statistic(z, sample, directions) for z, sample in zip(rows, usable, strict=True)]
        self._last[name] = (
            torch.cat([z.detach() for z in rows]),
            _joined_weights(usable),
            sum(sample.effective_size for sample in usable),
            torch.stack([plain for plain, _ in pairs]).mean(),
        )
        return torch.stack([value for _, value in pairs]).mean()

    def _rows(self, feature: Tensor, context: StepContext) -> list[RowSample]:
        labels = None
        if self.sampling == "class_balanced" or self.ignore_label is not None:
            if "label" not in context.batch:
                raise ConfigError("This SegReg setting needs batch['label'].", where="SegReg")
            labels = labels_at(context.batch["label"], feature.shape[2:])
        return choose_rows(
            feature.shape[0], feature[0, 0].numel(), self.samples, context.generator,
            sampling=self.sampling, pooling=self.pooling, labels=labels, ignore_label=self.ignore_label,
        )  # fmt: skip

    def _statistic(self, rows: Tensor, sample: RowSample, directions: Tensor) -> tuple[Tensor, Tensor]:
        """The plain T / N (detached) and the value that is trained on."""
        plain = sliced_epps_pulley(
            rows, directions, t_max=self.t_max, points=self.points, weights=sample.weights
        )
        value = plain
        if self.null_centred:
            value = (value - null_expectation(self.t_max, self.points) / sample.effective_size).clamp_min(0)
        return plain.detach(), value * len(sample) if self.scaled else value


def _joined_weights(samples: Sequence[RowSample]) -> Tensor:
    parts = [torch.full((len(s),), 1.0 / len(s)) if s.weights is None else s.weights for s in samples]
    return torch.cat(parts) / len(parts)


def _moments(rows: Tensor, weights: Tensor) -> dict[str, float]:
    """Length of the weighted mean and the extreme eigenvalues of the weighted covariance, in float64."""
    rows, weights = rows.double().cpu(), weights.double()
    mean = weights @ rows
    centred = rows - mean
    eigenvalues = torch.linalg.eigvalsh((centred * weights.unsqueeze(1)).T @ centred)
    return {
        "mean_norm": float(mean.norm()),
        "eig_min": float(eigenvalues[0]),
        "eig_max": float(eigenvalues[-1]),
    }
