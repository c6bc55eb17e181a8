"""Feature maps in one layout: tokens and channel-last activations become (B, C, *S)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from toolkit.errors import LayerError


def to_maps(activation: Tensor, image_size: Sequence[int], name: str = "") -> Tensor:
    """View an activation as channel-first maps (B, C, *S).

    Rules, in this order, for an input with d spatial axes:

    * d + 2 axes: channel-first, unless the channel-last reading fits the input's proportions better, as in the
      blocks of Swin transformers;
    * 3 axes: tokens (B, L, C), row-major, on the grid that is the input divided by one whole number; a class token
      in front is left out if that makes the count fit; the square (cubic) grid is the last resort.
    """
    if activation.ndim == len(image_size) + 2:
        return activation.movedim(channel_axis(activation, image_size), 1)
    if activation.ndim == 3:
        for rule in (_proportional_grid, _equal_grid):
            for class_tokens in (0, 1):
                grid = rule(activation.shape[1] - class_tokens, image_size)
                if grid is not None:
                    return activation[:, class_tokens:].transpose(1, 2).unflatten(2, grid)
    shape, size = tuple(activation.shape), tuple(image_size)
    what = f"The layer {name!r} gives {shape}, which is no map of an input of size {size}."
    fix = "Choose a layer that gives (B, C, *S), channel-last maps, or tokens (B, L, C)."
    raise LayerError(what, where=name, fix=fix)


def grid_of(shape: Sequence[int], image_size: Sequence[int]) -> tuple[int, ...] | None:
    """Spatial size of an activation that has the input's proportions (strides may differ by axis), or None; tokens by grid."""
    dims = len(image_size)
    if len(shape) == dims + 2:
        best = max((tuple(shape[2:]), tuple(shape[1:-1])), key=lambda size: _fit(size, image_size))
        factors = [whole / side if side > 1 else 0.5 for whole, side in zip(image_size, shape[2:], strict=True)]
        strided = all(factor.is_integer() and max(factors) % factor == 0 for factor in factors)
        return best if _fit(best, image_size) else tuple(shape[2:]) if strided else None
    if len(shape) == 3 and dims > 1:
        grids = [_proportional_grid(shape[1] - extra, image_size) for extra in (0, 1)]
        return next((grid for grid in grids if grid and _fit(grid, image_size)), None)
    return None


def channel_axis(activation: Tensor, image_size: Sequence[int]) -> int:
    """1 for channel-first maps, -1 for channel-last maps and tokens; the rules of `to_maps`."""
    if activation.ndim == len(image_size) + 2:
        first, last = tuple(activation.shape[2:]), tuple(activation.shape[1:-1])
        if first == tuple(image_size):
            return 1  # nothing fits better
        return -1 if _fit(last, image_size) > _fit(first, image_size) else 1
    return -1 if activation.ndim == 3 and len(image_size) > 1 else 1


def _proportional_grid(tokens: int, image_size: Sequence[int]) -> tuple[int, ...] | None:
    """The input's size over one whole number, if that has as many positions as there are tokens."""
    factor = max(1, round((math.prod(image_size) / max(tokens, 1)) ** (1 / len(image_size))))
    grid = tuple(math.ceil(side / factor) for side in image_size)
    return grid if math.prod(grid) == tokens else None


def _equal_grid(tokens: int, image_size: Sequence[int]) -> tuple[int, ...] | None:
    """A square or cube, if that has as many positions as there are tokens."""
    side = round(max(tokens, 0) ** (1 / len(image_size)))
    return (side,) * len(image_size) if side and side ** len(image_size) == tokens else None


def _fit(size: Sequence[int], image_size: Sequence[int]) -> int:
    """2 if the input is the size times one whole number, 1 if it is so up to rounding, 0 if not."""
    factors = {round(whole / part) for whole, part in zip(image_size, size, strict=True) if part}
    if len(factors) != 1 or 0 in factors:
        return 0
    (factor,) = factors
    rest = [abs(part * factor - whole) for whole, part in zip(image_size, size, strict=True)]
    return 2 if not any(rest) else int(all(one < factor for one in rest))
