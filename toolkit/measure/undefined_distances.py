"""What an undefined surface distance counts when cases are averaged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkit.errors import ConfigError, ResultError
from toolkit.results import DataFrame

_NEEDED = ("class", "metric", "value", "status", "unit", "diagonal", "rule")


def penalised(table: DataFrame, penalty: str | float, by: Sequence[str] = ()) -> tuple[DataFrame, str]:
    """The table with undefined distances filled in, a column `excluded`, and the policy as a sentence.

    Legacy tables already hold a number for every case and are left as they are.
    """
    _check(table, by)
    table = table.copy()
    legacy = str(table["rule"].iloc[0]) if len(table) else "toolkit"
    undefined = table["value"].isna() & table["status"].isin(["missed", "spurious"])
    words = legacy
    if legacy == "toolkit" and penalty == "diagonal":
        if table.loc[undefined, "diagonal"].isna().any():
            raise ResultError("A missed organ has no image diagonal.", fix='Use penalty="undefined".')
        table["value"] = table["value"].where(~undefined, table["diagonal"])
        words = "image diagonal"
    elif legacy == "toolkit" and penalty == "undefined":
        words = "undefined if any organ is missed or spurious"
    elif legacy == "toolkit":
        table["value"] = table["value"].where(~undefined, _fixed(table, penalty))
        words = f"{float(penalty):g}"
    table["excluded"] = table["value"].isna() & (table["status"] == "both_absent")
    return table, words


def counted(table: DataFrame, metric: str) -> DataFrame:
    """Rows of a metric that count in a mean: missed and spurious organs with the image's diagonal, absent ones not."""
    rows = table[table["metric"] == metric]
    overlap = metric in ("dice", "iou")  # a missed organ has 0 there; undefined is one that is rightly absent
    if "status" in rows.columns:
        rows = rows[rows["status"] != "both_absent"]
    elif overlap:
        rows = rows[rows["value"].notna()]
    if {"status", "diagonal"} <= set(rows.columns) and not overlap:
        rows = rows.assign(value=rows["value"].fillna(rows["diagonal"].astype(float)))
    if rows["value"].isna().any():
        raise ResultError(
            f"{int(rows['value'].isna().sum())} values of {metric!r} are undefined; left out, they would improve the mean.",
            fix="Pass the whole table of toolkit.evaluate, with its columns status and diagonal, or use Dice.",
        )
    return rows


def _check(table: DataFrame, by: Sequence[str]) -> None:
    missing = [name for name in (*_NEEDED, *by) if name not in table.columns]
    if missing:
        fix = "Pass what segmentation_metrics returned, with further columns added if you like."
        raise ResultError(f"The table lacks the columns {missing}.", fix=fix)
    for column, subset in (("rule", table), ("unit", table[table["unit"] != ""])):
        kinds = list(subset[column].unique())
        if len(kinds) > 1:
            fix = f"Aggregate one {column} at a time."
            raise ResultError(f"The table mixes {column}s: {kinds}; their mean would mean nothing.", fix=fix)


def _fixed(table: DataFrame, penalty: str | float) -> float:
    try:
        value = float(penalty)
    except ValueError:
        fix = 'Use "diagonal", "undefined" or a number.'
        raise ConfigError(f"There is no penalty policy called {penalty!r}.", fix=fix) from None
    longest = table.loc[table["unit"] != "", "value"].max()
    if not np.isfinite(value) or (np.isfinite(longest) and value < longest):
        raise ConfigError(
            f"A penalty of {value:g} is below the longest measured distance ({longest:g}): "
            "missing an organ would improve the mean.",
            fix='Take a larger number or "diagonal".',
        )
    return value
