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

from toolkit.errors import ConfigError, ProtocolError, ToolkitError, choose
from toolkit.features.layout import grid_of, to_maps
from toolkit.features.modules import unwrap
from toolkit.features.names import resolve, stages
from toolkit.inference.layers import observed, trial_image
from toolkit.inference.network import Predictor
from toolkit.methods.selfreg import terms
from toolkit.registry import register
from toolkit.results import DataFrame, as_table
from toolkit.training.protocol import Regularizer, StepContext

_PARTS = ("encoder", "decoder")
_REMEDY = (
    'Name them: SelfReg(groups={"encoder": [...], "decoder": [...]}, teacher="..."); toolkit.layers(model) lists them.'
)
# What each option may be: the authors' code first, then the text of the paper.
_CHOICES: dict[str, tuple[Any, ...]] = {
    "scr_draw": ("both", "student", "expected"),
    "ifd_order": ("score", "index"),
    "ifd_stop_gradient": ("none", "top"),
    "grouping": ("code", "global_mean"),
    "include_first_encoder_block": (False, True),
    "include_final_in_ifd": (False, True),
}
_MODES = {
    mode: {option: allowed[place] for option, allowed in _CHOICES.items()}
    for place, mode in enumerate(("code", "paper_literal"))
}
_MODES["expected"] = _MODES["code"] | {"scr_draw": "expected"}


@register("regularizer", "selfreg")
@dataclasses.dataclass(frozen=True)
class SelfReg(Regularizer):
    """Semantic consistency and internal distillation on a network's block outputs, in float32.

    Terms: `scr` and `ifd`. Students are the stages of the encoder without the first one, the bottleneck, and the stages of
    the decoder without the one nearest the output; the tensor the head reads is the teacher. A network of the toolkit
    states its blocks (`encoder.*`, `bottleneck`, `decoder.*`); those of any other are found in an observed pass, by
    the sizes of its maps: see `describe` for what was chosen, which a run also records, and `groups` and `teacher` to
    choose otherwise. Channels are drawn by a generator keyed by (seed, step). Diagnostics: `feature_rms`, the mean root
    mean square of the student maps (both losses also fall when features shrink).

    Args:
        scr: weight of the semantic consistency (the paper's lambda_1; ACDC runs used 0.1).
        ifd: weight of the internal distillation (lambda_2).
        mode: "code" (the authors' code), "paper_literal" (the text), or "expected" (code with SCR replaced by its
            expectation over the draws). The options below override single settings of the mode.
        groups: layers as a mapping {"encoder": [...], "decoder": [...]}, or several, one for each layer position within
            the stages; several groups (first and last block of transformer stages) are averaged apart and added.
        teacher: layer or alias of the teacher map.
        normalise: divide each (image, channel) map by its L2 norm in both losses.
        scr_draw: "both" sides permuted, "student" only, or "expected".
        ifd_order: halves by "score" or by channel "index".
        ifd_stop_gradient: "none", or "top" to keep the first half fixed.
        grouping: "code" adds the means of encoder and decoder for IFD; "global_mean" averages over all maps.
        include_first_encoder_block: also teach the first stage of the encoder (not with `groups`).
        include_final_in_ifd: also distil the teacher map.

    Example:
        >>> reg = tk.attach(tk.SelfReg(scr=0.1, ifd=0.015), tk.self_reg_unet(1, 4, width=4))
    """

    name: ClassVar[str] = "selfreg"

    scr: float = 0.015
    ifd: float = 0.015
    mode: str = "code"
    groups: Mapping[str, Sequence[str]] | Sequence[Mapping[str, Sequence[str]]] | None = None
    _: dataclasses.KW_ONLY
    teacher: str = "head_input"
    normalise: bool = False
    scr_draw: str | None = None
    ifd_order: str | None = None
    ifd_stop_gradient: str | None = None
    grouping: str | None = None
    include_first_encoder_block: bool | None = None
    include_final_in_ifd: bool | None = None
    _last: dict[str, Tensor] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)
    _chosen: dict[tuple[str, ...], list[dict[str, tuple[str, ...]]]] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        choose("mode", self.mode, _MODES, where="SelfReg")
        for group in self._given():
            if not isinstance(group, Mapping) or not set(group) <= set(_PARTS) or not any(group.values()):
                raise ConfigError(f"{group!r} names no blocks.", where="SelfReg(groups=...)", fix=_REMEDY)
        for option, allowed in _CHOICES.items():
            if self.setting(option) not in allowed:
                raise ConfigError(f"{option} must be one of {allowed}, not {self.setting(option)!r}.")

    def setting(self, option: str) -> Any:
        given = getattr(self, option)
        return _MODES[self.mode][option] if given is None else given

    def _given(self) -> Sequence[Mapping[str, Sequence[str]]]:
        if self.groups is None:
            return ()
        return (self.groups,) if isinstance(self.groups, Mapping) else self.groups

    @property
    def taps(self) -> tuple[str, ...]:
        if self.groups is None:
            return ("encoder.*", "bottleneck", "decoder.*", self.teacher)
        return (*_names(self._given()), self.teacher)

    def taps_on(self, model: nn.Module) -> tuple[str, ...]:
        """The taps on this network, by name: the students, then the teacher.

        Raises:
            ProtocolError: no stages are found; `groups` and `teacher` name them.
        """
        groups = [{part: tuple(group.get(part, ())) for part in _PARTS} for group in self._given()]
        groups = groups or [self._found(model)]
        taps = (*_names(groups), self.teacher)
        self._chosen[taps] = groups
        return taps

    def _found(self, model: nn.Module) -> dict[str, tuple[str, ...]]:
        first = 0 if self.setting("include_first_encoder_block") else 1
        if hasattr(unwrap(model), "toolkit_taps"):
            encoder, bottleneck, decoder = resolve(model, "encoder.*"), "bottleneck", resolve(model, "decoder.*")
            return {"encoder": (*encoder[first:], bottleneck), "decoder": tuple(decoder[:-1])}
        try:
            ladder = stages(model)
        except ToolkitError as error:
            raise ProtocolError(f"SelfReg could not look at the network: {error}", fix=_REMEDY) from error
        encoder = [*ladder.encoder[first:], ladder.bottleneck] if ladder.bottleneck and ladder.encoder else []
        if not encoder:
            what = "SelfReg found no stages that go down in size."
            raise ProtocolError(what, where=type(unwrap(model)).__name__, fix=_REMEDY)
        return {"encoder": tuple(encoder), "decoder": ladder.decoder[:-1]}

    def describe(self, model: nn.Module, example: Any = None) -> DataFrame:
        """What this regularizer taps on a network: columns group, part (encoder, decoder, teacher) and layer.

        Args:
            model: any network.
            example: an input to observe, as for `toolkit.layers`; None = the last observed, else zeros.
        """
        if self.groups is None and not hasattr(unwrap(model), "toolkit_taps"):
            predictor = Predictor(model)
            stages(model) if example is None else observed(predictor, trial_image(predictor, example))
        groups = self._chosen[self.taps_on(model)]
        rows = [(i, part, name) for i, group in enumerate(groups) for part in _PARTS for name in group[part]]
        return as_table([*rows, (0, "teacher", self.teacher)], columns=["group", "part", "layer"])

    def weights(self, step: int) -> dict[str, float]:
        """Constant: the authors ramp nothing."""
        return {"scr": self.scr, "ifd": self.ifd}

    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        size = tuple(context.batch["image"].shape[2:]) if "image" in context.batch else None
        teacher = self._prepared(_as_map(context.features[self.teacher], size, self.teacher))
        layers = [
            {part: [self._prepared(f) for f in maps] for part, maps in group.items()}
            for group in self._groups(context.features, size)
        ]
        students = [f for group in layers for f in (*group["decoder"], *group["encoder"])]
        self._last["feature_rms"] = torch.stack([f.detach().square().mean().sqrt() for f in students]).mean()
        losses = {}
        if self.scr:
            losses["scr"] = self._semantic_consistency(layers, teacher, context.generator)
        if self.ifd:
            losses["ifd"] = self._internal_distillation(layers, teacher)
        return losses

    def _prepared(self, feature: Tensor) -> Tensor:
        feature = feature if feature.dtype == torch.float64 else feature.float()
        if not self.normalise:
            return feature
        norm = feature.flatten(2).norm(dim=2).clamp_min(1e-12)
        return feature / norm.reshape(*norm.shape, *[1] * (feature.ndim - 2))

    def _groups(self, features: Mapping[str, Tensor], size: tuple[int, ...] | None) -> list[dict[str, list[Tensor]]]:
        """Student maps by group and part, decoder maps from the bottleneck outwards; tokens laid out on their grid."""
        groups = next((g for taps, g in self._chosen.items() if set(taps) <= set(features)), None)
        if groups is None:  # called without a step that asked for taps
            named = {part: tuple(n for n in features if n.startswith(f"{part}.")) for part in _PARTS}
            named["encoder"] += ("bottleneck",) if "bottleneck" in features else ()
            groups = [{part: tuple(g.get(part, ())) for part in _PARTS} for g in self._given()] or [named]
        if not all(group["encoder"] or group["decoder"] for group in groups):
            raise ProtocolError("SelfReg found no blocks to teach.", where=f"layers: {list(features)}", fix=_REMEDY)
        return [{part: [_as_map(features[n], size, n) for n in group[part]] for part in _PARTS} for group in groups]

    def _semantic_consistency(
        self, layers: Sequence[Mapping[str, Sequence[Tensor]]], teacher: Tensor, generator: torch.Generator
    ) -> Tensor:
        constant, means = teacher.detach(), []
        sizes: dict[tuple[int, ...], Tensor] = {}
        for group in layers:
            distances = []
            for student in (*group["decoder"], *group["encoder"]):
                # a student larger than the teacher is left for the pair's term to pool
                size = tuple(min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True))
                sizes[size] = sizes[size] if size in sizes else terms.pool_to(constant, size)
                distances.append(self._pair(student, sizes[size], generator))
            means.append(torch.stack(distances).mean())
        combined = torch.stack(means)
        return combined.sum() if self.setting("grouping") == "code" else combined.mean()

    def _pair(self, student: Tensor, teacher: Tensor, generator: torch.Generator) -> Tensor:
        draw = self.setting("scr_draw")
        if draw == "expected":
            return terms.expected_semantic_consistency(student, teacher)
        chosen = terms.draw_channels(student.shape[1], teacher.shape[1], generator, draw)
        return terms.semantic_consistency(student, teacher, *chosen)

    def _internal_distillation(self, layers: Sequence[Mapping[str, Sequence[Tensor]]], teacher: Tensor) -> Tensor:
        def term(feature: Tensor) -> Tensor:
            return terms.internal_distillation(feature, self.setting("ifd_order"), self.setting("ifd_stop_gradient"))

        parts = [[term(f) for f in maps] for group in layers for maps in group.values() if maps]
        if self.setting("include_final_in_ifd"):
            parts[-1].append(term(teacher))
        if self.setting("grouping") == "code":
            return torch.stack([torch.stack(part).mean() for part in parts]).sum()
        return torch.stack([value for part in parts for value in part]).mean()


def _names(groups: Sequence[Mapping[str, Sequence[str]]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in groups for part in _PARTS for name in group.get(part, ())))


def _as_map(feature: Tensor, size: tuple[int, ...] | None, name: str) -> Tensor:
    """Tokens and channel-last maps as (B, C, *S); whatever is no map of the image stays for the terms to refuse."""
    if size is None or grid_of(feature.shape, size) is None:
        return feature
    return to_maps(feature, size, name)
