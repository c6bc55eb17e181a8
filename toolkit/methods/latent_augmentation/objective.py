"""The standard loss of the fast/slow network: reconstruct the image, segment it, correct shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from toolkit.errors import ConfigError
from toolkit.methods.latent_augmentation.network import hard_shape
from toolkit.registry import register
from toolkit.training.protocol import Objective
from toolkit.training.segmentation import fitted_label, may_look


@dataclasses.dataclass
class FastSlowOutputs:
    """What one standard pass made: logits (B, K, *S) three times, and the reconstructed image (B, C, *S)."""

    segmentation: Tensor
    refined: Tensor
    restored_label: Tensor | None
    reconstruction: Tensor


@register("objective", "fast_slow")
@dataclasses.dataclass(frozen=True)
class FastSlowObjective(Objective):
    """L_std = reconstruction + segmentation + shape of the prediction + shape of the label, all weights 1.

    The pass runs on the noisy image, clip(x + noise * e, 0, 1); all targets are clean. Terms: `reconstruction`
    (factor * mean squared error), `segmentation`, `shape_prediction` and `shape_label` (cross-entropies of the fast
    logits, of their refinement, and of the slow network on the true label). Gradients of `shape_prediction` reach the
    fast network too: that is the cooperation. Add `LatentAugmentation()` for cooperative training.

    Args:
        noise: standard deviation of the input noise.
        clip: clip the noisy image to [0, 1]; then images must be in that range.
        reconstruction_factor: 0.5 in the authors' code, 1 in the paper's text.
        label_reconstruction: include `shape_label` (the authors' first release left it out).
        separate_training: cut the gradient between slow and fast network.

    Source: Chen et al. 2021, equation of L_std, as run by the later state of the authors' release. Their first
    release corresponds to `clip=False, label_reconstruction=False`.

    Example:
        >>> network, parts = tk.fast_slow_network(1, 4, width=4), (tk.FastSlowObjective(), tk.LatentAugmentation())
        >>> run = tk.train(network, unit_task, *parts, config=config, out="runs/cooperative")
    """

    name: ClassVar[str] = "fast_slow"
    requires: ClassVar[tuple[str, ...]] = (
        *("encode", "decouple", "decode_image", "decode_segmentation", "refine", "correct_shape"),
    )

    noise: float = 0.05
    clip: bool = True
    reconstruction_factor: float = 0.5
    label_reconstruction: bool = True
    separate_training: bool = False

    def draw_noise(self, image: Tensor, generator: torch.Generator) -> Tensor:
        return self.noise * torch.randn(image.shape, generator=generator).to(image, non_blocking=True)

    def forward_pass(self, model: Any, batch: Mapping[str, Any], generator: torch.Generator) -> FastSlowOutputs:
        """The standard pass, in this order: encode, decouple, segment, reconstruct, correct label, refine."""
        clean = batch["image"]
        image = clean + self.draw_noise(clean, generator) if self.noise else clean
        if self.clip:
            low, high = (float(v) for v in clean.detach().aminmax()) if may_look(clean) else (0.0, 1.0)
            if low < -0.5 or high > 1.5:
                what = f"The fast/slow objective clips to [0, 1], but the images range from {low:.3g} to {high:.3g}."
                fix = "Load the task with a [0, 1] normalisation, or use clip=False and image_activation='none'."
                raise ConfigError(what, where="batch['image']", fix=fix)
            image = image.clamp(0, 1)
        image_code = model.encode(image)
        segmentation = model.decode_segmentation(model.decouple(image_code))
        reconstruction = model.decode_image(image_code)
        restored = None
        if self.label_reconstruction:
            restored = model.correct_shape(hard_shape(batch["label"], segmentation.shape[1], clean.dtype))
        refined = model.refine(segmentation.detach() if self.separate_training else segmentation)
        return FastSlowOutputs(segmentation, refined, restored, reconstruction)

    def __call__(self, outputs: FastSlowOutputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        target = fitted_label(batch["label"], outputs.segmentation)
        error = functional.mse_loss(outputs.reconstruction.float(), batch["image"].float())
        terms = {"segmentation": functional.cross_entropy(outputs.segmentation.float(), target)}
        terms["reconstruction"] = self.reconstruction_factor * error
        if outputs.restored_label is not None:
            terms["shape_label"] = functional.cross_entropy(outputs.restored_label.float(), target)
        terms["shape_prediction"] = functional.cross_entropy(outputs.refined.float(), target)
        return terms
