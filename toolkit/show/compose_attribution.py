"""Figures of attributions to the input or to a layer's units."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.errors import ResultError
from toolkit.explain.attribution_result import AttributionResult
from toolkit.show.captions import caption
from toolkit.show.compose import compose
from toolkit.show.compose_explain import target_text
from toolkit.show.panels import Figure, Image, Panel, range_note, symmetric_limits
from toolkit.show.slices import choose_view

_NAMES = {
    "integrated_gradients": "Integrated gradients",
    "occlusion": "Occlusion",
    "saliency": "Gradient of the score",
    "input_x_gradient": "Input times gradient",
    "layer_conductance": "Layer conductance",
    "feature_ablation": "Feature ablation",
}


@compose.register
def attribution(
    result: AttributionResult, *, index: int = 0, position: int | None = None, note: str = "", side: int = 260
) -> Figure:
    """The image with the target's region, then the signed attribution summed over channels.

    Args:
        result: an `AttributionResult`.
        index: which image of the batch.
        position: slice of a volume; None = where the target's region is largest.
        note: sentence for the caption.
        side: longer edge of a picture in pixels.

    Raises:
        ResultError: no such image or slice.
    """
    if not -len(result.cases) <= index < len(result.cases):
        raise ResultError(f"There is no image {index}; the result holds {len(result.cases)}.", where="index")
    view = choose_view(
        tuple(result.image.shape[2:]),
        result.padded_size,
        focus=result.region[index, 0] if _fits(result) else None,
        position=position,
        spacing=result.spacing[index],
    )
    picture = view.picture(result.image[index])
    region = view.plane(np.asarray(result.region[index, 0], dtype=int)) if _fits(result) else None
    slice_ = f", slice {view.position}" if view.position is not None else ""
    panels: list[Panel | None] = [
        Image(
            title="image",
            note=f"the region that is scored{slice_}; {range_note(picture)}",
            pixels=picture,
            labels=region,
            aspect=view.aspect,
        ).fit(side)
    ]
    for name, maps in result.maps.items():
        raw = np.asarray(maps[index, 0], dtype=float)
        shown = view.coarse(raw, lambda name=name: result.resized(name)[index, 0])
        panels.append(
            Image(
                title=name,
                note=range_note(raw),
                pixels=picture,
                overlay=shown,
                overlay_limits=symmetric_limits(raw),
                aspect=view.aspect,
                bar=True,
            ).fit(side)
        )
    return Figure(
        title=f"{_NAMES.get(result.method, result.method)} of {target_text(result.target)}",
        subtitle="Raw signed values, summed over channels, on a symmetric colour range: red adds to the score.",
        rows=[panels],
        caption=caption(result.provenance, "; ".join(filter(None, (f"case {result.cases[index]}", note)))),
    )


def _fits(result: Any) -> bool:
    """Whether the output, and so the region, has the image's size."""
    return bool(result.region.shape[2:] == result.image.shape[2:])
