"""Captum's methods on one image: plain, or on logits stitched from windows."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import DataError, LayerError, choose
from toolkit.explain.frozen import FixedScore, Frozen, score_of, window_parts
from toolkit.features.layout import to_maps
from toolkit.inference.network import Predictor
from toolkit.inference.windows import Frame

METHODS = ("integrated_gradients", "occlusion", "saliency", "input_x_gradient", "layer_conductance", "feature_ablation")
FEATURES = ("grid", "prediction", "reference")
_PERTURBING = ("occlusion", "feature_ablation")
_ALONG_A_PATH = ("integrated_gradients", "layer_conductance")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a method is run; see `toolkit.attribute`."""

    steps: int = 32
    window: int = 8
    stride: int | None = None
    baseline: str | float = "minimum"
    features: str = "grid"
    layer: str | None = None
    batch_size: int = 8


@dataclasses.dataclass(frozen=True, eq=False)
class AttributionInput:
    """One image and what is asked about it."""

    image: Tensor  # (1, C, *S)
    base: Tensor  # (1, C, *S) the image without information
    frame: Frame  # where the image lies in what the network takes
    label: Tensor | None = None  # (1, 1, *S) reference, for ablating its classes
    layer: tuple[nn.Module, bool] | None = None  # module, and whether its input is meant, for layer conductance


def affordable_settings(predictor: Predictor, image: Tensor, method: str, settings: Settings, call: str) -> Settings:
    """The settings with no more images a pass than the memory allows; `image` is one, (1, C, *S)."""
    if method in _PERTURBING:
        wanted, held = settings.batch_size, "outputs"
    else:
        wanted, held = min(settings.batch_size, settings.steps) if method in _ALONG_A_PATH else 1, "gradients"
    count = predictor.affordable(call, image, wanted, held=held)
    return dataclasses.replace(settings, batch_size=count) if count < wanted else settings


def explain_one(
    predictor: Predictor, frozen: Frozen, given: AttributionInput, method: str, settings: Settings
) -> Tensor:
    """Raw attributions (1, C, *S) of one image, or (1, *layer size) of a layer's units as captum returns them.

    With windows, gradients and path integrals are taken window by window and added up, which is exact because the
    score of the stitched logits is the sum of the windows' scores; boxes are taken out of the whole image. The units
    of a layer are spread evenly over the voxels that they stand for: (1, 1, *S), with the same sum.
    """
    image, frame = given.image, given.frame
    if method in _PERTURBING:
        return _perturbed(score_of(predictor, frozen, frame, image), frozen, given, method, settings)
    if frame.tiling is None:
        return _by_gradients(FixedScore(predictor, frozen, frame), given, method, settings)
    padded, base = frame.pad(image), frame.pad(given.base)
    channels = 1 if given.layer is not None else image.shape[1]
    total = torch.zeros_like(padded[:, :1]).repeat(1, channels, *[1] * (image.ndim - 2))
    for inside, part in window_parts(frozen, frame):
        piece = dataclasses.replace(given, image=padded[inside], base=base[inside])
        values = _by_gradients(FixedScore(predictor, part), piece, method, settings)
        total[inside] += values if given.layer is None else _spread(values, piece.image, settings.layer)
    return frame.crop(total)


def baseline_of(image: Tensor, baseline: str | float) -> Tensor:
    """The image without information, of the image's shape (B, C, *S)."""
    if isinstance(baseline, str):
        flat = image.flatten(2)
        levels = {"minimum": flat.amin(2), "mean": flat.mean(2), "zero": torch.zeros_like(flat[:, :, 0])}
        choose("baseline", baseline, levels)
        return levels[baseline].reshape(*image.shape[:2], *[1] * (image.ndim - 2)).expand_as(image).clone()
    return torch.full_like(image, float(baseline))


def _by_gradients(score: FixedScore, given: AttributionInput, method: str, settings: Settings) -> Tensor:
    from captum import attr as captum

    x = given.image.clone().requires_grad_()
    path: dict[str, Any] = {"n_steps": settings.steps, "internal_batch_size": settings.batch_size}
    path["baselines"] = given.base
    if method == "integrated_gradients":
        values = captum.IntegratedGradients(score).attribute(x, **path)
    elif method == "saliency":
        values = captum.Saliency(score).attribute(x, abs=False)
    elif method == "input_x_gradient":
        values = captum.InputXGradient(score).attribute(x)
    else:
        assert given.layer is not None
        module, at_input = given.layer
        values = captum.LayerConductance(score, module).attribute(x, attribute_to_layer_input=at_input, **path)
    if not isinstance(values, Tensor):
        raise LayerError(f"The layer {settings.layer!r} does not return one tensor.")
    return values.detach()


def _perturbed(score: FixedScore, frozen: Frozen, given: AttributionInput, method: str, settings: Settings) -> Tensor:
    from captum import attr as captum

    image = given.image
    options: dict[str, Any] = {"baselines": given.base, "perturbations_per_eval": settings.batch_size}
    with torch.no_grad():
        if method == "feature_ablation":
            mask = _feature_mask(image, frozen, settings, given.label)
            return captum.FeatureAblation(score).attribute(image, feature_mask=mask, **options).detach()
        sides = [min(settings.window, side) for side in image.shape[2:]]
        stride = settings.stride or max(1, settings.window // 2)
        strides = (image.shape[1], *[min(stride, side) for side in sides])
        return captum.Occlusion(score).attribute(image, (image.shape[1], *sides), strides, **options).detach()


def _spread(values: Tensor, image: Tensor, layer: str | None) -> Tensor:
    """Units of a layer, summed over channels, spread over the voxels (1, 1, *S) that they stand for; the sum stays."""
    maps = to_maps(values, image.shape[2:], layer or "").sum(1, keepdim=True)
    for axis, side in enumerate(image.shape[2:], 2):
        units = maps.shape[axis]
        index = torch.arange(side, device=maps.device) * units // side
        shape = [-1 if a == axis else 1 for a in range(maps.ndim)]
        if units > side:  # finer than the image: the units of a voxel are added up
            home = torch.arange(units, device=maps.device) * side // units
            zeros = maps.new_zeros([side if a == axis else n for a, n in enumerate(maps.shape)])
            maps = zeros.index_add(axis, home, maps)
            continue
        count = torch.bincount(index, minlength=units).to(maps.dtype)
        maps = (maps / count.reshape(shape)).index_select(axis, index)
    return maps


def _feature_mask(image: Tensor, frozen: Frozen, settings: Settings, label: Tensor | None) -> Tensor:
    """(1, 1, *S) index of the feature that each voxel belongs to."""
    if settings.features == "grid":
        mask = torch.zeros(image.shape[2:], dtype=torch.long, device=image.device)
        for axis, side in enumerate(image.shape[2:]):
            cells = torch.arange(side, device=image.device) // settings.window
            mask = mask * (int(cells[-1]) + 1) + cells.reshape([-1 if a == axis else 1 for a in range(mask.ndim)])
        return mask[None, None]
    if settings.features == "prediction":
        chosen = frozen.prediction.unsqueeze(1)
        if frozen.prediction.ndim == image.ndim:  # a number for every combination of overlapping masks (B, K, *S)
            powers = 2 ** torch.arange(frozen.prediction.shape[1], device=image.device)
            chosen = (frozen.prediction.long() * powers.reshape(-1, *[1] * (image.ndim - 2))).sum(1, keepdim=True)
    elif label is None:
        raise DataError("There is no reference label to ablate by.", fix="Use features='prediction'.")
    else:
        chosen = label
    return torch.unique(chosen, return_inverse=True)[1]
