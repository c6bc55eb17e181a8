"""Grad-CAM at any number of layers from one forward and one backward pass."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import nn

from toolkit.arguments import checked
from toolkit.errors import DataError, choose
from toolkit.explain.cam_maps import METHODS
from toolkit.explain.cam_pass import CamBatch, CamRequest, explain_batch, explain_windows
from toolkit.explain.cam_result import GradCamResult, statuses
from toolkit.explain.explained import fields_of
from toolkit.explain.targets import Target, as_target
from toolkit.features.provenance import DataHash, provenance
from toolkit.inference.inputs import as_batches
from toolkit.inference.layers import prepare_aliases
from toolkit.inference.memory import Passes
from toolkit.inference.network import Predictor


@checked
def grad_cam(
    model: nn.Module,
    inputs: Any,
    layers: str | Sequence[str],
    target: Target | int | str,
    *,
    method: str | Sequence[str] = "grad_cam",
    label: Any = None,
    aliases: Mapping[str, str] | None = None,
    batch_size: int = 8,
    mode: str = "eval",
    **passes: Unpack[Passes],
) -> GradCamResult:
    """Heat maps of a score at one or many layers; the network is left untouched.

    All layers share one forward and one backward pass per batch, and no weight gradients are computed. Maps are raw
    and signed: scaling and rectifying are for display only. The network is run as by `toolkit.predict`, whose labels
    are `prediction`. Token layers (B, L, C) are laid out on their grid.

    Args:
        model: any network; its parameters may be frozen.
        inputs: a case, array, path, dict, or several of one size; see `toolkit.extract`.
        layers: names, globs or aliases; see `toolkit.layers`.
        target: what to explain, for example Region("LV", inside="reference"), ClassSum(2), or a class.
        method: "grad_cam" (Selvaraju et al. 2017), "grad_cam++" (Chattopadhay et al. 2018), "hires_cam" (Draelos and
            Carin 2020) or "layer_cam" (Jiang et al. 2021). Several, as in ["grad_cam", "hires_cam"], share the pass: the
            result is of the first one, its `by_method("hires_cam")` of another.
        label: label map(s) for bare arrays or paths.
        aliases: overrides of aliases.
        batch_size: images per pass.
        mode: "eval" (running statistics, images independent of each other) or "train".
        **passes: select, patch_size, overlap, divisor, precision and activation, see `toolkit.predict`. With windows the
            target's region is found once, on the stitched logits; every window is explained for its part of that
            region, and the maps, brought to the image's grid, are averaged with Gaussian weights. Grad-CAM's channel
            weights are then those of each window.

    Returns:
        Mapping from layer name to raw map (B, 1, *layer size). Look at its `status`: where an instance norm follows
        soon after a layer, the mean gradient that Grad-CAM takes cancels, and the map is "cancelled" (see
        docs/grad_cam_and_instance_norm.md); HiResCAM does not take that mean.

    Raises:
        LayerError: a layer that does not exist, never ran, or lies in a part without gradients.
        ConfigError: unknown method or class.
        DataError: no label for a target that needs one, images of several sizes, or a region that is empty in all
            images.

    Example:
        >>> cam = tk.grad_cam(model, case, layers="decoder.*", target=tk.Region("LV", inside="prediction"))
        >>> cam["decoder.1"].shape
        torch.Size([1, 1, 32, 32])
    """
    methods = (method,) if isinstance(method, str) else tuple(method)
    for name in methods or ("",):
        choose("method", name, METHODS, where="grad_cam(method=...)")
    predictor = Predictor(model, **passes)
    request = CamRequest(layers, as_target(target), methods, aliases, mode)
    data = DataHash()
    pieces: list[CamBatch] = []
    options: dict[str, Any] = {"held": "gradients", "layers": layers, "aliases": aliases}
    limit = functools.partial(predictor.affordable, "grad_cam", **options)
    for batch in as_batches(inputs, model, batch_size=batch_size, label=label, limit=limit):
        if pieces and batch.image.shape[1:] != pieces[0].batch.image.shape[1:]:
            what = f"The images have several sizes: {pieces[0].batch.size} and {batch.size}."
            raise DataError(what, where=batch.ids[0], fix="Call grad_cam once per size.")
        data.update(batch.ids, batch.image, batch.label)
        frame = predictor.frame(batch.image)
        if not pieces:
            prepare_aliases(predictor, layers, batch.image, aliases)
        explain = explain_batch if frame.tiling is None else explain_windows
        pieces.append(explain(predictor, batch, request, frame))
    if not pieces:
        raise DataError("There are no inputs to explain.", where="grad_cam(inputs=...)")
    if all(piece.empty.all() for piece in pieces):
        what = f"The region of {request.target} is empty in every image."
        fix = "Choose a case in which the class occurs, inside='reference', or ClassSum for the whole image."
        raise DataError(what, where=", ".join(pieces[0].batch.ids[:4]), fix=fix)
    names = list(pieces[0].connected)
    asked = {"target": repr(request.target), "method": method if isinstance(method, str) else list(methods)}
    record = provenance(model, data.hexdigest(), layers=names, **asked, mode=mode, **predictor.settings)
    return _collect(pieces, predictor, request, record)


def _collect(
    pieces: list[CamBatch], predictor: Predictor, request: CamRequest, record: dict[str, Any]
) -> GradCamResult:
    batches, names, methods = [piece.batch for piece in pieces], list(pieces[0].connected), request.methods
    maps = {
        method: {name: torch.cat([piece.maps[method][name] for piece in pieces]) for name in names}
        for method in methods
    }
    net = {name: torch.cat([piece.net_gradient[name] for piece in pieces]).tolist() for name in names}
    connected = {name: any(piece.connected[name] for piece in pieces) for name in names}
    empty = torch.cat([piece.empty for piece in pieces])
    return GradCamResult(
        maps=maps[methods[0]],
        status=statuses(maps[methods[0]], methods[0], empty.tolist(), net, connected),
        others={method: maps[method] for method in methods[1:]},
        net_gradient=net,
        connected=connected,
        **fields_of(batches),
        prediction=torch.cat([piece.prediction for piece in pieces]),
        region=torch.cat([piece.region for piece in pieces]),
        score=torch.cat([piece.scores for piece in pieces]),
        padding=list(pieces[0].padding),
        classes=predictor.class_names(batches[0].classes),
        target=repr(request.target),
        method=methods[0],
        provenance=record,
    )
