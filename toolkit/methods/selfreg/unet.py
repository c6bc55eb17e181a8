"""The U-Net that SelfReg-UNet trains: five levels, bilinear up-sampling, batch normalisation.

Source: Zhu et al., "SelfReg-UNet" (MICCAI 2024), as in the authors' code. The losses of that paper change nothing
here; with the usual block names `toolkit.SelfReg()` finds its layers by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.errors import ConfigError
from toolkit.models.unet import ConvolutionBlock, UShaped, check_channels, check_image, layer
from toolkit.registry import network


class PooledBlock(nn.Sequential):
    """Max-pooling by 2, then a double convolution."""

    def __init__(self, inputs: int, outputs: int, dims: int) -> None:
        super().__init__()
        self.pool = layer("MaxPool", dims)(2)
        self.conv = ConvolutionBlock(inputs, outputs, dims=dims, norm="batch", slope=0)


class UpBlock(nn.Module):
    """Linear enlargement by 2 (aligned corners), zero-padding to the skip, concatenation (skip first), convolutions."""

    def __init__(self, inputs: int, skip: int, outputs: int, dims: int) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear" if dims == 2 else "trilinear", align_corners=True)
        middle = (inputs + skip) // 2
        self.conv = ConvolutionBlock(inputs + skip, outputs, dims=dims, norm="batch", middle=middle, slope=0)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        if x.shape[2:] != skip.shape[2:]:
            missing = [wanted - have for wanted, have in zip(skip.shape[2:], x.shape[2:], strict=True)]
            x = functional.pad(x, [p for m in reversed(missing) for p in (m // 2, m - m // 2)])
        return self.conv(torch.cat((skip, x), dim=1))


class SelfRegUNet(UShaped):
    """The paper's U-Net: `encoder.1` … `encoder.4`, `bottleneck`, `decoder.4` … `decoder.1`, `head`.

    `decoder.1` is nearest the output; the paper counts decoder blocks from the bottleneck, so its decoder blocks
    1, 2, 3 are `decoder.4`, `decoder.3`, `decoder.2`, and its teacher is `decoder.1`. 17.26 M parameters with 1 channel
    and 9 classes. Sides from 16 on are accepted; `divisor` is the size at which nothing is padded inside.

    Args:
        in_channels: channels of the image.
        out_channels: number of classes, background included.
        width: channels of the first block (published: 64); the others have 2, 4, 8 and 8 times as many.
        dims: 2 (published) or 3.

    Raises:
        ConfigError: another dims, or fewer than two classes.

    Example:
        >>> tk.self_reg_unet(1, 4, width=4)(torch.zeros(1, 1, 32, 32)).shape
        torch.Size([1, 4, 32, 32])
    """

    divisor = 16

    def __init__(self, in_channels: int = 1, out_channels: int = 9, width: int = 64, dims: int = 2) -> None:
        super().__init__()
        check_channels("SelfReg's U-Net", in_channels, out_channels)
        self.dims, self.in_channels, self.out_channels = dims, in_channels, out_channels
        widths = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        self.encoder = nn.ModuleDict({"1": ConvolutionBlock(in_channels, width, dims=dims, norm="batch", slope=0)})
        for level in (2, 3, 4):
            self.encoder[str(level)] = PooledBlock(widths[level - 2], widths[level - 1], dims)
        self.bottleneck = PooledBlock(widths[3], widths[4], dims)
        outputs = {4: 4 * width, 3: 2 * width, 2: width, 1: width}
        self.decoder = nn.ModuleDict()
        below = widths[4]
        for level, channels in outputs.items():
            self.decoder[str(level)] = UpBlock(below, widths[level - 1], channels, dims)
            below = channels
        self.head = layer("Conv", dims)(width, out_channels, 1)
        self._name_layers()

    @property
    def attention_layers(self) -> tuple[str, ...]:
        """The nine layers of the paper's Figure 1b: encoder 1-4, bottleneck, decoder 4-1."""
        return (*(f"encoder.{k}" for k in (1, 2, 3, 4)), "bottleneck", *(f"decoder.{k}" for k in (4, 3, 2, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_channels, *S) of an image (B, in_channels, *S)."""
        check_image(x, self.in_channels, self.dims)
        if min(x.shape[2:]) < 16:
            raise ConfigError(f"This network takes sides from 16 on, not {tuple(x.shape[2:])}.", fix="Pad the image.")
        return super().forward(x)


self_reg_unet = network("self_reg_unet", SelfRegUNet)
