"""What every network refuses in the same words: numbers of channels that are none, images that do not fit."""

from __future__ import annotations

from torch import Tensor

from toolkit.errors import ConfigError


def check_channels(network: str, in_channels: int, out_channels: int) -> None:
    """Refuse to build a network without input or with fewer than two classes."""
    if in_channels < 1 or out_channels < 2:
        what = f"{network} needs in_channels >= 1 and out_channels >= 2, not {in_channels} and {out_channels}."
        raise ConfigError(what, fix="Count the background as a class: a binary task has out_channels=2.")


def check_image(x: Tensor, in_channels: int, dims: int, divisor: int = 1) -> None:
    """Refuse an image that a network cannot pass on."""
    if x.ndim != dims + 2 or x.shape[1] != in_channels:
        what = f"This network takes (B, {in_channels}, {'D, ' * (dims - 2)}H, W), not {tuple(x.shape)}."
        fix = "Add the batch and channel axes, or build the network with other dims or in_channels."
        raise ConfigError(what, fix=fix)
    if any(side % divisor for side in x.shape[2:]):
        fix = "Pad the image, or use toolkit.predict, which pads and crops back."
        raise ConfigError(f"Every side must be a multiple of {divisor}, not {tuple(x.shape[2:])}.", fix=fix)
