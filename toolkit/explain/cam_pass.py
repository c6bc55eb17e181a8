"""One pass of class activation maps: activations, gradients of the score at them, and the maps they give."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from toolkit.errors import LayerError
from toolkit.explain.attribute_methods import Frozen, freeze
from toolkit.explain.cam_maps import Padding, gradient_parts, net_gradient, normalised_sum, raw_map, resized
from toolkit.explain.targets import NormalisedClassSum, Target, TargetContext
from toolkit.features.capture import Tape, capture
from toolkit.features.layout import to_maps
from toolkit.features.untouched import untouched
from toolkit.inference.inputs import InputBatch
from toolkit.inference.network import Predictor
from toolkit.inference.windows import Frame


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
    scores: Tensor
    region: Tensor
    empty: Tensor
    prediction: Tensor
    padding: Padding


def explain_batch(predictor: Predictor, batch: InputBatch, request: CamRequest, frame: Frame) -> CamBatch:
    """Maps of every layer from one forward pass and one backward pass per part of the target."""
    target = request.target
    with untouched(predictor.model, request.mode) as network, torch.inference_mode(False), torch.enable_grad():
        image = batch.image.detach().clone().requires_grad_().clone()  # not a leaf: networks may change it in place
        with capture(network, request.layers, aliases=request.aliases) as tape:
            logits = predictor.logits(image, frame)
        context = TargetContext.of(logits, batch, predictor)
        score, region = target.score(context)
        scores = [score if part is target else part.score(context)[0] for part in target.parts(context)]
        maps: dict[str, dict[str, list[Tensor]]] = {method: {name: [] for name in tape} for method in request.methods}
        shares: dict[str, list[Tensor]] = {name: [] for name in tape}
        connected = dict.fromkeys(tape, False)
        for _, name, of_part, share, reached in _maps_of_parts(tape, scores, frame.target, request.methods):
            connected[name] |= reached
            shares[name].append(share)
            for method, one in of_part.items():
                maps[method][name].append(one)
    frozen = Frozen(score, score.detach(), region, context.prediction)
    return _collected(batch, target, (maps, shares, connected), frozen, frame.padding)


def explain_windows(predictor: Predictor, batch: InputBatch, request: CamRequest, frame: Frame) -> CamBatch:
    """Maps of every layer on the image's grid (B, 1, *S); see `toolkit.grad_cam`."""
    with untouched(predictor.model, request.mode), torch.inference_mode(False):
        with torch.no_grad():
            logits = predictor.logits(batch.image, frame)
        targets = request.target.parts(TargetContext.of(logits, batch, predictor))
        frozen = [freeze(part, logits, batch, predictor) for part in targets]
        whole = freeze(request.target, logits, batch, predictor)
        parts = _accumulate(predictor, batch.image, request, frozen, frame)
    return _collected(batch, request.target, parts, whole, ())


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
                sums = shares.setdefault(name, [torch.zeros_like(share) for _ in frozen])
                sums[position] += share
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
    """One backward pass per score: its number, layer, raw maps by method, `gradient_parts`, and whether it is connected."""
    require_gradients(tape)
    for position, score in enumerate(scores):
        gradients = torch.autograd.grad(
            score.sum(), list(tape.values()), retain_graph=position + 1 < len(scores), allow_unused=True
        )
        for (name, activation), gradient in zip(tape.items(), gradients, strict=True):
            yield position, name, *maps_of(activation, gradient, size, name, methods), gradient is not None


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
        whole.score.cpu(),
        whole.region.cpu(),
        ~whole.region.flatten(1).any(1).cpu(),
        whole.prediction.cpu(),
        () if normalised else padding,
    )


def maps_of(
    activation: Tensor, gradient: Tensor | None, size: Sequence[int], name: str, methods: Sequence[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """Raw maps (B, 1, *layer size) of one layer by method, 0 where the score is not connected; its `gradient_parts`."""
    features = to_maps(activation.detach(), size, name).float()
    if gradient is None:
        nothing = torch.zeros_like(features[:, :1])
        return dict.fromkeys(methods, nothing), features.new_zeros(2, len(features))
    slope = to_maps(gradient, size, name).float()
    return {method: raw_map(features, slope, method) for method in methods}, gradient_parts(slope)


def require_gradients(tape: Tape) -> None:
    """Refuse layers whose part of the network records no gradient."""
    if not len(tape):
        raise LayerError("No layer was named.", where="layers=[]", fix="Name at least one: see toolkit.layers(model).")
    frozen = [name for name, tensor in tape.items() if not tensor.requires_grad]
    if frozen:
        raise LayerError(
            f"No gradient reaches {', '.join(frozen)}.",
            where=frozen[0],
            fix="The network runs this part under no_grad, detaches it, or checkpoints it with use_reentrant=True; "
            "choose a layer after it, or use use_reentrant=False.",
        )
