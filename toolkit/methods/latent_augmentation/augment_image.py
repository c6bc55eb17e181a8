"""`augment_image`: one image-space augmentation of a batch, for a gallery of what a training sees."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toolkit.errors import ConfigError, choose
from toolkit.features.untouched import untouched
from toolkit.methods.latent_augmentation.image_space import (
    adversarial_bias,
    adversarial_noise,
    random_convolution,
    random_windows,
)
from toolkit.training.regularizer import keyed_generator

RANDOM = {"random_windows": random_windows, "random_convolution": random_convolution}
ADVERSARIAL = ("adversarial_noise", "adversarial_bias")


def augment_image(image: Tensor, method: str, model: nn.Module | None = None, *, seed: int = 0) -> Tensor:
    """The image (B, C, *S) under one of the image-space baselines; the same seed gives the same result.

    Args:
        image: 2D or 3D batch, in [0, 1] (random convolution returns that range, bias fields need no negative values).
        method: "random_windows", "random_convolution", or, searched against a network, "adversarial_noise" or
            "adversarial_bias".
        model: network that gives logits (B, K, *S) for the image; needed by the adversarial methods, which search
            against its prediction in evaluation mode and leave it as it was. The probe of adversarial noise is 1 here
            (1e-6 in training), because the prediction it is compared with is that of the very same mode.
        seed: of the draws.

    Raises:
        ConfigError: no such method, an image without batch and channel axes, or no model where one is needed.

    Example:
        >>> tk.augment_image(torch.rand(2, 1, 32, 32), "adversarial_noise", model, seed=1).shape
        torch.Size([2, 1, 32, 32])
    """
    choose("image-space augmentation", method, (*RANDOM, *ADVERSARIAL), where="augment_image")
    if image.ndim not in (4, 5):
        raise ConfigError(
            f"Expected (B, C, H, W) or (B, C, D, H, W), not {tuple(image.shape)}.",
            where="augment_image",
            fix="Add the batch and channel axes.",
        )
    generator = keyed_generator(seed, "augment_image", method)
    if method in RANDOM:
        return RANDOM[method](image.float(), generator)
    if model is None:
        raise ConfigError(f"{method!r} is searched against a network.", where="augment_image", fix="Pass model=...")
    with untouched(model, mode="eval"), torch.autocast(image.device.type, enabled=False):
        if method == "adversarial_noise":
            return adversarial_noise(model, image.float(), generator, probe=1.0)
        return adversarial_bias(model, image.float(), generator)
