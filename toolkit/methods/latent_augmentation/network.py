"""The fast/slow network: an image code, a shape code, and a slow network that corrects the fast prediction.

Source: Chen et al., MICCAI 2021 (see README.md); layers and initialisation as in the later state of the authors' release.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toolkit.errors import choose
from toolkit.models.unet import check_channels, check_image, layer
from toolkit.registry import network

_SLOPE = 0.2


class ConvolutionPair(nn.Sequential):
    """Convolution 3, batch norm, LeakyReLU 0.2, convolution 3, batch norm (no activation at the end)."""

    def __init__(self, inputs: int, outputs: int, dims: int) -> None:
        super().__init__()
        self.conv1 = layer("Conv", dims)(inputs, outputs, 3, padding=1)
        self.norm1 = layer("BatchNorm", dims)(outputs)
        self.act1 = nn.LeakyReLU(_SLOPE)
        self.conv2 = layer("Conv", dims)(outputs, outputs, 3, padding=1)
        self.norm2 = layer("BatchNorm", dims)(outputs)


class ResidualBlock(nn.Module):
    """Resize, then LeakyReLU(convolution 1 + convolution pair).

    Resizing keeps the channels: "down" (convolution 3, stride 2), "nearest" (x2, no weights) or "transposed" (x2,
    kernel 2).
    """

    def __init__(self, inputs: int, outputs: int, resize: str, dims: int) -> None:
        super().__init__()
        self.resize: nn.Module
        if resize == "down":
            self.resize = layer("Conv", dims)(inputs, inputs, 3, stride=2, padding=1)
        elif resize == "transposed":
            self.resize = layer("ConvTranspose", dims)(inputs, inputs, 2, stride=2)
        else:
            self.resize = nn.Upsample(scale_factor=2, mode="nearest")
        self.pair = ConvolutionPair(inputs, outputs, dims)
        self.shortcut = layer("Conv", dims)(inputs, outputs, 1)
        self.act = nn.LeakyReLU(_SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        x = self.resize(x)
        return self.act(self.shortcut(x) + self.pair(x))


class CodeEncoder(nn.Sequential):
    """Stem, four down-sampling residual blocks, convolution 1 + batch norm + ReLU: an image as a non-negative code."""

    def __init__(self, inputs: int, width: int, dims: int) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width, 8 * width, 8 * width)
        self.stem = nn.Sequential(ConvolutionPair(inputs, width, dims), nn.LeakyReLU(_SLOPE))
        for k in range(1, 5):
            self.add_module(f"down{k}", ResidualBlock(widths[k - 1], widths[k], "down", dims))
        code = 8 * width
        self.code = nn.Sequential(layer("Conv", dims)(code, code, 1), layer("BatchNorm", dims)(code), nn.ReLU())


class CodeDecoder(nn.Sequential):
    """Four up-sampling residual blocks and a convolution 1 with bias (`head`); no skip connections."""

    def __init__(self, outputs: int, width: int, resize: str, dims: int) -> None:
        super().__init__()
        widths = (8 * width, 4 * width, 2 * width, width, width)
        for k in range(1, 5):
            self.add_module(f"up{k}", ResidualBlock(widths[k - 1], widths[k], resize, dims))
        self.head = layer("Conv", dims)(width, outputs, 1)


class FastSlowNetwork(nn.Module):
    """Fast network (encoder, decoupler, image decoder, segmentation decoder) and slow network (shape encoder, decoder).

        x -> encode -> image code -> decode_image -> reconstruction
                           '-> decouple -> shape code -> decode_segmentation -> logits -> refine -> refined logits

    `network(x)` gives the fast network's logits, or the refined ones if the attribute `refined` is True. Sides must
    be divisible by 16; codes are non-negative, (B, 8 width, sides / 16). Named layers: `image_encoder` (its output
    is the image code), `decoupler` (the shape code), and in the decoders `up1` (coarsest) to `up4` and `head`.

    Args:
        in_channels: channels of the image.
        out_channels: number of classes, background included.
        width: channels at full resolution (the paper's 16: 2 528 953 parameters for 1 channel and 4 classes).
        dims: 2 or 3 (the paper's is 2).
        image_activation: "sigmoid" for images in [0, 1], or "none".
        decoupler_bias: bias of the decoupler's convolutions (the authors' first release had none).
        temperature: the slow network reads softmax(logits / temperature).
        refined: whether `forward` returns the refined logits; this attribute may be changed later.

    Raises:
        ConfigError: arguments that describe no network.

    Example:
        >>> tk.fast_slow_network(1, 4, width=4)(torch.zeros(1, 1, 32, 32)).shape
        torch.Size([1, 4, 32, 32])
    """

    divisor = 16

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int = 16,
        dims: int = 2,
        *,
        image_activation: str = "sigmoid",
        decoupler_bias: bool = True,
        temperature: float = 2.0,
        refined: bool = False,
    ) -> None:
        super().__init__()
        choose("image_activation", image_activation, ("sigmoid", "none"), where="fast_slow_network")
        check_channels("A fast/slow network", in_channels, out_channels)
        self.dims, self.in_channels, self.out_channels, self.width = dims, in_channels, out_channels, width
        self.temperature, self.refined = temperature, refined
        code, convolution, norm = 8 * width, layer("Conv", dims), layer("BatchNorm", dims)
        self.image_encoder = CodeEncoder(in_channels, width, dims)
        layers: list[nn.Module] = []
        for activation in (nn.LeakyReLU(_SLOPE), nn.ReLU()):
            layers += [convolution(code, code, 3, padding=1, bias=decoupler_bias), norm(code), activation]
        self.decoupler = nn.Sequential(*layers)
        self.image_decoder = CodeDecoder(in_channels, width, "transposed", dims)
        self.image_activation = nn.Sigmoid() if image_activation == "sigmoid" else nn.Identity()
        self.segmentation_decoder = CodeDecoder(out_channels, width, "nearest", dims)
        self.shape_encoder = CodeEncoder(out_channels, width, dims)
        self.shape_decoder = CodeDecoder(out_channels, width, "nearest", dims)
        self.toolkit_taps: dict[str, str] = {
            "image_code": "image_encoder",
            "shape_code": "decoupler",
            "bottleneck": "decoupler",
            "head_input": "segmentation_decoder.head:input",
            "pre_activation": "segmentation_decoder.up4.pair.norm2",
            **{f"decoder_{k}": f"segmentation_decoder.up{5 - k}" for k in range(1, 5)},
        }
        self._initialise()

    def encode(self, x: Tensor) -> Tensor:
        """Image code (B, 8 width, *S / 16) of an image (B, in_channels, *S)."""
        check_image(x, self.in_channels, self.dims, self.divisor)
        return self.image_encoder(x)

    def decouple(self, image_code: Tensor) -> Tensor:
        """Shape code of an image code, the same size."""
        return self.decoupler(image_code)

    def decode_image(self, image_code: Tensor) -> Tensor:
        """Reconstructed image (B, in_channels, *S)."""
        return self.image_activation(self.image_decoder(image_code))

    def decode_segmentation(self, shape_code: Tensor) -> Tensor:
        """Logits (B, out_channels, *S) of the fast network."""
        return self.segmentation_decoder(shape_code)

    def correct_shape(self, probabilities: Tensor) -> Tensor:
        """The slow network itself: logits for a map (B, out_channels, *S) that sums to 1 over classes."""
        return self.shape_decoder(self.shape_encoder(probabilities))

    def refine(self, logits: Tensor) -> Tensor:
        """Refined logits: the slow network on softmax(logits / temperature), differentiable."""
        return self.correct_shape(soft_shape(logits, self.temperature))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_channels, *S): the fast network's, or the refined ones if `refined`."""
        logits = self.decode_segmentation(self.decouple(self.encode(x)))
        return self.refine(logits) if self.refined else logits

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
                nn.init.normal_(module.weight, 1.0, 0.02)
        for decoder in (self.image_decoder, self.segmentation_decoder, self.shape_decoder):
            nn.init.zeros_(decoder.head.get_parameter("bias"))


def soft_shape(logits: Tensor, temperature: float = 2.0) -> Tensor:
    """What the slow network reads of a prediction: softmax(logits / temperature) over classes, in float32 at least."""
    return ((logits if logits.dtype == torch.float64 else logits.float()) / temperature).softmax(dim=1)


def hard_shape(label: Tensor, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """What the slow network reads of a label map (B, 1, *S): its one-hot form (B, classes, *S)."""
    return torch.nn.functional.one_hot(label[:, 0].long(), classes).movedim(-1, 1).to(dtype)


fast_slow_network = network("fast_slow_network", FastSlowNetwork)
