"""Whether a regularizer did anything over a run: its gradient compared with the objective's, out of the history."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from toolkit.errors import ResultError
from toolkit.results import DataFrame, Result, as_table

DEAD, DOMINANT = 1e-8, 1.0
_MARK = "/gradient_ratio"


@dataclasses.dataclass(kw_only=True)
class RegularizerHealth(Result):
    """Gradient ratios of every regularizer over a run.

    Attributes:
        ratios: columns step, regularizer, ratio, status.
    """

    ratios: DataFrame
    kind: ClassVar[str] = "regularizer_health"

    def table(self) -> DataFrame:
        """One row per regularizer.

        Columns: logged steps, first, median, last and largest ratio, shares of steps that were dead (below 1e-8) and
        dominant (above 1), and the verdict: "ok", or "dead" or "dominant" if that held for more than half of them.
        """
        by_name = self.ratios.groupby("regularizer", sort=False)
        table = by_name["ratio"].agg(steps="size", first="first", median="median", last="last", largest="max")
        for verdict in ("dead", "dominant"):
            table[verdict] = (self.ratios["status"] == verdict).groupby(self.ratios["regularizer"]).mean()
        table["verdict"] = "ok"
        for verdict in ("dominant", "dead"):
            table.loc[table[verdict] > 0.5, "verdict"] = verdict
        return table.reset_index()


def regularizer_health(history: DataFrame) -> RegularizerHealth:
    """Gradient ratios out of a run's history.

    Args:
        history: `run.history`: a column `step`, and per regularizer one called `<name>/gradient_ratio`.

    Raises:
        ResultError: no such column, for example because the run had no regularizer.

    Example:
        >>> ratios = tk.regularizer_health(run.history).table()
    """
    columns = {
        str(column): str(column).removesuffix(_MARK)
        for column in history.columns
        if str(column).endswith(_MARK) and not str(column).startswith("seconds")  # what measuring them cost
    }
    if not columns or "step" not in history.columns:
        what = "This history holds no gradient ratio of a regularizer."
        fix = f"Pass run.history of a run with a regularizer; its columns are {[str(c) for c in history.columns][:12]}."
        raise ResultError(what, where="regularizer_health(history=...)", fix=fix)
    rows = [
        {"step": int(step), "regularizer": name, "ratio": float(ratio), "status": status(float(ratio))}
        for column, name in columns.items()
        for step, ratio in history.loc[history[column].notna(), ["step", column]].itertuples(index=False)
    ]
    if not rows:
        raise ResultError("No step of this history has a gradient ratio.", where="regularizer_health")
    return RegularizerHealth(ratios=as_table(rows), provenance={"measure": "regularizer health", "parameters": {}})


def status(ratio: float) -> str:
    """`dead` (below 1e-8), `dominant` (above 1), `undefined` or `ok`."""
    if math.isnan(ratio):
        return "undefined"
    return "dead" if ratio < DEAD else "dominant" if ratio > DOMINANT else "ok"
