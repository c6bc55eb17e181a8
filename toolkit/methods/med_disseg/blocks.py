"""The convolution unit and the attention blocks of Med-DisSeg, with the tensor names of the released checkpoints.

Source: Med-DisSeg (arXiv 2605.14579), whose parts other than TeLU, ELAT and CBAM come from ConDSeg (arXiv
2412.08345). Attribute names such as `conv`, `fc` or `c1` are those of the released weights, so that they load.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class _TeLU(torch.autograd.Function):
    """x * tanh(exp(x)), keeping only x for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * _gate(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        (x,) = ctx.saved_tensors
        gate, small = _gate(x), x.clamp(max=5)  # above 5 the second term is 0
        return gradient * (gate + small * small.exp() * (1 - gate.square()))


def _gate(x: Tensor) -> Tensor:
    # tanh(exp(5)) is 1 to the last bit of float64: clamping changes no value and keeps exp finite in half precision
    return x.clamp(max=5).exp().tanh().to(x.dtype)


def telu(x: Tensor) -> Tensor:
    """X * tanh(exp(x)) (arXiv 2412.20269), with a finite gradient everywhere (1 for large x)."""
    result: Tensor = _TeLU.apply(x)
    return result


class TeLU(nn.Module):
    """`telu` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return telu(x)


def upsample(x: Tensor, factor: int) -> Tensor:
    """Bilinear enlargement with aligned corners, the only one these networks use."""
    return functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=True) if factor > 1 else x


class ConvolutionUnit(nn.Module):
    """Convolution without bias, batch normalisation, TeLU (unless `activation` is False); "CBT" in the paper.

    `enlarge` upsamples between the convolution and the normalisation. For a 1x1 convolution that equals enlarging
    the input first, statistics included, at a fraction of the memory.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, *, dilation: int = 1, activation: bool = True
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False), nn.BatchNorm2d(outputs)
        )
        self.telu = TeLU() if activation else nn.Identity()

    def forward(self, x: Tensor, enlarge: int = 1) -> Tensor:
        convolution, normalisation = self.conv
        return self.telu(normalisation(upsample(convolution(x), enlarge)))


class LesionAttention(nn.Module):
    """ELAT: channel and spatial attention computed side by side from the same input; x * y * s, no residual.

    (B, C, H, W) -> (B, C, H, W). C^2 / 4 + 3 (9 C + 1) + 4 parameters for the reduction 8.
    """

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        hidden = channels // reduction
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), TeLU(), nn.Linear(hidden, channels, bias=False)
        )
        self.spatial_conv1 = nn.Conv2d(channels, 1, 3, padding=1, dilation=1)
        self.spatial_conv2 = nn.Conv2d(channels, 1, 3, padding=2, dilation=2)
        self.spatial_conv3 = nn.Conv2d(channels, 1, 3, padding=3, dilation=3)
        self.spatial_fuse = nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        channel = self.fc(x.mean(dim=(2, 3))).sigmoid()[:, :, None, None]
        maps = [self.spatial_conv1(x), self.spatial_conv2(x), self.spatial_conv3(x)]
        return x * channel * self.spatial_fuse(torch.cat(maps, dim=1)).sigmoid()


class ChannelAttention(nn.Module):
    """Weights each channel by a shared two-layer map of its average and its maximum (no bias, ReLU)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = (x.mean(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True))
        average, maximum = (self.fc2(self.fc1(vector).relu()) for vector in pooled)
        return x * (average + maximum).sigmoid()


class SpatialAttention(nn.Module):
    """Weights each position by a 7x7 convolution of the mean and the maximum over channels (no bias)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv1(mean_and_maximum(x)).sigmoid()


class ConvolutionalAttention(nn.Module):
    """CBAM: channel, then spatial attention, with TeLU and biases; no residual."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = channels // reduction
        # released weights number these layers after a pooling and a flattening layer without weights
        self.channel_mlp = nn.Sequential(
            OrderedDict([("2", nn.Linear(channels, hidden)), ("3", TeLU()), ("4", nn.Linear(hidden, channels))])
        )
        self.spatial_conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.channel_mlp(x.mean(dim=(2, 3))) + self.channel_mlp(x.amax(dim=(2, 3)))
        x = x * weights.sigmoid()[:, :, None, None]
        return x * self.spatial_conv(mean_and_maximum(x)).sigmoid()


def mean_and_maximum(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 2, H, W): mean and maximum over the channels."""
    return torch.cat((x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)), dim=1)
