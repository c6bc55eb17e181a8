"""The image-space baselines that Chen et al. (MICCAI 2021) compare with, as regularizers of the fast/slow network.

Settings are those of the authors' follow-up code, which may differ from those of the paper.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from toolkit.methods.latent_augmentation import image_space
from toolkit.methods.latent_augmentation.regularizer import IMAGE_TERMS, HardExamples, hard_pass
from toolkit.models.batch_norm import frozen_batch_norm
from toolkit.registry import register
from toolkit.training.engine import same_modes
from toolkit.training.regularizer import StepContext


@dataclasses.dataclass(frozen=True)
class _HardImage(HardExamples):
    """L_hard on an image made in image space, without the term of corrupted shapes; shared by three baselines."""

    def weights(self, step: int) -> dict[str, float]:
        """One weight for all terms."""
        return dict.fromkeys(IMAGE_TERMS, self.weight)

    def hard_image(self, context: StepContext) -> Tensor:
        """The augmented image, a constant."""
        raise NotImplementedError

    def _terms(self, context: StepContext, image_hat: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        terms, codes, logits = hard_pass(context, image_hat)
        self._last.clear()
        self._keep(context, codes)
        return terms, logits

    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        """Make the hard image and return the terms of the pass on it."""
        return self._terms(context, self.hard_image(context))[0]


@register("regularizer", "random_windows")
@dataclasses.dataclass(frozen=True)
class RandomWindows(_HardImage):
    """Random multi-window masking ("Rand MWM"): L_hard on images with windows, or all but windows, replaced by noise.

    Terms: `hard_segmentation`, `hard_reconstruction`, `hard_shape_prediction`, each with weight `weight` (1).

    Example:
        >>> arm = tk.Arm(lambda: tk.fast_slow_network(1, 4), tk.FastSlowObjective(), tk.RandomWindows())
    """

    name: ClassVar[str] = "random_windows"

    def hard_image(self, context: StepContext) -> Tensor:
        """The masked image; in- or out-painting at random, one draw a batch (our choice: the paper does not say)."""
        return image_space.random_windows(context.batch["image"], context.generator)


@dataclasses.dataclass(frozen=True)
class _Adversarial(_HardImage):
    """The hard pass of an image that was searched against the network, and the distance to the standard prediction."""

    consistency: float = 1.0

    def weights(self, step: int) -> dict[str, float]:
        """`weight` for the hard terms, `consistency` times it for the distance."""
        return {**super().weights(step), "consistency": self.consistency * self.weight}

    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        """Search the image, run the hard pass on it, and compare its prediction with the standard one."""
        reference = self._reference(context)
        terms, logits = self._terms(context, self._searched(context, reference))
        contours = getattr(self, "contours", 0.0)  # of bias fields
        return {**terms, "consistency": image_space.prediction_distance(logits, reference, contours)}

    def hard_image(self, context: StepContext) -> Tensor:
        """The searched image, a constant."""
        return self._searched(context, self._reference(context))

    def _reference(self, context: StepContext) -> Tensor:
        """The standard pass's logits, decoded again from its shape code with the same batch statistics."""
        network: Any = context.model
        with torch.no_grad(), frozen_batch_norm(network):
            logits: Tensor = network.decode_segmentation(context.features["shape_code"].detach())
        return logits.detach()

    def _searched(self, context: StepContext, reference: Tensor) -> Tensor:
        network: Any = context.model
        image = context.batch["image"]
        # In full precision: the gradient of a mean over pixels underflows in half precision.
        with same_modes(network), torch.autocast(image.device.type, enabled=False):
            network.eval()
            return self._search(
                lambda x: network.decode_segmentation(network.decouple(network.encode(x))),
                image.float(),
                context.generator,
                reference=reference.float(),
            )

    @property
    def _search(self) -> Callable[..., Tensor]:
        raise NotImplementedError


@register("regularizer", "adversarial_noise")
@dataclasses.dataclass(frozen=True)
class AdversarialNoise(_Adversarial):
    """Adversarial noise ("Adv Noise"): the noise of a given length that changes the prediction most, and L_hard on it.

    Terms: `hard_segmentation`, `hard_reconstruction`, `hard_shape_prediction`, and `consistency`, the divergence of the
    noisy image's prediction from the standard pass's, which is a constant here. The search runs in evaluation mode
    against the training-mode prediction: with the published probe, below rounding, that difference steers it.

    Args:
        weight: of all terms (1).
        consistency: further factor of the divergence (1).
        size: length of the added noise over the whole image (0.1).
        probe: length of the probing step (1e-6).

    Example:
        >>> arm = tk.Arm(lambda: tk.fast_slow_network(1, 4), tk.FastSlowObjective(), tk.AdversarialNoise(size=0.05))
    """

    name: ClassVar[str] = "adversarial_noise"

    size: float = 0.1
    probe: float = 1e-6

    def __post_init__(self) -> None:
        image_space.checked_size(self.size, self.name)
        image_space.checked_size(self.probe, self.name)

    @property
    def _search(self) -> Callable[..., Tensor]:
        return functools.partial(image_space.adversarial_noise, size=self.size, probe=self.probe)


@register("regularizer", "adversarial_bias")
@dataclasses.dataclass(frozen=True)
class AdversarialBias(_Adversarial):
    """Adversarial bias fields ("Adv Bias"): a smooth field that changes the prediction most, and L_hard under it.

    Terms as of `AdversarialNoise`; the distance is the divergence plus `contours` times that of the contours.

    Args:
        weight: of all terms (1).
        consistency: further factor of the distance (1).
        size: the field stays in [1 - size, 1 + size] (0.4).
        contours: weight of the contours within the distance, in the search and in the term (0.5).

    Example:
        >>> arm = tk.Arm(lambda: tk.fast_slow_network(1, 4), tk.FastSlowObjective(), tk.AdversarialBias(size=0.3))
    """

    name: ClassVar[str] = "adversarial_bias"

    size: float = 0.4
    contours: float = 0.5

    def __post_init__(self) -> None:
        image_space.checked_size(self.size, self.name, 1.0)

    @property
    def _search(self) -> Callable[..., Tensor]:
        return functools.partial(image_space.adversarial_bias, size=self.size, contour=self.contours)


@register("regularizer", "random_convolution")
@dataclasses.dataclass(frozen=True)
class RandomConvolution(_HardImage):
    """Random convolution ("Rand Conv"): predictions of several filtered copies of an image are drawn together.

    Terms, means over the views: `view_reconstruction` (the clean image from a view's code), `agreement` and
    `refined_agreement`: KL(q_v || q_mean) of the fast and of the refined predictions, averaged over pixels, q_mean the
    mean of the views' softmax maps. Batch norm is frozen as in the hard pass.

    Args:
        weight: of all terms (1).
        divergence: further factor of the two divergences (10).
        views: filtered copies a step (3).
        noise: standard deviation of the input noise, drawn for each view, clipped to the batch's range.

    Example:
        >>> arm = tk.Arm(lambda: tk.fast_slow_network(1, 4), tk.FastSlowObjective(), tk.RandomConvolution(views=2))
    """

    name: ClassVar[str] = "random_convolution"

    divergence: float = 10.0
    views: int = 3
    noise: float = 0.05

    def weights(self, step: int) -> dict[str, float]:
        """`weight` for the reconstruction, `divergence` times it for the agreements."""
        agreement = self.divergence * self.weight
        return {"view_reconstruction": self.weight, "agreement": agreement, "refined_agreement": agreement}

    def hard_image(self, context: StepContext) -> Tensor:
        image, generator = context.batch["image"], context.generator
        if self.noise:
            noisy = image + self.noise * torch.randn(image.shape, generator=generator).to(image)
            image = noisy.clamp(image.min(), image.max())
        return image_space.random_convolution(image, generator)

    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        network: Any = context.model
        clean = context.batch["image"].float()
        codes, fast, refined, restored = [], [], [], []
        for _ in range(self.views):
            view = self.hard_image(context)
            with frozen_batch_norm(network):
                codes.append(network.encode(view))
                fast.append(network.decode_segmentation(network.decouple(codes[-1])))
                refined.append(network.refine(fast[-1]))
            restored.append(0.5 * functional.mse_loss(network.decode_image(codes[-1]).float(), clean))
        self._last.clear()
        self._keep(context, codes)
        return {
            "view_reconstruction": torch.stack(restored).mean(),
            "agreement": _agreement(fast),
            "refined_agreement": _agreement(refined),
        }


def _agreement(logits: Sequence[Tensor]) -> Tensor:
    """Mean over views and pixels of KL(q_v || mean of all q)."""
    maps = [value.float().softmax(1) for value in logits]
    middle = torch.stack(maps).mean(0).clamp(1e-8, 1).log()
    return torch.stack([(q * (q.clamp(1e-8, 1).log() - middle)).sum(1).mean() for q in maps]).mean()
