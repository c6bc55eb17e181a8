"""Feature maps in one layout: tokens and channel-last activations become (B, C, *S)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from toolkit.errors import LayerError


def to_maps(activation: Tensor, image_size: Sequence[int], name: str = "") -> Tensor:
    """View an activation as channel-first maps (B, C, *S).

    Rules, in this order, for an input with d spatial axes:

    * d + 2 axes: channel-first, unless only the channel-last reading has the input's proportions, as in the blocks
      of Swin transformers;
    * 3 axes: tokens (B, L, C), row-major, on the grid that is the input divided by one whole number; a class token
      in front is left out if that makes the count fit; the square (cubic) grid is the last resort.

    Args:
        activation: the captured tensor.
        image_size: spatial size of the network's input.
        name: layer name, for the message.

    Raises:
        LayerError: no reading fits.
    """
    if activation.ndim == len(image_size) + 2:
        return activation.movedim(channel_axis(activation, image_size), 1)
    if activation.ndim == 3:
        for skip in (0, 1):
            grid = token_grid(activation.shape[1] - skip, image_size)
            if grid is not None:
                return activation[:, skip:].transpose(1, 2).unflatten(2, grid)
    raise LayerError(
        f"The layer {name!r} gives {tuple(activation.shape)}, which is no map of an input of size {tuple(image_size)}.",
        where=name,
        fix="Choose a layer that gives (B, C, *S), channel-last maps, or tokens (B, L, C).",
    )


def channel_axis(activation: Tensor, image_size: Sequence[int]) -> int:
    """1 for channel-first maps, -1 for channel-last maps and tokens; the rules of `to_maps`."""
    if activation.ndim == len(image_size) + 2:
        first, last = tuple(activation.shape[2:]), tuple(activation.shape[1:-1])
        return -1 if not _proportional(first, image_size) and _proportional(last, image_size) else 1
    return -1 if activation.ndim == 3 and len(image_size) > 1 else 1


def token_grid(tokens: int, image_size: Sequence[int]) -> tuple[int, ...] | None:
    """Grid of `tokens` with the input's proportions, else the square (cubic) one, else None."""
    dims = len(image_size)
    if tokens < 1:
        return None
    factor = round((math.prod(image_size) / tokens) ** (1 / dims))
    grid = tuple(math.ceil(side / max(factor, 1)) for side in image_size)
    if math.prod(grid) == tokens:
        return grid
    side = round(tokens ** (1 / dims))
    return (side,) * dims if side**dims == tokens else None


def _proportional(size: Sequence[int], image_size: Sequence[int]) -> bool:
    factors = {round(whole / part) for whole, part in zip(image_size, size, strict=True) if part}
    if len(factors) != 1 or 0 in factors:
        return False
    (factor,) = factors
    return all(abs(part * factor - whole) < factor for whole, part in zip(image_size, size, strict=True))
