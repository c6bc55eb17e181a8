"""Class activation maps of images that the network sees window by window, stitched on the image's grid."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.explain.cam_maps import resized
from toolkit.explain.cam_pass import CamBatch, CamRequest, Parts, collected, maps_of, require_gradients
from toolkit.explain.frozen import Frozen, freeze
from toolkit.explain.targets import TargetContext
from toolkit.features.capture import capture
from toolkit.features.untouched import untouched
from toolkit.inference.inputs import InputBatch
from toolkit.inference.network import Predictor
from toolkit.inference.windows import Frame


def explain_windows(predictor: Predictor, batch: InputBatch, request: CamRequest, frame: Frame) -> CamBatch:
    """Maps of every layer on the image's grid (B, 1, *S); see `toolkit.grad_cam`."""
    with untouched(predictor.model, request.mode), torch.inference_mode(False):
        with torch.no_grad():
            logits = predictor.logits(batch.image, frame)
        targets = request.target.parts(TargetContext.of(logits, batch, predictor))
        frozen = [freeze(part, logits, batch, predictor) for part in targets]
        whole = freeze(request.target, logits, batch, predictor)
        parts = _accumulate(predictor, batch.image, request, frozen, frame)
    return collected(batch, request.target, parts, whole, ())


def _accumulate(predictor: Predictor, image: Tensor, request: CamRequest, frozen: list[Frozen], frame: Frame) -> Parts:
    """Weighted mean over windows of maps by method, layer and part; sums of gradient parts; what is connected."""
    assert frame.tiling is not None
    totals: dict[str, dict[str, list[Tensor]]] = {method: {} for method in request.methods}
    shares: dict[str, list[Tensor]] = {}
    connected: dict[str, bool] = {}
    weight, padded = frame.tiling.importance, frame.pad(image)
    empty = torch.zeros_like(padded[:, :1], dtype=torch.float32)
    coefficients = [frame.pad(part.weights, 0.0) for part in frozen]
    for window in frame.tiling.windows:
        with torch.enable_grad():
            x = padded[window].detach().clone().requires_grad_().clone()
            with capture(predictor.model, request.layers, aliases=request.aliases) as tape:
                logits = predictor.one_pass(x)
            require_gradients(tape)
            for position, part in enumerate(coefficients):
                gradients = torch.autograd.grad(
                    (part[window] * logits).sum(),
                    list(tape.values()),
                    retain_graph=position + 1 < len(frozen),
                    allow_unused=True,
                )
                for (name, activation), gradient in zip(tape.items(), gradients, strict=True):
                    found, share = maps_of(activation, gradient, weight.shape, name, request.methods)
                    for method, one in found.items():
                        into = totals[method].setdefault(name, [empty.clone() for _ in frozen])
                        into[position][window] += weight * resized(one, weight.shape)
                    sums = shares.setdefault(name, [torch.zeros_like(share) for _ in frozen])
                    sums[position] += share
                    connected[name] = connected.get(name, False) or gradient is not None
    covered = frame.tiling.covered
    means = {
        method: {name: [frame.crop(total / covered) for total in parts] for name, parts in of_layers.items()}
        for method, of_layers in totals.items()
    }
    return means, shares, connected
