"""The network on one batch of any size: padding to what it takes, a plain pass if that suffices, else windows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import ProtocolError
from toolkit.features.modules import unwrap

Select = Callable[[Any], Tensor]  # the logits inside what the network returns


def logits_of(outputs: Any) -> Tensor:
    """The logits inside common kinds of output: a tensor, the first of a sequence, or an entry of a mapping.

    Raises:
        ProtocolError: none of these.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, (list, tuple)) and outputs and isinstance(outputs[0], Tensor):
        return outputs[0]  # deep supervision: the finest first
    if isinstance(outputs, dict):
        for key in ("logits", "segmentation", "out"):
            if isinstance(outputs.get(key), Tensor):
                return outputs[key]
    raise ProtocolError(
        f"The logits cannot be found in an output of type {type(outputs).__name__}.",
        fix="Return them as a tensor, or train with an objective whose logits(outputs) finds them.",
    )


def window_logits(
    network: nn.Module,
    image: Tensor,
    patch_size: Sequence[int] | None = None,
    *,
    select: Select = logits_of,
    overlap: float = 0.5,
    windows_at_once: int = 8,
) -> Tensor:
    """Logits (B, K, *S) of a batch (B, C, *S), on the network's device.

    Sides shorter than the patch are padded on both ends with the image's minimum, as the loader pads. If the image
    then has the size of the patch, or no patch is given, one plain pass is made; else MONAI's sliding window with
    Gaussian weights, whose windows overlap by `overlap`.

    Args:
        network: in the mode it should run in; no gradient is recorded by the caller's choice.
        image: float batch; all sizes are allowed.
        patch_size: size of a window; None = the whole image at once.
        select: finds the logits in the network's output.
        overlap: fraction of a window, along each axis.
        windows_at_once: windows in one pass.
    """
    divisor = getattr(unwrap(network), "divisor", 1)
    sides = tuple(image.shape[2:])
    patch = tuple(-(-side // divisor) * divisor for side in (patch_size or sides))
    target = tuple(max(side, wanted) for side, wanted in zip(sides, patch, strict=True))
    padded, crop = pad_with_minimum(image, target)
    if target == patch:
        logits = select(network(padded))
    else:
        logits = _windows(network, padded, patch, select, overlap, windows_at_once)
    if tuple(logits.shape[2:]) != target:
        raise ProtocolError(
            f"The network gave logits of size {tuple(logits.shape[2:])} for an image of size {target}.",
            fix="Return logits at the size of the image.",
        )
    return logits[(slice(None), slice(None), *crop)]


def _windows(
    network: nn.Module, image: Tensor, patch: Sequence[int], select: Select, overlap: float, at_once: int
) -> Tensor:
    from monai.inferers import sliding_window_inference

    def predictor(window: Tensor) -> Tensor:
        return select(network(window))

    logits = sliding_window_inference(image, patch, at_once, predictor, overlap=overlap, mode="gaussian")
    assert isinstance(logits, Tensor)  # the predictor returns one tensor
    return logits


def pad_with_minimum(image: Tensor, target: Sequence[int]) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad (B, C, *S) to `target`, half on either end, with each channel's minimum; and where the image lies in it."""
    sides = tuple(image.shape[2:])
    if sides == tuple(target):
        return image, tuple(slice(0, side) for side in sides)
    starts = [(wanted - side) // 2 for side, wanted in zip(sides, target, strict=True)]
    crop = tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    lowest = image.flatten(2).amin(2).view(*image.shape[:2], *(1 for _ in sides))
    padded = lowest.expand(*image.shape[:2], *target).clone()
    padded[(slice(None), slice(None), *crop)] = image
    return padded, crop


def labels_of(logits: Tensor) -> Tensor:
    """Class indices (B, *S) uint8 of logits: argmax, or the sign of a single channel."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).to(torch.uint8)
    return logits.max(1).indices.to(torch.uint8)  # the first of equals, and several times faster than argmax


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast for "bf16" and "16", nothing for "32"."""
    if precision == "32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)
