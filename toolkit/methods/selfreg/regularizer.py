"""SelfReg: every block is taught by the last decoder block (SCR), and half of a block's channels by the other (IFD).

Source: Zhu et al., "SelfReg-UNet: Self-Regularized UNet for Medical Image Segmentation", MICCAI 2024. Defaults follow
the authors' code where it differs from the text. Neither loss adds parameters or changes inference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from toolkit.errors import ConfigError, ProtocolError
from toolkit.features.names import resolve
from toolkit.methods.selfreg.terms import (
    channel_score,
    draw_channels,
    expected_semantic_consistency,
    internal_distillation,
    pool_to,
    semantic_consistency,
)
from toolkit.registry import register
from toolkit.training.regularizer import Regularizer, StepContext

__all__ = [
    "SelfReg",
    "channel_score",
    "draw_channels",
    "expected_semantic_consistency",
    "internal_distillation",
    "semantic_consistency",
]

_MODES: dict[str, dict[str, Any]] = {
    "code": {
        "scr_draw": "both",
        "ifd_order": "score",
        "ifd_stop_gradient": "none",
        "grouping": "code",
        "include_first_encoder_block": False,
        "include_final_in_ifd": False,
    },
    "paper_literal": {
        "scr_draw": "student",
        "ifd_order": "index",
        "ifd_stop_gradient": "top",
        "grouping": "global_mean",
        "include_first_encoder_block": True,
        "include_final_in_ifd": True,
    },
}
_MODES["expected"] = _MODES["code"] | {"scr_draw": "expected"}
_CHOICES = {
    "scr_draw": ("both", "student", "expected"),
    "ifd_order": ("score", "index"),
    "ifd_stop_gradient": ("none", "top"),
    "grouping": ("code", "global_mean"),
    "include_first_encoder_block": (True, False),
    "include_final_in_ifd": (True, False),
}


@register("regularizer", "selfreg")
@dataclasses.dataclass(frozen=True)
class SelfReg(Regularizer):
    """Semantic consistency and internal distillation on a network's block outputs, in float32.

    Terms: `scr` and `ifd`. By default the blocks are found by name: `encoder.*` without the first one, `bottleneck`,
    `decoder.*` without the one nearest the output, and the tensor the head reads as teacher. Any other network works
    by naming its layers in `groups` and `teacher`. Channel draws come from a generator keyed by (seed, step).

    Args:
        scr: weight of the semantic consistency (the paper's lambda_1; ACDC runs used 0.1).
        ifd: weight of the internal distillation (lambda_2).
        mode: "code" (the authors' code), "paper_literal" (the text), or "expected" (code with SCR replaced by its
            expectation over the draws). The options below override single settings of the mode.
        groups: layers, one mapping {"encoder": [...], "decoder": [...]} for each layer position within the stages;
            several groups (first and last block of transformer stages) are averaged apart and added.
        teacher: layer or alias of the teacher map.
        normalise: divide each (image, channel) map by its L2 norm in both losses.
        scr_draw: "both" sides permuted, "student" only, or "expected".
        ifd_order: halves by "score" or by channel "index".
        ifd_stop_gradient: "none", or "top" to keep the first half fixed.
        grouping: "code" adds the means of encoder and decoder for IFD; "global_mean" averages over all maps.
        include_first_encoder_block: also teach `encoder.1` (found by name only).
        include_final_in_ifd: also distil the teacher map.
    """

    name: ClassVar[str] = "selfreg"

    scr: float = 0.015
    ifd: float = 0.015
    mode: str = "code"
    groups: Sequence[Mapping[str, Sequence[str]]] | None = None
    teacher: str = "head_input"
    normalise: bool = False
    scr_draw: str | None = None
    ifd_order: str | None = None
    ifd_stop_gradient: str | None = None
    grouping: str | None = None
    include_first_encoder_block: bool | None = None
    include_final_in_ifd: bool | None = None
    _last: dict[str, Tensor] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise ConfigError(f"Unknown mode {self.mode!r}.", where="SelfReg", fix=f"Use {list(_MODES)}.")
        if min(self.scr, self.ifd) < 0:
            raise ConfigError(f"SelfReg's weights must be >= 0, not {self.scr} and {self.ifd}.")
        for option, allowed in _CHOICES.items():
            if self.setting(option) not in allowed:
                raise ConfigError(f"{option} must be one of {allowed}, not {self.setting(option)!r}.")

    def setting(self, option: str) -> Any:
        """The option as given, or as the mode says."""
        given = getattr(self, option)
        return _MODES[self.mode][option] if given is None else given

    @property
    def taps(self) -> tuple[str, ...]:
        """The blocks, then the teacher."""
        if self.groups is None:
            return ("encoder.*", "bottleneck", "decoder.*", self.teacher)
        named = [tap for group in self.groups for part in ("encoder", "decoder") for tap in group.get(part, ())]
        return (*dict.fromkeys(named), self.teacher)

    def taps_on(self, network: nn.Module) -> tuple[str, ...]:
        """The taps, by name: without the first encoder block and without the decoder block nearest the output."""
        if self.groups is not None:
            return self.taps
        encoder, decoder = resolve(network, "encoder.*"), resolve(network, "decoder.*")
        first = 0 if self.setting("include_first_encoder_block") else 1
        return (*encoder[first:], "bottleneck", *decoder[:-1], self.teacher)

    def weights(self, step: int) -> dict[str, float]:
        """Constant: the authors ramp nothing."""
        return {"scr": self.scr, "ifd": self.ifd}

    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        """The terms whose weight is not 0."""
        teacher = self._prepared(context.features[self.teacher])
        layers = [
            {part: [self._prepared(f) for f in maps] for part, maps in group.items()}
            for group in self._groups(context.features)
        ]
        students = [f for group in layers for f in (*group["decoder"], *group["encoder"])]
        self._last["feature_rms"] = torch.stack([f.detach().square().mean().sqrt() for f in students]).mean()
        terms = {}
        if self.scr:
            terms["scr"] = self._semantic_consistency(layers, teacher, context.generator)
        if self.ifd:
            terms["ifd"] = self._internal_distillation(layers, teacher)
        return terms

    def diagnostics(self) -> dict[str, float]:
        """feature_rms: mean root mean square of the student maps (both losses also fall when features shrink)."""
        return {name: float(value) for name, value in self._last.items()}

    def _prepared(self, feature: Tensor) -> Tensor:
        feature = feature if feature.dtype == torch.float64 else feature.float()
        if not self.normalise:
            return feature
        norm = feature.flatten(2).norm(dim=2).clamp_min(1e-12)
        return feature / norm.reshape(*norm.shape, *[1] * (feature.ndim - 2))

    def _groups(self, features: Mapping[str, Tensor]) -> list[dict[str, list[Tensor]]]:
        """Student maps by group and part, decoder maps from the bottleneck outwards."""
        if self.groups is not None:
            found = [
                {part: [features[tap] for tap in group.get(part, ())] for part in ("encoder", "decoder")}
                for group in self.groups
            ]
        else:
            encoder = [f for name, f in features.items() if name.startswith("encoder.") or name == "bottleneck"]
            found = [
                {"encoder": encoder, "decoder": [f for name, f in features.items() if name.startswith("decoder.")]}
            ]
        if not all(group["encoder"] or group["decoder"] for group in found):
            raise ProtocolError(
                "SelfReg found no blocks to teach.",
                where=f"layers: {list(features)}",
                fix='Name them: SelfReg(groups=[{"encoder": [...], "decoder": [...]}], teacher="...").',
            )
        return found

    def _semantic_consistency(
        self, layers: Sequence[Mapping[str, Sequence[Tensor]]], teacher: Tensor, generator: torch.Generator
    ) -> Tensor:
        pooled = _Pyramid(teacher.detach())
        means = []
        for group in layers:
            students = (*group["decoder"], *group["encoder"])
            means.append(torch.stack([self._pair(f, pooled(f), generator) for f in students]).mean())
        combined = torch.stack(means)
        return combined.sum() if self.setting("grouping") == "code" else combined.mean()

    def _pair(self, student: Tensor, teacher: Tensor, generator: torch.Generator) -> Tensor:
        draw = self.setting("scr_draw")
        if draw == "expected":
            return expected_semantic_consistency(student, teacher)
        chosen = draw_channels(student.shape[1], teacher.shape[1], generator, draw)
        return semantic_consistency(student, teacher, *chosen)

    def _internal_distillation(self, layers: Sequence[Mapping[str, Sequence[Tensor]]], teacher: Tensor) -> Tensor:
        def term(feature: Tensor) -> Tensor:
            return internal_distillation(feature, self.setting("ifd_order"), self.setting("ifd_stop_gradient"))

        final = [teacher] if self.setting("include_final_in_ifd") else []
        parts = [[term(f) for f in maps] for group in layers for maps in group.values()]
        parts = [part for part in parts if part]
        if final:
            parts[-1].append(term(teacher))
        if self.setting("grouping") == "code":
            return torch.stack([torch.stack(part).mean() for part in parts]).sum()
        return torch.stack([value for part in parts for value in part]).mean()


class _Pyramid:
    """The teacher map pooled once per size; a student larger than the teacher is left for the pair term to pool."""

    def __init__(self, teacher: Tensor) -> None:
        self.teacher = teacher
        self.pooled: dict[tuple[int, ...], Tensor] = {tuple(teacher.shape[2:]): teacher}

    def __call__(self, student: Tensor) -> Tensor:
        size = tuple(min(a, b) for a, b in zip(student.shape[2:], self.teacher.shape[2:], strict=True))
        if size not in self.pooled:
            self.pooled[size] = pool_to(self.teacher, size)
        return self.pooled[size]
