"""Figures of comparisons: layers with layers, collapsed with dispersed, stages with stages, methods with a baseline."""

from __future__ import annotations

import numpy as np

from toolkit.measure.collapse import Collapse
from toolkit.measure.layer_similarity import LayerSimilarity
from toolkit.measure.statistics import Comparison
from toolkit.measure.transfer import Transfer
from toolkit.show.captions import caption
from toolkit.show.compose import compose
from toolkit.show.panels import Bars, Figure, Heatmap, Intervals, Lines, Panel, Series, number_text, range_note


@compose.register
def layer_similarity(result: LayerSimilarity, *, note: str = "") -> Figure:
    """All layers of one store against all layers of another, with the numbers in the cells.

    Args:
        result: a `LayerSimilarity`.
        note: sentence for the caption.
    """
    values = np.asarray(result.matrix, dtype=float)
    negative = bool(np.nanmin(values) < -0.02)
    panel = Heatmap(
        title=f"{result.method}, {result.rows} rows",
        note=range_note(values),
        values=values,
        limits=(-1.0, 1.0) if negative else (0.0, 1.0),
        scale="diverging" if negative else "sequential",
        row_names=result.layers_a,
        column_names=[_broken(name) for name in result.layers_b],
        annotate=values.size <= 150,
        x_label="layers of the second network",
        y_label="layers of the first",
        width=max(160, 62 * values.shape[1]),
        height=max(120, 36 * values.shape[0]),
    )
    return Figure(
        title="Similarity of layers",
        subtitle="1 = the same up to what the method ignores.",
        rows=[[panel]],
        caption=caption(result.provenance, note),
    )


def _broken(name: str) -> str:
    """A layer's name on at most two lines."""
    return name if len(name) < 10 else name.replace(".", ".\n", 1)


@compose.register
def collapse(result: Collapse, *, note: str = "") -> Figure:
    """Distribution of pairwise distances, and the diagnostics that lie between -1 and 1.

    Args:
        result: a `Collapse`.
        note: sentence for the caption.
    """
    counts, edges = np.asarray(result.histogram, dtype=float), np.asarray(result.edges, dtype=float)
    share = counts / counts.sum() if counts.sum() else counts
    distances = Lines(
        title="distances between rows",
        note=f"{number_text(float(edges[0]))} to {number_text(float(edges[-1]))}",
        series=[Series(name="pairs", x=(edges[1:] + edges[:-1]) / 2, y=share)],
        x_label="Euclidean distance",
        y_label="share of pairs",
        legend=False,
        width=280,
        height=230,
    )
    scaled = {
        f"{name} / channels" if name in ("effective_rank", "participation_ratio") else name: (
            value / result.channels if name in ("effective_rank", "participation_ratio") else value
        )
        for name, value in result.values.items()
        if name != "uniformity"
    }
    kept = {name: value for name, value in scaled.items() if np.isfinite(value) and -1 <= value <= 1.000001}
    numbers = Intervals(
        title="diagnostics",
        note=f"uniformity {number_text(float(result.values.get('uniformity', np.nan)))}",
        series=[Series(name="value", x=list(kept.values()), y=[name.replace("_", " ") for name in kept])],
        x_label="value",
        x_range=(min(0.0, *kept.values(), 0.0) - 0.03, 1.05),
        legend=False,
        width=260,
        height=230,
    )
    return Figure(
        title=f"Collapse diagnostics of {result.layer}",
        subtitle=f"{result.rows} rows, {result.channels} channels. A collapsed space has small distances, cosines near 1 and a "
        "rank near 1.",
        rows=[[distances, numbers]],
        caption=caption(result.provenance, note),
    )


@compose.register
def transfer(result: Transfer, *, note: str = "") -> Figure:
    """The R matrix (rows: after each stage, columns: tested on) and the mean of every metric.

    Args:
        result: a `Transfer`.
        note: sentence for the caption.
    """
    scores = np.asarray(result.scores, dtype=float)
    matrix = Heatmap(
        title="score on each task after each stage",
        note=range_note(scores),
        values=scores,
        row_names=[f"after {name}" for name in result.tasks],
        column_names=list(result.tasks),
        annotate=True,
        width=max(150, 56 * len(scores)),
        height=max(110, 46 * len(scores)),
        x_label="tested on",
    )
    means = result.numbers[(result.numbers["task"] == "mean") & result.numbers["value"].notna()]
    panels: list[Panel | None] = [matrix]
    if len(means):
        panels.append(
            Intervals(
                title="metrics, mean over tasks",
                note=range_note(means["value"].to_numpy(dtype=float)),
                series=[
                    Series(name="mean", x=means["value"].to_numpy(), y=[m.replace("_", " ") for m in means["metric"]])
                ],
                marks=[(0.0, "")],
                x_label="value",
                legend=False,
                width=280,
                height=30 + 20 * len(means),
            )
        )
    return Figure(
        title="Transfer over the sequence",
        subtitle="A column that falls from one row to the next is forgetting; all colours run from 0 to 1.",
        rows=[panels],
        caption=caption(result.provenance, note),
    )


@compose.register
def comparison(result: Comparison, *, note: str = "") -> Figure:
    """Mean of every method and its paired difference from the baseline, with 95 % intervals.

    Args:
        result: a `Comparison`.
        note: sentence for the caption.
    """
    table = result.numbers
    methods = [str(name) for name in table["method"]]
    means = Bars(
        title=result.metric,
        note=range_note(table["mean"].to_numpy(dtype=float)),
        series=[
            Series(
                name="mean",
                x=methods,
                y=table["mean"].to_numpy(),
                low=table["low"].to_numpy(),
                high=table["high"].to_numpy(),
            )
        ],
        y_label=result.metric,
        y_range=(0.0, 1.0) if result.metric in ("dice", "iou") else None,
        legend=False,
        width=60 + max(70, 7 * max(map(len, methods))) * len(methods),
        height=210,
    )
    others = table[table["method"].astype(str) != str(result.baseline)]
    differences = Intervals(
        title=f"difference from {result.baseline}",
        note="paired by patient; zero = no difference",
        legend=False,
        series=[
            Series(
                name="difference",
                x=others["difference"].to_numpy(),
                y=[str(name) for name in others["method"]],
                low=others["difference_low"].to_numpy(),
                high=others["difference_high"].to_numpy(),
            )
        ],
        marks=[(0.0, "")],
        x_label=f"difference in {result.metric}",
        width=260,
        height=60 + 36 * max(1, len(others)),
    )
    return Figure(
        title=f"Methods compared with {result.baseline}",
        subtitle="An interval that holds zero is no evidence of a difference.",
        rows=[[means, differences if len(others) else None]],
        caption=caption(result.provenance, note),
    )
