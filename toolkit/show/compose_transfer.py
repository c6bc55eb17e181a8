"""Figures of a sequence of tasks: forward transfer by task, scatter of transfer against Dice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toolkit.errors import ResultError
from toolkit.show.captions import credits
from toolkit.show.panels import Figure, Intervals, Lines, Panel, Scatter, Series, range_note

Pairs = Mapping[str, tuple[Sequence[Any], Sequence[Any]]]


def forward_transfer(
    pairs: Pairs, *, method: str = "SegReg", metric: str = "fwt_single_task", note: str = ""
) -> Figure:
    """Forward transfer by task, dashed without and solid with the method (SegReg, Fig. 2a).

    Args:
        pairs: per base method, the `Transfer`s without and with the method, one a seed.
        method: name of what is added.
        metric: convention of forward transfer, see `toolkit.measure.transfer.FORWARD`.

    Raises:
        ResultError: the transfers do not hold the metric, or are of different tasks.
    """
    tasks = _tasks(pairs)
    later = list(range(2, len(tasks) + 1))
    series = _curves(pairs, tasks, metric, method)
    counts = {len(transfers) for arms in pairs.values() for transfers in arms}
    seeds = "none here: a single seed" if counts == {1} else f"{', '.join(map(str, sorted(counts)))} seeds"
    numbers = np.concatenate([np.asarray(one.y, dtype=float) for one in series])
    title, note_, marks = metric.replace("_", " "), range_note(numbers), "Dashed without, solid with"
    panel: Panel = Lines(
        title=title,
        note=note_,
        series=series,
        y_label="Dice difference",
        x_label="task: " + ", ".join(f"{i} = {tasks[i - 1]}" for i in later),
        x_range=(1.85, len(tasks) + 0.15),
        width=420,
        height=250,
    )
    if len(later) == 1:  # no line to draw: two marks a base method
        marks = "One mark without, one with"
        panel = Intervals(
            title=title,
            note=note_,
            series=_as_rows(series, list(pairs), method),
            x_label=f"Dice difference on {tasks[1]}",
            width=420,
            height=40 + 50 * len(pairs),
        )
    return Figure(
        title="Forward transfer by task",
        subtitle=f"{marks} {method}; bands are the deviation over seeds ({seeds}).",
        rows=[[panel]],
        **_credits(pairs, method, note),
    )


def transfer_scatter(pairs: Pairs, *, method: str = "SegReg", note: str = "") -> Figure:
    """Final mean Dice against mean forward and mean backward transfer (SegReg, Fig. 2b and 2c).

    A line leads from each base method (1) to the same with the method added (2); towards the top right is better.

    Args:
        pairs: per base method (and anatomy), the `Transfer`s without and with the method, one a seed.
        method: name of what is added.

    Raises:
        ResultError: the transfers are of different tasks.
    """
    _tasks(pairs)
    panels: list[Panel | None] = []
    for metric, title in (("fwt_single_task", "mean forward transfer"), ("bwt", "mean backward transfer")):
        series = []
        for base, arms in pairs.items():
            points = [
                [float(np.mean([one.value(name) for one in transfers])) for transfers in arms]
                for name in (metric, "mean_dice")
            ]
            series.append(
                Series(name=base, x=np.array(points[0]), y=np.array(points[1]), size=9, text=["without", "with"])
            )
        panels.append(
            Scatter(
                title=title,
                note=f"1 = without, 2 = with {method}",
                series=series,
                x_label=title,
                y_label="final mean Dice",
                joined=True,
                legend=metric == "bwt",
                width=350,
                height=250,
                x_range=_limits(series, "x"),
                y_range=_limits(series, "y"),
            )
        )
    return Figure(
        title="Transfer against accuracy",
        subtitle="Better is towards the top right. Means over seeds; one seed decides nothing.",
        rows=[panels],
        **_credits(pairs, method, note),
    )


def _curves(pairs: Pairs, tasks: Sequence[str], metric: str, method: str) -> list[Series]:
    """Per base method the curve without, then the one with the method, over all tasks but the first."""
    later = list(range(2, len(tasks) + 1))
    series: list[Series] = []
    for base, arms in pairs.items():
        for dash, name, transfers in zip((1, 0), (f"{base}, without", f"{base} + {method}"), arms, strict=True):
            values = np.array([[one.value(metric, tasks[i - 1]) for i in later] for one in transfers])
            mean, spread = values.mean(axis=0), values.std(axis=0)
            band = len(transfers) > 1
            series.append(
                Series(
                    name=name,
                    x=np.array(later),
                    y=mean,
                    low=mean - spread if band else None,
                    high=mean + spread if band else None,
                    colour=base,
                    dash=dash,
                )
            )
    return series


def _as_rows(series: Sequence[Series], bases: Sequence[str], method: str) -> list[Series]:
    """Curves of one point as two series with one row a base method: without, and with the method."""
    halves = [("without", series[0::2]), (f"with {method}", series[1::2])]
    return [
        Series(
            name=name,
            x=[one.y[0] for one in half],
            y=list(bases),
            low=None if half[0].low is None else [one.low[0] for one in half if one.low is not None],
            high=None if half[0].high is None else [one.high[0] for one in half if one.high is not None],
        )
        for name, half in halves
    ]


def _tasks(pairs: Pairs) -> list[str]:
    tasks = [list(one.tasks) for arms in pairs.values() for transfers in arms for one in transfers]
    if not tasks or any(other != tasks[0] for other in tasks):
        raise ResultError("The transfers must be of the same tasks in the same order.", where=str(tasks[:2]))
    if len(tasks[0]) < 2:
        raise ResultError("Transfer needs a sequence of at least two tasks.")
    return tasks[0]


def _limits(series: Sequence[Series], axis: str) -> tuple[float, float]:
    """Range of an axis with a margin, so that nothing is cut and a difference of a thousandth does not fill the panel."""
    values = np.concatenate([np.asarray(getattr(one, axis), dtype=float) for one in series])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = max(0.2 * (high - low), 0.02)
    return low - margin, high + margin


def _credits(pairs: Pairs, method: str, note: str) -> dict[str, str]:
    """Of every arm's first transfer; the method's name says which regularizer it owes its reader a word about."""
    told = [one for arms in pairs.values() for transfers in arms for one in transfers[:1]]
    return credits(told, note, [method] * len(told))
