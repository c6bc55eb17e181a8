"""Figures of explanations: Grad-CAM of many layers and masked latents."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from toolkit.errors import ResultError, choose
from toolkit.explain.cam_result import GradCamResult
from toolkit.explain.mask_result import MaskedLatent
from toolkit.inference.volumes import one_map
from toolkit.show.captions import caption, captions
from toolkit.show.compose import compose, compose_together
from toolkit.show.panels import Figure, Image, Panel, range_note, symmetric_limits
from toolkit.show.slices import View, choose_view

SCALES = ("layer", "shared")


@compose.register
def grad_cam(
    result: GradCamResult,
    *,
    index: int = 0,
    scale: str = "layer",
    position: int | None = None,
    note: str = "",
    side: int = 150,
    columns: int = 5,
    name: str = "",
) -> Figure:
    """The image with its contours, then the raw signed map of every layer over the image.

    Args:
        result: a `GradCamResult`.
        index: which image of the batch.
        scale: "layer" (each map has its own symmetric colour range, stated above it) or "shared" (one range).
        position: slice of a volume; None = where the target's region is largest.
        note: sentence for the caption.
        side: longer edge of a picture in pixels.
        columns: panels in a row.
        name: name of the network in the title.

    Raises:
        ConfigError: unknown scale.
        ResultError: no such image or slice.
    """
    panels = _cam_panels(result, index, scale, position, side)
    _name_classes(panels[min(columns, len(panels)) - 1], result.classes)
    return Figure(
        title=f"{_METHODS.get(result.method, result.method)} of {target_text(result.target)}{f', {name}' if name else ''}",
        subtitle=_how_to_read(scale, result.target),
        rows=[panels[start : start + columns] for start in range(0, len(panels), columns)],
        caption=caption(result.provenance, _join(f"case {result.cases[index]}", note)),
    )


def grad_cams(
    results: Sequence[Any],
    names: Sequence[str],
    *,
    index: int = 0,
    scale: str = "layer",
    position: int | None = None,
    note: str = "",
    side: int = 104,
) -> Figure:
    """Several networks on one image: one row a network, one column a layer.

    Raises:
        ConfigError: unknown scale.
        ResultError: no such image, or results of different images or layers.
    """
    if len({(tuple(r.maps), r.cases[index]) for r in results}) != 1:
        raise ResultError(
            "The results are of different images or layers.", fix="Explain the same case at the same layers."
        )
    rows = []
    for result, name in zip(results, names, strict=True):
        panels = _cam_panels(result, index, scale, position, side)
        panels[0] = dataclasses.replace(panels[0], title=name)  # type: ignore[type-var]
        rows.append(panels)
    _name_classes(rows[0][-1], results[0].classes)
    first = results[0]
    return Figure(
        title=f"{_METHODS.get(first.method, first.method)} of {target_text(first.target)}, every layer",
        subtitle=_how_to_read(scale, first.target),
        rows=[list(row) for row in rows],
        caption=captions(results, names, _join(f"case {first.cases[index]}", note)),
    )


def target_text(target: str) -> str:
    """`Region(index='LV', inside='reference')` as a phrase; other targets as they write themselves."""
    found = re.fullmatch(r"Region\(index=(.+?), inside='(\w+)'\)", target)
    if found:
        return f"{found[1].strip(chr(39))} inside the {found[2]}"
    found = re.fullmatch(r"ClassSum\(index=(.+?)\)", target)
    return f"{found[1].strip(chr(39))} over the whole image" if found else target


_METHODS = {"grad_cam": "Grad-CAM", "grad_cam++": "Grad-CAM++", "hires_cam": "HiResCAM", "layer_cam": "LayerCAM"}


def _name_classes(panel: Panel | None, classes: Any) -> None:
    """Put the colours of the contours to the right of a picture."""
    assert isinstance(panel, Image)
    panel.class_names, panel.legend = dict(classes or {}), bool(classes)


def _how_to_read(scale: str, target: str = "") -> str:
    choose("scale", scale, SCALES)
    ranges = (
        "each map has its own symmetric colour range, its values are stated above it"
        if scale == "layer"
        else "all maps share one symmetric colour range"
    )
    if target.startswith("NormalisedClassSum"):
        return (
            "Not signed: each class's map is rectified and scaled to [0, 1] at the image's size, then the maps are added "
            "and divided by the maximum of the sum, so small organs weigh as much as large ones."
        )
    return f"Raw signed maps at the layer's own resolution: red raises the target's score, blue lowers it; {ranges}."


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _cam_panels(result: Any, index: int, scale: str, position: int | None, side: int) -> list[Panel | None]:
    _how_to_read(scale)
    if not -len(result.cases) <= index < len(result.cases):
        raise ResultError(f"There is no image {index}; the result holds {len(result.cases)}.", where="index")
    view = choose_view(
        tuple(result.image.shape[2:]),
        result.padded_size,
        focus=result.region[index, 0],
        position=position,
        spacing=result.spacing[index],
    )
    picture = view.picture(result.image[index])
    panels: list[Panel | None] = [_contour_panel(result, index, view, picture, side)]
    telling = [np.asarray(m[index]).ravel() for layer, m in result.maps.items() if result.telling(layer, index)]
    shared = symmetric_limits(np.concatenate(telling or [np.zeros(1)]))
    for layer, maps in result.maps.items():
        raw = np.asarray(maps[index, 0], dtype=float)
        shown = view.coarse(raw, lambda layer=layer: result.resized(layer)[index, 0])
        status = result.status[layer][index]
        panels.append(
            Image(
                title=layer,
                note=range_note(raw)
                if status == "ok"
                else f"{status}: {_why(result, layer, index) or range_note(raw)}",
                pixels=picture,
                overlay=None if status == "cancelled" else shown,
                overlay_limits=shared if scale == "shared" else symmetric_limits(raw),
                aspect=view.aspect,
            ).fit(side)
        )
    return panels


def _why(result: Any, layer: str, index: int) -> str:
    """How much of a cancelled gradient its mean keeps; such a map is not stretched to a range of colours."""
    if result.status[layer][index] != "cancelled":
        return ""
    return f"the mean keeps {result.net_gradient[layer][index]:.2g} of the gradient"


def _contour_panel(result: Any, index: int, view: View, picture: np.ndarray, side: int) -> Image:
    known = result.label is not None
    labels = view.plane(result.label[index, 0] if known else one_map(result.prediction[index], len(view.size)))
    which = "reference" if known else "prediction"
    slice_ = f", slice {view.position}" if view.position is not None else ""
    return Image(
        title="image",
        note=f"{which}{slice_}; {range_note(picture)}",
        pixels=picture,
        labels=np.clip(labels, 0, None),
        class_names=result.classes or {},
        aspect=view.aspect,
    ).fit(side)


@compose.register
def masked_latent(
    result: MaskedLatent, *, index: int = 0, position: int | None = None, note: str = "", side: int = 190
) -> Figure:
    """Input and mask, then what the network makes of the clean (above) and of the masked code (below).

    Args:
        result: a `MaskedLatent`.
        index: which image of the batch.
        position: slice of a volume; None = where the foreground is largest.
        note: sentence for the caption.
        side: longer edge of a picture in pixels.

    Raises:
        ResultError: no such image or slice.
    """
    if not -len(result.cases) <= index < len(result.cases):
        raise ResultError(f"There is no image {index}; the result holds {len(result.cases)}.", where="index")
    size = tuple(result.input.shape[2:])
    reference = result.segmentation[0][index] if result.label is None else result.label[index, 0]
    view = choose_view(size, size, focus=np.asarray(reference) > 0, position=position)
    picture = view.picture(result.input[index])
    most = max(float(entropy[index].max()) for entropy in result.entropy)
    rows: list[list[Panel | None]] = []
    for line, name in enumerate(("clean", "masked")):
        labels = view.plane(result.segmentation[line][index])
        entropy = view.plane(result.entropy[line][index])
        row: list[Panel | None] = [
            _reference_panel(result, index, view, picture, side)
            if line == 0
            else _mask_panel(result, index, view, side),
            Image(
                title=f"{name} code: segmentation",
                note=_changed(result, index) if line else "contours of the prediction",
                pixels=picture,
                labels=labels,
            ).fit(side),
            Image(
                title=f"{name} code: entropy",
                note=f"{range_note(entropy)} bits, mean {entropy.mean():.2g}",
                pixels=picture,
                overlay=entropy,
                overlay_limits=(0.0, most or 1.0),
                overlay_scale="sequential",
                bar=True,
            ).fit(side),
        ]
        if result.image is not None:
            decoded = view.picture(result.image[line][index])
            row.insert(2, Image(title=f"{name} code: image", note=range_note(decoded), pixels=decoded).fit(side))
        rows.append(row)
    _name_classes(rows[0][-1], result.classes)
    softness = "soft" if result.soft and result.scheme != "dropout" else "hard"
    return Figure(
        title=f"Masked latent: {result.fraction:.0%} of {result.layer}, {result.scheme}, {softness}",
        subtitle=f"Skip connections: {result.skips}; batch statistics: {result.bn_mode}; masks attack the {result.against}. "
        "Both entropy maps share one colour range.",
        rows=rows,
        caption=caption(result.provenance, _join(f"case {result.cases[index]}", note)),
    )


def _reference_panel(result: Any, index: int, view: View, picture: np.ndarray, side: int) -> Image:
    known = result.label is not None
    labels = np.clip(view.plane(result.label[index, 0]), 0, None) if known else None
    return Image(
        title="image", note=f"{'reference; ' if known else ''}{range_note(picture)}", pixels=picture, labels=labels
    ).fit(side)


def _mask_panel(result: Any, index: int, view: View, side: int) -> Image:
    mask = np.asarray(result.mask[min(index, len(result.mask) - 1)], dtype=float)
    kept = f"{(mask >= 1).mean():.0%} kept"
    if mask.size == len(mask):  # one multiplier a channel: laid out row by row
        values = mask.ravel()
        lines = max(divisor for divisor in range(1, int(len(values) ** 0.5) + 1) if len(values) % divisor == 0)
        return Image(
            title="mask of the channels",
            note=f"{kept}; {range_note(values)}, row by row",
            pixels=values.reshape(lines, -1),
            limits=(0.0, max(1.0, float(values.max()))),
        ).fit(side)
    plane = mask[0]
    if plane.ndim == 3 and view.position is not None:
        plane = plane[min(len(plane) - 1, int((view.position + 0.5) * len(plane) / view.padded[0]))]
    return Image(
        title="mask of the positions",
        note=f"{kept}; {range_note(plane)}",
        pixels=plane,
        limits=(0.0, max(1.0, plane.max())),
    ).fit(side)


def _changed(result: Any, index: int) -> str:
    clean, masked = np.asarray(result.segmentation[0][index]), np.asarray(result.segmentation[1][index])
    return f"{(clean != masked).mean():.1%} of the image changed"


@compose_together.register
def _(first: GradCamResult, results: Sequence[Any], names: Sequence[str], **options: Any) -> Figure:
    return grad_cams(results, names, **options)
