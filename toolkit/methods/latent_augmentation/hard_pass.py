"""The hard-example pass of the fast/slow network: the loss on a corrupted image, and the base of all that make one."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional

from toolkit.models.batch_norm import frozen_batch_norm
from toolkit.training.regularizer import Regularizer, StepContext

IMAGE_TERMS = ("hard_segmentation", "hard_reconstruction", "hard_shape_prediction")


@dataclasses.dataclass(frozen=True)
class HardExamples(Regularizer):
    """Base of the regularizers that make hard examples for the fast/slow network and pass them through it."""

    deferred: ClassVar[bool] = True

    weight: float = 1.0
    _last: dict[str, Any] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def taps(self) -> tuple[str, ...]:
        """The two codes of the standard pass."""
        return ("image_code", "shape_code")

    @property
    def requires(self) -> tuple[str, ...]:
        """The passes it makes."""
        return ("encode", "decouple", "decode_image", "decode_segmentation", "refine")

    def gradient_probes(self, context: StepContext) -> Sequence[Tensor]:
        """The standard pass's codes for the objective, the hard pass's codes for its own loss."""
        standard = [code for code in context.features.values() if code.requires_grad]
        return standard or self._last.pop("codes", [])

    def _keep(self, context: StepContext, codes: Sequence[Tensor]) -> None:
        if context.logging:
            self._last["codes"] = codes


def hard_pass(
    context: StepContext,
    image_hat: Tensor,
    logits_hat: Tensor | None = None,
    *,
    freeze: bool = True,
    separate_training: bool = False,
    factor: float = 0.5,
) -> tuple[dict[str, Tensor], list[Tensor], Tensor]:
    """Terms on a corrupted image (and on corrupted logits, which the slow network repairs), its two codes and logits.

    `freeze`: batch norm is neither updated nor trained here, except in the image decoder; `separate_training`: the
    slow network's loss does not reach the fast one; `factor`: of the squared reconstruction error. Source: Chen et al.
    2021, L_hard, as run by the later state of the authors' release.
    """
    network: Any = context.model
    image, label = context.batch["image"].float(), context.batch["label"][:, 0].long()
    with frozen_batch_norm(network) if freeze else contextlib.nullcontext():
        image_code = network.encode(image_hat)
        shape_code = network.decouple(image_code)
        logits = network.decode_segmentation(shape_code)
        repaired = None if logits_hat is None else network.refine(logits_hat)
        refined = network.refine(logits.detach() if separate_training else logits)
    # The image decoder alone is not frozen here: its statistics and affine parameters learn from hard images.
    reconstruction = network.decode_image(image_code)
    terms = {
        "hard_segmentation": functional.cross_entropy(logits.float(), label),
        "hard_reconstruction": factor * functional.mse_loss(reconstruction.float(), image),
        "hard_shape_prediction": functional.cross_entropy(refined.float(), label),
    }
    if repaired is not None:
        terms["hard_shape_corrupted"] = functional.cross_entropy(repaired.float(), label)
    return terms, [image_code, shape_code], logits
