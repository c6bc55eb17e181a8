"""Class activation maps of images that the network sees window by window, stitched to the image's size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.explain.cam_maps import net_gradient, resized
from toolkit.explain.cam_pass import Piece, combine, maps_of, require_gradients
from toolkit.explain.frozen import Frozen, freeze, scene_of
from toolkit.explain.targets import Target
from toolkit.explain.windows import Tiling
from toolkit.features.capture import capture
from toolkit.features.inputs import InputBatch
from toolkit.features.outputs import logits_of
from toolkit.features.untouched import untouched


def explain_windows(
    model: nn.Module,
    batch: InputBatch,
    layers: str | Sequence[str],
    target: Target,
    methods: Sequence[str],
    taps: Mapping[str, str] | None,
    mode: str,
    *,
    patch_size: Sequence[int],
    overlap: float,
) -> Piece:
    """Maps of every layer at the image's size (B, 1, *S); see `toolkit.grad_cam`.

    Raises:
        ConfigError: a window that does not fit the network, or an overlap outside [0, 1).
        LayerError: logits of another size than the window.
    """
    tiling = Tiling.of(batch.image, model, patch_size, overlap, "grad_cam")
    with untouched(model, mode) as network, torch.inference_mode(False):
        logits = tiling.logits(network, batch.image)
        scene = scene_of(logits, batch)
        parts = target.parts(scene)
        frozen = [freeze(part, logits, batch) for part in parts]
        whole = freeze(target, logits, batch)
        maps, shares, connected = _accumulate(network, batch.image, layers, frozen, methods, taps, tiling)
    return Piece(
        batch,
        {method: combine(of_layers, target, batch) for method, of_layers in maps.items()},
        {name: net_gradient(parts).cpu() for name, parts in shares.items()},
        connected,
        whole.score.cpu(),
        whole.region.cpu(),
        ~whole.region.flatten(1).any(1).cpu(),
        whole.prediction.cpu(),
    )


def _accumulate(
    network: nn.Module,
    image: Tensor,
    layers: str | Sequence[str],
    frozen: list[Frozen],
    methods: Sequence[str],
    taps: Mapping[str, str] | None,
    tiling: Tiling,
) -> tuple[dict[str, dict[str, list[Tensor]]], dict[str, list[Tensor]], dict[str, bool]]:
    """Weighted mean over windows of maps by method, layer and part; sums of gradient parts; what is connected."""
    totals: dict[str, dict[str, list[Tensor]]] = {method: {} for method in methods}
    shares: dict[str, list[Tensor]] = {}
    connected: dict[str, bool] = {}
    weight = tiling.importance
    empty = torch.zeros_like(image[:, :1], dtype=torch.float32)
    for window in tiling.windows:
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
                    found, share = maps_of(activation, gradient, weight.shape, name, methods)
                    for method, one in found.items():
                        into = totals[method].setdefault(name, [empty.clone() for _ in frozen])
                        into[position][inside] += weight * resized(one, weight.shape)
                    sums = shares.setdefault(name, [torch.zeros_like(share) for _ in frozen])
                    sums[position] += share
                    connected[name] = connected.get(name, False) or gradient is not None
    means = {
        method: {name: [total / tiling.covered for total in parts] for name, parts in of_layers.items()}
        for method, of_layers in totals.items()
    }
    return means, shares, connected
