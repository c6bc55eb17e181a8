"""Batched augmentation: one affine resampling and one intensity change per sample, keyed per sample.

All randomness comes in as numbers drawn by the loader for (seed, epoch, sample), so batches do not depend on the
order in which they are made, on workers or on the global random state.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.errors import choose


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Strengths; every effect is drawn uniformly within its range, 0 switches it off.

    Attributes:
        rotation: largest rotation in degrees (in 3D about each axis), in physical space where spacing is known.
        scale: largest zoom s: the factor is log-uniform between 1/(1+s) and 1+s.
        translation: largest shift as a fraction of the patch.
        flips: whether to mirror (only along axes that the task allows).
        gain: contrast factor within 1 ± gain.
        offset: brightness shift within ± offset, in units of the normalised image.
        gamma: exponent within exp(± gamma), on the image scaled to [0, 1] between its extremes.
        noise: standard deviation of Gaussian noise between 0 and this, in units of the normalised image.
        label_before: batches also hold `label_before` (B, 1, *P), the label as it was before it was moved: only
            there to repeat a published mistake.

    Example:
        >>> loader = task.loader("train", batch_size=4, augmentation=tk.Augmentation(rotation=30, flips=False))
    """

    rotation: float = 15.0
    scale: float = 0.15
    translation: float = 0.05
    flips: bool = True
    _: dataclasses.KW_ONLY
    gain: float = 0.15
    offset: float = 0.10
    gamma: float = 0.30
    noise: float = 0.10
    label_before: bool = False

    @property
    def spatial(self) -> bool:
        """Whether images are resampled."""
        return bool(self.rotation or self.scale or self.translation)

    def margin(self, patch: Sequence[int]) -> tuple[int, ...]:
        """Voxels to read around the patch so that a rotated or shrunken view still sees image."""
        return tuple(math.ceil(side / 4) if self.spatial else 0 for side in patch)

    def drawn(self, dims: int) -> int:
        """How many uniform numbers one sample takes."""
        return (1 if dims == 2 else 3) + 1 + dims + dims + 4


PRESETS: dict[str, Augmentation | None] = {
    "none": None,
    "standard": Augmentation(),
    "geometry": Augmentation(gain=0, offset=0, gamma=0, noise=0),
    "geometry-label-before": Augmentation(gain=0, offset=0, gamma=0, noise=0, label_before=True),
    "intensity": Augmentation(rotation=0, scale=0, translation=0, flips=False),
}


def checked_augmentation(value: str | Augmentation | None) -> Augmentation | None:
    """A preset by name, or the object itself."""
    if value is None or isinstance(value, Augmentation):
        return value
    choose("augmentation", value, PRESETS, where="augmentation (a name, a tk.Augmentation(...) or a callable)")
    return PRESETS[value]


def apply(
    effects: Augmentation, drawn: Mapping[str, Any], noise: Tensor | None, patch: Sequence[int], flips: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Augmented image and label of a batch, on the device it lies on, with the size P of the patch.

    Of `drawn`, `image` (B, C, *M) float32 is the patch with its margin, `label` (B, 1, *M) class indices, which keep their
    values (nearest neighbour); `numbers` (B, effects.drawn(dims)) are uniform in [0, 1), of which the last may carry
    the sign of `noise` (B, C, *P), standard normal float32; only the ratios of `spacing` (B, dims) matter. `flips` are
    the axes that may be mirrored.
    """
    image, label, numbers, spacing = (drawn[name] for name in ("image", "label", "numbers", "spacing"))
    dims = len(patch)
    angles = 1 if dims == 2 else 3
    geometry, intensity = numbers[:, : angles + 1 + 2 * dims], numbers[:, -4:]
    allowed = [axis in flips for axis in range(dims)] if effects.flips else [False] * dims
    if effects.spatial or any(allowed):
        signed = 2.0 * geometry - 1.0
        rotation = _rotations(np.deg2rad(effects.rotation) * signed[:, :angles], dims)
        zoom = np.exp(math.log1p(effects.scale) * signed[:, angles])
        shift = effects.translation * signed[:, angles + 1 : angles + 1 + dims] * np.asarray(patch)
        mirror = np.where((geometry[:, angles + 1 + dims :] < 0.5) & np.asarray(allowed), -1.0, 1.0)
        matrix = rotation * spacing[:, None, :] / spacing[:, :, None] * zoom[:, None, None] * mirror[:, None, :]
        half_out, half_in = np.asarray(patch) / 2.0, np.asarray(image.shape[2:]) / 2.0
        matrix = matrix * half_out[None, None, :] / half_in[None, :, None]
        # from normalised output to normalised input coordinates, x first
        theta = np.concatenate([matrix[:, ::-1, ::-1], (shift / half_in)[:, ::-1, None]], axis=2).astype(np.float32)
        grid = _grid(torch.from_numpy(theta).to(image.device, non_blocking=True), patch)
        sample = torch.nn.functional.grid_sample
        image = sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
        label = sample(label.float(), grid, mode="nearest", padding_mode="border", align_corners=False)
    return _intensity(effects, image, intensity, noise), label


def _grid(theta: Tensor, patch: Sequence[int]) -> Tensor:
    """What `affine_grid(align_corners=False)` gives, as a view of one plane per coordinate (ten times faster)."""
    dims = len(patch)
    grid = theta[:, :, -1].reshape(-1, dims, *(1,) * dims)
    for axis, side in enumerate(patch):
        centres = (2.0 * torch.arange(side, dtype=torch.float32, device=theta.device) + 1.0) / side - 1.0
        column = theta[:, :, dims - 1 - axis].reshape(-1, dims, *(1,) * dims)
        grid = grid + column * centres.reshape(*(-1 if other == axis else 1 for other in range(dims)))
    return grid.movedim(1, -1)


def _rotations(angles: np.ndarray, dims: int) -> np.ndarray:
    """Rotation matrices (B, dims, dims); in 3D about axis 0, then 1, then 2."""
    result = np.broadcast_to(np.eye(dims), (len(angles), dims, dims))
    planes = [(0, 1)] if dims == 2 else [(1, 2), (0, 2), (0, 1)]
    for column, (first, second) in enumerate(planes):
        turn = np.broadcast_to(np.eye(dims), (len(angles), dims, dims)).copy()
        cosine, sine = np.cos(angles[:, column]), np.sin(angles[:, column])
        turn[:, first, first] = turn[:, second, second] = cosine
        turn[:, first, second], turn[:, second, first] = -sine, sine
        result = turn @ result
    return result


def _intensity(augmentation: Augmentation, image: Tensor, numbers: np.ndarray, noise: Tensor | None) -> Tensor:
    shape = (len(image), 1) + (1,) * (image.ndim - 2)
    drawn = np.concatenate([2.0 * numbers[:, :3] - 1.0, augmentation.noise * numbers[:, 3:]], axis=1)
    signed = torch.from_numpy(drawn.astype(np.float32)).to(image.device, non_blocking=True)
    if augmentation.gamma:
        axes = tuple(range(2, image.ndim))
        low, high = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
        span = (high - low).clamp_min(1e-6)
        exponent = torch.exp(augmentation.gamma * signed[:, 2]).view(shape)
        image = ((image - low) / span).clamp_(0, 1).pow_(exponent).mul_(span).add_(low)
    if augmentation.gain or augmentation.offset:
        gain = (1 + augmentation.gain * signed[:, 0]).view(shape)
        image = image * gain + (augmentation.offset * signed[:, 1]).view(shape)
    if augmentation.noise and noise is not None:
        image = image.addcmul(noise, signed[:, 3].view(shape))
    return image
