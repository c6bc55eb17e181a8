"""Figure of stored features: what each channel of each layer does for each class."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.errors import ResultError
from toolkit.features.store import Features
from toolkit.show.captions import credits
from toolkit.show.compose import compose
from toolkit.show.panels import Figure, Heatmap, in_rows, symmetric_limits


@compose.register
def features(result: Features, *, note: str = "", layers: list[str] | None = None, columns: int = 2) -> Figure:
    """Mean of every channel within every class, one panel a layer, in units of the channel's standard deviation.

    Args:
        layers: layers to draw, default all.
    """
    panels = [_class_means(result, layer) for layer in layers or result.layers]
    return Figure(
        title="Class means of the features",
        subtitle="Each channel is centred on its mean over all rows and divided by its standard deviation: red is above, blue "
        "below. Every panel has its own symmetric scale.",
        rows=in_rows(panels, columns),
        **credits(result, note),
    )


def _class_means(result: Any, layer: str) -> Heatmap:
    rows = np.asarray(result.rows(layer), dtype=float)
    if not len(rows):
        raise ResultError("There are no rows to draw.", where=layer, fix="Extract images that hold a class.")
    labels, names = result.cases["class"].to_numpy(), result.cases["class_name"]
    spread = rows.std(axis=0)
    scaled = (rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    present = np.unique(labels)
    means = np.stack([scaled[labels == label].mean(axis=0) for label in present])
    return Heatmap(
        title=layer,
        note=f"{len(rows)} rows, {rows.shape[1]} channels, means {means.min():.2f} to {means.max():.2f} sd",
        values=means,
        limits=symmetric_limits(means),
        scale="diverging",
        x_label="channel",
        width=340,
        height=26 * len(present) + 12,
        row_names=[str(names[labels == label].iloc[0]) for label in present],
    )
