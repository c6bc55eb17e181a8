"""Any callable loss as an objective, and what stands for the objective where nothing was said."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from toolkit.errors import ConfigError, choose
from toolkit.training.regularizer import Loss, Objective
from toolkit.training.segmentation import SegmentationObjective, fitted_label, fitted_regions


class LossObjective(Objective):
    """Any callable `loss(logits, labels)` as an objective: MONAI's losses, torch's, a function of one's own.

    The labels come in the shape that the loss takes: (B, *S) int64 for torch's `CrossEntropyLoss`, `NLLLoss` and
    `nn.functional.cross_entropy`; (B, 1, *S) int64 for everything else, which is what MONAI's losses take with
    `to_onehot_y=True`. A MONAI loss without it, and torch's `BCEWithLogitsLoss`, get one-hot labels (B, K, *S) of the
    logits' type. `channels` overrides the choice. On a task with regions one-hot labels are the masks of the regions,
    and losses that take other labels are refused.

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
            ConfigError: labels that do not fit the logits, a loss that gives no scalar, or one of exclusive classes on a
                task with regions.
        """
        logits = self.logits(outputs)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        value = self.loss(logits, self._regions(logits, batch) if "regions" in batch else self._label(logits, batch))
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(f"The loss {self.loss!r} gives {shape}, not one number.", fix='Give it reduction="mean".')
        return {"loss": value.reshape(())}

    def _label(self, logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
        label = fitted_label(batch["label"], logits, ignore_label=getattr(self.loss, "ignore_index", None))
        if self.channels == "one":
            return label.unsqueeze(1)
        if self.channels == "classes":
            return nn.functional.one_hot(label, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
        return label

    def _regions(self, logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
        parts = self.loss.modules() if isinstance(self.loss, nn.Module) else ()
        if self.channels != "classes" or any(vars(part).get("softmax") for part in parts):
            raise ConfigError(
                f"The loss {self.loss!r} takes exclusive classes, and this task has regions, which overlap.",
                where="objective=",
                fix="Use a loss with a sigmoid, such as DiceLoss(sigmoid=True) or BCEWithLogitsLoss(), or state that yours takes "
                'masks: LossObjective(loss, channels="classes").',
            )
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
    if isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss)) or loss in (
        nn.functional.cross_entropy,
        nn.functional.nll_loss,
    ):
        return "none"
    bce = isinstance(loss, nn.BCEWithLogitsLoss) or loss is nn.functional.binary_cross_entropy_with_logits
    if bce or _of_monai_without_one_hot(loss):
        return "classes"
    return "one"


def _of_monai_without_one_hot(loss: Any) -> bool:
    """Whether it is one of MONAI's that could make one-hot labels and was not asked to."""
    if not type(loss).__module__.startswith("monai."):
        return False
    asked = [vars(module)["to_onehot_y"] for module in loss.modules() if "to_onehot_y" in vars(module)]
    return "to_onehot_y" in inspect.signature(type(loss)).parameters and not any(asked)
