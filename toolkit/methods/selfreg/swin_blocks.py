"""The parts of a Swin-Unet, all on channel-first maps, so that every block can be tapped like a convolution's.

Sources: Liu et al., "Swin Transformer" (2021); Cao et al., "Swin-Unet" (2022). Window splitting, the two-layer
perceptron and stochastic depth are MONAI's. The attention is our own: position biases are gathered with
`index_select`, whose backward pass is deterministic, and padded positions are masked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def channels_first(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W)."""
    return x.permute(0, 3, 1, 2)


class ChannelLayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return channels_first(super().forward(channels_last(x)))


class WindowAttention(nn.Module):
    """Self-attention within (shifted) windows with relative position biases; (B, C, H, W) to the same.

    Maps that do not divide into windows are padded, and padded positions take no part. Windows are moved by `shift` (0
    or window // 2); a map that fits into one window along an axis is not shifted along it.
    """

    def __init__(self, channels: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        places = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        offsets = places[:, None] - places[None] + window - 1
        index = (offsets[..., 0] * (2 * window - 1) + offsets[..., 1]).flatten()
        self.register_buffer("relative_position_index", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        from monai.networks.nets.swin_unetr import window_partition, window_reverse

        height, width = x.shape[2:]
        padding = [-side % self.window for side in (height, width)]
        shifts = [self.shift if side > self.window else 0 for side in (height, width)]
        x = functional.pad(channels_last(x), (0, 0, 0, padding[1], 0, padding[0]))
        size = (self.window, self.window)
        dims = [x.shape[0], x.shape[1], x.shape[2]]
        if any(shifts):
            x = torch.roll(x, [-s for s in shifts], dims=(1, 2))
        mask = self._mask((height, width), padding, shifts, x) if any(shifts) or any(padding) else None
        x = self._attend(window_partition(x.contiguous(), size), mask)
        x = window_reverse(x, size, dims)
        if any(shifts):
            x = torch.roll(x, shifts, dims=(1, 2))
        return channels_first(x[:, :height, :width])

    def _attend(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens (B * windows, window², C), mask (windows, window², window²) additive."""
        batch, count, channels = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, count, 3, self.heads, channels // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        table, index = self.relative_position_bias_table, self.get_buffer("relative_position_index")
        bias = table.index_select(0, index).reshape(count, count, self.heads).permute(2, 0, 1)
        attention = query * (channels // self.heads) ** -0.5 @ key.transpose(-2, -1) + bias
        if mask is not None:
            windows = len(mask)
            attention = attention.reshape(-1, windows, self.heads, count, count) + mask[:, None]
            attention = attention.reshape(batch, self.heads, count, count)
        mixed = attention.softmax(dim=-1).to(value.dtype) @ value
        return self.proj(mixed.transpose(1, 2).reshape(batch, count, channels))

    def _mask(self, sides: Sequence[int], padding: Sequence[int], shifts: Sequence[int], x: Tensor) -> Tensor:
        """-100 between positions that were not neighbours before the shift, or of which one is padding."""
        regions = []
        for side, pad, shift in zip(sides, padding, shifts, strict=True):
            region = torch.zeros(side + pad, device=x.device, dtype=torch.long)
            region[:shift] = 1  # after the roll these positions share a window with the far end
            region[side:] = 2
            regions.append(torch.roll(region, -shift))
        areas = (3 * regions[0][:, None] + regions[1][None]).unfold(0, self.window, self.window)
        areas = areas.unfold(1, self.window, self.window).reshape(-1, self.window**2)
        return torch.zeros((), device=x.device).where(areas[:, :, None] == areas[:, None], -100.0)


class SwinBlock(nn.Module):
    """x + attention(norm1(x)), then x + perceptron(norm2(x)); the residual stream (B, C, H, W) is its output."""

    def __init__(self, channels: int, heads: int, window: int, shift: int, drop_path: float) -> None:
        super().__init__()
        from monai.networks.blocks.mlp import MLPBlock
        from monai.networks.layers.drop_path import DropPath

        self.norm1 = ChannelLayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window, shift)
        self.norm2 = ChannelLayerNorm(channels)
        self.mlp = MLPBlock(channels, 4 * channels, act="GELU", dropout_rate=0.0, dropout_mode="swin")
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(channels_first(self.mlp(channels_last(self.norm2(x)))))


class SwinStage(nn.Module):
    """Blocks at one resolution, every second one with shifted windows; the output is the last block's."""

    def __init__(self, channels: int, heads: int, window: int, drop_paths: Sequence[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(channels, heads, window, window // 2 if k % 2 else 0, rate) for k, rate in enumerate(drop_paths)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class DecoderStage(SwinStage):
    """Concatenation with the skip (skip last), linear projection back to C channels, blocks."""

    def __init__(self, channels: int, heads: int, window: int, drop_paths: Sequence[float]) -> None:
        super().__init__(channels, heads, window, drop_paths)
        self.reduce = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(channels_first(self.reduce(channels_last(torch.cat((x, skip), dim=1)))))


class PatchEmbedding(nn.Module):
    """Non-overlapping patches to C channels, normalised."""

    def __init__(self, inputs: int, channels: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, channels, patch, stride=patch)
        self.norm = ChannelLayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class PatchMerging(nn.Module):
    """(B, C, H, W) -> (B, 2C, H/2, W/2): the 2x2 neighbours side by side, normalised, projected."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelLayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return channels_first(self.reduction(channels_last(self.norm(torch.cat(corners, dim=1)))))


class PatchExpanding(nn.Module):
    """(B, C, H, W) -> (B, C', factor H, factor W): a linear map whose outputs are spread over the finer grid.

    C' = C / 2 for factor 2 and C for factor 4, then layer normalisation.
    """

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        outputs = channels // 2 if factor == 2 else channels
        self.factor = factor
        self.expand = nn.Linear(channels, factor**2 * outputs, bias=False)
        self.norm = ChannelLayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(channels_last(x))
        batch, height, width, channels = x.shape
        outputs = channels // self.factor**2
        x = x.reshape(batch, height, width, self.factor, self.factor, outputs).permute(0, 1, 3, 2, 4, 5)
        return self.norm(channels_first(x.reshape(batch, height * self.factor, width * self.factor, outputs)))
