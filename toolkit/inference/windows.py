"""Where an image lies in what a network takes: padding on both ends, and windows where it is too large for one pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from toolkit.errors import ConfigError

Window = tuple[Any, ...]  # an index: the ellipsis and one slice per spatial axis


@dataclasses.dataclass(frozen=True, eq=False)
class Tiling:
    """Windows that cover an image, as MONAI's sliding window places and weighs them."""

    windows: list[Window]  # their places, as indices of a tensor (..., *S).
    importance: Tensor  # (*patch) weight of every voxel of a window in what is stitched, Gaussian
    covered: Tensor  # (*S) sum of the weights at every voxel of the image

    @classmethod
    def of(cls, size: Sequence[int], patch: Sequence[int], overlap: float, device: torch.device) -> Self:
        """Windows of an image whose sides are at least the patch's; an overlap is at least 0 and below 1."""
        from monai.data.utils import compute_importance_map, dense_patch_slices

        sides = zip(patch, size, strict=True)
        steps = [side if side == whole else max(1, int(side * (1 - overlap))) for side, whole in sides]
        windows: list[Window] = [
            (..., *(slice(int(part.start), int(part.stop)) for part in window))
            for window in dense_patch_slices(size, patch, steps)
        ]
        importance = compute_importance_map(tuple(patch), mode="gaussian", device=device)
        covered = torch.zeros(tuple(size), device=device)
        for window in windows:
            covered[window] += importance
        return cls(windows, importance, covered)

    def stitched(self, parts: Iterable[Tensor]) -> Tensor:
        """(B, K, *S) weighted mean of what every window gives, (B, K, *patch) each."""
        total: Tensor | None = None
        for window, part in zip(self.windows, parts, strict=True):
            if total is None:
                total = part.new_zeros(*part.shape[:2], *self.covered.shape)
            total[window] += self.importance * part
        assert total is not None
        return total / self.covered

    def share(self, window: Window) -> Tensor:
        """(*patch) part that a window has in what is stitched, between 0 and 1."""
        return self.importance / self.covered[window]


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """The place of images of one size in what the network takes."""

    size: tuple[int, ...]  # of the images
    starts: tuple[int, ...]  # where they begin in the padded ones
    target: tuple[int, ...]  # size of the padded images
    # (B, C) each channel's minimum, which fills the padding; fixed here, so that a perturbed copy of the image is
    # padded as the image itself
    level: Tensor
    tiling: Tiling | None  # windows of the padded image; None = one pass

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """(before, after) along every axis."""
        axes = zip(self.starts, self.size, self.target, strict=True)
        return tuple((start, whole - start - side) for start, side, whole in axes)

    @property
    def place(self) -> Any:
        """Index of the image in a padded tensor (..., *target)."""
        return (..., *(slice(start, start + side) for start, side in zip(self.starts, self.size, strict=True)))

    def pad(self, tensor: Tensor, value: float | None = None) -> Tensor:
        """A tensor (n, C, *size) at the target's size; filled with `value`, or an image with each channel's minimum."""
        if self.size == self.target:
            return tensor
        if value is None:
            level = self.level.to(tensor).reshape(*self.level.shape, *[1] * len(self.size))
            padded = level.expand(len(tensor), -1, *self.target).clone()
        else:
            padded = tensor.new_full((*tensor.shape[:2], *self.target), value)
        padded[self.place] = tensor
        return padded

    def crop(self, tensor: Tensor) -> Tensor:
        """A tensor (..., *target) on the image's own grid."""
        return tensor if self.size == self.target else tensor[self.place]

    def select(self, index: int) -> Frame:
        """The frame of one image of the batch."""
        return dataclasses.replace(self, level=self.level[index : index + 1])


def frame_of(image: Tensor, patch: Sequence[int] | None, divisor: int, overlap: float) -> Frame:
    """Pad both ends to multiples of the divisor and at least to the window; windows where the image then exceeds it.

    `image` is (B, C, *S); the sides of a window are rounded up to multiples of the divisor, and None is one pass over the
    whole image; neighbouring windows overlap by a share of their side.
    """
    size = tuple(image.shape[2:])
    if patch is not None and len(patch) != len(size):
        what = f"patch_size {tuple(patch)} does not fit an image of size {size}."
        raise ConfigError(what, where="patch_size=...", fix=f"Give {len(size)} sides, or patch_size='whole'.")
    sides = tuple(-(-side // divisor) * divisor for side in (patch or size))
    target = tuple(max(side, whole) for side, whole in zip(sides, size, strict=True))
    starts = tuple((wanted - side) // 2 for side, wanted in zip(size, target, strict=True))
    level = image.detach().flatten(2).amin(2)
    tiling = None if target == sides else Tiling.of(target, sides, overlap, image.device)
    return Frame(size, starts, target, level, tiling)


def sides_of(patch_size: Sequence[int] | str) -> tuple[int, ...]:
    """The sides of a window as integers."""
    sides = () if isinstance(patch_size, str) else tuple(int(side) for side in patch_size)
    if not sides or min(sides) < 1:
        fix = "Give one positive whole number per spatial axis, for example (96, 96); or 'whole'."
        raise ConfigError(f"patch_size={patch_size!r} is not a window.", where="patch_size=...", fix=fix)
    return sides
