"""Figures of training and evaluation: every loss term, scores per site and class, and of several test sets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toolkit.errors import ResultError
from toolkit.measure.intervals import mean_of
from toolkit.measure.segmentation import counted
from toolkit.measure.statistics import patient_column
from toolkit.results import DataFrame, as_table
from toolkit.show.captions import credits
from toolkit.show.compose import composer, for_networks
from toolkit.show.compose_compare import broken
from toolkit.show.panels import Bars, Boxes, Figure, Heatmap, Lines, Panel, Series, in_rows
from toolkit.training.run import Run

_OVERLAPS = ("dice", "iou")
_DIAGNOSTICS = ("gradient_status", "weight")
_TEXTS = {"total": "total loss (weighted sum)", "learning_rate": "learning rate", "gradient_ratio": "gradient ratio"}


def training_curves(
    histories: Mapping[str, DataFrame | Sequence[DataFrame]],
    *,
    stages: Sequence[str] = (),
    note: str = "",
    provenance: Mapping[str, Any] | None = None,
    columns: int = 3,
) -> Figure:
    """One panel for every loss term, gradient ratio and validation score; one curve a network.

    Args:
        histories: per network, `run.history`, or those of successive stages, which are laid end to end.
        stages: names of the stages, written where each begins.

    Raises:
        ResultError: no history holds a row.
    """
    joined = {name: _joined(frames) for name, frames in histories.items()}
    joined = {name: pair for name, pair in joined.items() if len(pair[0])}
    if not joined:
        raise ResultError("None of the histories holds a row yet.", fix="Train for at least one logged step.")
    starts = max((pair[1] for pair in joined.values()), key=len)
    marks = [(start, stages[i] if i < len(stages) else f"stage {i + 1}") for i, start in enumerate(starts)]
    frames = {name: pair[0] for name, pair in joined.items()}
    panels = [_term_panel(term, frames, marks if len(starts) > 1 else []) for term in curve_columns(frames.values())]
    if len(starts) > 1:  # one step axis for all: a term of one stage alone shows when that was
        last = max(float(frame["step"].max()) for frame in frames.values())
        for panel in panels:
            panel.x_range = (-0.02 * last, 1.04 * last)
    return Figure(
        title="Training curves",
        subtitle="Terms are shown before their weights. The gradient ratio compares regularizer and objective at the tapped "
        "layers: dead below 1e-8, dominant above 1.",
        rows=in_rows(panels, columns),
        **credits(provenance or histories, _with_regularizers(note, frames.values(), provenance or {})),
    )


@for_networks(Run)
def _runs(runs: Sequence[Run], names: Sequence[str], *, note: str = "", columns: int = 3) -> Figure:
    """The training curves of runs; see `training_curves`."""
    histories = {name or run.path.name: run.history for name, run in zip(names, runs, strict=True)}
    models = {name: run.model for name, run in zip(histories, runs, strict=True)}
    return training_curves(histories, note=note, columns=columns, provenance=models)


def curve_columns(frames: Any) -> list[str]:
    """Columns of histories that are worth a curve: losses and their terms, gradient ratios, validation scores."""
    columns: dict[str, None] = {}
    for frame in frames:
        weighted = [c.removesuffix("/weight") for c in frame.columns if c.endswith("/weight")]
        owners = {term.split("/")[0] for term in weighted}
        for column in frame.columns:
            owner, _, rest = column.partition("/")
            if not rest:
                wanted = column == "total"
            elif owner == "validation":
                wanted = rest.startswith("dice")
            elif owner in owners:
                wanted = column in weighted or rest == "gradient_ratio"
            else:
                wanted = owner != "seconds" and rest not in _DIAGNOSTICS
            if wanted and frame[column].dtype.kind in "fi" and frame[column].notna().any():
                columns[column] = None
    order = {"total": 0, "validation": 3}
    return sorted(
        columns, key=lambda c: (order.get(c.split("/")[0], 2 if c.endswith("gradient_ratio") else 1), "segreg" in c)
    )


def _joined(frames: DataFrame | Sequence[DataFrame]) -> tuple[DataFrame, list[float]]:
    import pandas as pd

    parts = [frames] if isinstance(frames, pd.DataFrame) else list(frames)
    shifted, starts, offset = [], [], 0.0
    for part in parts:
        if "step" not in part.columns or not len(part):
            continue
        starts.append(offset)
        shifted.append(part.assign(step=part["step"] + offset, part=len(starts)))
        offset += float(part["step"].max())
    return (pd.concat(shifted, ignore_index=True) if shifted else pd.DataFrame()), starts


def _term_panel(term: str, frames: Mapping[str, DataFrame], marks: Sequence[tuple[float, str]]) -> Lines:
    series, everything = [], []
    for name, frame in frames.items():
        if term not in frame.columns:
            continue
        rows = frame[["step", term, "part"]].dropna()
        if len(rows):
            everything.append(rows[term].to_numpy(dtype=float))
            cuts = np.flatnonzero(np.diff(rows["part"].to_numpy())) + 1  # a gap between stages
            x, y = (np.insert(part, cuts, np.nan) for part in (rows["step"].to_numpy(dtype=float), everything[-1]))
            series.append(Series(name=name, x=x, y=y))
    values = np.concatenate(everything)
    score = term.startswith("validation/")
    logarithmic = bool((values > 0).all()) and values.max() > 30 * values.min() and not score
    return Lines(
        title=term.replace("validation/", "validation: ").replace("/", " of ") if score else term,
        note=f"{values.min():.3g} to {values.max():.3g}" + (", log scale" if logarithmic else ""),
        series=series,
        x_label="step",
        y_label=_TEXTS.get(term.split("/")[-1], "Dice" if score else "loss term"),
        y_range=(0.0, 1.0) if score else None,
        log_y=logarithmic,
        marks=marks,
    ).sized(280, 180)


def _with_regularizers(note: str, frames: Any, provenance: Mapping[str, Any]) -> str:
    """The note, with the regularizers whose terms are drawn if the provenance does not name them."""
    used = {c.split("/")[0] for frame in frames for c in frame.columns if c.endswith("/weight")}
    unnamed = sorted(name for name in used if name not in repr(provenance))
    return "; ".join(filter(None, (note, f"regularizer {', '.join(unnamed)}" if unnamed else "")))


@composer()
def scores_by_site(evaluations: Mapping[str, DataFrame], *, metric: str = "dice", columns: int = 4) -> Figure:
    """One panel a class: mean score per site for every network, with its 95 % interval over patients.

    A missed or spurious class counts as Dice 0, its distance as the image's diagonal; a class absent from both maps is
    left out. The panel's note gives the counts. Intervals are those of `toolkit.compare_scores` for one training
    (Student's and bootstrap-t, see `toolkit.measure.intervals`): they say nothing of other seeds. One patient has none.

    Args:
        evaluations: per network, the table of `run.evaluate(...)`.
        metric: dice, iou, hd95 or assd.

    Raises:
        ResultError: a table without this metric, or without the diagonals that missed organs count.
    """
    tables = {name: table[table["metric"] == metric] for name, table in evaluations.items()}
    if not tables or any(not len(table) for table in tables.values()):
        raise ResultError(f"A table has no rows of the metric {metric!r}.")
    first = next(iter(tables.values()))
    classes, sites = list(dict.fromkeys(first["class"])), list(dict.fromkeys(first["site"]))
    groups: list[tuple[str, list[str]]] = [(str(c), [c]) for c in classes if c != "mean"]
    if len(groups) > 1:
        groups.append(("mean of the classes", [c for _, members in groups for c in members]))
    panels: list[Panel] = [_score_panel(name, members, tables, sites, metric) for name, members in groups]
    return Figure(
        title=f"{'Dice' if metric == 'dice' else metric.upper()} per site and class",
        subtitle="Mean over patients with its 95 % interval over patients, of one training"
        + (
            "; all axes run from 0 to 1." if metric in _OVERLAPS else "; a missed organ counts as the image's diagonal."
        ),
        rows=in_rows(panels, columns),
    )


def _score_panel(
    title: str, classes: list[str], tables: Mapping[str, DataFrame], sites: list[str], metric: str
) -> Bars:
    series, counts = [], []
    for name, table in tables.items():
        chosen = table[table["class"].isin(classes)]
        triples = [_interval(chosen[chosen["site"] == site], metric) for site in sites]
        mean, low, high = map(list, zip(*triples, strict=True))
        series.append(Series(name=name, x=sites, y=mean, low=low, high=high))
        status = chosen["status"].value_counts()
        counts.append(f"{name}: {status.get('missed', 0)} missed, {status.get('spurious', 0)} spurious")
    return Bars(
        title=title,
        note="; ".join(counts),
        series=series,
        x_label="site",
        y_label="Dice" if metric == "dice" else metric.upper(),
        y_range=(0.0, 1.0) if metric in _OVERLAPS else None,
    ).sized(max(170, 34 * len(sites) * max(1, len(tables)) // 2 + 60), 190)


def _interval(rows: DataFrame, metric: str) -> tuple[float, float, float]:
    """Mean over patients and its 95 % interval; classes, then cases, are averaged within a patient first."""
    rows = rows if rows.empty else counted(rows, metric)
    per_case = rows.groupby([*dict.fromkeys((patient_column(rows), "case"))], sort=True)["value"].mean()
    numbers = per_case.groupby(level=0).mean().to_numpy(dtype=float)
    if len(numbers) < 2:
        return (float(numbers[0]) if len(numbers) else math.nan), math.nan, math.nan
    low, high = mean_of(numbers[:, None]).interval()
    least, most = (0.0, 1.0) if metric in _OVERLAPS else (0.0, math.inf)
    return float(numbers.mean()), max(least, low), min(most, high)


Scores = Mapping[str, Mapping[str, "DataFrame"]]


@composer()
def score_boxes(evaluations: Scores, *, metric: str = "dice") -> Figure:
    """Boxes of the volumes' scores: one group a test set, one box a network.

    A volume's score is the mean over its classes; a missed or spurious class counts as 0, a class absent from both
    maps is left out.

    Raises:
        ResultError: a table without this metric.
    """
    series: list[Series] = []
    counts: set[int] = set()
    for name, sets in evaluations.items():
        scores = {place: volume_scores(table, metric) for place, table in sets.items()}
        counts |= {len(one) for one in scores.values()}
        places = [place for place, one in scores.items() for _ in one]
        series.append(Series(name=name, x=places, y=np.concatenate(list(scores.values())).tolist()))
    most = len(next(iter(evaluations.values())))
    volumes = "/".join(str(count) for count in sorted(counts))
    panel = Boxes(
        title=f"{metric} of every volume",
        note=f"{volumes} volumes a test set; box: quartiles, line: median, whiskers: within 1.5 box heights, points: beyond",
        series=series,
        y_label=metric.capitalize(),
        y_range=(0.0, 1.0),
    ).sized(max(420, 40 + 34 * most * len(series)), 300)
    return Figure(
        title="Robustness: scores on every test set",
        subtitle="A volume's score is the mean over its classes; missed and spurious classes count as 0.",
        rows=[[panel]],
        sources=([next(iter(sets.values())) for sets in evaluations.values()], ()),
    )


@composer()
def score_table(evaluations: Scores, *, metric: str = "dice") -> Figure:
    """Mean score of every network (rows) on every test set (columns) and, of several sets, their mean.

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
        row_names=list(table.index),
        column_names=[broken(str(name)) for name in table.columns],
        annotate=True,
    ).sized(max(150, 66 * table.shape[1]), 36 * table.shape[0] + 8)
    return Figure(
        title="Robustness table",
        subtitle="The last column is the mean over the test sets, each weighing the same." if several else "",
        rows=[[panel]],
        sources=([next(iter(sets.values())) for sets in evaluations.values()], ()),
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
    return rows.groupby([*{"site"}.intersection(rows), "case"], sort=True)["value"].mean().to_numpy(dtype=float)
