"""Overlap and surface distance of label maps: each number with a status, so that a missed organ cannot hide."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.errors import ConfigError, DataError, ResultError, choose
from toolkit.results import DataFrame, as_table

METRICS = ("dice", "iou", "hd95", "assd")
DISTANCES = ("hd95", "assd")
STATUSES = ("ok", "missed", "spurious", "both_absent")

# What a paper's own script writes when a mask is empty: status -> (dice, iou, hd95, assd); absent = as computed.
LEGACY_RULES: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "selfreg": {"missed": (0.0, 0.0, 0.0, 0.0), "spurious": (1.0, 1.0, 0.0, 0.0), "both_absent": (0.0, 0.0, 0.0, 0.0)},
    "latent_augmentation": {"both_absent": (0.0, 0.0, math.nan, math.nan)},
    "med_disseg": {"both_absent": (1.0, 1.0, math.nan, math.nan)},
}


def segmentation_metrics(
    prediction: Tensor | np.ndarray,
    reference: Tensor | np.ndarray,
    spacing: Sequence[float] | None = None,
    classes: Mapping[int, str] | Iterable[int] | None = None,
    *,
    legacy: bool | str = False,
    metrics: Sequence[str] = METRICS,
) -> DataFrame:
    """Dice, IoU, HD95 and ASSD of every foreground class of one case.

    HD95 is the 95th percentile (linear interpolation) of the distances from every border voxel of one mask to the
    border of the other, both directions in one list; ASSD is the mean of that list. A border voxel is one that an
    erosion with face connectivity removes; what lies beyond the image counts as outside.

    Status of a class: `ok`, `missed` (only in the reference), `spurious` (only in the prediction), `both_absent`.
    A missed or spurious class has Dice and IoU 0 and undefined (NaN) distances; a class absent from both has no
    value at all. `aggregate` knows what to do with them.

    Args:
        prediction: integer label map, (H, W) or (D, H, W).
        reference: integer label map of the same shape.
        spacing: mm along each axis; None = unknown, and distances are in pixels or voxels.
        classes: {label: name}, or labels; label 0 is background and is not scored. If 0 is among them the list is
            complete and any other label is an error, else other labels count as background. None = every label
            found, named by its number.
        legacy: True or "selfreg" for the script behind SelfReg-UNet's tables (a false alarm scores Dice 1 and
            HD95 0, everything else with an empty mask 0; unit spacing), "latent_augmentation" (both absent: Dice
            0), "med_disseg" (both absent: Dice 1). For comparison with published tables only.
        metrics: which of the four to give; without "hd95" and "assd" no distance is computed.

    Returns:
        One row per class and metric: class, metric, value, status, unit (of a distance), diagonal (of the image,
        in that unit) and rule ("toolkit" or "legacy: ...").

    Raises:
        DataError: shapes differ, not a 2D or 3D map, values that are not whole numbers, labels not in `classes`.
        ConfigError: spacing that does not fit, an unknown metric or an unknown legacy rule.

    Example:
        >>> reference = np.eye(8, dtype=int)
        >>> tk.segmentation_metrics(reference, reference, spacing=(0.5, 0.5), metrics=["dice"])["value"].item()
        1.0
    """
    for metric in metrics or ("",):
        choose("metric", metric, METRICS, where="metrics=...")
    measured = bool(set(metrics) & set(DISTANCES))
    rule = "selfreg" if legacy is True else legacy or None
    if rule is not None:
        choose("legacy rule", rule, LEGACY_RULES)
    predicted, expected = _label_map(prediction, "prediction"), _label_map(reference, "reference")
    if predicted.shape != expected.shape:
        fix = "Bring the prediction back to the grid of the reference (nearest neighbour) before scoring it."
        raise DataError(f"Prediction {predicted.shape} and reference {expected.shape} have different shapes.", fix=fix)
    step, unit = _voxel_step(None if rule == "selfreg" else spacing, expected.ndim)
    diagonal = math.dist((0.0,) * expected.ndim, [n * s for n, s in zip(expected.shape, step, strict=True)])
    rows: list[dict[str, Any]] = []
    told = "toolkit" if rule is None else f"legacy: {rule}"
    for label, name in _foreground(classes, predicted, expected).items():
        values, status = _class_metrics(predicted == label, expected == label, step, measured)
        if rule is not None:
            values = LEGACY_RULES[rule].get(status, values)
        for metric, value in zip(METRICS, values, strict=True):
            if metric not in metrics:
                continue
            where = {"unit": unit, "diagonal": diagonal} if metric in DISTANCES else {"unit": "", "diagonal": math.nan}
            rows.append({"class": name, "metric": metric, "value": value, "status": status, **where, "rule": told})
    return as_table(rows, columns=["class", "metric", "value", "status", "unit", "diagonal", "rule"])


def aggregate(table: DataFrame, penalty: str | float = "diagonal", by: Sequence[str] = ()) -> DataFrame:
    """Mean over cases per class and metric, then over classes; missing an organ never improves a number.

    A missed or spurious organ enters with Dice and IoU 0, and with a distance that the policy names:
    "diagonal" = the diagonal of its image (no distance inside the image is longer), "undefined" = the mean becomes
    NaN, a number = that distance, which must not be below any distance measured. A class absent from reference
    and prediction is left out and counted.

    Args:
        table: rows of `segmentation_metrics` of one or many cases, with any columns added.
        penalty: policy for undefined distances; it is stored beside each number.
        by: further columns to group by, for example `["site"]`.

    Returns:
        One row per group, class and metric, and one with class "mean" (mean of the classes' means, counts summed):
        value, sd (over cases), cases (that entered), ok, missed, spurious, both_absent, unit, penalty.

    Raises:
        ResultError: a table with missing columns, several rules or units mixed.
        ConfigError: an unknown policy, or a number below a measured distance.

    Example:
        >>> means = tk.aggregate(tk.evaluate(model, task.cases("test")), by=["site"])
    """
    by = list(by)
    filled, policy = penalised(table, penalty, by)
    rows: list[dict[str, Any]] = []
    for key, group in filled.groupby([*by, "metric"], sort=False, dropna=False):
        head = dict(zip([*by, "metric"], key, strict=True))
        named = "" if head["metric"] not in DISTANCES else policy
        parts = [
            {**head, "class": name, **_summary(part)} for name, part in group.groupby("class", sort=False, dropna=False)
        ]
        means = [part["value"] for part in parts if part["cases"]]
        total = {name: sum(part[name] for part in parts) for name in ("cases", *STATUSES)}
        mean = float(np.mean(means)) if means else math.nan
        parts.append({**head, "class": "mean", "value": mean, "sd": math.nan, **total})
        rows += [{**part, "unit": group["unit"].iloc[0], "penalty": named} for part in parts]
    return as_table(rows, columns=[*by, "class", "metric", "value", "sd", "cases", *STATUSES, "unit", "penalty"])


def _summary(part: DataFrame) -> dict[str, Any]:
    entered = part.loc[~part["excluded"], "value"].to_numpy(dtype=float)
    counts = {status: int((part["status"] == status).sum()) for status in STATUSES}
    value = float(entered.mean()) if entered.size else math.nan
    spread = float(entered.std(ddof=1)) if entered.size > 1 else math.nan
    return {"value": value, "sd": spread, "cases": int(entered.size), **counts}


def _class_metrics(
    predicted: np.ndarray, expected: np.ndarray, step: Sequence[float], distances: bool = True
) -> tuple[tuple[float, float, float, float], str]:
    n_predicted, n_expected = int(predicted.sum()), int(expected.sum())
    if not n_predicted and not n_expected:
        return (math.nan,) * 4, "both_absent"
    if not n_predicted or not n_expected:
        return (0.0, 0.0, math.nan, math.nan), "spurious" if n_predicted else "missed"
    common = int((predicted & expected).sum())
    dice = 2 * common / (n_predicted + n_expected)
    iou = common / (n_predicted + n_expected - common)
    if not distances:
        return (dice, iou, math.nan, math.nan), "ok"
    both = np.concatenate(surface_distances(predicted, expected, step))
    return (dice, iou, float(np.percentile(both, 95, method="linear")), float(both.mean())), "ok"


def surface_distances(first: np.ndarray, second: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Distances from each border voxel of one mask (*S), not empty, to the nearest of the other, and back."""
    from scipy import ndimage

    (box,) = ndimage.find_objects((first | second).astype(np.uint8))  # both borders lie inside: nothing outside matters
    face = ndimage.generate_binary_structure(first.ndim, 1)
    one, other = (mask[box] & ~ndimage.binary_erosion(mask[box], face) for mask in (first, second))
    to_one, to_other = (ndimage.distance_transform_edt(~border, sampling=spacing) for border in (one, other))
    return to_other[one], to_one[other]


def _label_map(value: Tensor | np.ndarray, name: str) -> np.ndarray:
    if isinstance(value, Tensor):  # NumPy has no bfloat16
        value = value.detach().cpu().to(torch.float32 if value.dtype == torch.bfloat16 else value.dtype)
    array = np.asarray(value)
    if array.ndim not in (2, 3) or array.size == 0:
        fix = "Pass one case without batch or channel axis; take the argmax of logits over the channels first."
        raise DataError(f"A label map has 2 or 3 axes; this one has the shape {array.shape}.", where=name, fix=fix)
    if array.dtype.kind in "bui":
        return array.astype(np.int64)
    if array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.round(array)).all():
        return array.astype(np.int64)
    fix = "Take the argmax of logits, or threshold probabilities, before scoring them."
    raise DataError("A label map holds whole numbers; this one does not.", where=f"{name} ({array.dtype})", fix=fix)


def _foreground(
    classes: Mapping[int, str] | Iterable[int] | None, predicted: np.ndarray, expected: np.ndarray
) -> dict[int, Any]:
    labels = sorted({int(v) for v in np.unique(predicted)} | {int(v) for v in np.unique(expected)})
    if classes is None:
        return {label: label for label in labels if label != 0}
    named = dict(classes) if isinstance(classes, Mapping) else {label: label for label in classes}
    if not all(isinstance(label, (int, np.integer)) for label in named):
        raise ConfigError("Classes are given by their integer label.", where=str(named), fix='For example {1: "LV"}.')
    unknown = [label for label in labels if label not in named]
    if 0 in named and unknown:
        fix = "Name them, remap them (0/255 to 0/1), or leave 0 out of `classes` to score only some of them."
        raise DataError(f"The label maps hold {unknown}, which `classes` does not name.", where=named, fix=fix)
    return {int(label): name for label, name in named.items() if label != 0}


def _voxel_step(spacing: Sequence[float] | None, dims: int) -> tuple[tuple[float, ...], str]:
    if spacing is None:
        return (1.0,) * dims, "pixels" if dims == 2 else "voxels"
    step = tuple(float(value) for value in spacing)
    if len(step) != dims or not all(math.isfinite(value) and value > 0 for value in step):
        fix = f"Give {dims} positive numbers in mm, or None if it is unknown."
        raise ConfigError(f"The spacing {step} does not fit a map with {dims} axes.", fix=fix)
    return step, "mm"


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
        count = int(rows["value"].isna().sum())
        what = f"{count} values of {metric!r} are undefined; left out, they would improve the mean."
        fix = "Pass the whole table of toolkit.evaluate, with its columns status and diagonal, or use Dice."
        raise ResultError(what, fix=fix)
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
        what = f"A penalty of {value:g} is below the longest measured distance ({longest:g}): "
        what += "missing an organ would improve the mean."
        raise ConfigError(what, fix='Take a larger number or "diagonal".')
    return value


IMAGE_SCORES = ("iou", "dice", "recall", "precision", "accuracy", "f2")


def image_scores(probability: Tensor, target: Tensor, threshold: float = 0.5) -> Tensor:
    """IoU, Dice, recall, precision, accuracy and F2 (columns `IMAGE_SCORES`) of each image, (N, 6) float64.

    1e-15 is added to every numerator and denominator: two empty masks score 1, and an empty prediction has precision
    1. "mIoU" and "mDSC" of that literature are the means of the first two columns over images.

    Args:
        probability: (N, ...) foreground probabilities; foreground is strictly above the threshold.
        target: (N, ...) of the same shape; foreground is strictly above 0.5.
        threshold: of the prediction.

    Example:
        >>> tk.image_scores(torch.tensor([[0.9, 0.8, 0.2]]), torch.tensor([[1, 0, 0]]))[0, 0]
        tensor(0.5000, dtype=torch.float64)
    """
    predicted = (probability > threshold).flatten(1).double()
    truth = (target > 0.5).flatten(1).double()
    hit = (predicted * truth).sum(dim=1)
    positives, wanted = predicted.sum(dim=1), truth.sum(dim=1)
    epsilon = 1e-15

    def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
        return (numerator + epsilon) / (denominator + epsilon)

    recall, precision = ratio(hit, wanted), ratio(hit, positives)
    accuracy = (predicted == truth).double().mean(dim=1)
    overlaps = (ratio(hit, positives + wanted - hit), ratio(2 * hit, positives + wanted))
    f2 = 5 * precision * recall / (4 * precision + recall + epsilon)
    return torch.stack([*overlaps, recall, precision, accuracy, f2], dim=1)
