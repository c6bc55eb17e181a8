"""`attribute`: captum's attribution methods with the targets of segmentation, for any network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import ConfigError, DataError, LayerError
from toolkit.explain.attribution_result import AttributionResult
from toolkit.explain.frozen import FixedScore, Frozen, freeze
from toolkit.explain.targets import Target, as_target
from toolkit.features.capture import capture
from toolkit.features.inputs import InputBatch, as_batches
from toolkit.features.modules import eager, named, parse, unwrap
from toolkit.features.names import resolve
from toolkit.features.outputs import forward, logits_of
from toolkit.features.provenance import DataHash, provenance
from toolkit.features.untouched import untouched

METHODS = (
    "integrated_gradients", "occlusion", "saliency", "input_x_gradient", "layer_conductance", "feature_ablation",
)  # fmt: skip
BASELINES = ("minimum", "mean", "zero")
FEATURES = ("grid", "prediction", "reference")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a method is run; see `attribute`."""

    steps: int = 32
    window: int = 8
    stride: int | None = None
    baseline: str | float = "minimum"
    features: str = "grid"
    layer: str | None = None
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.features not in FEATURES:
            raise ConfigError(f"Unknown features {self.features!r}.", fix=f"Use {', '.join(FEATURES)}.")
        if isinstance(self.baseline, str) and self.baseline not in BASELINES:
            raise ConfigError(
                f"Unknown baseline {self.baseline!r}.", fix=f"Use a number, {', '.join(BASELINES)}."
            )
        if min(self.steps, self.window, self.batch_size, self.stride or 1) < 1:
            raise ConfigError("steps, window, stride and batch_size are at least 1.", where="attribute")


def attribute(
    model: nn.Module, image: Any, method: str = "integrated_gradients", target: Target | int | str = 1, *,
    layer: str | None = None, label: Any = None, baseline: str | float = "minimum", steps: int = 32, window: int = 8,
    stride: int | None = None, features: str = "grid", taps: Mapping[str, str] | None = None, batch_size: int = 8,
) -> AttributionResult:  # fmt: skip
    """Attribute a target's score to the input voxels, or to the units of a layer, with captum.

    The target's region is fixed on the unchanged image and stays where it is while a method perturbs the image. The
    network runs in evaluation mode and is left untouched. Values are raw and signed (saliency too).

    Args:
        model: any network.
        image: one image or several of one size, in any form that `toolkit.grad_cam` takes.
        method: "integrated_gradients" (Sundararajan et al. 2017), "occlusion" (Zeiler and Fergus 2014), "saliency"
            (the gradient), "input_x_gradient", "layer_conductance" (Dhamdhere et al. 2018) or "feature_ablation".
        target: what to explain; `Region(1)` is usual, a bare class index or name means `ClassSum`.
        layer: for layer conductance: name or alias of the layer.
        label: label map(s) for bare arrays or paths.
        baseline: the image without information: "minimum" (each channel's darkest value), "mean" of each channel,
            "zero", or a number. Gradients alone do not use it.
        steps: points on the path from baseline to image (integrated gradients, layer conductance).
        window: side in voxels of an occluded box or of a cell of the grid; all channels at once.
        stride: step of the occluded box; None is half of `window`.
        features: what feature ablation removes at once: cells of a "grid", or each class of the "prediction" or of
            the "reference", which says how much the score of one organ leans on another.
        taps: overrides of aliases.
        batch_size: perturbed images per pass.

    Raises:
        ConfigError: unknown method, baseline or class, or a layer missing or not wanted.
        DataError: no label for a target that needs one, images of several sizes, or a region empty in all images.
        LayerError: a layer that does not exist, runs more than once, or does not return one tensor.
    """
    settings = Settings(steps, window, stride, baseline, features, layer, batch_size)
    _check_method(method, settings)
    wanted = as_target(target)
    batch = _one_batch(image, model, label)
    with (
        untouched(model, "eval") as network,
        torch.inference_mode(False),
        torch.enable_grad(),
        eager(network),
    ):
        module = None if layer is None else _layer_module(network, layer, batch, taps)
        with torch.no_grad():
            frozen = freeze(wanted, logits_of(network, batch.image.clone()), batch)
        if not bool(frozen.region.any()):
            raise DataError(
                f"The region of {wanted} is empty in every image.",
                where=", ".join(batch.ids[:4]),
                fix="Choose a case in which the class occurs, inside='reference', or ClassSum.",
            )
        baselines = baseline_of(batch.image, settings.baseline)
        values = [
            explain_one(network, frozen.select(i), one, method, settings, module, batch.label_of(i))
            for i, one in enumerate(batch.image.detach().split(1))
        ]
        at_baseline = torch.cat(
            [FixedScore(network, frozen.select(i)).in_batches(b, 1) for i, b in enumerate(baselines.split(1))]
        )
    return _result(model, batch, frozen, at_baseline, torch.cat(values), repr(wanted), method, settings)


def explain_one(
    network: nn.Module, frozen: Frozen, image: Tensor, method: str, settings: Settings,
    layer: tuple[nn.Module, bool] | None = None, label: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Raw attributions of one image (1, C, *S), as captum returns them.

    Args:
        network: in evaluation mode.
        frozen: the target on this image.
        image: the image.
        method: one of `METHODS`.
        settings: parameters.
        layer: module, and whether its input is meant, for layer conductance.
        label: (1, 1, *S) reference, for ablating its classes.
    """
    from captum import attr as captum

    score: Callable[[Tensor], Tensor] = FixedScore(network, frozen)
    x = image.clone().requires_grad_()
    base = baseline_of(image, settings.baseline)
    path = {"baselines": base, "n_steps": settings.steps, "internal_batch_size": settings.batch_size}
    perturb = {"baselines": base, "perturbations_per_eval": settings.batch_size}
    if method == "integrated_gradients":
        values = captum.IntegratedGradients(score).attribute(x, **path)
    elif method == "saliency":
        values = captum.Saliency(score).attribute(x, abs=False)
    elif method == "input_x_gradient":
        values = captum.InputXGradient(score).attribute(x)
    elif method == "layer_conductance":
        assert layer is not None
        module, at_input = layer
        values = captum.LayerConductance(score, module).attribute(
            x, attribute_to_layer_input=at_input, **path
        )
    elif method == "occlusion":
        sides = [min(settings.window, side) for side in image.shape[2:]]
        stride = settings.stride or max(1, settings.window // 2)
        with torch.no_grad():
            values = captum.Occlusion(score).attribute(
                image, (image.shape[1], *sides), (image.shape[1], *[min(stride, s) for s in sides]), **perturb
            )
    else:
        mask = _feature_mask(image, frozen, settings, label)
        with torch.no_grad():
            values = captum.FeatureAblation(score).attribute(image, feature_mask=mask, **perturb)
    if not isinstance(values, Tensor):
        raise LayerError(f"The layer {settings.layer!r} does not return one tensor.")
    return values.detach()


def baseline_of(image: Tensor, baseline: str | float) -> Tensor:
    """The image without information, of the image's shape (B, C, *S)."""
    if isinstance(baseline, str):
        flat = image.flatten(2)
        level = {"minimum": flat.amin(2), "mean": flat.mean(2), "zero": torch.zeros_like(flat[:, :, 0])}[
            baseline
        ]
        return level.reshape(*image.shape[:2], *[1] * (image.ndim - 2)).expand_as(image).clone()
    return torch.full_like(image, float(baseline))


def _feature_mask(image: Tensor, frozen: Frozen, settings: Settings, label: Tensor | None) -> Tensor:
    """(1, 1, *S) index of the feature that each voxel belongs to."""
    if settings.features == "grid":
        mask = torch.zeros(image.shape[2:], dtype=torch.long, device=image.device)
        for axis, side in enumerate(image.shape[2:]):
            cells = torch.arange(side, device=image.device) // settings.window
            mask = mask * (int(cells[-1]) + 1) + cells.reshape(
                [-1 if a == axis else 1 for a in range(mask.ndim)]
            )
        return mask[None, None]
    if settings.features == "prediction":
        chosen = frozen.prediction[:, None]
    elif label is None:
        raise DataError("There is no reference label to ablate by.", fix="Use features='prediction'.")
    else:
        chosen = label
    if chosen.shape[2:] != image.shape[2:]:
        raise ConfigError("The output is not of the image's size; use features='grid'.", where="attribute")
    return torch.unique(chosen, return_inverse=True)[1]


def _layer_module(
    network: nn.Module, layer: str, batch: InputBatch, taps: Mapping[str, str] | None
) -> tuple[nn.Module, bool]:
    """The module that a name means, and whether its input is meant."""
    names = resolve(network, layer, batch.image[:1], taps)
    if len(names) != 1:
        raise LayerError(f"{layer!r} matches {len(names)} layers.", fix=f"Name one: {', '.join(names[:8])}.")
    name = parse(names[0])
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    module = named(unwrap(network))[name.path]
    handle = module.register_forward_hook(count)
    try:
        with torch.no_grad(), capture(network, names):
            forward(network, batch.image[:1].clone())
    finally:
        handle.remove()
    if calls != 1:
        raise LayerError(
            f"The layer {names[0]!r} runs {calls} times in one pass, and captum cannot tell its calls apart.",
            where="attribute(layer=...)",
            fix="Choose a layer that runs once, or use grad_cam.",
        )
    return module, name.port == "input"


def _check_method(method: str, settings: Settings) -> None:
    if method not in METHODS:
        raise ConfigError(f"Unknown method {method!r}.", where="attribute", fix=f"Use {', '.join(METHODS)}.")
    if (method == "layer_conductance") != (settings.layer is not None):
        raise ConfigError(
            f"{method} and layer={settings.layer!r} do not go together.",
            where="attribute",
            fix="Layer conductance needs a layer; the other methods explain the input.",
        )


def _one_batch(image: Any, model: nn.Module, label: Any) -> InputBatch:
    batches = list(as_batches(image, model, batch_size=10**6, label=label))
    if len(batches) != 1:
        what = "There is no image to explain." if not batches else "The images have several sizes."
        raise DataError(what, where="attribute(image=...)", fix="Pass one image, or several of one size.")
    return batches[0]


def _result(
    model: nn.Module, batch: InputBatch, frozen: Frozen, at_baseline: Tensor, values: Tensor, target: str, method: str,
    settings: Settings,
) -> AttributionResult:  # fmt: skip
    data = DataHash()
    data.update(batch.ids, batch.image, batch.label)
    chosen = dataclasses.asdict(settings)
    return AttributionResult(
        attributions={settings.layer or "input": values.cpu()},
        image=batch.image.detach().cpu(),
        label=None if batch.label is None else batch.label.cpu(),
        prediction=frozen.prediction.cpu(),
        region=frozen.region.cpu(),
        score=frozen.score.cpu(),
        baseline_score=at_baseline.cpu(),
        cases=batch.ids,
        sizes=batch.sizes,
        spacing=batch.spacing,
        classes=dict(batch.classes or {}),
        target=target,
        method=method,
        settings=chosen,
        provenance=provenance(model, data.hexdigest(), method=method, target=target, **chosen),
    )
