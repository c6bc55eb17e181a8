"""The losses of Med-DisSeg's two stages, and the strong view of the first.

Source: Med-DisSeg (arXiv 2605.14579), which takes all but the multi-class loss from ConDSeg (arXiv 2412.08345). The
functions take probabilities, as published; the objectives keep logits for the cross-entropy, which has the same value
and, unlike the published form, a gradient where a sigmoid saturates.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.arguments import checked_methods
from toolkit.errors import ConfigError
from toolkit.registry import register
from toolkit.training.protocol import Objective
from toolkit.training.segmentation import constant, focal_loss, soft_dice_loss

_LUMA = (0.299, 0.587, 0.114)


@checked_methods
@dataclasses.dataclass(frozen=True)
class StrongView:
    """A second, harder view of a batch of images (B, C, H, W); labels stay valid.

    Each image is mapped to [0, 1] by its own extremes, changed, clipped, and mapped back, so it works under any
    normalisation. Saturation, hue and grey act on 3-channel images only. Hue is a rotation about the grey axis.

    Args:
        brightness, contrast, saturation: factors are drawn from [1 - v, 1 + v].
        hue: turns are drawn from [-hue, hue].
        grey: probability of a grey image.
        blur: range of the Gaussian's standard deviation in pixels, kernel of 7; None = no blur.
        vertical_only: blur along the rows' axis only, as the released code does.
        per_image: draw for every image; published: one draw a batch.

    Raises:
        ConfigError: a setting out of range.
    """

    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.1
    grey: float = 0.5
    blur: tuple[float, float] | None = (0.1, 3.0)
    vertical_only: bool = False
    per_image: bool = False

    def __post_init__(self) -> None:
        if self.blur is not None and not 0 < self.blur[0] <= self.blur[1]:
            raise ConfigError(f"blur must be a range of positive numbers, not {self.blur}.", where="strong_view")

    @classmethod
    def of(cls, settings: StrongView | Mapping[str, Any]) -> StrongView:
        """Settings as a mapping, or a view as it is.

        Raises:
            ConfigError: unknown settings.
        """
        if isinstance(settings, StrongView):
            return settings
        given: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in settings.items()}
        return cls(**given)

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """The strong view, of the image's shape, dtype and range; draws from the (CPU) generator only."""
        draws = torch.rand((len(image) if self.per_image else 1, 6), generator=generator).to(image, non_blocking=True)
        low, high = image.amin(dim=(1, 2, 3), keepdim=True), image.amax(dim=(1, 2, 3), keepdim=True)
        scale = (high - low).clamp_min(torch.finfo(image.dtype).tiny)
        x = self._colours((image - low) / scale, draws)
        if self.blur is not None:
            x = self._blurred(x, self.blur[0] + (self.blur[1] - self.blur[0]) * draws[:, 5])
        return x * scale + low

    def _colours(self, x: Tensor, draws: Tensor) -> Tensor:
        def factor(k: int, spread: float) -> Tensor:
            return (1 + spread * (2 * draws[:, k] - 1))[:, None, None, None]

        x = (x * factor(0, self.brightness)).clamp(0, 1)
        mean = _grey(x).mean(dim=(1, 2, 3), keepdim=True)
        x = (mean + (x - mean) * factor(1, self.contrast)).clamp(0, 1)
        if x.shape[1] != 3:
            return x
        grey = _grey(x)
        x = (grey + (x - grey) * factor(2, self.saturation)).clamp(0, 1)
        angle = 2 * math.pi * self.hue * (2 * draws[:, 3] - 1)
        cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None] / math.sqrt(3)
        cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]).to(x, non_blocking=True)
        rotation = cosine * torch.eye(3, device=x.device, dtype=x.dtype) + (1 - cosine) / 3 + sine * cross
        turned = torch.einsum("bij,bjhw->bihw", rotation.expand(len(x), 3, 3), x)
        return torch.where((draws[:, 4] < self.grey)[:, None, None, None], _grey(x), turned).clamp(0, 1)

    def _blurred(self, x: Tensor, sigma: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        offsets = torch.arange(-3, 4, device=x.device, dtype=x.dtype)
        kernel = torch.exp(-0.5 * (offsets / sigma[:, None]).square())
        kernel = (kernel / kernel.sum(dim=1, keepdim=True)).expand(batch, 7).repeat_interleave(channels, dim=0)
        flat = x.reshape(1, batch * channels, height, width)
        for vertical in (True,) if self.vertical_only else (True, False):
            shape, pad = ((-1, 1, 7, 1), (0, 0, 3, 3)) if vertical else ((-1, 1, 1, 7), (3, 3, 0, 0))
            padded = functional.pad(flat, pad, mode="replicate")
            flat = functional.conv2d(padded, kernel.reshape(shape), groups=batch * channels)
        return flat.reshape(x.shape)


def _grey(x: Tensor) -> Tensor:
    if x.shape[1] != 3:
        return x.mean(dim=1, keepdim=True)
    return torch.einsum("bchw,c->bhw", x, constant(_LUMA, x)).unsqueeze(1)


def dice_loss(probability: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - (2 sum p y + s) / (sum p + sum y + s), with sums over the whole batch."""
    overlap = (probability * target).sum()
    return 1 - (2 * overlap + smooth) / (probability.sum() + target.sum() + smooth)


def dice_cross_entropy(probability: Tensor, target: Tensor, logits: Tensor | None = None) -> Tensor:
    """DB: binary cross-entropy (mean over all elements) plus `dice_loss`, of one map of probabilities.

    `logits`, if given, must be the map before the sigmoid and serve the cross-entropy.
    """
    return _cross_entropy(probability, target, logits) + dice_loss(probability, target)


def consistency(first: Tensor, second: Tensor, logits: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """CONS: cross-entropy of each view against the other one thresholded at 0.5, which carries no gradient."""
    hard = [(view > 0.5).to(view.dtype) for view in (first.detach(), second.detach())]
    before = logits or (None, None)
    return _cross_entropy(first, hard[1], before[0]) + _cross_entropy(second, hard[0], before[1])


def complementary(foreground: Tensor, background: Tensor, uncertain: Tensor) -> Tensor:
    """COMPL: mean pairwise product of a softmax over three probability maps (B, 1, H, W), in [0.28912544, 1/3].

    The softmax is taken of probabilities, as published, hence the narrow range: the term cannot do much.
    """
    q = torch.cat((foreground, background, uncertain), dim=1).softmax(dim=1)
    return (q[:, 0] * q[:, 1] + q[:, 0] * q[:, 2] + q[:, 1] * q[:, 2]).mean()


def balance(probability: Tensor) -> Tensor:
    """Beta = 1 / (tanh(S) + 1e-15) >= 1, with S the sum of a map over the whole batch divided by H W; not detached."""
    size = probability.shape[-2] * probability.shape[-1]
    return 1 / ((probability.sum() / size).tanh() + 1e-15)


def multiclass_loss(
    logits: Tensor,
    target: Tensor,
    *,
    cross_entropy: float = 0.5,
    dice: float = 0.5,
    class_weights: Sequence[float] | None = None,
    ignore_label: int | None = None,
    include_background: bool = False,
) -> Tensor:
    """The released multi-organ loss: weighted cross-entropy and 1 - mean soft Dice over classes.

    Dice of a class is (2 sum p g + 1) / (sum p + sum g + 1) with softmax probabilities and sums over batch and
    pixels, of logits (B, K, *S) and labels (B, *S). `class_weights` serve the cross-entropy only; pixels of
    `ignore_label` count in neither term (0 where all are), class 0 counts in Dice with `include_background`.
    """
    total = logits.new_zeros(())
    if cross_entropy:
        weights = None if class_weights is None else constant(class_weights, logits)
        if ignore_label is None:
            value = functional.cross_entropy(logits, target, weights)
        else:  # which torch's own mean makes NaN where no pixel counts
            value = focal_loss(logits, target, gamma=0.0, class_weights=weights, ignore_label=ignore_label)
        total = total + cross_entropy * value
    if dice:
        rules: dict[str, Any] = {"include_background": include_background, "ignore_label": ignore_label}
        total = total + dice * soft_dice_loss(logits, target, smooth=1.0, **rules)
    return total


@register("objective", "med_disseg_stage_one")
@dataclasses.dataclass(frozen=True)
class MedDisSegStageOneObjective(Objective):
    """Stage 1: DB on a clean and on a strong view of the batch, and their consistency.

    Terms `clean`, `strong`, `consistency`, in float32. The network must offer `forward_views(clean, strong)`. For
    more than two classes DB becomes `multiclass_loss` and the consistency a cross-entropy against the other view's
    classes: an extension, the published stage 1 is binary. To disperse both views, tap the encoder twice:
    `Dispersive(tap=("layer3", "layer3#2"), reduction="sum")`.

    Args:
        strong_view: how the strong view is made; a mapping of its settings will do.
        consistency: weight of the consistency term (published: 1).

    Example:
        >>> network, views = tk.med_disseg_stage_one(1, 4, encoder_width=4), tk.Dispersive(tap=("layer3", "layer3#2"))
        >>> run = tk.train(network, task, tk.MedDisSegStageOneObjective(), views, config, out="runs/stage-one")
    """

    name: ClassVar[str] = "med_disseg_stage_one"
    requires: ClassVar[tuple[str, ...]] = ("forward_views",)

    strong_view: StrongView | Mapping[str, Any] = dataclasses.field(default_factory=dict)
    consistency: float = 1.0

    def __post_init__(self) -> None:
        view = StrongView.of(self.strong_view)  # refuses unknown settings now
        if isinstance(self.strong_view, StrongView):
            object.__setattr__(self, "strong_view", dataclasses.asdict(view))  # so that a run can store it

    def forward_pass(self, model: nn.Module, batch: Mapping[str, Any], generator: torch.Generator) -> Any:
        strong = StrongView.of(self.strong_view)(batch["image"], generator)
        network: Any = model
        return network.forward_views(batch["image"], strong)

    def __call__(self, outputs: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        with torch.autocast(batch["image"].device.type, enabled=False):
            clean, strong = (_single_or_all(logits) for logits in outputs)
            terms = {"clean": _mask_loss(clean, batch["label"]), "strong": _mask_loss(strong, batch["label"])}
            if clean.shape[1] == 1:
                agreement = consistency(clean.sigmoid(), strong.sigmoid(), (clean, strong))
            else:
                agreement = functional.cross_entropy(clean, strong.detach().argmax(dim=1))
                agreement = agreement + functional.cross_entropy(strong, clean.detach().argmax(dim=1))
            return terms | {"consistency": self.consistency * agreement}


@register("objective", "med_disseg")
@dataclasses.dataclass(frozen=True)
class MedDisSegObjective(Objective):
    """Stage 2: DB on the mask, balanced DB on the foreground and background maps, and the complementary term.

    Terms `mask`, `foreground`, `background`, `complementary`, in float32. The network must offer
    `forward_with_auxiliaries(image)`. The background target is 1 - foreground of the labels the batch carries, so it
    is aligned with the augmented image; the released data code built it before the augmentation and did not move it,
    which `aligned_background=False` repeats on batches that carry `label_before` (the loader's augmentation
    "geometry-label-before"). With more than two classes the mask term is `multiclass_loss`, and foreground means any class but 0.

    Args:
        auxiliary: weight of the foreground and background terms (published: 1).
        complementary: weight of the complementary term (published: 1).
        detach_balance: keep the gradient out of beta (published: not detached).
        aligned_background: take the background from the labels that the network is trained on (released code: not).

    Example:
        >>> network = tk.med_disseg(1, 4, width=16, encoder_width=4)
        >>> run = tk.train(network, task, tk.MedDisSegObjective(), config=config, out="runs/stage-two")
    """

    name: ClassVar[str] = "med_disseg"
    requires: ClassVar[tuple[str, ...]] = ("forward_with_auxiliaries",)

    auxiliary: float = 1.0
    complementary: float = 1.0
    detach_balance: bool = False
    aligned_background: bool = True

    def forward_pass(self, model: nn.Module, batch: Mapping[str, Any], generator: torch.Generator) -> Any:
        network: Any = model
        return network.forward_with_auxiliaries(batch["image"])

    def __call__(self, outputs: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        with torch.autocast(batch["image"].device.type, enabled=False):
            mask, *auxiliaries = (x.float() if x.dtype != torch.float64 else x for x in outputs)
            foreground, background, uncertain = (x.sigmoid() for x in auxiliaries)
            truth = (batch["label"] > 0).to(foreground.dtype)
            behind = 1 - truth
            if not self.aligned_background:
                if "label_before" not in batch:
                    what = "aligned_background=False needs batches with `label_before`."
                    fix = 'Train with TrainConfig(augmentation="geometry-label-before").'
                    raise ConfigError(what, where="med_disseg", fix=fix)
                behind = 1 - (batch["label_before"] > 0).to(truth.dtype)
            parts = {"foreground": (foreground, truth), "background": (background, behind)}
            terms = {"mask": _mask_loss(_single_or_all(mask), batch["label"])}
            for (name, (probability, target)), before in zip(parts.items(), auxiliaries, strict=False):
                beta = balance(probability.detach() if self.detach_balance else probability)
                terms[name] = self.auxiliary * beta * dice_cross_entropy(probability, target, before)
            terms["complementary"] = self.complementary * complementary(foreground, background, uncertain)
            return terms


def _cross_entropy(probability: Tensor, target: Tensor, logits: Tensor | None) -> Tensor:
    if logits is not None:
        return functional.binary_cross_entropy_with_logits(logits, target)
    return functional.binary_cross_entropy(probability, target)


def _single_or_all(logits: Tensor) -> Tensor:
    """Two-class logits as one map (their difference); others as they are; float32 or wider."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits[:, 1:] - logits[:, :1] if logits.shape[1] == 2 else logits


def _mask_loss(maps: Tensor, label: Tensor) -> Tensor:
    if label.shape[2:] != maps.shape[2:] or label.shape[0] != maps.shape[0]:
        raise ConfigError(f"Labels {tuple(label.shape)} do not fit maps {tuple(maps.shape)}.", where="batch['label']")
    if maps.shape[1] == 1:
        return dice_cross_entropy(maps.sigmoid(), (label > 0).to(maps.dtype), maps)
    return multiclass_loss(maps, label[:, 0].long())
