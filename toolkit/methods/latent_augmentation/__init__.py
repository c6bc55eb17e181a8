"""Latent-space data augmentation: fast and slow networks, targeted masks."""
