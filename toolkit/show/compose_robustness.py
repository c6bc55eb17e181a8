"""Figures of robustness: scores of several networks on several test sets, as boxes and as one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toolkit.errors import ResultError
from toolkit.measure.undefined_distances import counted
from toolkit.results import DataFrame, as_table
from toolkit.show.captions import credits
from toolkit.show.compose_compare import broken
from toolkit.show.panels import Boxes, Figure, Heatmap, Series

Scores = Mapping[str, Mapping[str, "DataFrame"]]


def score_boxes(
    evaluations: Scores, *, metric: str = "dice", note: str = "", provenance: Mapping[str, Any] | None = None
) -> Figure:
    """Boxes of the volumes' scores: one group a test set, one box a network.

    A volume's score is the mean over its classes; a missed or spurious class counts as 0, a class absent from both
    maps is left out.

    Args:
        metric: "dice" or "iou".

    Raises:
        ResultError: a table without this metric.
    """
    series, counts = [], set()
    for name, sets in evaluations.items():
        places: list[str] = []
        values: list[float] = []
        for place, table in sets.items():
            scores = volume_scores(table, metric)
            places += [place] * len(scores)
            values += scores.tolist()
            counts.add(len(scores))
        series.append(Series(name=name, x=places, y=values))
    most = len(next(iter(evaluations.values())))
    volumes = "/".join(str(count) for count in sorted(counts))
    panel = Boxes(
        title=f"{metric} of every volume",
        note=f"{volumes} volumes a test set; box: quartiles, line: median, whiskers: within 1.5 box heights, points: beyond",
        series=series,
        y_label=metric.capitalize(),
        y_range=(0.0, 1.0),
        width=max(420, 40 + 34 * most * len(series)),
        height=300,
    )
    return Figure(
        title="Robustness: scores on every test set",
        subtitle="A volume's score is the mean over its classes; missed and spurious classes count as 0.",
        rows=[[panel]],
        **credits(provenance or [next(iter(sets.values())) for sets in evaluations.values()], note),
    )


def score_table(
    evaluations: Scores,
    *,
    metric: str = "dice",
    title: str = "Robustness table",
    note: str = "",
    provenance: Mapping[str, Any] | None = None,
) -> Figure:
    """Mean score of every network (rows) on every test set (columns) and, of several sets, their mean.

    Args:
        metric: "dice" or "iou".

    Raises:
        ResultError: a table without this metric, or networks scored on different sets.
    """
    table = score_means(evaluations, metric)
    several = table.shape[1] > 2
    table = table if several else table.drop(columns="mean")
    panel = Heatmap(
        title=f"mean {metric} of the volumes",
        note="colours run from 0 to 1",
        values=table.to_numpy(),
        annotate=True,
        row_names=list(table.index),
        column_names=[broken(str(name)) for name in table.columns],
        width=max(150, 66 * table.shape[1]),
        height=36 * table.shape[0] + 8,
    )
    return Figure(
        title=title,
        subtitle="The last column is the mean over the test sets, each weighing the same." if several else "",
        rows=[[panel]],
        **credits(provenance or [next(iter(sets.values())) for sets in evaluations.values()], note),
    )


def score_means(evaluations: Scores, metric: str = "dice") -> DataFrame:
    """One row a network, one column a test set, and last "mean" over the sets."""
    if len({tuple(sets) for sets in evaluations.values()}) != 1:
        raise ResultError("The networks were scored on different test sets, or there is none.")
    means = {
        name: {place: float(np.mean(volume_scores(table, metric))) for place, table in sets.items()}
        for name, sets in evaluations.items()
    }
    table = as_table(means).T
    return table.assign(mean=table.mean(axis=1))


def volume_scores(table: DataFrame, metric: str = "dice") -> np.ndarray:
    """One number a volume: the mean of the metric over its classes; a missed organ counts as the image's diagonal."""
    rows = counted(table, metric)
    if not len(rows):
        raise ResultError(f"A table has no rows of the metric {metric!r}.")
    return rows.groupby("case", sort=True)["value"].mean().to_numpy(dtype=float)
