"""Grad-CAM at any number of layers from one forward and one backward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import ConfigError, DataError, LayerError
from toolkit.explain.cam_maps import METHODS, normalised_sum, raw_map
from toolkit.explain.cam_result import GradCamResult, status_of
from toolkit.explain.frozen import scene_of
from toolkit.explain.targets import NormalisedClassSum, Target, as_target
from toolkit.features.capture import Tape, capture
from toolkit.features.inputs import InputBatch, as_batches
from toolkit.features.layout import to_maps
from toolkit.features.modules import unwrap
from toolkit.features.provenance import DataHash, provenance
from toolkit.features.trace import main_output
from toolkit.features.untouched import untouched


def grad_cam(
    model: nn.Module, inputs: Any, layers: str | Sequence[str], target: Target | int | str, *, method: str = "grad_cam",
    label: Any = None, taps: Mapping[str, str] | None = None, batch_size: int = 8, mode: str = "eval",
) -> GradCamResult:  # fmt: skip
    """Heat maps of a score at one or many layers; the network is left untouched.

    All layers share one forward and one backward pass per batch, and no weight gradients are computed. Maps are raw
    and signed: scaling and rectifying are for display only. With several outputs (lists, dicts, deep supervision) the
    one of the highest resolution is explained. Token layers (B, L, C) are laid out on their grid.

    Args:
        model: any network; its parameters may be frozen.
        inputs: a case, array, path, dict, or several of one size; see `toolkit.features.inputs.as_batches`.
        layers: names, globs or aliases; see `toolkit.layers`.
        target: what to explain, for example Region("LV", inside="reference"), ClassSum(2), or a class.
        method: "grad_cam" (Selvaraju et al. 2017), "grad_cam++" (Chattopadhay et al. 2018), "hires_cam" (Draelos and
            Carin 2020) or "layer_cam" (Jiang et al. 2021).
        label: label map(s) for bare arrays or paths.
        taps: overrides of aliases.
        batch_size: images per pass.
        mode: "eval" (running statistics, images independent of each other) or "train".

    Returns:
        Mapping from layer name to raw map (B, 1, *layer size).

    Raises:
        LayerError: a layer that does not exist, never ran, or lies in a part without gradients.
        ConfigError: unknown method or class.
        DataError: no label for a target that needs one, images of several sizes, or a region that is empty in all
            images.
    """
    if method not in METHODS:
        raise ConfigError(
            f"Unknown method {method!r}.", where="grad_cam(method=...)", fix=f"Use {', '.join(METHODS)}."
        )
    wanted = as_target(target)
    data = DataHash()
    pieces: list[_Piece] = []
    for batch in as_batches(inputs, model, batch_size=batch_size, label=label):
        if pieces and batch.image.shape[1:] != pieces[0].batch.image.shape[1:]:
            raise DataError(
                f"The images have several sizes: {pieces[0].batch.sizes[0]} and {batch.sizes[0]}.",
                where=batch.ids[0],
                fix="Call grad_cam once per size.",
            )
        data.update(batch.ids, batch.image, batch.label)
        pieces.append(_explain(model, batch, layers, wanted, method, taps, mode))
    if not pieces:
        raise DataError("There are no inputs to explain.", where="grad_cam(inputs=...)")
    if all(piece.empty.all() for piece in pieces):
        raise DataError(
            f"The region of {wanted} is empty in every image.",
            where=", ".join(pieces[0].batch.ids[:4]),
            fix="Choose a case in which the class occurs, inside='reference', or ClassSum for the whole image.",
        )
    names = list(pieces[0].maps)
    record = provenance(model, data.hexdigest(), layers=names, target=repr(wanted), method=method, mode=mode)
    return _collect(pieces, names, wanted, method, record)


@dataclasses.dataclass
class _Piece:
    batch: InputBatch
    maps: dict[str, Tensor]
    connected: dict[str, bool]
    scores: Tensor
    region: Tensor
    empty: Tensor
    prediction: Tensor


def _explain(
    model: nn.Module, batch: InputBatch, layers: str | Sequence[str], target: Target, method: str,
    taps: Mapping[str, str] | None, mode: str,
) -> _Piece:  # fmt: skip
    with untouched(model, mode) as network, torch.inference_mode(False), torch.enable_grad():
        image = (
            batch.image.detach().clone().requires_grad_().clone()
        )  # not a leaf: networks may change it in place
        with capture(network, layers, taps=taps) as tape:
            logits = main_output(unwrap(network)(image))
        scene = scene_of(logits, batch)
        _require_gradients(tape)
        score, region = target.score(scene)
        parts = target.parts(scene)
        maps: dict[str, list[Tensor]] = {name: [] for name in tape}
        connected = dict.fromkeys(tape, False)
        for position, part in enumerate(parts):
            total = score if part is target else part.score(scene)[0]
            gradients = torch.autograd.grad(
                total.sum(), list(tape.values()), retain_graph=position + 1 < len(parts), allow_unused=True
            )
            for (name, activation), gradient in zip(tape.items(), gradients, strict=True):
                connected[name] |= gradient is not None
                maps[name].append(_map(activation, gradient, batch, name, method))
        combined = {
            name: normalised_sum(found, batch.image.shape[2:])
            if isinstance(target, NormalisedClassSum)
            else torch.stack(found).sum(0)
            for name, found in maps.items()
        }
    return _Piece(
        batch, {name: found.cpu() for name, found in combined.items()}, connected, score.detach().cpu(), region.cpu(),
        ~region.flatten(1).any(1).cpu(), scene.prediction()[:, 0].cpu(),
    )  # fmt: skip


def _map(activation: Tensor, gradient: Tensor | None, batch: InputBatch, name: str, method: str) -> Tensor:
    size = batch.image.shape[2:]
    features = to_maps(activation.detach(), size, name).float()
    if gradient is None:
        return torch.zeros_like(features[:, :1])
    return raw_map(features, to_maps(gradient, size, name).float(), method)


def _require_gradients(tape: Tape) -> None:
    frozen = [name for name, tensor in tape.items() if not tensor.requires_grad]
    if frozen:
        raise LayerError(
            f"No gradient reaches {', '.join(frozen)}.",
            where=frozen[0],
            fix="The network runs this part under no_grad, detaches it, or checkpoints it with use_reentrant=True; "
            "choose a layer after it, or use use_reentrant=False.",
        )


def _collect(
    pieces: list[_Piece], names: list[str], target: Target, method: str, record: dict[str, Any]
) -> GradCamResult:
    batches = [piece.batch for piece in pieces]
    maps = {name: torch.cat([piece.maps[name] for piece in pieces]) for name in names}
    empty = torch.cat([piece.empty for piece in pieces])
    labels = [batch.label for batch in batches]
    return GradCamResult(
        maps=maps,
        status={
            name: [
                status_of(image_map, bool(is_empty), pieces[0].connected[name])
                for image_map, is_empty in zip(maps[name], empty, strict=True)
            ]
            for name in names
        },
        image=torch.cat([batch.image.detach().cpu() for batch in batches]),
        label=None
        if any(part is None for part in labels)
        else torch.cat([part.cpu() for part in labels if part is not None]),
        prediction=torch.cat([piece.prediction for piece in pieces]),
        region=torch.cat([piece.region for piece in pieces]),
        score=torch.cat([piece.scores for piece in pieces]),
        cases=[name for batch in batches for name in batch.ids],
        sizes=[size for batch in batches for size in batch.sizes],
        spacing=[mm for batch in batches for mm in batch.spacing],
        affine=[matrix for batch in batches for matrix in batch.affine],
        classes=dict(batches[0].classes or {}),
        target=repr(target),
        method=method,
        provenance=record,
    )
