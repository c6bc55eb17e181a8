"""Figures of comparisons: layers with layers, stages with stages, methods with a baseline."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toolkit.measure.layer_similarity import LayerSimilarity
from toolkit.measure.statistics import Comparison
from toolkit.measure.transfer import Transfer
from toolkit.show.compose import composer
from toolkit.show.panels import Bars, Figure, Heatmap, Intervals, Panel, Series, range_note

_FORGETTING = "A column that falls from one row to the next is forgetting; all colours run from 0 to 1."


@composer(LayerSimilarity)
def layer_similarity(result: LayerSimilarity) -> Figure:
    """All layers of one store against all layers of another, with the numbers in the cells."""
    values = np.asarray(result.matrix, dtype=float)
    signed = result.method == "rsa"  # a correlation; the others lie between 0 and 1 but for the error of an estimate
    panel = Heatmap(
        title=f"{result.method}, {result.rows} rows",
        note=range_note(values),
        values=values,
        limits=(-1.0, 1.0) if signed else (0.0, 1.0),
        scale="diverging" if signed else "sequential",
        row_names=result.layers_a,
        column_names=[broken(name) for name in result.layers_b],
        x_label="layers of the second network",
        y_label="layers of the first",
        annotate=values.size <= 150,
    ).sized(max(160, 62 * values.shape[1]), max(120, 36 * values.shape[0]))
    return Figure(title="Similarity of layers", subtitle="1 = the same up to what the method ignores.", rows=[[panel]])


def broken(name: str) -> str:
    """A layer's or a test set's name on at most two lines."""
    return name if len(name) < 10 else re.sub(r"([. ])", r"\1\n", name, count=1)


@composer(Transfer)
def transfer(result: Transfer) -> Figure:
    """The R matrix (rows: after each stage, columns: tested on) and the mean of every metric."""
    matrix = _score_matrix("score on each task after each stage", result.scores, result.tasks, result.tasks)
    means = result.numbers[(result.numbers["task"] == "mean") & result.numbers["value"].notna()]
    panels: list[Panel | None] = [matrix]
    if len(means):
        values = means["value"].to_numpy(dtype=float)
        rows = [name.replace("_", " ") for name in means["metric"]]
        panel = Intervals(
            title="metrics, mean over tasks",
            note=range_note(values),
            series=[Series(name="mean", x=values, y=rows)],
            x_label="value",
            marks=[(0.0, "")],
            legend=False,
        ).sized(280, 30 + 20 * len(means))
        panels.append(panel)
    return Figure(title="Transfer over the sequence", subtitle=_FORGETTING, rows=[panels])


@composer()
def transfer_matrices(
    matrices: Mapping[str, np.ndarray], sites: Sequence[str], *, stages: Sequence[str] = ()
) -> Figure:
    """Score on every site after every stage, one matrix a network: rows are stages, columns the tested sites."""
    return Figure(
        title="Mean Dice on every site after every stage",
        subtitle=_FORGETTING,
        rows=[[_score_matrix(name, values, stages, sites) for name, values in matrices.items()]],
        sources=({}, ()),
    )


def _score_matrix(title: str, scores: Any, stages: Sequence[str], sites: Sequence[str]) -> Heatmap:
    values = np.asarray(scores, dtype=float)
    return Heatmap(
        title=title,
        note=range_note(values),
        values=values,
        row_names=[f"after {one}" for one in stages] or None,
        column_names=list(sites),
        x_label="tested on",
        annotate=True,
    ).sized(max(150, 54 * values.shape[1]), max(60, 45 * len(values)))


@composer(Comparison)
def comparison(result: Comparison) -> Figure:
    """Mean of every method and its paired difference from the baseline, with 95 % intervals."""
    table = result.numbers
    methods = [str(name) for name in table["method"]]
    mean, low, high = (table[name].to_numpy(dtype=float) for name in ("mean", "low", "high"))
    means = Bars(
        title=result.metric,
        note=range_note(mean),
        series=[Series(name="mean", x=methods, y=mean, low=low, high=high)],
        y_label=result.metric,
        y_range=(0.0, 1.0) if result.metric in ("dice", "iou") else None,
        legend=False,
    ).sized(60 + max(70, 7 * max(map(len, methods))) * len(methods), 210)
    others = table[table["method"].astype(str) != str(result.baseline)]
    names = ("difference", "difference_low", "difference_high")
    value, low, high = (others[name].to_numpy(dtype=float) for name in names)
    differences = Intervals(
        title=f"difference from {result.baseline}",
        note="paired by patient; zero = no difference",
        series=[Series(name="difference", x=value, y=list(map(str, others["method"])), low=low, high=high)],
        x_label=f"difference in {result.metric}",
        marks=[(0.0, "")],
        legend=False,
    ).sized(260, 60 + 36 * max(1, len(others)))
    counts = [f"{n} {what}{'s' * (n > 1)}" for what in ("patient", "seed") for n in {int(table[f"{what}s"].iloc[0])}]
    scores = ", ".join(f"{name} {value:.2f}" for name, value in zip(methods, mean, strict=True))
    seeds = (
        "" if int(table["seeds"].iloc[0]) > 1 else " With one seed it speaks of these trainings, not of the methods."
    )
    return Figure(
        title=f"Methods compared with {result.baseline}",
        subtitle=f"An interval that holds zero is no evidence of a difference.{seeds}",
        rows=[[means, differences if len(others) else None]],
        caption=f"{result.metric.capitalize() or 'Score'}: {scores} (n = {', '.join(counts)})",
    )
