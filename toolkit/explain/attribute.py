"""`attribute`: captum's attribution methods with the targets of segmentation, for any network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from toolkit.errors import ConfigError, DataError, LayerError, choose
from toolkit.explain import attribute_methods
from toolkit.explain.attribute_methods import FEATURES, METHODS, AttributionInput, Settings
from toolkit.explain.attribution_result import AttributionResult
from toolkit.explain.explained import fields_of
from toolkit.explain.frozen import freeze, score_of
from toolkit.explain.targets import Target, as_target
from toolkit.features.capture import capture
from toolkit.features.modules import eager, named, parse
from toolkit.features.provenance import DataHash, provenance
from toolkit.features.untouched import untouched
from toolkit.inference.layers import one_layer
from toolkit.inference.memory import Passes
from toolkit.inference.network import Predictor, one_batch


def attribute(
    model: nn.Module,
    image: Any,
    method: str = "integrated_gradients",
    target: Target | int | str = 1,
    *,
    layer: str | None = None,
    label: Any = None,
    baseline: str | float = "minimum",
    steps: int = 32,
    window: int = 8,
    stride: int | None = None,
    features: str = "grid",
    aliases: Mapping[str, str] | None = None,
    batch_size: int = 8,
    **passes: Unpack[Passes],
) -> AttributionResult:
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
        aliases: overrides of aliases.
        batch_size: perturbed images per pass.
        **passes: select, patch_size, overlap, divisor, precision and activation, see `toolkit.predict`. What is
            explained with windows is the score of the stitched logits, which is a function of the whole image:
            attributions of its windows add up, and completeness holds as for one window. Layer conductance then comes
            on the image's grid.

    Raises:
        ConfigError: unknown method, baseline or class, or a layer missing or not wanted.
        DataError: no label for a target that needs one, images of several sizes, or a region empty in all images.
        LayerError: a layer that does not exist, runs more than once, or does not return one tensor.

    Example:
        >>> result = tk.attribute(model, case, "integrated_gradients", tk.Region("LV"), steps=8)
    """
    settings = Settings(steps, window, stride, baseline, features, layer, batch_size)
    choose("method", method, METHODS, where="attribute(method=...)")
    choose("features", features, FEATURES, where="attribute(features=...)")
    if (method == "layer_conductance") != (layer is not None):
        fix = "Layer conductance needs a layer; the other methods explain the input."
        raise ConfigError(f"{method} and layer={layer!r} do not go together.", where="attribute", fix=fix)
    predictor, wanted = Predictor(model, **passes), as_target(target)
    batch = one_batch(image, predictor, label, "attribute")
    settings = attribute_methods.affordable_settings(predictor, batch.image[:1], method, settings, "attribute")
    frame = predictor.frame(batch.image)
    with untouched(model, "eval"), torch.inference_mode(False), torch.enable_grad(), eager(predictor.model):
        module = None if layer is None else _layer_module(predictor, layer, batch.image[:1], aliases)
        with torch.no_grad():
            frozen = freeze(wanted, predictor.logits(batch.image.clone(), frame), batch, predictor)
        if not bool(frozen.region.any()):
            fix = "Choose a case in which the class occurs, inside='reference', or ClassSum."
            what = f"The region of {wanted} is empty in every image."
            raise DataError(what, where=", ".join(batch.ids[:4]), fix=fix)
        values, at_baseline = [], []
        for i, image_i in enumerate(batch.image.detach().split(1)):
            base, own = attribute_methods.baseline_of(image_i, settings.baseline), frame.select(i)
            given = AttributionInput(image_i, base, own, batch.label_of(i), module)
            values.append(attribute_methods.explain_one(predictor, frozen.select(i), given, method, settings))
            at_baseline.append(score_of(predictor, frozen.select(i), own, image_i).in_batches(base, 1))
    data = DataHash()
    data.update(batch.ids, batch.image, batch.label)
    chosen = {**dataclasses.asdict(settings), **predictor.settings}
    return AttributionResult(
        attributions={layer or "input": torch.cat(values).cpu()},
        **fields_of([batch]),
        **frozen.told,
        baseline_score=torch.cat(at_baseline).cpu(),
        classes=predictor.class_names(batch.classes),
        target=repr(wanted),
        method=method,
        settings=dataclasses.asdict(settings),
        padding=[] if layer is None or frame.tiling is not None else list(frame.padding),
        provenance=provenance(model, data.hexdigest(), method=method, target=repr(wanted), **chosen),
    )


def _layer_module(
    predictor: Predictor, layer: str, image: Tensor, aliases: Mapping[str, str] | None
) -> tuple[nn.Module, bool]:
    """The module that a name means, and whether its input is meant."""
    network, x = predictor.model, predictor.one_window(image)
    full_name = one_layer(predictor, layer, image, aliases)
    name = parse(full_name)
    calls: list[None] = []
    module = named(network)[name.path]
    handle = module.register_forward_hook(lambda *_: calls.append(None))
    try:
        with torch.no_grad(), capture(network, full_name):
            predictor.run(x)
    finally:
        handle.remove()
    if len(calls) != 1:
        what = f"The layer {full_name!r} runs {len(calls)} times in one pass, and captum cannot tell its calls apart."
        raise LayerError(what, where="attribute(layer=...)", fix="Choose a layer that runs once, or use grad_cam.")
    return module, name.port == "input"
