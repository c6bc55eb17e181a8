"""Figures of drift: values with case-bootstrap intervals, beside the null interval of two halves of stage 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from toolkit.errors import ResultError
from toolkit.measure.drift import Drift
from toolkit.results import DataFrame
from toolkit.show.captions import credits
from toolkit.show.compose import for_networks
from toolkit.show.panels import Figure, Intervals, Series, in_rows

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


@for_networks(Drift)
def drifts(
    results: Sequence[Any],
    names: Sequence[str],
    *,
    note: str = "",
    measures: Sequence[str] | None = None,
    columns: int = 3,
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
        panel.height, panel.series = tallest, [own.get(name) or _absent(one) for name, one in every.items()]
    return Figure(
        title=f"Drift of {results[0].layer}",
        subtitle="Measured in the full feature space; "
        + (_INTERVALS if any(table["low"].notna().any() for table in tables.values()) else _NO_INTERVALS)
        + (NULLS if any(table["null_high"].notna().any() for table in tables.values()) else "")
        + "".join(dict.fromkeys(repeat_of(result) for result in results))
        + "Raw measures see rotations, rotation-free ones do not.",
        rows=in_rows(panels, columns),
        **credits(results, note, names),
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
    if len(nulls) > 1 and all(_same_interval(one, nulls[0]) for one in nulls):
        nulls = nulls[:1]  # all networks are compared with one stage 1
    if len(nulls) == 1:
        nulls = [dataclasses.replace(nulls[0], name="null", colour="null")]
    drawn = [*series, *nulls, *repeats]
    kind = next(iter(chosen.values()))["kind"].iloc[0]
    everything = np.concatenate([np.asarray(part, dtype=float) for one in drawn for part in (one.x, one.high)])
    top = float(np.nanmax(everything)) if np.isfinite(everything).any() else 1.0
    bottom = min(0.0, float(np.nanmin([np.nanmin(np.asarray(one.low, dtype=float)) for one in drawn])))
    return Intervals(
        title=MEASURE_NAMES.get(measure, measure),
        note=str(kind),
        series=drawn,
        x_label="value",
        x_range=(bottom * 1.05, top * 1.08 or 1.0),
        width=230,
        height=40 + max(34, 8 * len(drawn)) * len(classes),
    )


def _absent(one: Series) -> Series:
    gaps = np.full(len(one.y), np.nan)
    return dataclasses.replace(one, x=gaps, low=gaps, high=gaps)


def _same_interval(one: Series, other: Series) -> bool:
    return all(
        np.allclose(np.asarray(a, dtype=float), np.asarray(b, dtype=float), equal_nan=True)
        for a, b in ((one.low, other.low), (one.high, other.high))
    )


def _series(name: str, classes: list[str], value: Any, low: Any, high: Any, colour: str | None = None) -> Series:
    middle = np.asarray(value, dtype=float)
    lower, upper = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
    return Series(
        name=name,
        x=middle,
        y=classes,
        low=np.where(np.isfinite(lower), lower, middle),
        high=np.where(np.isfinite(upper), upper, middle),
        colour=colour,
        symbol=0 if colour is None else 6,
    )
