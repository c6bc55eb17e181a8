"""The strong view of Med-DisSeg's first stage: colour jitter, grey and blur, without any change of geometry."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from toolkit.errors import ConfigError

_LUMA = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True)
class StrongView:
    """A second, harder view of a batch of images (B, C, H, W); labels stay valid.

    Each image is mapped to [0, 1] by its own extremes, changed, clipped, and mapped back, so it works under any
    normalisation. Saturation, hue and grey act on 3-channel images only. Hue is a rotation about the grey axis.

    Args:
        brightness, contrast, saturation: factors are drawn from [1 - v, 1 + v].
        hue: turns are drawn from [-hue, hue].
        grey: probability of a grey image.
        blur: range of the Gaussian's standard deviation in pixels, kernel of 7; None = no blur.
        vertical_only: blur along the rows' axis only, as the released code does.
        per_image: draw for every image; published: one draw a batch.

    Raises:
        ConfigError: a setting out of range.
    """

    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.1
    grey: float = 0.5
    blur: tuple[float, float] | None = (0.1, 3.0)
    vertical_only: bool = False
    per_image: bool = False

    def __post_init__(self) -> None:
        if not all(0 <= v <= 1 for v in (self.brightness, self.contrast, self.saturation, self.grey)):
            raise ConfigError("brightness, contrast, saturation and grey must lie in [0, 1].", where="strong_view")
        if not 0 <= self.hue <= 0.5:
            raise ConfigError(f"hue must lie in [0, 0.5], not {self.hue}.", where="strong_view")
        if self.blur is not None and not 0 < self.blur[0] <= self.blur[1]:
            raise ConfigError(f"blur must be a range of positive numbers, not {self.blur}.", where="strong_view")

    @classmethod
    def of(cls, settings: StrongView | Mapping[str, Any]) -> StrongView:
        """Settings as a mapping, or a view as it is.

        Raises:
            ConfigError: unknown settings.
        """
        if isinstance(settings, StrongView):
            return settings
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(settings) - set(names))
        if unknown:
            raise ConfigError(f"Unknown settings {unknown} of the strong view.", fix=f"Known: {', '.join(names)}.")
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        return cls(**given)

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """The strong view, of the image's shape, dtype and range; draws from the (CPU) generator only."""
        draws = torch.rand((image.shape[0] if self.per_image else 1, 6), generator=generator).to(image)
        low, high = image.amin(dim=(1, 2, 3), keepdim=True), image.amax(dim=(1, 2, 3), keepdim=True)
        scale = (high - low).clamp_min(torch.finfo(image.dtype).tiny)
        x = self._colours((image - low) / scale, draws)
        if self.blur is not None:
            x = self._blurred(x, self.blur[0] + (self.blur[1] - self.blur[0]) * draws[:, 5])
        return x * scale + low

    def _colours(self, x: Tensor, draws: Tensor) -> Tensor:
        def factor(k: int, spread: float) -> Tensor:
            return (1 + spread * (2 * draws[:, k] - 1))[:, None, None, None]

        x = (x * factor(0, self.brightness)).clamp(0, 1)
        mean = _grey(x).mean(dim=(1, 2, 3), keepdim=True)
        x = (mean + (x - mean) * factor(1, self.contrast)).clamp(0, 1)
        if x.shape[1] != 3:
            return x
        grey = _grey(x)
        x = (grey + (x - grey) * factor(2, self.saturation)).clamp(0, 1)
        turned = torch.einsum("bij,bjhw->bihw", _hue_rotation(draws[:, 3], self.hue).expand(len(x), 3, 3), x)
        grey_wanted = (draws[:, 4] < self.grey)[:, None, None, None]
        return torch.where(grey_wanted, _grey(x), turned).clamp(0, 1)

    def _blurred(self, x: Tensor, sigma: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        offsets = torch.arange(-3, 4, device=x.device, dtype=x.dtype)
        kernel = torch.exp(-0.5 * (offsets / sigma[:, None]).square())
        kernel = (kernel / kernel.sum(dim=1, keepdim=True)).expand(batch, 7).repeat_interleave(channels, dim=0)
        flat = x.reshape(1, batch * channels, height, width)
        for vertical in (True,) if self.vertical_only else (True, False):
            shape, pad = ((-1, 1, 7, 1), (0, 0, 3, 3)) if vertical else ((-1, 1, 1, 7), (3, 3, 0, 0))
            padded = functional.pad(flat, pad, mode="replicate")
            flat = functional.conv2d(padded, kernel.reshape(shape), groups=batch * channels)
        return flat.reshape(x.shape)


def _grey(x: Tensor) -> Tensor:
    if x.shape[1] != 3:
        return x.mean(dim=1, keepdim=True)
    return torch.einsum("bchw,c->bhw", x, x.new_tensor(_LUMA)).unsqueeze(1)


def _hue_rotation(draw: Tensor, spread: float) -> Tensor:
    """Rotations (B, 3, 3) about the grey axis by up to `spread` turns."""
    angle = 2 * math.pi * spread * (2 * draw - 1)
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None] / math.sqrt(3)
    cross = draw.new_tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    return cosine * torch.eye(3, device=draw.device, dtype=draw.dtype) + (1 - cosine) / 3 + sine * cross
