"""Transfer over a sequence of tasks: the R matrix, backward and forward transfer, forgetting, plasticity."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from toolkit.errors import ResultError
from toolkit.measure.segmentation import counted
from toolkit.results import DataFrame, Numbers, as_table


@dataclasses.dataclass(kw_only=True)
class Transfer(Numbers):
    """Transfer metrics of one run through a sequence of tasks.

    Attributes:
        tasks: names in training order.
        scores: R (T, T): score of the model after stage i (row) on task j (column); NaN where not evaluated.
        numbers: metric, task ("mean" = mean over the tasks it is defined for), value, sd (over tasks, ddof 0).
    """

    tasks: list[str]
    scores: np.ndarray
    kind: ClassVar[str] = "transfer"

    def value(self, metric: str, task: str = "mean") -> float:
        """One number of the table.

        Raises:
            ResultError: no such metric or task.
        """
        rows = self.numbers[(self.numbers["metric"] == metric) & (self.numbers["task"] == task)]
        if rows.empty:
            fix = f"Metrics: {', '.join(dict.fromkeys(self.numbers['metric']))}."
            raise ResultError(f"There is no {metric!r} for {task!r}.", fix=fix)
        return float(rows["value"].iloc[0])


def transfer_metrics(
    scores: Sequence[Any] | np.ndarray,
    tasks: Sequence[str] | None = None,
    *,
    untrained: Sequence[float] | np.ndarray | None = None,
    single_task: Sequence[float] | np.ndarray | None = None,
    sequential: Sequence[Any] | np.ndarray | None = None,
) -> Transfer:
    """All transfer metrics from the R matrix; with one task every transfer metric is NaN, never 0.

    A score that is NaN makes every number NaN that needs it, means too: none of them leaves a task out.

    Metrics: mean_dice (last row), incremental_dice (mean over stages of the mean over the tasks seen), bwt
    (R[T,j] - R[j,j]), bwt_gem (averaged over T tasks, as the GEM code does), bwt_relative, bwt_plus, rem, forgetting
    (|min(bwt, 0)|), forgetting_max (best score from when the task was learnt on, minus the last; Chaudhry et al.
    2018), forgetting_max_all_rows (rows before the task was learnt included, as one library does), plasticity_gap
    (R[i,i] - S_i), and forward transfer in five conventions, each only if its inputs are given: fwt_single_task
    (R[i-1,i] - S_i, the primary convention here), fwt_untrained (R[i-1,i] - b_i, as GEM has it; Lopez-Paz and Ranzato
    2017), fwt_plasticity (R[i,i] - Rseq[i,i], against plain fine-tuning), fwt_relative_final ((R[T,i] - Rseq[i,i]) /
    Rseq[i,i], i < T: a backward measure by that name; do not use), and fwt_zero_shot (R[i,j] of all j > i, nothing
    subtracted; Diaz-Rodriguez et al. 2018).

    Args:
        scores: R (T, T), for example Dice in [0, 1].
        tasks: names in training order.
        untrained: b (T,), score of the untrained network.
        single_task: S (T,), score of the same method trained on each task alone.
        sequential: R matrix of plain fine-tuning.

    Raises:
        ResultError: not a square matrix, or inputs of another length.

    Example:
        >>> transfer = tk.transfer_metrics([[0.9, 0.3], [0.7, 0.8]], ["A", "B"]).table()
    """
    matrix = _array(scores, "scores", 2)
    count = len(matrix)
    if matrix.shape != (count, count) or count == 0:
        raise ResultError(f"R has one row per stage and one column per task; this one is {matrix.shape}.")
    names = [str(n) for n in tasks] if tasks is not None else [f"task {i + 1}" for i in range(count)]
    extra = {
        "untrained": (untrained, (count,)),
        "single_task": (single_task, (count,)),
        "sequential": (sequential, (count, count)),
    }
    given = {name: _array(v, name, len(shape), shape) for name, (v, shape) in extra.items() if v is not None}
    if len(names) != count:
        raise ResultError(f"{len(names)} task names for {count} tasks.")
    rows: list[dict[str, Any]] = []
    for metric, values, mean in _per_task(matrix, given):
        rows += [{"metric": metric, "task": names[j], "value": value, "sd": math.nan} for j, value in values.items()]
        each = np.array(list(values.values()), dtype=float)
        if mean is None or not len(each):
            mean = float(each.mean()) if len(each) else math.nan
        spread = float(each.std()) if len(each) else math.nan
        rows.append({"metric": metric, "task": "mean", "value": mean, "sd": spread})
    return Transfer(tasks=names, scores=matrix, numbers=as_table(rows), provenance={"measure": "transfer"})


def score_matrix(evaluations: Sequence[DataFrame], tasks: Sequence[str], metric: str = "dice") -> np.ndarray:
    """R (stages, tasks) from one evaluation table per stage.

    A score is averaged over the classes within a case, then over the cases; a class absent from reference and
    prediction has no score. A distance that is undefined because the organ was missed or spurious counts as the
    diagonal of its image, so that missing an organ never improves a number.

    Args:
        evaluations: per stage, rows of `toolkit.evaluate`: case, site, class, metric, value (for distances with
            undefined values also status and diagonal).
        tasks: sites in training order.
        metric: which metric.

    Raises:
        ResultError: a table lacks a column, or a missed organ has no penalty.

    Example:
        >>> tables = [tk.evaluate(network, task.cases("test")) for network in (tk.unet(1, 4, channels=(4, 8)), model)]
        >>> tk.score_matrix(tables, ["A", "B"]).shape
        (2, 2)
    """
    matrix = np.full((len(evaluations), len(tasks)), np.nan)
    for stage, table in enumerate(evaluations):
        missing = [name for name in ("case", "site", "class", "metric", "value") if name not in table.columns]
        if missing:
            raise ResultError(f"The evaluation of stage {stage + 1} lacks the columns {missing}.")
        chosen = counted(table, metric)
        for index, task in enumerate(tasks):
            per_case = chosen[chosen["site"] == task].groupby("case", sort=True)["value"].mean()
            matrix[stage, index] = per_case.mean() if per_case.notna().any() else np.nan
    return matrix


def _per_task(r: np.ndarray, given: dict[str, np.ndarray]) -> Iterator[tuple[str, dict[int, float], float | None]]:
    """Metric, value per task (index), and the mean if it is not that of these values."""
    count = len(r)
    last, diagonal = r[-1], np.diag(r)
    earlier, later = range(count - 1), range(1, count)
    yield "mean_dice", dict(enumerate(last.tolist())), None
    yield "incremental_dice", {i: float(np.mean(r[i, : i + 1])) for i in range(count)}, None
    bwt = {j: float(last[j] - diagonal[j]) for j in earlier}
    yield "bwt", bwt, None
    yield "bwt_gem", bwt, sum(bwt.values()) / count
    yield "bwt_relative", {j: float(value / diagonal[j]) for j, value in bwt.items()}, None
    yield "bwt_plus", {j: max(value, 0.0) for j, value in bwt.items()}, None
    yield "rem", {j: 1 - abs(min(value, 0.0)) for j, value in bwt.items()}, None
    yield "forgetting", {j: abs(min(value, 0.0)) for j, value in bwt.items()}, None
    yield "forgetting_max", {j: float(r[j:-1, j].max() - last[j]) for j in earlier}, None
    yield "forgetting_max_all_rows", {j: float(r[:-1, j].max() - last[j]) for j in earlier}, None
    if "single_task" in given:
        single = given["single_task"]
        yield "plasticity_gap", {i: float(diagonal[i] - single[i]) for i in range(count)}, None
        yield "fwt_single_task", {i: float(r[i - 1, i] - single[i]) for i in later}, None
    if "untrained" in given:
        forward = {i: float(r[i - 1, i] - given["untrained"][i]) for i in later}
        yield "fwt_untrained", forward, None
        yield "fwt_untrained_gem", forward, sum(forward.values()) / count
    if "sequential" in given:
        plain = np.diag(given["sequential"])
        yield "fwt_plasticity", {i: float(diagonal[i] - plain[i]) for i in later}, None
        yield "fwt_relative_final", {i: float((last[i] - plain[i]) / plain[i]) for i in earlier}, None
    above = [float(r[i, j]) for j in later for i in range(j)]
    yield ("fwt_zero_shot", {j: float(r[:j, j].mean()) for j in later}, float(np.mean(above)) if above else None)


def _array(value: Any, name: str, dims: int, shape: tuple[int, ...] | None = None) -> np.ndarray:
    try:
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise ResultError(f"{name} does not hold numbers only: {error}.", fix="Give scores such as Dice.") from error
    if array.ndim != dims or (shape is not None and array.shape != shape):
        raise ResultError(f"{name} has the shape {array.shape}; expected {shape or f'{dims} axes'}.")
    return array
