"""Swin-Unet: a U-shaped network of shifted-window transformer blocks, as SelfReg-UNet trains it.

Sources: Cao et al., "Swin-Unet" (2022); Zhu et al., "SelfReg-UNet" (MICCAI 2024), section on backbones.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from toolkit.errors import CheckpointError, ConfigError
from toolkit.methods.selfreg import swin_blocks as parts
from toolkit.models.load import named_tensors
from toolkit.models.unet import check_channels, check_image
from toolkit.registry import register


class SwinUnet(nn.Module):
    """Swin-Unet tiny: `encoder.1` … `encoder.3`, `bottleneck`, `decoder.3` … `decoder.1`, `final`, `head`.

    Every block (`encoder.2.blocks.0`, …), normalisation and stage gives a channel-first map (B, C, H, W). The skips
    are the inputs of the encoder stages, as in the original. The paper's decoder stages 1, 2, 3 are `decoder.3`,
    `decoder.2`, `decoder.1`; its teacher is `final`, the normalised output of the 4x expansion (`head_input`). Its
    arguments are those of `toolkit.swin_unet`.
    """

    divisor = 32

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 9,
        width: int = 96,
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
        self.embed = parts.PatchEmbedding(3 if in_channels == 1 else in_channels, width, 4)
        self.encoder = nn.ModuleDict({str(k + 1): parts.SwinStage(*stages[k]) for k in range(3)})
        self.merge = nn.ModuleDict({str(k + 1): parts.PatchMerging(stages[k][0]) for k in range(3)})
        self.bottleneck = parts.SwinStage(*stages[3])
        self.norm = parts.ChannelLayerNorm(8 * width)
        self.expand = nn.ModuleDict({str(k): parts.PatchExpanding(stages[k][0], 2) for k in (3, 2, 1)})
        self.decoder = nn.ModuleDict({str(k): parts.DecoderStage(*stages[k - 1]) for k in (3, 2, 1)})
        self.norm_up = parts.ChannelLayerNorm(width)
        self.final = parts.PatchExpanding(width, 4)
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


@register("model", "swin_unet")
def swin_unet(
    in_channels: int = 1,
    out_channels: int = 9,
    width: int = 96,
    *,
    depths: Sequence[int] = (2, 2, 2, 2),
    heads: Sequence[int] = (3, 6, 12, 24),
    window: int = 7,
    drop_path: float = 0.2,
) -> SwinUnet:
    """Build a Swin-Unet, a `SwinUnet` (see there for the stages).

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
    return SwinUnet(in_channels, out_channels, width, depths, heads, window, drop_path)
