"""Figures of the dispersive loss: distances against its reach, contours of predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toolkit.errors import ResultError
from toolkit.methods.med_disseg.regularizer import ACTIVE_BAND, preset_distances
from toolkit.results import DataFrame
from toolkit.show.captions import credits
from toolkit.show.panels import Figure, Image, Lines, Panel, histogram, number_text


def active_band(
    features: Any,
    table: DataFrame,
    *,
    title: str = "Distances and reach of the dispersive loss",
    note: str = "",
    provenance: Mapping[str, Any] | None = None,
    bins: int = 24,
) -> Figure:
    """Per preset, how far pairs of images lie apart in units of tau; the mark is where the loss's reach ends.

    Args:
        features: (B, C, *S) of one batch.
        table: `preset_check(features)`.
        bins: of the histograms.
    """
    panels: list[Panel | None] = []
    for row in table.to_dict("records"):
        distances = np.asarray(preset_distances(features, row["preset"]), dtype=float)
        top = 1.1 * max(ACTIVE_BAND, float(distances.max()))
        panels.append(
            Lines(
                title=f"{row['preset']}: {row['status']}",
                note=f"loss {row['loss']:.5f}, gradient {number_text(row['gradient_norm'])}, {row['active_pairs']:.0%} of pairs in reach",
                series=[histogram("pairs", *np.histogram(distances, bins, (0.0, top)))],
                marks=[(ACTIVE_BAND, "")],
                x_label="distance / tau",
                y_label="share of pairs",
                legend=False,
                x_range=(0.0, top),
                y_range=(0.0, 1.05),
                width=250,
                height=190,
            )
        )
    return Figure(
        title=title,
        subtitle=f"A pair farther apart than {ACTIVE_BAND} tau adds less than 1e-8 to the mean inside the logarithm (dotted line). Every "
        "panel has its own axis.",
        rows=[panels],
        **credits(provenance or {}, note),
    )


def qualitative(
    cases: Sequence[Any],
    predictions: Mapping[str, Sequence[Any]],
    *,
    note: str = "",
    side: int = 130,
    provenance: Mapping[str, Any] | None = None,
) -> Figure:
    """One row a case: the image, the contours of every network's prediction, and those of the reference.

    Args:
        cases: 2D cases with labels.
        predictions: per network, one label map (H, W) a case.

    Raises:
        ResultError: a network without one map a case.
    """
    if any(len(maps) != len(cases) for maps in predictions.values()):
        raise ResultError("Every network needs one label map a case.", where="qualitative(predictions=...)")
    rows: list[list[Panel | None]] = []
    for index, case in enumerate(cases):
        image, label = np.asarray(case.image, dtype=float), np.asarray(case.label)
        picture = np.moveaxis(image, 0, -1) if len(image) == 3 else image[0]
        row: list[Panel | None] = [Image(title=str(case.id), pixels=picture).fit(side)]
        for name, maps in predictions.items():
            prediction = np.asarray(maps[index])
            shared, total = ((prediction > 0) & (label > 0)).sum(), (prediction > 0).sum() + (label > 0).sum()
            score = f"Dice {2 * shared / total:.2f}" if total else "nothing to find"
            if total and (prediction > 0).all():  # a map without any contour
                score += ", all foreground"
            row.append(Image(title=name, note=score, pixels=picture, labels=prediction).fit(side))
        row.append(Image(title="reference", pixels=picture, labels=label).fit(side))
        rows.append(row)
    return Figure(
        title="Predictions beside the reference",
        subtitle="Contours of the most likely class; Dice of this image over all foreground. The cases are "
        f"{', '.join(str(case.id) for case in cases)}.",
        rows=rows,
        **credits(provenance or {}, note),
    )
