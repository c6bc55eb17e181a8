"""The supervised losses of segmentation networks: cross-entropy plus soft Dice, and any callable as an objective."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.errors import ConfigError, choose
from toolkit.features.logits import logits_by_scale
from toolkit.registry import register
from toolkit.training.protocol import Loss, Objective
from toolkit.training.sampling import sum_of_all

WAITING: ContextVar[bool] = ContextVar("waiting", default=True)  # a check may wait for the device; not in every step


@register("objective", "segmentation")
@dataclasses.dataclass(frozen=True)
class SegmentationObjective(Objective):
    """Weighted cross-entropy and soft Dice on logits (B, K, *S) against labels (B, 1, *S), in float32 or better.

    Terms: `cross_entropy` (mean over all pixels, natural logarithm), `dice` (see `soft_dice_loss`) and, where it is
    asked for, `focal` (see `focal_loss`). The defaults are the field's usual ones: equal weights, Dice over the
    foreground classes, sums pooled over the batch (a slice without some class is common in 2D), of all processes that
    share it. The heads of a deep supervision, in the order of `toolkit.features.logits.find_logits`, get the normalised
    weights 1, 1/2, 1/4, ..., each against the label map at its size (nearest).

    Several outputs are exclusive classes (softmax). On a task with regions, and for a network with one output, every
    output is a yes or no of its own (sigmoid, binary cross-entropy), and all of them count in Dice; neither class
    weights nor the focal term apply there.

    Args:
        cross_entropy: weight of the cross-entropy; 0 leaves the term out.
        dice: weight of the Dice loss; 0 leaves the term out.
        include_background: whether class 0 counts in Dice.
        squared: probabilities squared in Dice's denominator (Milletari et al. 2016). Without the squares the
            gradient of a small class vanishes while its probability is low, and it can stay unlearnt for hundreds of
            steps.
        batch_dice: sums over the whole batch (True) or image by image and then averaged.
        smooth: added to Dice's numerator and denominator.
        ignore_label: pixels with this label count in no term; a term without any pixel that counts is 0.
        class_weights: weight of every class, background first, in cross-entropy and focal loss; None = all equal.
        focal: weight of the focal loss; 0 leaves the term out.
        focal_gamma: its exponent.

    Presets: SelfReg-UNet used `(0.4, 0.6)` on Synapse, `(0.3, 0.7)` on ACDC, both with `include_background=True`.

    Example:
        >>> objective = tk.SegmentationObjective(cross_entropy=0.4, dice=0.6, include_background=True)
    """

    name: ClassVar[str] = "segmentation"

    cross_entropy: float = 1.0
    dice: float = 1.0
    include_background: bool = False
    _: dataclasses.KW_ONLY
    squared: bool = True
    batch_dice: bool = True
    smooth: float = 1e-5
    ignore_label: int | None = None
    class_weights: tuple[float, ...] | None = None
    focal: float = 0.0
    focal_gamma: float = 2.0

    def __post_init__(self) -> None:
        if self.cross_entropy == self.dice == self.focal == 0:
            where = "SegmentationObjective(cross_entropy=..., dice=..., focal=...)"
            raise ConfigError("The loss weights must not all be 0.", where=where)
        weights = None if self.class_weights is None else tuple(float(weight) for weight in self.class_weights)
        if weights is not None and (min(weights) < 0 or sum(weights) == 0):
            what = f"class_weights={weights} does not give a loss."
            fix = "Give one weight >= 0 a class, background first."
            raise ConfigError(what, where="SegmentationObjective(class_weights=...)", fix=fix)
        object.__setattr__(self, "class_weights", weights)

    def __call__(self, outputs: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The weighted terms.

        Raises:
            ConfigError: labels or class weights that do not fit the logits.
        """
        scales = logits_by_scale(outputs, batch.get("image"))
        shares = [0.5**k / (2 - 0.5 ** (len(scales) - 1)) for k in range(len(scales))]
        terms: dict[str, Tensor] = {}
        for share, logits in zip(shares, scales, strict=True):
            own = self._regions if logits.shape[1] == 1 or "regions" in batch else self._classes
            for name, value in own(logits.to(torch.promote_types(logits.dtype, torch.float32)), batch).items():
                terms[name] = share * value if name not in terms else terms[name] + share * value
        return terms

    def _classes(self, logits: Tensor, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Terms of exclusive classes."""
        target = fitted_label(batch["label"], logits, self.ignore_label)
        terms = {}
        weights = None if self.class_weights is None else constant(self.class_weights, logits)
        if weights is not None and len(weights) != logits.shape[1]:
            what = f"{len(weights)} class weights were given for {logits.shape[1]} outputs."
            fix = "Give one weight a class, background first."
            raise ConfigError(what, where="SegmentationObjective(class_weights=...)", fix=fix)
        ignored = -100 if self.ignore_label is None else self.ignore_label
        own: dict[str, Any] = {"class_weights": weights, "ignore_label": ignored}
        if self.cross_entropy:  # torch's own mean is NaN where no pixel counts
            plain = weights is None and self.ignore_label is None
            value = functional.cross_entropy(logits, target) if plain else focal_loss(logits, target, gamma=0, **own)
            terms["cross_entropy"] = self.cross_entropy * value
        if self.focal:
            terms["focal"] = self.focal * focal_loss(logits, target, gamma=self.focal_gamma, **own)
        if self.dice:
            rules = {name: getattr(self, name) for name in ("include_background", "squared", "batch_dice", "smooth")}
            value = soft_dice_loss(logits, target, ignore_label=self.ignore_label, of_all=self.batch_dice, **rules)
            terms["dice"] = self.dice * value
        return terms

    def _regions(self, logits: Tensor, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Terms of outputs that are each a yes or no of their own."""
        label = batch["label"]
        truth = batch.get("regions")
        if truth is None:  # one output: the label holds 0 and 1
            truth = (fitted_label(label, torch.cat((logits, logits), 1), self.ignore_label) == 1).unsqueeze(1)
        if self.focal or self.class_weights is not None:
            what = "Class weights and the focal term are those of exclusive classes."
            fix = "Leave them out for regions and for one output."
            raise ConfigError(what, where="SegmentationObjective(class_weights=..., focal=...)", fix=fix)
        truth = fitted_regions(truth, logits)
        counted = torch.ones_like(truth[:, :1])
        if self.ignore_label is not None:
            counted = (label != self.ignore_label).to(logits.dtype)
            counted = functional.interpolate(counted, logits.shape[2:], mode="nearest")
        terms = {}
        if self.cross_entropy:
            each = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none") * counted
            total, size = sum_of_all(torch.stack([each.sum(), counted.sum() * truth.shape[1]]))
            terms["cross_entropy"] = self.cross_entropy * total / size.clamp_min(1)
        if self.dice:
            rules = (self.squared, self.batch_dice, self.smooth, self.batch_dice)
            terms["dice"] = self.dice * _dice(logits.sigmoid() * counted, truth * counted, *rules)
        return terms


def focal_loss(
    logits: Tensor, label: Tensor, *, gamma: float = 2.0, class_weights: Tensor | None = None, ignore_label: int = -100
) -> Tensor:
    """Mean over pixels, those of all processes, of -(1 - p)^gamma log p, p the softmax of the true class (Lin et al. 2017, eq. 4).

    Args:
        logits: (B, K, *S).
        label: (B, *S) integers.
        gamma: 0 gives the cross-entropy.
        class_weights: (K,), alpha of the paper; the mean is weighted by them, as torch's cross-entropy does.
        ignore_label: pixels with this label do not count; the loss is 0 where no pixel does.
    """
    counted = label != ignore_label
    target = label.where(counted, 0).unsqueeze(1)
    log_p = logits.log_softmax(dim=1).gather(1, target).squeeze(1)
    share = counted.to(logits.dtype) if class_weights is None else class_weights[target.squeeze(1)] * counted
    tiny = torch.finfo(logits.dtype).tiny  # a power below 1 has no slope at 0
    total = (share * (1 - log_p.exp()).clamp_min(tiny) ** gamma * log_p).sum()
    total, size = sum_of_all(torch.stack([total, share.sum()]))
    return -total / size.clamp_min(tiny)


def soft_dice_loss(
    logits: Tensor,
    label: Tensor,
    *,
    include_background: bool = False,
    squared: bool = False,
    batch_dice: bool = True,
    smooth: float = 1e-5,
    ignore_label: int | None = None,
    of_all: bool = False,
) -> Tensor:
    """Mean over classes (and images, unless `batch_dice`) of 1 - (2 sum p y + e) / (sum p + sum y + e).

    Args:
        logits: (B, K, *S); probabilities p are their softmax over K.
        label: (B, *S) integers.
        include_background: whether class 0 counts.
        squared: sum p^2 + sum y^2 in the denominator (sum y^2 = sum y).
        batch_dice: sums run over the batch too.
        smooth: e. A class absent from the sums contributes a value close to 1 and pushes its p down.
        ignore_label: pixels with this label are left out of all sums.
        of_all: the sums run over the images of all processes, which must then all make this call.
    """
    probability = logits.softmax(dim=1)
    classes = torch.arange(logits.shape[1], device=logits.device).view(1, -1, *[1] * (logits.ndim - 2))
    truth = (label.unsqueeze(1) == classes).to(probability.dtype)
    if ignore_label is not None:
        counted = (label != ignore_label).unsqueeze(1)
        probability, truth = probability * counted, truth * counted
    if not include_background:
        probability, truth = probability[:, 1:], truth[:, 1:]
    return _dice(probability, truth, squared, batch_dice, smooth, of_all)


def _dice(probability: Tensor, truth: Tensor, squared: bool, batch_dice: bool, smooth: float, of_all: bool) -> Tensor:
    axes = [axis for axis in range(probability.ndim) if axis != 1 and (axis > 0 or batch_dice)]
    overlap = (probability * truth).sum(axes)
    size = (probability.square() if squared else probability).sum(axes) + truth.sum(axes)
    if of_all:
        overlap, size = sum_of_all(torch.stack([overlap, size]))
    return (1 - (2 * overlap + smooth) / (size + smooth)).mean()


def fitted_label(label: Tensor, logits: Tensor, ignore_label: int | None = None) -> Tensor:
    """Labels (B, 1, *S) as (B, *s) int64 at the logits' size, nearest neighbour."""
    if label.ndim != logits.ndim or label.shape[1] != 1 or label.shape[0] != logits.shape[0]:
        what = f"Labels must be (B, 1, *S) like the logits {tuple(logits.shape)}, not {tuple(label.shape)}."
        fix = "Wrap a network that returns more than its logits (B, K, *S), such as the classes of an auxiliary head."
        raise ConfigError(what, where="batch['label']", fix=fix)
    if label.shape[2:] != logits.shape[2:]:
        label = functional.interpolate(label.float(), size=logits.shape[2:], mode="nearest")
    target, classes = label[:, 0].long(), logits.shape[1]
    fits = not may_look(target) or all(0 <= int(v) < classes for v in target.aminmax())
    outside = [] if fits else [v for v in target.unique().tolist() if not 0 <= v < classes and v != ignore_label]
    if outside:
        what = f"The labels hold {outside}, but the network has {classes} outputs (classes 0 to {classes - 1})."
        fix = "Give the network one output per class, background included, or set ignore_label."
        raise ConfigError(what, where="batch['label']", fix=fix)
    return target


def constant(values: Sequence[float], like: Tensor) -> Tensor:
    """The values as a tensor of the type and on the device of another, which is not waited for."""
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)


def may_look(values: Tensor) -> bool:
    """Whether a check may read the values now: they lie on the CPU, or this step may wait for their device."""
    return values.is_cpu or WAITING.get()


def fitted_regions(masks: Tensor, logits: Tensor) -> Tensor:
    """Masks of regions (B, K, *S) at the logits' size and in their type, nearest neighbour."""
    if masks.shape[1] != logits.shape[1]:
        what = f"The network has {logits.shape[1]} outputs, the task {masks.shape[1]} regions."
        raise ConfigError(what, where="batch['regions']", fix="Give the network one output per region.")
    return functional.interpolate(masks.to(logits.dtype), size=logits.shape[2:], mode="nearest")


class LossObjective(Objective):
    """Any callable `loss(logits, labels)` as an objective: MONAI's losses, torch's, a function of one's own.

    The labels come in the shape that the loss takes: (B, *S) int64 for torch's `CrossEntropyLoss`, `NLLLoss` and
    `nn.functional.cross_entropy`; (B, 1, *S) int64 for everything else, which is what MONAI's losses take with
    `to_onehot_y=True`. A MONAI loss without it, and torch's `BCEWithLogitsLoss`, get one-hot labels (B, K, *S) of the
    logits' type, of one output 0 and 1 (B, 1, *S). `channels` overrides the choice. On a task with regions one-hot
    labels are the masks of the regions, and losses that take other labels are refused.

    Args:
        loss: gives a scalar; called in float32. The softmax is the loss's own business (`DiceLoss(softmax=True)`).
        channels: "none" = (B, *S), "one" = (B, 1, *S), "classes" = one-hot (B, K, *S); None = as described.

    Example:
        >>> objective = tk.LossObjective(torch.nn.CrossEntropyLoss(label_smoothing=0.1))
    """

    name: ClassVar[str] = "loss"

    def __init__(self, loss: Loss, channels: str | None = None) -> None:
        if channels is not None:
            choose("layout of labels", channels, ("none", "one", "classes"), where="LossObjective(channels=...)")
        self.loss, self.channels = loss, channels or _channels_for(loss)

    def __call__(self, outputs: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The one term `loss`.

        Raises:
            ConfigError: labels that do not fit, a loss that gives no scalar, or one of exclusive classes with regions.
        """
        logits = self.logits(outputs)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        value = self.loss(logits, self._regions(logits, batch) if "regions" in batch else self._label(logits, batch))
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(f"The loss {self.loss!r} gives {shape}, not one number.", fix='Give it reduction="mean".')
        return {"loss": value.reshape(())}

    def _label(self, logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
        single = logits.shape[1] == 1 and self.channels != "none"  # a yes or no: the label holds 0 and 1
        outputs = torch.cat((logits, logits), 1) if single else logits
        label = fitted_label(batch["label"], outputs, ignore_label=getattr(self.loss, "ignore_index", None))
        if self.channels == "classes" and not single:
            return functional.one_hot(label, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
        label = label if self.channels == "none" else label.unsqueeze(1)
        return label.to(logits.dtype) if self.channels == "classes" else label

    def _regions(self, logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
        parts = self.loss.modules() if isinstance(self.loss, nn.Module) else ()
        if self.channels != "classes" or any(vars(part).get("softmax") for part in parts):
            what = f"The loss {self.loss!r} takes exclusive classes, and this task has regions, which overlap."
            fix = "Use a loss with a sigmoid, such as DiceLoss(sigmoid=True) or BCEWithLogitsLoss(), "
            fix += 'or state that yours takes masks: LossObjective(loss, channels="classes").'
            raise ConfigError(what, where="objective=", fix=fix)
        return fitted_regions(batch["regions"], logits)


def as_objective(value: Any) -> Objective:
    """An objective as it is, a callable `loss(logits, labels)` as one, None as cross-entropy plus soft Dice."""
    if value is None:
        return SegmentationObjective()
    if isinstance(value, Objective):
        return value
    if isinstance(value, type) or not callable(value):
        called = f"Call the class first: {value.__name__}()." if isinstance(value, type) else ""
        fix = called or "Pass a toolkit objective, a callable loss(logits, labels), or None."
        raise ConfigError(f"{value!r} is not an objective.", where="objective=", fix=fix)
    return LossObjective(value)


def _channels_for(loss: Any) -> str:
    if isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss)) or loss in (functional.cross_entropy, functional.nll_loss):
        return "none"
    if isinstance(loss, nn.BCEWithLogitsLoss) or loss is functional.binary_cross_entropy_with_logits:
        return "classes"
    if type(loss).__module__.startswith("monai.") and "to_onehot_y" in inspect.signature(type(loss)).parameters:
        return "one" if any(vars(module).get("to_onehot_y") for module in loss.modules()) else "classes"
    return "one"
