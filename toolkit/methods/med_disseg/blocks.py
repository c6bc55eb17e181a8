"""The parts of Med-DisSeg (units, attention, decoders), with the tensor names of the released checkpoints.

Source: Med-DisSeg (arXiv 2605.14579), whose parts other than TeLU, ELAT and CBAM come from ConDSeg (arXiv
2412.08345). Attribute names such as `conv`, `fc` or `c1` are those of the released weights, so that they load.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
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
    return _TeLU.apply(x)


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
        convolution = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
        self.conv = nn.Sequential(convolution, nn.BatchNorm2d(outputs))
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
        narrow, wide = nn.Linear(channels, hidden, bias=False), nn.Linear(hidden, channels, bias=False)
        self.fc = nn.Sequential(narrow, TeLU(), wide)
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


class AttentiveHead(nn.Module):
    """Stage-1 head: maps reduced to 64 channels at full size, each under its own ELAT, fused to logits.

    The largest map comes first; `factors` enlarge the maps so that all arrive at one size.
    """

    def __init__(self, inputs: Sequence[int], outputs: int, factors: Sequence[int], width: int = 64) -> None:
        super().__init__()
        self.factors = tuple(factors)
        for level, channels in enumerate(inputs, start=1):
            self.add_module(f"conv{level}", ConvolutionUnit(channels, width, 1))
            self.add_module(f"att{level}", LesionAttention(width))
        self.conv_fuse = nn.Conv2d(width * len(self.factors), outputs, 1, bias=False)

    def forward(self, *maps: Tensor) -> Tensor:
        attended = []
        for level, (x, factor) in enumerate(zip(maps, self.factors, strict=True), start=1):
            reduced = self.get_submodule(f"conv{level}")(x, enlarge=factor)
            attended.append(self.get_submodule(f"att{level}")(reduced))
        return self.conv_fuse(torch.cat(attended, dim=1))


class DilatedEnhancement(nn.Module):
    """Four branches (1x1 and 3x3 with dilation 6, 12, 18) under channel attention, fused, with a residual."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        for branch, dilation in enumerate((1, 6, 12, 18), start=1):
            unit = ConvolutionUnit(inputs, outputs, 1 if branch == 1 else 3, dilation=dilation)
            self.add_module(f"c{branch}", nn.Sequential(unit, ChannelAttention(outputs)))
        self.c5 = ConvolutionUnit(4 * outputs, outputs, 3, activation=False)
        self.c6 = ConvolutionUnit(inputs, outputs, 1, activation=False)
        self.sa = SpatialAttention()

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.get_submodule(f"c{branch}")(x) for branch in (1, 2, 3, 4)]
        return self.sa((self.c5(torch.cat(branches, dim=1)) + self.c6(x)).relu())


class Decoupling(nn.Module):
    """Three independent stacks on Block 4: foreground, background and uncertain features."""

    def __init__(self, inputs: int, outputs: int, width: int = 512) -> None:
        super().__init__()
        for part in ("fg", "bg", "uc"):
            stack = nn.Sequential(
                ConvolutionUnit(inputs, width), ConvolutionUnit(width, outputs), ConvolutionUnit(outputs, outputs, 1)
            )
            self.add_module(f"cbt_{part}", stack)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        foreground, background, uncertain = (self.get_submodule(f"cbt_{part}")(x) for part in ("fg", "bg", "uc"))
        return foreground, background, uncertain


class AuxiliaryHeads(nn.Module):
    """Logit maps (B, 1, 16 h, 16 w) of the three decoupled features; used in training only."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        widths = (2 * inputs, 2 * inputs, inputs, inputs // 2, inputs // 2)
        for part in ("fg", "bg", "uc"):
            layers: list[nn.Module] = [ConvolutionUnit(inputs, widths[0])]
            for before, after in itertools.pairwise(widths):
                layers += [nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)]
                layers += [ConvolutionUnit(before, after)]
            layers += [nn.Conv2d(widths[-1], 1, 1)]
            self.add_module(f"branch_{part}", nn.Sequential(*layers))

    def forward(self, foreground: Tensor, background: Tensor, uncertain: Tensor) -> tuple[Tensor, ...]:
        parts = {"fg": foreground, "bg": background, "uc": uncertain}
        return tuple(self.get_submodule(f"branch_{part}")(feature) for part, feature in parts.items())


class GuideUpsampler(nn.Sequential):
    """A 3x3 unit, then `doublings` times (enlarge by 2, 3x3 unit): brings a guide to a level's size."""

    def __init__(self, inputs: int, outputs: int, doublings: int) -> None:
        super().__init__()
        self.c1 = ConvolutionUnit(inputs, outputs)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for k in range(doublings):
            layers[f"up_{k}"] = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            layers[f"conv_{k}"] = ConvolutionUnit(outputs, outputs)
        self.preprocess = nn.Sequential(layers)


class ContrastDrivenAggregation(nn.Module):
    """CDFA: 3x3 window attention whose weights come from the foreground guide, then from the background guide.

    Every position mixes the nine values of its zero-padded neighbourhood by a 9x9 matrix a head, and adds the nine
    results back to the nine places they came from. Input (B, c_in, H, W) and two guides (B, C, H, W).
    """

    def __init__(self, inputs: int, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.v = nn.Linear(channels, channels)
        self.attn_fg = nn.Linear(channels, heads * 81)
        self.attn_bg = nn.Linear(channels, heads * 81)
        self.proj = nn.Linear(channels, channels)
        self.input_cbt = nn.Sequential(ConvolutionUnit(inputs, channels), ConvolutionUnit(channels, channels))
        self.output_cbt = nn.Sequential(ConvolutionUnit(channels, channels), ConvolutionUnit(channels, channels))

    def forward(self, x: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
        x = self.input_cbt(x).permute(0, 2, 3, 1)
        x = self._attend(self.v(x), self.attn_fg(foreground.permute(0, 2, 3, 1)))
        x = self._attend(x, self.attn_bg(background.permute(0, 2, 3, 1)))
        return self.output_cbt(x.permute(0, 3, 1, 2))

    def _attend(self, values: Tensor, attention: Tensor) -> Tensor:
        """Values (B, H, W, C) mixed by attention logits (B, H, W, heads * 81)."""
        batch, height, width, channels = values.shape
        depth, places = channels // self.heads, height * width
        weights = (attention.reshape(batch, places, self.heads, 9, 9) * depth**-0.5).softmax(dim=-1)
        windows = functional.unfold(values.permute(0, 3, 1, 2), 3, padding=1)
        windows = windows.reshape(batch, self.heads, depth, 9, places).permute(0, 4, 1, 3, 2)
        mixed = (weights @ windows).permute(0, 2, 4, 3, 1).reshape(batch, channels * 9, places)
        return self.proj(functional.fold(mixed, (height, width), 3, padding=1).permute(0, 2, 3, 1))


class CalibratedDecoder(nn.Module):
    """CBAT decoder block: deep map and skip, three residual units, then two attentions (CA-SA and CBAM)."""

    def __init__(self, deep: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.c1 = ConvolutionUnit(deep + skip, outputs, 1)
        self.c2 = ConvolutionUnit(outputs, outputs, 3, activation=False)
        self.c3 = ConvolutionUnit(outputs, outputs, 3, activation=False)
        self.c4 = ConvolutionUnit(outputs, outputs, 1, activation=False)
        self.ca = ChannelAttention(outputs)
        self.sa = SpatialAttention()
        self.cbam = ConvolutionalAttention(outputs)

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        first = self.c1(torch.cat((upsample(deep, 2), skip), dim=1))
        second = (self.c2(first) + first).relu()
        third = (self.c3(second) + second + first).relu()
        fourth = (self.c4(third) + third + second + first).relu()
        return self.cbam(self.sa(self.ca(fourth)))


class OutputBlock(nn.Module):
    """Fuses the three decoders (full, half and quarter size) by concatenation into logits of twice the size."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.fuse = ConvolutionUnit(3 * channels, channels)
        self.c1 = ConvolutionUnit(channels, 128)
        self.c2 = ConvolutionUnit(128, 64, 1)
        self.c3 = nn.Conv2d(64, outputs, 1)

    def forward(self, small: Tensor, middle: Tensor, large: Tensor) -> Tensor:
        fused = self.fuse(torch.cat((small, upsample(middle, 2), upsample(large, 4)), dim=1))
        return self.c3(self.c2(self.c1(upsample(fused, 2))))
