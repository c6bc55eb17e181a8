"""The image-space baselines that Chen et al. (MICCAI 2021) compare with, as regularizers of the fast/slow network.

Settings are those of the authors' follow-up code, which may differ from those of the paper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from toolkit.methods.latent_augmentation import image_space
from toolkit.methods.latent_augmentation.regularizer import HardExamples, frozen_batch_norm
from toolkit.registry import register
from toolkit.training.engine import same_modes
from toolkit.training.protocol import StepContext


@register("regularizer", "random_windows")
@dataclasses.dataclass(frozen=True)
class RandomWindows(HardExamples):
    """Random multi-window masking ("Rand MWM"): L_hard on images with windows, or all but windows, replaced by noise.

    Terms: `hard_segmentation`, `hard_reconstruction`, `hard_shape_prediction`, each with weight `weight` (1).

    Example:
        >>> arm = tk.Arm(lambda: tk.fast_slow_network(1, 4), tk.FastSlowObjective(), tk.RandomWindows())
    """

    name: ClassVar[str] = "random_windows"

    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        """In- or out-painting at random, one draw a batch (our choice: the paper does not say)."""
        return self._hard_terms(context, image_space.random_windows(context.batch["image"], context.generator))[0]


@dataclasses.dataclass(frozen=True)
class _Adversarial(HardExamples):
    """The hard pass of an image that was searched against the network, and the distance to the standard prediction."""

    consistency: float = 1.0

    def weights(self, step: int) -> dict[str, float]:
        """`weight` for the hard terms, `consistency` times it for the distance."""
        return {**super().weights(step), "consistency": self.consistency * self.weight}

    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        """Search the image, run the hard pass on it, and compare its prediction with the standard one."""
        network: Any = context.model
        image, shape_code = context.batch["image"], context.features["shape_code"].detach()
        with torch.no_grad(), frozen_batch_norm(network):  # the same logits, of the same batch statistics
            reference = network.decode_segmentation(shape_code).detach()

        def predict(x: Tensor) -> Tensor:
            return network.decode_segmentation(network.decouple(network.encode(x)))

        # In full precision: the gradient of a mean over pixels underflows in half precision.
        with same_modes(network), torch.autocast(image.device.type, enabled=False):
            network.eval()
            hard = self._search(predict, image.float(), context.generator, reference=reference.float())
        terms, logits = self._hard_terms(context, hard)
        contours = getattr(self, "contours", 0.0)  # of bias fields
        return {**terms, "consistency": image_space.prediction_distance(logits, reference, contours)}

    def _search(self, *search: Any, **reference: Any) -> Tensor:
        """The image found by a search of `image_space` with this class's settings."""
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

    def _search(self, *search: Any, **reference: Any) -> Tensor:
        return image_space.adversarial_noise(*search, **reference, size=self.size, probe=self.probe)


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

    def _search(self, *search: Any, **reference: Any) -> Tensor:
        return image_space.adversarial_bias(*search, **reference, size=self.size, contour=self.contours)


@register("regularizer", "random_convolution")
@dataclasses.dataclass(frozen=True)
class RandomConvolution(HardExamples):
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

    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        network: Any = context.model
        image, generator = context.batch["image"], context.generator
        codes, fast, refined, restored = [], [], [], []
        for _ in range(self.views):
            view = image
            if self.noise:
                noisy = image + self.noise * torch.randn(image.shape, generator=generator).to(image, non_blocking=True)
                view = noisy.clamp(image.min(), image.max())
            view = image_space.random_convolution(view, generator)
            with frozen_batch_norm(network):
                codes.append(network.encode(view))
                fast.append(network.decode_segmentation(network.decouple(codes[-1])))
                refined.append(network.refine(fast[-1]))
            restored.append(0.5 * functional.mse_loss(network.decode_image(codes[-1]).float(), image.float()))
        self._codes[:] = codes
        agreements = {"agreement": _agreement(fast), "refined_agreement": _agreement(refined)}
        return {"view_reconstruction": torch.stack(restored).mean(), **agreements}


def _agreement(logits: Sequence[Tensor]) -> Tensor:
    """Mean over views and pixels of KL(q_v || mean of all q)."""
    maps = [value.float().softmax(1) for value in logits]
    middle = torch.stack(maps).mean(0).clamp(1e-8, 1).log()
    return torch.stack([(q * (q.clamp(1e-8, 1).log() - middle)).sum(1).mean() for q in maps]).mean()
