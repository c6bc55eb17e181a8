"""Swin-Unet: a U-shaped network of shifted-window transformer blocks, as SelfReg-UNet trains it.

Sources: Liu et al., "Swin Transformer" (2021); Cao et al., "Swin-Unet" (2022); Zhu et al., "SelfReg-UNet" (MICCAI 2024).
All on channel-first maps, so that every block can be tapped like a convolution's. Window splitting, the two-layer
perceptron and stochastic depth are MONAI's. The attention is our own: position biases are gathered with
`index_select`, whose backward pass is deterministic, and padded positions are masked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.errors import CheckpointError, ConfigError
from toolkit.models.load import named_tensors
from toolkit.models.unet import check_channels, check_image
from toolkit.registry import network


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
            attention = attention.reshape(-1, len(mask), self.heads, count, count) + mask[:, None]
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


class PatchEmbedding(nn.Sequential):
    """Non-overlapping patches to C channels, normalised."""

    def __init__(self, inputs: int, channels: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, channels, patch, stride=patch)
        self.norm = ChannelLayerNorm(channels)


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


class SwinUnet(nn.Module):
    """Swin-Unet tiny: `encoder.1` … `encoder.3`, `bottleneck`, `decoder.3` … `decoder.1`, `final`, `head`.

    Every block (`encoder.2.blocks.0`, …), normalisation and stage gives a channel-first map (B, C, H, W). The skips
    are the inputs of the encoder stages, as in the original. The paper's decoder stages 1, 2, 3 are `decoder.3`,
    `decoder.2`, `decoder.1`; its teacher is `final`, the normalised output of the 4x expansion (`head_input`).

    Args:
        in_channels: 1 (repeated to 3 channels, as published), 3, or any other number.
        out_channels: number of classes, background included.
        width: channels of the first stage (published: 96).
        depths: blocks at each of the four resolutions, the same in encoder and decoder (published: 2 each).
        heads: attention heads at each resolution.
        window: side of the attention windows (published: 7; 224 x 224 needs no padding).
        drop_path: rate of stochastic depth at the deepest block; rises linearly from 0.

    Raises:
        ConfigError: fewer than two classes, not four depths and heads, or widths that the heads do not divide.

    Example:
        >>> tk.swin_unet(1, 4, width=12, heads=(1, 2, 2, 4), window=2)(torch.zeros(1, 1, 64, 64)).shape
        torch.Size([1, 4, 64, 64])
    """

    divisor = 32

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 9,
        width: int = 96,
        *,
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        drop_path: float = 0.2,
    ) -> None:
        super().__init__()
        check_channels("Swin-Unet", in_channels, out_channels)
        if len(depths) != 4 or len(heads) != 4 or min(depths) < 1 or min(heads) < 1:
            raise ConfigError(f"depths and heads must be four positive numbers each, not {depths} and {heads}.")
        if any(width * 2**k % head for k, head in enumerate(heads)):
            raise ConfigError(f"Widths {[width * 2**k for k in range(4)]} must be divisible by heads {tuple(heads)}.")
        if window < 2 or not 0 <= drop_path < 1:
            raise ConfigError(f"window must be at least 2 and drop_path in [0, 1), not {window} and {drop_path}.")
        self.in_channels, self.out_channels, self.dims = in_channels, out_channels, 2
        rates = [drop_path * k / max(sum(depths) - 1, 1) for k in range(sum(depths))]
        stages = [(width * 2**k, heads[k], window, rates[sum(depths[:k]) : sum(depths[: k + 1])]) for k in range(4)]
        self.embed = PatchEmbedding(3 if in_channels == 1 else in_channels, width, 4)
        self.encoder = nn.ModuleDict({str(k + 1): SwinStage(*stages[k]) for k in range(3)})
        self.merge = nn.ModuleDict({str(k + 1): PatchMerging(stages[k][0]) for k in range(3)})
        self.bottleneck = SwinStage(*stages[3])
        self.norm = ChannelLayerNorm(8 * width)
        self.expand = nn.ModuleDict({str(k): PatchExpanding(stages[k][0], 2) for k in (3, 2, 1)})
        self.decoder = nn.ModuleDict({str(k): DecoderStage(*stages[k - 1]) for k in (3, 2, 1)})
        self.norm_up = ChannelLayerNorm(width)
        self.final = PatchExpanding(width, 4)
        self.head = nn.Conv2d(width, out_channels, 1, bias=False)
        self.apply(_initialise)
        self.toolkit_taps: dict[str, str] = {
            "head_input": "head:input",
            "pre_activation": "final.norm",
            "bottleneck": "bottleneck",
            "decoder_1": "final",
            **{f"decoder_{k + 1}": f"decoder.{k}" for k in (1, 2, 3)},
        }

    @property
    def selfreg_groups(self) -> list[dict[str, list[str]]]:
        """SelfReg's students: the last and the first block of every stage, for `SelfReg(groups=...)`."""
        encoder = ["encoder.1", "encoder.2", "encoder.3", "bottleneck"]
        decoder = ["decoder.3", "decoder.2", "decoder.1"]

        def pick(stage: str, last: bool) -> str:
            blocks = self.get_submodule(f"{stage}.blocks")
            assert isinstance(blocks, nn.ModuleList)
            return f"{stage}.blocks.{len(blocks) - 1 if last else 0}"

        return [
            {"encoder": [pick(s, last) for s in encoder], "decoder": [pick(s, last) for s in decoder]}
            for last in (True, False)
        ]

    @property
    def attention_layers(self) -> tuple[str, ...]:
        """The nine layers of SelfReg's Figure 1b: encoder 1-4, "bottleneck" (the first expansion), decoder 4-1."""
        encoder = [f"{s}.blocks.0.norm2" for s in ("encoder.1", "encoder.2", "encoder.3", "bottleneck")]
        return (*encoder, "expand.3.norm", *(f"decoder.{k}.blocks.0.norm2" for k in (3, 2, 1)), "final")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_channels, H, W) of an image (B, in_channels, H, W)."""
        check_image(x, self.in_channels, 2, self.divisor)
        x = self.embed(x.expand(-1, 3, -1, -1) if self.in_channels == 1 else x)
        skips: list[Tensor] = []
        for level, stage in self.encoder.items():
            skips.append(x)
            x = self.merge[level](stage(x))
        x = self.norm(self.bottleneck(x))
        for level, stage in self.decoder.items():
            x = stage(self.expand[level](x), skips.pop())
        return self.head(self.final(self.norm_up(x)))


def load_swin(model: SwinUnet, weights: str | os.PathLike[str] | Mapping[str, Tensor]) -> list[str]:
    """Start encoder and decoder from the weights of a Swin classifier that the user supplies; nothing is downloaded.

    Encoder stage k takes stage k, decoder stage k the same stage's blocks, as published; of a deeper file the first
    blocks are used. Expansions, skips' projections and the head keep their initial values.

    Args:
        model: the network to fill, in place; width, heads and window must be the file's.
        weights: file or state dictionary with the names of the official release (`layers.0.blocks.0.attn.qkv.weight`).

    Returns:
        The names of the tensors that were filled.

    Raises:
        CheckpointError: unreadable, or a tensor that should fit is missing or has another shape; nothing changes then.

    Example:
        >>> filled = tk.load_swin(tk.swin_unet(1, 4), "swin_tiny_patch4_window7_224.pth")
    """
    tensors, where = named_tensors(weights)
    own = model.state_dict()
    wanted = {name: source for name in own if (source := _official_name(name)) is not None}
    bad = [f"{s} for {n}" for n, s in wanted.items() if s not in tensors or tensors[s].shape != own[n].shape]
    if bad:
        what = f"{len(bad)} of {len(wanted)} tensors are missing or have another shape."
        fix = "Give the weights of a Swin transformer with the network's width, heads, window and 3 image channels."
        raise CheckpointError(what, where=f"{where}: {', '.join(bad[:3])}", fix=fix)
    for name, source in wanted.items():
        own[name].copy_(tensors[source])
    return list(wanted)


def _official_name(name: str) -> str | None:
    part, *rest = name.replace("mlp.linear", "mlp.fc").split(".")
    if part == "embed":
        return ".".join(["patch_embed", *rest])
    if part == "norm":
        return ".".join([part, *rest])
    if part == "merge":
        return ".".join(["layers", str(int(rest[0]) - 1), "downsample", *rest[1:]])
    if part == "bottleneck":
        return ".".join(["layers", "3", *rest])
    if part in ("encoder", "decoder") and rest[1] == "blocks":
        return ".".join(["layers", str(int(rest[0]) - 1), *rest[1:]])
    return None


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


swin_unet = network("swin_unet", SwinUnet)
