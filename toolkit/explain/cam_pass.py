"""One pass of class activation maps: activations, gradients of the score at them, and the maps they give."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from toolkit.errors import LayerError
from toolkit.explain.cam_maps import gradient_parts, net_gradient, normalised_sum, raw_map
from toolkit.explain.frozen import scene_of
from toolkit.explain.targets import NormalisedClassSum, Target
from toolkit.features.capture import Tape, capture
from toolkit.features.inputs import InputBatch
from toolkit.features.layout import to_maps
from toolkit.features.outputs import logits_of
from toolkit.features.untouched import untouched


@dataclasses.dataclass
class Piece:
    """The maps of one batch, on the CPU, and what they were made of; see `GradCamResult` for the fields."""

    batch: InputBatch
    maps: dict[str, dict[str, Tensor]]  # by method and layer
    net_gradient: dict[str, Tensor]
    connected: dict[str, bool]
    scores: Tensor
    region: Tensor
    empty: Tensor
    prediction: Tensor


def explain_batch(
    model: nn.Module,
    batch: InputBatch,
    layers: str | Sequence[str],
    target: Target,
    methods: Sequence[str],
    taps: Mapping[str, str] | None,
    mode: str,
) -> Piece:
    """Maps of every layer from one forward pass and one backward pass per part of the target."""
    with untouched(model, mode) as network, torch.inference_mode(False), torch.enable_grad():
        image = batch.image.detach().clone().requires_grad_().clone()  # not a leaf: networks may change it in place
        with capture(network, layers, taps=taps) as tape:
            logits = logits_of(network, image)
        scene = scene_of(logits, batch)
        require_gradients(tape)
        score, region = target.score(scene)
        parts = target.parts(scene)
        maps: dict[str, dict[str, list[Tensor]]] = {method: {name: [] for name in tape} for method in methods}
        shares: dict[str, list[Tensor]] = {name: [] for name in tape}
        connected = dict.fromkeys(tape, False)
        for position, part in enumerate(parts):
            total = score if part is target else part.score(scene)[0]
            gradients = torch.autograd.grad(
                total.sum(), list(tape.values()), retain_graph=position + 1 < len(parts), allow_unused=True
            )
            for (name, activation), gradient in zip(tape.items(), gradients, strict=True):
                connected[name] |= gradient is not None
                found, share = maps_of(activation, gradient, batch.image.shape[2:], name, methods)
                shares[name].append(share)
                for method, one in found.items():
                    maps[method][name].append(one)
        combined = {method: combine(of_layers, target, batch) for method, of_layers in maps.items()}
    return Piece(
        batch,
        combined,
        {name: net_gradient(parts).cpu() for name, parts in shares.items()},
        connected,
        score.detach().cpu(),
        region.cpu(),
        ~region.flatten(1).any(1).cpu(),
        scene.prediction()[:, 0].cpu(),
    )


def combine(maps: Mapping[str, list[Tensor]], target: Target, batch: InputBatch) -> dict[str, Tensor]:
    """One map of each layer from those of the target's parts, on the CPU."""
    size = batch.image.shape[2:]
    if isinstance(target, NormalisedClassSum):
        return {name: normalised_sum(parts, size).cpu() for name, parts in maps.items()}
    return {name: torch.stack(parts).sum(0).cpu() for name, parts in maps.items()}


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
    """Refuse layers whose part of the network records no gradient.

    Raises:
        LayerError: names them; or there is no layer at all.
    """
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
