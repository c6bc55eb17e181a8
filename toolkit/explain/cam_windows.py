"""Class activation maps of images that the network sees window by window, stitched to the image's size."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import ConfigError, LayerError
from toolkit.explain.cam_maps import normalised_sum, resized
from toolkit.explain.cam_pass import Piece, map_of, require_gradients
from toolkit.explain.frozen import Frozen, freeze, scene_of
from toolkit.explain.targets import NormalisedClassSum, Target
from toolkit.features.capture import capture
from toolkit.features.inputs import InputBatch
from toolkit.features.modules import unwrap
from toolkit.features.outputs import logits_of
from toolkit.features.untouched import untouched

Window = tuple[slice, ...]


def explain_windows(
    model: nn.Module, batch: InputBatch, layers: str | Sequence[str], target: Target, method: str,
    taps: Mapping[str, str] | None, mode: str, *, patch_size: Sequence[int], overlap: float,
) -> Piece:  # fmt: skip
    """Maps of every layer at the image's size (B, 1, *S); see `toolkit.grad_cam`.

    Raises:
        ConfigError: a window that does not fit the network, or an overlap outside [0, 1).
        LayerError: logits of another size than the window.
    """
    windows, patch = _windows(tuple(batch.image.shape[2:]), model, patch_size, overlap)
    importance = gaussian(patch, batch.image.device)
    with untouched(model, mode) as network, torch.inference_mode(False):
        logits = _stitched_logits(network, batch.image, windows, importance)
        scene = scene_of(logits, batch)
        parts = target.parts(scene)
        frozen = [freeze(part, logits, batch) for part in parts]
        whole = freeze(target, logits, batch)
        maps, connected = _accumulate(network, batch.image, layers, frozen, method, taps, windows, importance)
    combined = {
        name: normalised_sum(found, batch.image.shape[2:])
        if isinstance(target, NormalisedClassSum)
        else torch.stack(found).sum(0)
        for name, found in maps.items()
    }
    return Piece(
        batch, {name: found.cpu() for name, found in combined.items()}, connected, whole.score.cpu(),
        whole.region.cpu(), ~whole.region.flatten(1).any(1).cpu(), whole.prediction.cpu(),
    )  # fmt: skip


def gaussian(patch: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Weight of every voxel of a window: 1 in the middle, sd an eighth of each side, at least 0.001."""
    weight = torch.ones((), device=device)
    for side in patch:
        offset = (torch.arange(side, device=device) - (side - 1) / 2) / (side / 8)
        weight = weight[..., None] * torch.exp(-offset.square() / 2)
    return weight.clamp_min(1e-3)


def _windows(
    size: tuple[int, ...], model: nn.Module, patch_size: Sequence[int], overlap: float
) -> tuple[list[Window], tuple[int, ...]]:
    """Windows that cover the image, and their size."""
    divisor = getattr(unwrap(model), "divisor", 1)
    if len(patch_size) != len(size) or any(side < 1 or side % divisor for side in patch_size):
        raise ConfigError(
            f"patch_size {tuple(patch_size)} does not fit an image of size {size}.",
            where="grad_cam(patch_size=...)",
            fix=f"Give {len(size)} sides, each a multiple of {divisor}.",
        )
    if not 0 <= overlap < 1:
        raise ConfigError(f"overlap must be at least 0 and below 1, not {overlap}.", where="grad_cam")
    patch = tuple(min(side, whole) for side, whole in zip(patch_size, size, strict=True))
    starts = []
    for side, whole in zip(patch, size, strict=True):
        step = max(1, int(side * (1 - overlap)))
        starts.append([*range(0, whole - side, step), whole - side])
    windows = [
        tuple(slice(start, start + side) for start, side in zip(corner, patch, strict=True))
        for corner in itertools.product(*starts)
    ]
    return windows, patch


def _stitched_logits(network: nn.Module, image: Tensor, windows: list[Window], weight: Tensor) -> Tensor:
    total: Tensor | None = None
    covered = torch.zeros(image.shape[2:], device=image.device)
    with torch.no_grad():
        for window in windows:
            inside: Any = (..., *window)
            logits = logits_of(network, image[inside].clone()).float()
            if logits.shape[2:] != weight.shape:
                raise LayerError(
                    f"The network gives logits of size {tuple(logits.shape[2:])} for a window of {tuple(weight.shape)}.",
                    where="grad_cam(patch_size=...)",
                    fix="Stitching needs logits of the image's size.",
                )
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], *image.shape[2:])
            total[inside] += weight * logits
            covered[window] += weight
    assert total is not None
    return total / covered


def _accumulate(
    network: nn.Module, image: Tensor, layers: str | Sequence[str], frozen: list[Frozen], method: str,
    taps: Mapping[str, str] | None, windows: list[Window], weight: Tensor,
) -> tuple[dict[str, list[Tensor]], dict[str, bool]]:  # fmt: skip
    """Weighted mean over windows of the maps of every layer and part, and whether any score reached a layer."""
    totals: dict[str, list[Tensor]] = {}
    connected: dict[str, bool] = {}
    covered = torch.zeros(image.shape[2:], device=image.device)
    empty = torch.zeros_like(image[:, :1], dtype=torch.float32)
    for window in windows:
        covered[window] += weight
        inside: Any = (..., *window)
        with torch.enable_grad():
            x = image[inside].detach().clone().requires_grad_().clone()
            with capture(network, layers, taps=taps) as tape:
                logits = logits_of(network, x)
            require_gradients(tape)
            for position, part in enumerate(frozen):
                score = (part.weights[inside] * logits).sum()
                gradients = torch.autograd.grad(
                    score, list(tape.values()), retain_graph=position + 1 < len(frozen), allow_unused=True
                )
                for (name, activation), gradient in zip(tape.items(), gradients, strict=True):
                    found = map_of(activation, gradient, weight.shape, name, method)
                    into = totals.setdefault(name, [empty.clone() for _ in frozen])
                    into[position][inside] += weight * resized(found, weight.shape)
                    connected[name] = connected.get(name, False) or gradient is not None
    return {name: [total / covered for total in found] for name, found in totals.items()}, connected
