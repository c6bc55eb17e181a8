"""Med-DisSeg's two networks: the stage-1 encoder with an attentive head, and the stage-2 segmentation network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from toolkit.errors import ConfigError
from toolkit.methods.med_disseg import blocks as parts
from toolkit.methods.med_disseg.backbone import ENCODER, encoder_blocks
from toolkit.models.unet import check_channels, check_image
from toolkit.registry import network


class TwoViews(NamedTuple):
    """What the stage-1 network gives in training: logits (B, K, H, W) of the clean and of the strong view."""

    logits: Tensor
    strong: Tensor


class MedDisSegOutput(NamedTuple):
    """What the stage-2 network gives in training, all as logits before any sigmoid.

    Attributes:
        logits: (B, K, H, W) class logits.
        foreground, background, uncertain: (B, 1, H, W) auxiliary maps.
    """

    logits: Tensor
    foreground: Tensor
    background: Tensor
    uncertain: Tensor


class _Encoder(nn.Module):
    """What both stages share: Blocks 1-4, input checks, and one-channel logits as two classes."""

    divisor = 16

    def __init__(self, in_channels: int, out_channels: int, encoder_width: int) -> None:
        super().__init__()
        check_channels("Med-DisSeg", in_channels, out_channels)
        if encoder_width < 4:
            raise ConfigError(f"encoder_width must be at least 4, not {encoder_width}.")
        self.in_channels, self.out_channels, self.dims = in_channels, out_channels, 2
        # a binary task has one map, as published; grey images are repeated, so that RGB weights serve them
        self.maps = 1 if out_channels == 2 else out_channels
        for name, block in encoder_blocks(3 if in_channels == 1 else in_channels, encoder_width).items():
            self.add_module(name, block)
        self.widths = tuple(encoder_width * factor for factor in (1, 4, 8, 16))

    def blocks(self, x: Tensor) -> list[Tensor]:
        """Outputs of Blocks 1-4 for an image (B, in_channels, H, W)."""
        check_image(x, self.in_channels, 2, self.divisor)
        x = x.expand(-1, 3, -1, -1) if self.in_channels == 1 else x
        outputs = []
        for name in ENCODER:
            x = self.get_submodule(name)(x)
            outputs.append(x)
        return outputs

    def class_logits(self, maps: Tensor) -> Tensor:
        """One map l becomes the logits (0, l), whose softmax is (1 - sigmoid(l), sigmoid(l))."""
        return torch.cat((torch.zeros_like(maps), maps), dim=1) if self.maps == 1 else maps

    def _name_layers(self, **taps: str) -> None:
        encoder = {f"encoder_{k}": f"layer{k - 1}" for k in (1, 2, 3, 4)}
        self.toolkit_taps: dict[str, str] = {**taps, "bottleneck": "layer3", **encoder}


class MedDisSegStageOne(_Encoder):
    """Stage 1: the encoder under an attentive head (ELAT), trained on a clean and a strong view of each image.

    Only the encoder goes on to stage 2 (`transfer_encoder`). Layers: `layer0` … `layer3` (Blocks 1-4; `layer3` is
    the alias `bottleneck`), `head`. 8 673 884 parameters by default.

    Args:
        in_channels: 1 (repeated to 3), 3, or any other number (from scratch only).
        out_channels: classes, background included; 2 gives one map, as published.
        encoder_width: 64 for ResNet-50; less for quick runs.

    Example:
        >>> tk.med_disseg_stage_one(1, 2, encoder_width=4)(torch.zeros(2, 1, 64, 64)).shape
        torch.Size([2, 2, 64, 64])
    """

    def __init__(self, in_channels: int = 3, out_channels: int = 2, encoder_width: int = 64) -> None:
        super().__init__(in_channels, out_channels, encoder_width)
        self.head = parts.AttentiveHead(self.widths, self.maps, (2, 4, 8, 16))
        self._name_layers(head_input="head.conv_fuse:input", pre_activation="head.conv4.conv.1")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_channels, H, W)."""
        return self.class_logits(self.head(*self.blocks(x)))

    def forward_views(self, clean: Tensor, strong: Tensor) -> TwoViews:
        """Logits of two views, one pass each, so that each view has its own batch statistics.

        Inside `toolkit.capture` the second pass is the second call of every layer (`layer3#2`).
        """
        return TwoViews(self.forward(clean), self.forward(strong))


class MedDisSeg(_Encoder):
    """Stage 2: dilated enhancement, decoupled guides, contrast-driven aggregation, three calibrated decoders.

    Layers, in order of execution: `layer0` … `layer3` (Blocks 1-4; `layer3` is the alias `bottleneck`),
    `decouple_layer`, `preprocess_fg4` …, `dconv1` … `dconv4`, `cdfa4` … `cdfa1`, `decoder_small` (aliases
    `decoder_1`; the finest), `decoder_middle`, `decoder_large`, `output_block`. The auxiliary heads `aux_head` run in
    `forward_with_auxiliaries` only. 45 559 635 parameters by default.

    Args:
        in_channels: 1 (repeated to 3), 3, or any other number (from scratch only).
        out_channels: classes, background included; 2 gives one map, as published.
        width: working channels m of decoder and guides, a multiple of 16 (published: 128).
        encoder_width: 64 for ResNet-50; less for quick runs.
        encoder_attention: ELAT on the outputs of Blocks 1-4 (an extension; published networks have none here).

    Example:
        >>> tk.med_disseg(1, 2, width=16, encoder_width=4)(torch.zeros(2, 1, 64, 64)).shape
        torch.Size([2, 2, 64, 64])
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 2,
        width: int = 128,
        encoder_width: int = 64,
        encoder_attention: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, encoder_width)
        if width < 16 or width % 16:
            raise ConfigError(f"width must be a multiple of 16, not {width}.", where="med_disseg(width=...)")
        for level, channels in enumerate(self.widths, start=1):
            self.add_module(f"dconv{level}", parts.DilatedEnhancement(channels, width))
        self.decouple_layer = parts.Decoupling(self.widths[-1], width, 4 * width)
        for level in (4, 3, 2, 1):
            for part in ("fg", "bg"):
                self.add_module(f"preprocess_{part}{level}", parts.GuideUpsampler(width, width, 4 - level))
        self.aux_head = parts.AuxiliaryHeads(width)
        for level in (4, 3, 2, 1):
            self.add_module(f"cdfa{level}", parts.ContrastDrivenAggregation(width if level == 4 else 2 * width, width))
        self.decoder_small, self.decoder_middle, self.decoder_large = (
            parts.CalibratedDecoder(width, width, width) for _ in range(3)
        )
        self.output_block = parts.OutputBlock(width, self.maps)
        if encoder_attention:
            attention = (parts.LesionAttention(channels, min(8, channels)) for channels in self.widths)
            self.encoder_attention = nn.ModuleList(attention)
        decoders = {"decoder_1": "decoder_small", "decoder_2": "decoder_middle", "decoder_3": "decoder_large"}
        head = {"head_input": "output_block.c3:input", "pre_activation": "output_block.c2.conv.1"}
        self._name_layers(**head, **decoders)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_channels, H, W) of an image (B, in_channels, H, W); no auxiliary maps."""
        blocks, foreground, background, _ = self._decoupled(x)
        return self._decode(blocks, foreground, background)

    def forward_with_auxiliaries(self, x: Tensor) -> MedDisSegOutput:
        blocks, foreground, background, uncertain = self._decoupled(x)
        auxiliaries = self.aux_head(foreground, background, uncertain)
        return MedDisSegOutput(self._decode(blocks, foreground, background), *auxiliaries)

    def _decoupled(self, x: Tensor) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        blocks = self.blocks(x)
        if hasattr(self, "encoder_attention"):
            blocks = [attend(block) for attend, block in zip(self.encoder_attention, blocks, strict=True)]
        return blocks, *self.decouple_layer(blocks[-1])

    def _decode(self, blocks: list[Tensor], foreground: Tensor, background: Tensor) -> Tensor:
        aggregated: dict[int, Tensor] = {}
        sides = (("fg", foreground), ("bg", background))
        for level in (4, 3, 2, 1):
            x = self.get_submodule(f"dconv{level}")(blocks[level - 1])
            if level < 4:
                x = torch.cat((x, parts.upsample(aggregated[level + 1], 2)), dim=1)
            guides = [self.get_submodule(f"preprocess_{part}{level}")(feature) for part, feature in sides]
            aggregated[level] = self.get_submodule(f"cdfa{level}")(x, *guides)
        small = self.decoder_small(aggregated[2], aggregated[1])
        middle = self.decoder_middle(aggregated[3], aggregated[2])
        large = self.decoder_large(aggregated[4], aggregated[3])
        return self.class_logits(self.output_block(small, middle, large))


med_disseg_stage_one = network("med_disseg_stage_one", MedDisSegStageOne)
med_disseg = network("med_disseg", MedDisSeg)
