"""A plain U-Net in 2D and 3D whose blocks carry the names that the papers' figures use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import ConfigError, choose
from toolkit.registry import network


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


def layer(kind: str, dims: int) -> Any:
    """A layer's class for two or three dimensions, such as `nn.Conv2d` for ("Conv", 2)."""
    return getattr(nn, f"{kind}{dims}d")


def _normalisation(kind: str, channels: int, dims: int) -> nn.Module:
    choose("normalisation", kind, ("instance", "batch", "group"))
    if kind == "group":
        return nn.GroupNorm(max(groups for groups in range(1, 9) if channels % groups == 0), channels)
    return layer("InstanceNorm" if kind == "instance" else "BatchNorm", dims)(channels, affine=True)


class ConvolutionBlock(nn.Module):
    """Twice (3^d convolution, normalisation, LeakyReLU; slope 0: ReLU); the first convolution may stride by 2.

    Activations are out of place, so a hook on `norm2` sees the pre-activation itself.
    """

    def __init__(
        self, inputs: int, outputs: int, *, dims: int, norm: str, stride: int = 1, middle: int = 0, slope: float = 0.01
    ) -> None:
        super().__init__()
        convolution, middle = layer("Conv", dims), middle or outputs
        self.conv1 = convolution(inputs, middle, 3, stride=stride, padding=1, bias=False)
        self.norm1 = _normalisation(norm, middle, dims)
        self.act1 = nn.LeakyReLU(slope) if slope else nn.ReLU()
        self.conv2 = convolution(middle, outputs, 3, padding=1, bias=False)
        self.norm2 = _normalisation(norm, outputs, dims)
        self.act2 = nn.LeakyReLU(slope) if slope else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm1(self.conv1(x)))
        return self.act2(self.norm2(self.conv2(x)))


class UShaped(nn.Module):
    """Encoder blocks whose outputs are the skips of the decoder's, a bottleneck between them, and a head."""

    encoder: nn.ModuleDict
    bottleneck: nn.Module
    decoder: nn.ModuleDict
    head: nn.Module

    def _name_layers(self) -> None:
        self.toolkit_taps: dict[str, str] = {
            "head_input": "head:input",
            "pre_activation": "decoder.1.conv.norm2",
            "bottleneck": "bottleneck",
            **{f"decoder_{k}": f"decoder.{k}" for k in self.encoder},
        }

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_channels, *S) of an image (B, in_channels, *S)."""
        skips: list[Tensor] = []
        for block in self.encoder.values():
            x = block(x)
            skips.append(x)
        x = self.bottleneck(x)
        for block in self.decoder.values():
            x = block(x, skips.pop())
        return self.head(x)


class DecoderBlock(nn.Module):
    """Transposed convolution x2, concatenation with the skip (skip first), convolution block."""

    def __init__(self, inputs: int, skip: int, outputs: int, *, dims: int, norm: str) -> None:
        super().__init__()
        self.up = layer("ConvTranspose", dims)(inputs, skip, 2, stride=2)
        self.conv = ConvolutionBlock(2 * skip, outputs, dims=dims, norm=norm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv(torch.cat((skip, self.up(x)), dim=1))


class UNet(UShaped):
    """U-Net with strided down-sampling and transposed up-sampling.

    Blocks, in order of execution: `encoder.1` … `encoder.n`, `bottleneck`, `decoder.n` … `decoder.1`, `head`
    (n = number of channels - 1; `decoder.1` is nearest the output). The input's sides must be divisible by 2^n.

    Args:
        in_channels: channels of the image.
        out_channels: number of classes, background included.
        channels: widths of encoder.1 … encoder.n and the bottleneck.
        dims: 2 or 3.
        norm: "instance", "batch" or "group".

    Raises:
        ConfigError: another dims or norm, fewer than two widths, fewer than two classes.

    Example:
        >>> tk.unet(1, 4, channels=(8, 16), dims=3)(torch.zeros(1, 1, 16, 16, 16)).shape
        torch.Size([1, 4, 16, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (16, 32, 64, 128),
        dims: int = 2,
        norm: str = "instance",
    ) -> None:
        super().__init__()
        if len(channels) < 2 or min(channels) < 1:
            raise ConfigError(f"channels must be at least two positive widths, not {tuple(channels)}.")
        check_channels("A U-Net", in_channels, out_channels)
        self.dims, self.in_channels, self.out_channels = dims, in_channels, out_channels
        self.channels = tuple(channels)
        *widths, deepest = self.channels
        levels = range(1, len(widths) + 1)
        block: dict[str, Any] = {"dims": dims, "norm": norm}
        inputs = (in_channels, *widths)
        self.encoder = nn.ModuleDict(
            {str(k): ConvolutionBlock(inputs[k - 1], widths[k - 1], stride=min(k, 2), **block) for k in levels}
        )
        self.bottleneck = ConvolutionBlock(widths[-1], deepest, stride=2, **block)
        above = (*widths[1:], deepest)
        self.decoder = nn.ModuleDict(
            {str(k): DecoderBlock(above[k - 1], widths[k - 1], widths[k - 1], **block) for k in reversed(levels)}
        )
        self.head = layer("Conv", dims)(widths[0], out_channels, 1)
        self._name_layers()

    @property
    def divisor(self) -> int:
        """Every side of the input must be a multiple of this."""
        return 2 ** len(self.encoder)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_channels, *S) of an image (B, in_channels, *S)."""
        check_image(x, self.in_channels, self.dims, self.divisor)
        return super().forward(x)


unet = network("unet", UNet)
