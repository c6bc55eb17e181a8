"""Figures of the measures: channel similarity, projections and drift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from toolkit.errors import ResultError
from toolkit.show.captions import caption
from toolkit.show.panels import Figure, Heatmap, Panel


def channel_similarity(result: Any, *, note: str = "", side: int = 300, name: str = "") -> Figure:
    """The whole matrix of the living channels, in the result's form.

    Args:
        result: a `ChannelSimilarity`.
        note: sentence for the caption, for example which network it is.
        side: edge of the matrix in pixels.
        name: name of the network in the panel's title.
    """
    return Figure(
        title=f"Channel similarity of {result.layer or 'a layer'}",
        subtitle="Rows and columns are channels in index order. Off the diagonal, 1 = redundant and 0 = unrelated.",
        rows=[[_matrix(result, side, name, _signed(result))]],
        caption=caption(result.provenance, note),
    )


def channel_similarities(
    results: Sequence[Sequence[Any]], names: Sequence[str], *, note: str = "", side: int = 220
) -> Figure:
    """Several matrices: one row a network (named by `names`), one column a layer.

    Raises:
        ResultError: names and rows do not match.
    """
    if len(results) != len(names):
        raise ResultError(f"{len(results)} rows of matrices need as many names, not {len(names)}.")
    signed = any(_signed(result) for row in results for result in row)
    rows: list[list[Panel | None]] = [
        [_matrix(result, side, name, signed) for result in row]
        for row, name in zip(results, names, strict=True)
    ]
    captions = [caption(row[0].provenance, name) for row, name in zip(results, names, strict=True)]
    return Figure(
        title="Channel similarity",
        subtitle="One row a network, one column a layer; channels in index order. Off the diagonal, 1 = redundant and 0 = "
        "unrelated. The redundancy is the mean off the diagonal, averaged over images.",
        rows=rows,
        caption="\n".join([*captions, note] if note else captions),
    )


def _signed(result: Any) -> bool:
    values = np.asarray(result.matrix, dtype=float)
    return result.form != "absolute" and bool(np.nanmin(values) < -0.02)


def _matrix(result: Any, side: int, name: str, signed: bool) -> Heatmap:
    values = np.asarray(result.matrix, dtype=float)
    off = values[~np.eye(len(values), dtype=bool)]
    dead = f", {len(result.dead)} dead" if len(result.dead) else ""
    return Heatmap(
        title=f"{name}: {result.layer}" if name else result.layer,
        note=f"{result.form}, redundancy {result.redundancy:.2f}, "
        f"off-diagonal {np.nanmin(off):.2f} to {np.nanmax(off):.2f}{dead}",
        values=values, limits=(-1.0, 1.0) if signed else (0.0, 1.0), scale="diverging" if signed else "sequential",
        width=side, height=side, x_label="channel", y_label="channel",
    )  # fmt: skip
