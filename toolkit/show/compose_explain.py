"""Figures of explanations: Grad-CAM of many layers, attributions, masked latents."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from toolkit.errors import ResultError, choose
from toolkit.explain.attribution_result import AttributionResult
from toolkit.explain.cam_result import GradCamResult
from toolkit.explain.mask_result import MaskedLatent
from toolkit.features.layout import to_maps
from toolkit.inference.volumes import one_map
from toolkit.show.compose import composer
from toolkit.show.panels import Figure, Image, Panel, in_rows, range_note, symmetric_limits
from toolkit.show.slices import View, result_view

SCALES = ("layer", "shared")
_UNSIGNED = "NormalisedClassSum"  # a target whose maps have no sign
METHOD_NAMES = {
    "grad_cam": "Grad-CAM",
    "grad_cam++": "Grad-CAM++",
    "hires_cam": "HiResCAM",
    "layer_cam": "LayerCAM",
    "saliency": "Gradient of the score",
    "input_x_gradient": "Input times gradient",
}


@composer(GradCamResult, several=True)
def grad_cams(
    results: Sequence[Any],
    names: Sequence[str],
    *,
    index: int = 0,
    scale: str = "layer",
    position: int | None = None,
    side: int | None = None,
    columns: int = 5,
    crop: bool = True,
) -> Figure:
    """The image with its contours, then the raw signed map of every layer over the image, with the target's contour.

    Of several networks on one image: one row a network, one column a layer.

    Args:
        scale: "layer" (each map has its own symmetric colour range, stated above it) or "shared" (one range).
        side: longer edge of a picture in pixels; None = 150 of one network, 104 of several.
        columns: panels in a row, of one network.

    Raises:
        ConfigError: unknown scale.
        ResultError: no such image or slice, or results of different images or layers.
    """
    first, alone, rows = results[0], len(results) == 1, []
    position = position if alone else result_view(first, index, first.region, position).position
    for result, name in zip(results, names, strict=True):
        panels = _cam_panels(result, index, scale, position, side or (150 if alone else 104), crop)
        panels[0].title = panels[0].title if alone else name
        rows += in_rows(panels, columns if alone else len(panels))
    if len({(tuple(r.maps), r.cases[index]) for r in results}) != 1:
        fix = "Explain the same case at the same layers."
        raise ResultError("The results are of different images or layers.", fix=fix)
    which = names[0] if alone else "every layer"
    return Figure(
        title=", ".join(filter(None, (f"{_method(first)} of {target_text(first.target, first.classes)}", which))),
        subtitle=_how_to_read(scale, first.target),
        rows=rows,
        caption=f"case {first.cases[index]}",
        sources=(results, [] if alone else names),
    )


def target_text(target: str, classes: Mapping[int, str] | None = None) -> str:
    """`Region(index=1, inside='reference')` as a phrase with the class's name; other targets as they write themselves."""
    parts = re.fullmatch(r"(?:Region|ClassSum)\(index=(.+?)(?:, inside='(\w+)')?\)", target)
    if parts is None:
        return target
    name = parts[1].strip("'\"")
    name = (classes or {}).get(int(name), name) if name.isdecimal() else name
    return f"{name} inside the {parts[2]}" if parts[2] else f"{name} over the whole image"


def _method(result: Any) -> str:
    return METHOD_NAMES.get(result.method, result.method.replace("_", " ").capitalize())


def _how_to_read(scale: str, target: str = "") -> str:
    choose("scale", scale, SCALES)
    if target.startswith(_UNSIGNED):
        return (
            "Not signed: each class's map is rectified and scaled to [0, 1] at the image's size, then the maps are added "
            "and divided by the maximum of the sum, so small organs weigh as much as large ones."
        )
    own = "each map has its own symmetric colour range, its values are stated above it"
    ranges = own if scale == "layer" else "all maps share one symmetric colour range"
    return f"Raw signed maps at the layer's own resolution: red raises the target's score, blue lowers it; {ranges}."


def _cam_panels(result: Any, index: int, scale: str, position: int | None, side: int, crop: bool) -> list[Image]:
    view = result_view(result, index, result.region, position)
    masks = result.prediction.ndim == result.image.ndim  # of regions, which the numbers of a label map are not
    labelled = result.label is not None and not masks
    labels = result.label[index, 0] if labelled else one_map(result.prediction[index], len(view.size))
    view = view.around(np.asarray(labels) > 0) if crop else view
    contours = np.clip(view.plane(labels), 0, None)
    picture = view.picture(result.image[index])
    which = "reference" if labelled else "prediction"
    note = f"{which}{view.note}; {range_note(picture)}"
    image = Image(title="image", note=note, pixels=picture, labels=contours, class_names=result.classes or {})
    panels = [view.panel(image, side)]
    telling = [np.asarray(m[index]).ravel() for layer, m in result.maps.items() if result.telling(layer, index)]
    shared = symmetric_limits(np.concatenate(telling or [np.zeros(1)]))
    organ = _organ(result, contours, view.plane(result.prediction[index].movedim(0, -1)) if masks else None)
    for layer, maps in result.maps.items():
        raw = np.asarray(maps[index, 0], dtype=float)
        status = result.status[layer][index]
        limits = shared if scale == "shared" else symmetric_limits(raw)
        cancelled = status == "cancelled"  # such a map is not stretched to a range of colours
        note = (
            f"the mean keeps {result.net_gradient[layer][index]:.2g} of the gradient" if cancelled else range_note(raw)
        )
        image = Image(title=layer, note=note if status == "ok" else f"{status}: {note}", pixels=picture, labels=organ)
        image.overlay_limits = limits
        if not cancelled:
            image.overlay = view.coarse(raw, lambda layer=layer: result.resized(layer)[index, 0])
            image.bar = True
        if result.target.startswith(_UNSIGNED):
            image.overlay_limits, image.overlay_scale = (0.0, limits[1]), "positive_overlay"
        panels.append(view.panel(image, side))
    return panels


def _organ(result: Any, labels: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
    """The contours of the class, or of the region in masks (H, W, K), that is asked for; of all if the target names none."""
    label = _asked(result)
    labels = labels if masks is None or not label else label * (masks[..., label - 1] > 0)
    return labels if label is None or not (labels == label).any() else np.where(labels == label, label, 0)


def _asked(result: Any) -> int | None:
    """The label of the class, or the number of the region, that the target names."""
    asked = re.search(r"""index=(\d+|'.*?'|".*?")[,)]""", result.target)
    if asked and asked[1].isdigit():  # an output's number is one less than its region's
        return int(asked[1]) + (result.prediction.ndim == result.image.ndim)
    named = {repr(str(name)): label for label, name in (result.classes or {}).items()}
    return named.get(asked[1]) if asked else None


@composer(AttributionResult)
def attribution(result: Any, *, index: int = 0, position: int | None = None, side: int = 260) -> Figure:
    """The image with the target's region, then the signed attribution summed over channels.

    Raises:
        ResultError: no such image or slice.
    """
    fits = result.region.shape[2:] == result.image.shape[2:]  # the output, and so the region, has the image's size
    view = result_view(result, index, result.region if fits else None, position)
    picture = view.picture(result.image[index])
    region = view.plane(np.asarray(result.region[index, 0], dtype=int)) * (_asked(result) or 1) if fits else None
    note = f"the region that is scored{view.note}; {range_note(picture)}"
    images = [Image(title="image", note=note, pixels=picture, labels=region)]
    for name, maps in result.maps.items():
        raw = np.asarray(maps[index, 0], dtype=float)
        plane = view.coarse(raw, lambda name=name: result.resized(name)[index, 0])
        limits = symmetric_limits(raw)
        image = Image(title=name, note=range_note(raw), pixels=picture, overlay=plane, overlay_limits=limits, bar=True)
        images.append(image)
    return Figure(
        title=f"{_method(result)} of {target_text(result.target, result.classes)}",
        subtitle="Raw signed values, summed over channels, on a symmetric colour range: red adds to the score.",
        rows=[[view.panel(image, side) for image in images]],
        caption=f"case {result.cases[index]}",
    )


@composer(MaskedLatent)
def masked_latent(
    result: Any, *, index: int = 0, position: int | None = None, side: int = 190, crop: bool = True
) -> Figure:
    """Input and mask, then what the network makes of the clean (above) and of the masked code (below).

    Raises:
        ResultError: no such image or slice.
    """
    dims = result.input.ndim - 2
    organs = one_map((result.segmentation[0] if result.label is None else result.label)[index], dims)
    view = result_view(result, index, {index: organs[None] > 0}, position)
    view = view.around(organs > 0) if crop else view
    picture = view.picture(result.input[index])
    reference = None if result.label is None else np.clip(view.plane(organs), 0, None)
    note = f"{'reference; ' if reference is not None else ''}{range_note(picture)}"
    head = view.panel(Image(title="image", note=note, pixels=picture, labels=reference), side)
    rows: list[list[Panel | None]] = []
    for line, first in enumerate((head, _mask_panel(result, index, view, side))):
        rows.append([first, *[view.panel(image, side) for image in _of_code(result, index, line, view)]])
    aimed = result.scheme in ("channel", "spatial")  # dropout is random, and a mask by hand is anybody's
    softness = ", soft" if result.soft and aimed else ", hard" if aimed else ""
    attack = f"; masks attack the {result.against}" if aimed else ""
    return Figure(
        title=f"Masked latent: {result.fraction:.0%} of {result.layer}, {result.scheme}{softness}",
        subtitle=f"Skip connections: {result.skips}; batch statistics: {result.bn_mode}{attack}. "
        "Both entropy maps share one colour range.",
        rows=rows,
        caption=f"case {result.cases[index]}",
    )


def _of_code(result: Any, index: int, line: int, view: View) -> list[Image]:
    """What the network makes of the clean (0) or the masked (1) code: segmentation, image if it decodes one, entropy."""
    name, picture = ("clean", "masked")[line], view.picture(result.input[index])
    entropy = view.plane(result.entropy[line][index])
    changed = result.table()["changed"].to_numpy().reshape(len(result.cases), -1)[index, 0]
    images = [
        Image(
            title=f"{name} code: segmentation",
            note=f"{changed:.1%} of the image changed" if line else "contours of the prediction",
            pixels=picture,
            labels=view.plane(one_map(result.segmentation[line][index], len(view.size))),
            class_names=result.classes or {},
        ),
        Image(
            title=f"{name} code: entropy",
            note=f"{range_note(entropy)} bits, mean {entropy.mean():.2g}",
            pixels=picture,
            overlay=entropy,
            overlay_limits=(0.0, max(float(one[index].max()) for one in result.entropy) or 1.0),
            overlay_scale="sequential",
            bar=True,
        ),
    ]
    if result.image is not None:
        decoded = view.picture(result.image[line][index])
        images.insert(1, Image(title=f"{name} code: image", note=range_note(decoded), pixels=decoded))
    return images


def _mask_panel(result: Any, index: int, view: View, side: int) -> Image:
    mask = np.asarray(result.mask[min(index, len(result.mask) - 1)], dtype=float)
    share, spatial = f"{(mask >= 1).mean():.0%} kept", result.scheme == "spatial"
    if spatial and mask.shape[-1] == 1 < len(mask):  # channels last: tokens, or the blocks of Swin transformers
        mask = to_maps(torch.from_numpy(mask[None]), result.input.shape[2:], result.layer)[0].numpy()
    if mask.size == max(mask.shape) and not spatial:  # one multiplier a channel: laid out row by row
        values, what, rest = mask.ravel(), "channels", ", row by row"
        lines = max(divisor for divisor in range(1, int(len(values) ** 0.5) + 1) if len(values) % divisor == 0)
        plane = values.reshape(lines, -1)
    else:
        plane, what, rest = view.of_layer(mask[0]), "positions", ""
    limits = (0.0, max(1.0, float(plane.max())))
    note = f"black = masked, {share}; {range_note(plane)}{rest}"
    return Image(title=f"mask of the {what}", note=note, pixels=plane, limits=limits).fit(side)
