"""Figures of explanations: Grad-CAM of many layers and masked latents."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from toolkit.errors import ConfigError, ResultError
from toolkit.show.captions import caption, captions
from toolkit.show.panels import Figure, Image, Panel, range_note, symmetric_limits
from toolkit.show.slices import View, choose_view

SCALES = ("layer", "shared")


def grad_cam(
    result: Any, *, index: int = 0, scale: str = "layer", position: int | None = None, note: str = "", side: int = 150,
    columns: int = 5, name: str = "",
) -> Figure:  # fmt: skip
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
    return Figure(
        title=f"{_METHODS.get(result.method, result.method)} of {result.target}{f', {name}' if name else ''}",
        subtitle=_how_to_read(scale),
        rows=[panels[start : start + columns] for start in range(0, len(panels), columns)],
        caption=caption(result.provenance, _join(f"case {result.cases[index]}", note)),
    )


def grad_cams(
    results: Sequence[Any], names: Sequence[str], *, index: int = 0, scale: str = "layer", position: int | None = None,
    note: str = "", side: int = 112,
) -> Figure:  # fmt: skip
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
    first = results[0]
    return Figure(
        title=f"{_METHODS.get(first.method, first.method)} of {first.target}, every layer",
        subtitle=_how_to_read(scale),
        rows=[list(row) for row in rows],
        caption=captions(results, names, _join(f"case {first.cases[index]}", note)),
    )


_METHODS = {
    "grad_cam": "Grad-CAM",
    "grad_cam++": "Grad-CAM++",
    "hires_cam": "HiResCAM",
    "layer_cam": "LayerCAM",
}


def _how_to_read(scale: str) -> str:
    if scale not in SCALES:
        raise ConfigError(f"There is no scale {scale!r}.", fix=f"Known: {', '.join(SCALES)}.")
    ranges = (
        "each map has its own symmetric colour range, its values are stated above it"
        if scale == "layer"
        else "all maps share one symmetric colour range"
    )
    return f"Raw signed maps at the layer's own resolution: red raises the target's score, blue lowers it; {ranges}."


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _cam_panels(result: Any, index: int, scale: str, position: int | None, side: int) -> list[Panel | None]:
    _how_to_read(scale)
    if not -len(result.cases) <= index < len(result.cases):
        raise ResultError(f"There is no image {index}; the result holds {len(result.cases)}.", where="index")
    padded = tuple(result.image.shape[2:])
    view = choose_view(
        tuple(result.sizes[index]), padded, focus=result.region[index, 0], position=position,
        spacing=result.spacing[index],
    )  # fmt: skip
    picture = view.picture(result.image[index])
    panels: list[Panel | None] = [_contour_panel(result, index, view, picture, side)]
    shared = symmetric_limits(np.concatenate([np.asarray(m[index]).ravel() for m in result.maps.values()]))
    for layer, maps in result.maps.items():
        raw = np.asarray(maps[index, 0], dtype=float)
        shown = view.coarse(raw, lambda layer=layer: result.resized(layer)[index, 0])
        status = result.status[layer][index]
        panels.append(Image(
            title=layer, note=range_note(raw) if status == "ok" else f"{status}: {range_note(raw)}", pixels=picture,
            overlay=shown, overlay_limits=shared if scale == "shared" else symmetric_limits(raw), aspect=view.aspect,
        ).fit(side))  # fmt: skip
    return panels


def _contour_panel(result: Any, index: int, view: View, picture: np.ndarray, side: int) -> Image:
    known = result.label is not None
    labels = view.plane(result.label[index, 0] if known else result.prediction[index])
    which = "reference" if known else "prediction"
    slice_ = f", slice {view.position}" if view.position is not None else ""
    return Image(
        title="image", note=f"{which}{slice_}; {range_note(picture)}", pixels=picture, labels=np.clip(labels, 0, None),
        class_names=result.classes or {}, aspect=view.aspect,
    ).fit(side)  # fmt: skip
