"""Figures of a sequence: drift beside its null interval, forward transfer by task, transfer against Dice."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toolkit.errors import ResultError
from toolkit.measure.drift import Drift
from toolkit.results import DataFrame
from toolkit.show.compose import composer
from toolkit.show.panels import Axes, Figure, Intervals, Lines, Panel, Scatter, Series, in_rows, range_note

MEASURE_NAMES = {
    "centroid_shift": "centroid shift (relative)",
    "frechet": "Fréchet distance, squared",
    "sliced_w2": "sliced Wasserstein-2",
    "mmd2": "MMD, squared",
    "linear_cka": "1 \N{MINUS SIGN} linear CKA",
    "procrustes": "Procrustes disparity",
}
_INTERVALS = "bars are bootstrap intervals over patients. "
_NO_INTERVALS = "there are too few patients for intervals. "
NULLS = "Null: two random halves of stage 1's patients, what other patients would have shown. "
_REPEATS = "Repeat: stage 1 and {} on the same patients, what {} alone would have shown. "


@composer(Drift, several=True)
def drifts(
    results: Sequence[Any], names: Sequence[str], *, measures: Sequence[str] | None = None, columns: int = 3
) -> Figure:
    """One panel a measure, one row a class, one colour a pair of stages; several networks side by side.

    Args:
        measures: which of the results' measures to draw.

    Raises:
        ResultError: none of the measures is in the results.
    """
    tables = {}
    for name, table in zip(names, [result.table() for result in results], strict=True):
        # between stages and with a value (from 0 is the distance to N(0, I), another quantity)
        tables[name] = table[(table["from"] > 0) & table["value"].notna()]
    first = next(iter(tables.values()))
    drawn = [m for m in measures or MEASURE_NAMES if (first["measure"] == m).any()]
    if not drawn:
        raise ResultError("The results hold none of these measures.", where=str(measures))
    panels = [_panel(measure, tables) for measure in drawn]
    tallest = max(panel.height for panel in panels)
    every = {one.name: one for panel in panels for one in panel.series}
    for panel in panels:  # equal rows, and a legend that names what the last panel lacks
        own = {one.name: one for one in panel.series}
        gaps = {name: np.full(len(one.y), np.nan) for name, one in every.items()}
        absent = {n: dataclasses.replace(one, x=gaps[n], low=gaps[n], high=gaps[n]) for n, one in every.items()}
        panel.height, panel.series = tallest, [own.get(name) or absent[name] for name in every]
    return Figure(
        title=f"Drift of {results[0].layer}",
        subtitle="Measured in the full feature space; "
        + (_INTERVALS if any(table["low"].notna().any() for table in tables.values()) else _NO_INTERVALS)
        + (NULLS if any(table["null_high"].notna().any() for table in tables.values()) else "")
        + "".join(dict.fromkeys(repeat_of(result) for result in results))
        + "Raw measures see rotations, rotation-free ones do not.",
        rows=in_rows(panels, columns),
    )


def repeat_of(result: Drift) -> str:
    """What the repeat of stage 1 is and which question it answers; nothing without a repeat."""
    if "repeat" not in result.numbers:
        return ""
    what = result.settings.get("repeat", "its repeat")
    return _REPEATS.format(what, "a jitter" if "jitter" in what else "another training")


def _panel(measure: str, tables: dict[str, DataFrame]) -> Intervals:
    chosen = {name: table[table["measure"] == measure] for name, table in tables.items()}
    classes = list(dict.fromkeys(str(c) for table in chosen.values() for c in table["class"]))
    series, nulls, repeats = [], [], []
    for name, table in chosen.items():
        pairs = list(dict.fromkeys(zip(table["from"], table["to"], strict=True)))
        for start, end in pairs:
            rows = table[(table["from"] == start) & (table["to"] == end)].drop_duplicates("class")
            values = rows.set_index(rows["class"].astype(str)).reindex(classes)
            stages = f"{start:.0f} to {end:.0f}"
            label = " ".join(filter(None, (name, stages if len(pairs) > 1 or not name else "")))
            series.append(_series(label, classes, values["value"], values["low"], values["high"]))
        rows = table.drop_duplicates("class")
        null = rows.set_index(rows["class"].astype(str)).reindex(classes)
        if null["null_high"].notna().any():
            middle = (null["null_low"] + null["null_high"]) / 2
            label = f"{name} null".strip()
            nulls.append(_series(label, classes, middle, null["null_low"], null["null_high"], colour=label))
        if "repeat" in null and null["repeat"].notna().any():
            label = f"{name} repeat".strip()
            repeats.append(_series(label, classes, null["repeat"], null["repeat_low"], null["repeat_high"], label))
    ends = [np.stack([np.asarray(one.low, dtype=float), np.asarray(one.high, dtype=float)]) for one in nulls]
    if len(nulls) > 1 and all(np.allclose(one, ends[0], equal_nan=True) for one in ends):
        nulls = nulls[:1]  # all networks are compared with one stage 1
    if len(nulls) == 1:
        nulls = [dataclasses.replace(nulls[0], name="null", colour="null")]
    drawn = [*series, *nulls, *repeats]
    kind = next(iter(chosen.values()))["kind"].iloc[0]
    everything = np.concatenate([np.asarray(part, dtype=float) for one in drawn for part in (one.x, one.high)])
    top = float(np.nanmax([0.0, *everything])) if np.isfinite(everything).any() else 1.0
    bottom = min(0.0, float(np.nanmin([np.nanmin(np.asarray(one.low, dtype=float)) for one in drawn])))
    return Intervals(
        title=MEASURE_NAMES.get(measure, measure),
        note=str(kind),
        series=drawn,
        x_label="value",
        x_range=(bottom * 1.05, top * 1.08 or -0.05 * bottom or 1.0),
    ).sized(230, 40 + max(34, 8 * len(drawn)) * len(classes))


def _series(name: str, classes: list[str], value: Any, low: Any, high: Any, colour: str | None = None) -> Series:
    """Values with their intervals, of no width where none is known."""
    middle, *ends = (np.asarray(one, dtype=float) for one in (value, low, high))
    low, high = (np.where(np.isfinite(end), end, middle) for end in ends)
    symbol = 0 if colour is None else 6
    return Series(name=name, x=middle, y=classes, low=low, high=high, colour=colour, symbol=symbol)


Pairs = Mapping[str, tuple[Sequence[Any], Sequence[Any]]]


@composer()
def forward_transfer(pairs: Pairs, *, method: str = "SegReg", metric: str = "fwt_single_task") -> Figure:
    """Forward transfer by task, dashed without and solid with the method (SegReg, Fig. 2a).

    Args:
        metric: convention of forward transfer, see `toolkit.transfer_metrics`.

    Raises:
        ResultError: the transfers do not hold the metric, or are of different tasks.
    """
    tasks = _tasks(pairs)
    later = list(range(2, len(tasks) + 1))
    series = _curves(pairs, tasks, metric, method)
    counts = {len(transfers) for arms in pairs.values() for transfers in arms}
    seeds = "none here: a single seed" if counts == {1} else f"{', '.join(map(str, sorted(counts)))} seeds"
    note = range_note(np.concatenate([np.asarray(one.y, dtype=float) for one in series]))
    if len(later) == 1:  # no line to draw: two marks a base method
        marks = "One mark without, one with"
        panel: Axes = Intervals(
            series=_as_rows(series, list(pairs), method), x_label=f"Dice difference on {tasks[1]}"
        ).sized(420, 40 + 50 * len(pairs))
    else:
        marks = "Dashed without, solid with"
        panel = Lines(
            series=series,
            x_label="task: " + ", ".join(f"{i} = {tasks[i - 1]}" for i in later),
            y_label="Dice difference",
            x_range=(1.85, len(tasks) + 0.15),
        ).sized(420, 250)
    panel.title, panel.note = metric.replace("_", " "), note
    return Figure(
        title="Forward transfer by task",
        subtitle=f"{marks} {method}; bands are the deviation over seeds ({seeds}).",
        rows=[[panel]],
        sources=_sources(pairs, method),
    )


@composer()
def transfer_scatter(pairs: Pairs, *, method: str = "SegReg") -> Figure:
    """Final mean Dice against mean forward and mean backward transfer (SegReg, Fig. 2b and 2c).

    A line leads from each base method (1) to the same with the method added (2); towards the top right is better.

    Raises:
        ResultError: the transfers are of different tasks.
    """
    _tasks(pairs)
    panels: list[Panel | None] = []
    for metric, title in (("fwt_single_task", "mean forward transfer"), ("bwt", "mean backward transfer")):
        series = []
        for base, arms in pairs.items():
            x, y = (
                np.array([np.mean([one.value(name) for one in transfers]) for transfers in arms])
                for name in (metric, "mean_dice")
            )
            series.append(Series(name=base, x=x, y=y, size=9, text=["without", "with"]))
        panel = Scatter(
            title=title,
            note=f"1 = without, 2 = with {method}",
            series=series,
            joined=True,
            x_label=title,
            y_label="final mean Dice",
            x_range=_limits([one.x for one in series]),
            y_range=_limits([one.y for one in series]),
            legend=metric == "bwt",
        ).sized(350, 250)
        panels.append(panel)
    return Figure(
        title="Transfer against accuracy",
        subtitle="Better is towards the top right. Means over seeds; one seed decides nothing.",
        rows=[panels],
        sources=_sources(pairs, method),
    )


def _curves(pairs: Pairs, tasks: Sequence[str], metric: str, method: str) -> list[Series]:
    """Per base method the curve without, then the one with the method, over all tasks but the first."""
    later = list(range(2, len(tasks) + 1))
    series: list[Series] = []
    for base, arms in pairs.items():
        for dash, name, transfers in zip((1, 0), (f"{base}, without", f"{base} + {method}"), arms, strict=True):
            values = np.array([[one.value(metric, tasks[i - 1]) for i in later] for one in transfers])
            mean, spread = values.mean(axis=0), values.std(axis=0)
            one = Series(name=name, x=np.array(later), y=mean, colour=base, dash=dash)
            if len(transfers) > 1:
                one.low, one.high = mean - spread, mean + spread
            series.append(one)
    return series


def _as_rows(series: Sequence[Series], bases: Sequence[str], method: str) -> list[Series]:
    """Curves of one point as two series with one row a base method: without, and with the method."""
    rows = []
    for name, half in (("without", series[0::2]), (f"with {method}", series[1::2])):
        row = Series(name=name, x=[one.y[0] for one in half], y=list(bases))
        if half[0].low is not None:
            row.low, row.high = ([np.asarray(getattr(one, end))[0] for one in half] for end in ("low", "high"))
        rows.append(row)
    return rows


def _tasks(pairs: Pairs) -> list[str]:
    tasks = [list(one.tasks) for arms in pairs.values() for transfers in arms for one in transfers]
    if not tasks or any(other != tasks[0] for other in tasks):
        raise ResultError("The transfers must be of the same tasks in the same order.", where=str(tasks[:2]))
    if len(tasks[0]) < 2:
        raise ResultError("Transfer needs a sequence of at least two tasks.")
    return tasks[0]


def _limits(coordinates: Sequence[Any]) -> tuple[float, float]:
    """Range of an axis with a margin, so that nothing is cut and a difference of a thousandth does not fill the panel."""
    values = np.concatenate(coordinates)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = max(0.2 * (high - low), 0.02)
    return low - margin, high + margin


def _sources(pairs: Pairs, method: str) -> tuple[list[Any], list[str]]:
    """Every arm's first transfer; the method's name says which regularizer it owes its reader a word about."""
    told = [one for arms in pairs.values() for transfers in arms for one in transfers[:1]]
    return told, [method] * len(told)
