"""Figures of many masked latents: a grid over fractions, their numbers, and pictures beside one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toolkit.errors import ConfigError, ResultError
from toolkit.inference.volumes import one_map
from toolkit.show.colours import painted
from toolkit.show.compose import composer
from toolkit.show.panels import Figure, Image, Panel, range_note, symmetric_limits
from toolkit.show.slices import result_view

# what a grid can show, and how that is read
SHOWN = {
    "image": "Each picture has its own grey range, stated above it.",
    "segmentation": "Label maps: black is background.",
    "entropy": "Entropies share one range.",
}


@composer()
def masked_grid(
    rows: Mapping[str, Sequence[Any]],
    *,
    show: Sequence[str] = ("segmentation", "entropy"),
    index: int = 0,
    side: int = 110,
) -> Figure:
    """One row (or one a quantity) for every entry, one column for every fraction; the input and its reference first.

    Label maps are in the colours of their classes, entropies share the range 0 to log2(classes) (regions: 1), decoded images have
    their own range, which is written above them.

    Args:
        rows: per row name, `MaskedLatent` results of the same image at rising fractions.
        show: any of "image", "segmentation" and "entropy".

    Raises:
        ConfigError: something else to show.
        ResultError: no rows, an unknown image, or no decoded image in a result.
    """
    unknown = [what for what in show if what not in SHOWN]
    if unknown or not show:
        raise ConfigError(f"Cannot show {unknown or 'nothing'}.", fix=f"Choose from {', '.join(SHOWN)}.")
    results = [result for row in rows.values() for result in row]
    if not results or any(not -len(r.cases) <= index < len(r.cases) for r in results):
        raise ResultError("A grid needs results that all hold the image.", where=f"index={index}")
    if "image" in show and any(result.image is None for result in results):
        raise ResultError("This network decodes no image.", fix='Leave "image" out of `show`.')
    grid = [_row(name, row, what, index, side) for name, row in rows.items() for what in show]
    first = results[0]
    networks = {one.provenance.get("weights"): one for one in results}  # each network's score is told once
    reading = SHOWN[show[0]] if len(show) == 1 else "Entropies share one range; decoded images have their own."
    modes = sorted({result.bn_mode for result in results})
    skips = sorted({result.skips for result in results})
    return Figure(
        title=f"Masked latent of {first.layer}",
        subtitle=f"Columns: share of the code that is masked. Batch statistics: {', '.join(modes)}; skip connections: "
        f"{', '.join(skips)}. {reading}",
        rows=grid,
        caption=f"case {first.cases[index]}",
        sources=(list(networks.values()), ()),
    )


def _row(name: str, row: Sequence[Any], what: str, index: int, side: int) -> list[Panel | None]:
    first = row[0]
    organs = first.segmentation[0] if first.label is None else first.label
    reference = one_map(organs[index], first.input.ndim - 2)
    view = result_view(first, index, {index: reference[None] > 0})
    classes = max(2, len(first.classes), 1 + max(int(result.segmentation[0].max()) for result in row))
    classes = 2 if first.segmentation[0].ndim == first.input.ndim else classes  # regions: each has its own yes or no
    label = np.clip(view.plane(reference), 0, None)

    def panel(result: Any, masked: bool, title: str, note: str = "") -> Panel:
        """The picture of the masked code, or of the input."""
        if what == "segmentation":
            labels = view.plane(one_map(result.segmentation[1][index], len(view.size))) if masked else label
            note = note or f"{(labels > 0).sum() / max(1, (label > 0).sum()):.2f} × reference"
            image = Image(title=title, note=note, pixels=painted(labels), limits=(0, 255), labels=labels)
            image.class_names = result.classes or {}
            return view.panel(image, side)
        picture = view.picture(result.input[index])
        if what == "image":
            picture = view.picture(result.image[1][index]) if masked else picture
            return view.panel(Image(title=title, note=range_note(picture), pixels=picture), side)
        entropy = view.plane(result.entropy[1][index])
        image = Image(title=title, note=f"mean {entropy.mean():.2f} bits", pixels=picture, overlay=entropy, bar=True)
        image.overlay_limits, image.overlay_scale = (0.0, float(np.log2(classes))), "sequential"
        return view.panel(image, side)

    which = "input" if what == "image" else "reference" if first.label is not None else "clean"
    head = None if what == "entropy" else panel(first, False, f"{name}: {which}", " ")
    return [head, *(panel(result, True, f"{result.fraction:.0%}") for result in row)]


def masking_summary(result: Any) -> dict[str, float]:
    """Over all images of a `MaskedLatent`: foreground relative to the reference, excess, deficit, mean entropy."""
    table = result.table()
    rows = table[table["class"] == -1]  # a class may be called "foreground" itself
    total = float(rows["reference_voxels"].sum()) or float("nan")
    ratio = float(rows["masked_voxels"].sum()) / total
    under = float((rows["under"] * rows["reference_voxels"]).sum()) / total
    return {"ratio": ratio, "over": ratio + under - 1, "under": under, "entropy": float(rows["entropy_masked"].mean())}


@composer()
def gallery(pictures: Mapping[str, Any], *, side: int = 150) -> Figure:
    """The pictures in a row and, below, how each differs from the first, in one symmetric range.

    Args:
        pictures: (H, W) arrays of one size by name; the first is the original.

    Raises:
        ResultError: fewer than two pictures, or of several sizes.
    """
    arrays = {name: np.asarray(one, dtype=float) for name, one in pictures.items()}
    if len(arrays) < 2 or len({one.shape for one in arrays.values()}) != 1:
        raise ResultError("A gallery needs an original and at least one picture of the same size.")
    original, *others = arrays.values()
    changes = [one - original for one in others]
    above = [Image(title=name, note=range_note(one), pixels=one).fit(side) for name, one in arrays.items()]
    below = [
        Image(
            title="difference",
            note=f"root mean square {np.sqrt((one**2).mean()):.2g}",
            pixels=np.zeros_like(original),
            limits=(-1.0, 1.0),
            overlay=one,
            overlay_limits=symmetric_limits(np.stack(changes)),
            overlay_scale="diverging",
            bar=one is changes[-1],
        )
        for one in changes
    ]
    return Figure(
        title="Ways to corrupt an image",
        subtitle="Above: each picture in its own grey range. Below: the difference from the first, all in one range.",
        rows=[[*above], [None, *(one.fit(side) for one in below)]],
        sources=({}, ()),
    )
