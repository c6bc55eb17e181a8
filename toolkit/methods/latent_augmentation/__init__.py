"""Latent-space augmentation: hard examples decoded from masked codes, and cooperative training on them."""

from toolkit.features.masks import dropout_mask, targeted_mask
from toolkit.methods.latent_augmentation.objective import FastSlowObjective
from toolkit.methods.latent_augmentation.regularizer import LatentAugmentation

__all__ = ["FastSlowObjective", "LatentAugmentation", "dropout_mask", "targeted_mask"]
