"""Grad-CAM at any number of layers from one forward and one backward pass."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from toolkit.errors import DataError, LayerError, choose
from toolkit.explain.cam_maps import METHODS, Padding, gradient_parts, net_gradient, normalised_sum, raw_map, resized
from toolkit.explain.cam_result import GradCamResult, statuses
from toolkit.explain.explained import fields_of
from toolkit.explain.frozen import Frozen, freeze
from toolkit.explain.targets import NormalisedClassSum, Target, TargetContext, as_target
from toolkit.features.capture import Tape, capture
from toolkit.features.layout import to_maps
from toolkit.features.provenance import DataHash, provenance
from toolkit.features.untouched import untouched
from toolkit.inference.inputs import InputBatch, as_batches
from toolkit.inference.layers import prepare_aliases
from toolkit.inference.memory import Passes
from toolkit.inference.network import Predictor
from toolkit.inference.windows import Frame


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
        pieces.append(explain_batch(predictor, batch, request, frame))
    if not pieces:
        raise DataError("There are no inputs to explain.", where="grad_cam(inputs=...)")
    if not any(piece.told["region"].any() for piece in pieces):
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
    told: dict[str, Any] = {name: torch.cat([piece.told[name] for piece in pieces]) for name in pieces[0].told}
    empty = (~told["region"].flatten(1).any(1)).tolist()
    return GradCamResult(
        maps=maps[methods[0]],
        status=statuses(maps[methods[0]], methods[0], empty, net, connected),
        others={method: maps[method] for method in methods[1:]},
        net_gradient=net,
        connected=connected,
        **fields_of(batches),
        **told,
        padding=list(pieces[0].padding),
        classes=predictor.class_names(batches[0].classes),
        target=repr(request.target),
        method=methods[0],
        provenance=record,
    )


@dataclasses.dataclass(frozen=True)
class CamRequest:
    """What is explained where: see `toolkit.grad_cam`."""

    layers: str | Sequence[str]
    target: Target
    methods: Sequence[str]
    aliases: Mapping[str, str] | None
    mode: str


@dataclasses.dataclass
class CamBatch:
    """The maps of one batch, on the CPU, and what they were made of; see `GradCamResult` for the fields."""

    batch: InputBatch
    maps: dict[str, dict[str, Tensor]]  # by method and layer
    net_gradient: dict[str, Tensor]
    connected: dict[str, bool]
    told: dict[str, Any]
    padding: Padding


def explain_batch(predictor: Predictor, batch: InputBatch, request: CamRequest, frame: Frame) -> CamBatch:
    """Maps of every layer: of one pass as large as the layer gives them, of windows on the image's grid (B, 1, *S).

    The target's region is fixed first, on the logits of the whole image; then each of its parts has a backward pass.
    """
    tiled = frame.tiling is not None
    with untouched(predictor.model, request.mode), torch.inference_mode(False), torch.set_grad_enabled(not tiled):
        image = batch.image.detach().clone().requires_grad_().clone()  # not a leaf: networks may change it in place
        with capture(predictor.model, () if tiled else request.layers, aliases=request.aliases) as tape:
            logits = predictor.logits(image, frame)
        parts = request.target.parts(TargetContext.of(logits, batch, predictor))
        frozen = [freeze(part, logits, batch, predictor) for part in parts]
        whole = freeze(request.target, logits, batch, predictor)
        if tiled:
            return _collected(batch, request.target, _accumulate(predictor, image, request, frozen, frame), whole, ())
        scores = [(part.weights * logits).sum() for part in frozen]
        maps: dict[str, dict[str, list[Tensor]]] = {method: {name: [] for name in tape} for method in request.methods}
        shares: dict[str, list[Tensor]] = {name: [] for name in tape}
        connected = dict.fromkeys(tape, False)
        for _, name, of_part, share, reached in _maps_of_parts(tape, scores, frame.target, request.methods):
            connected[name] |= reached
            shares[name].append(share)
            for method, one in of_part.items():
                maps[method][name].append(one)
    return _collected(batch, request.target, (maps, shares, connected), whole, frame.padding)


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
            scores = [(part[window] * logits).sum() for part in coefficients]
            for position, name, of_part, share, reached in _maps_of_parts(tape, scores, weight.shape, request.methods):
                for method, one in of_part.items():
                    into = totals[method].setdefault(name, [empty.clone() for _ in frozen])
                    into[position][window] += weight * resized(one, weight.shape)
                shares.setdefault(name, [torch.zeros_like(share) for _ in frozen])[position] += share
                connected[name] = connected.get(name, False) or reached
    covered = frame.tiling.covered
    means = {
        method: {name: [frame.crop(total / covered) for total in parts] for name, parts in of_layers.items()}
        for method, of_layers in totals.items()
    }
    return means, shares, connected


def _maps_of_parts(
    tape: Tape, scores: Sequence[Tensor], size: Sequence[int], methods: Sequence[str]
) -> Iterator[tuple[int, str, dict[str, Tensor], Tensor, bool]]:
    """One backward pass per score: number, layer, raw maps (B, 1, *layer size) by method, `gradient_parts`, connected."""
    if not len(tape):
        raise LayerError("No layer was named.", where="layers=[]", fix="Name at least one: see toolkit.layers(model).")
    if frozen := [name for name, tensor in tape.items() if not tensor.requires_grad]:
        fix = "The network runs this part under no_grad, detaches it, or checkpoints it with use_reentrant=True; "
        fix += "choose a layer after it, or use use_reentrant=False."
        raise LayerError(f"No gradient reaches {', '.join(frozen)}.", where=frozen[0], fix=fix)
    for position, score in enumerate(scores):
        more = position + 1 < len(scores)
        gradients = torch.autograd.grad(score.sum(), list(tape.values()), retain_graph=more, allow_unused=True)
        for (name, activation), gradient in zip(tape.items(), gradients, strict=True):
            features = to_maps(activation.detach(), size, name).float()
            slope = torch.zeros_like(features) if gradient is None else to_maps(gradient, size, name).float()
            maps = {method: raw_map(features, slope, method) for method in methods}
            yield position, name, maps, gradient_parts(slope), gradient is not None


Parts = tuple[dict[str, dict[str, list[Tensor]]], dict[str, list[Tensor]], dict[str, bool]]


def _collected(batch: InputBatch, target: Target, parts: Parts, whole: Frozen, padding: Padding) -> CamBatch:
    """The maps of a target's parts combined; `whole` is the target on the images."""
    maps, shares, connected = parts
    normalised = isinstance(target, NormalisedClassSum)
    padding = padding if any(map(any, padding)) else ()

    def combined(of_parts: list[Tensor]) -> Tensor:
        return (normalised_sum(of_parts, batch.size, padding) if normalised else torch.stack(of_parts).sum(0)).cpu()

    return CamBatch(
        batch,
        {method: {name: combined(one) for name, one in of_layers.items()} for method, of_layers in maps.items()},
        {name: net_gradient(parts).cpu() for name, parts in shares.items()},
        connected,
        whole.told,
        () if normalised else padding,
    )
