"""Predictions and scores per volume: slices are predicted in batches and put together before they are scored."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from toolkit.data.case import Case
from toolkit.errors import ConfigError
from toolkit.features.inputs import device_of
from toolkit.features.modules import unwrap
from toolkit.features.untouched import untouched
from toolkit.measure.segmentation import METRICS, segmentation_metrics
from toolkit.training.window import Select, autocast, labels_of, logits_of, window_logits

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("case", "site", "class", "metric", "value", "status", "subject", "group", "unit", "diagonal", "rule")


def evaluate(
    model: nn.Module,
    cases: Iterable[Case],
    *,
    patch_size: Sequence[int] | None = None,
    batch_size: int = 16,
    precision: str = "32",
    metrics: Sequence[str] = METRICS,
    select: Select = logits_of,
    progress: bool = False,
) -> pd.DataFrame:
    """Score a network on labelled cases, one set of rows a volume.

    The slices of one stack are predicted one by one and scored together; `case` is the name of the volume. The
    network is given back as it was.

    Args:
        model: any network that gives logits (B, K, *S).
        cases: labelled cases of a task, in any order.
        patch_size: window of the sliding window; None = whole images.
        batch_size: slices or volumes in one pass.
        precision: "32", or "bf16"/"16" for autocast.
        metrics: any of dice, iou, hd95, assd.
        select: finds the logits in the network's output.
        progress: show a bar over volumes.

    Returns:
        case, site, class, metric, value, status, subject, group, unit, diagonal, rule. Distances are in mm where
        the spacing along every axis is known, else in voxels (`unit` says which).

    Raises:
        DataError: a case without label.
        ConfigError: no cases.
    """
    import pandas as pd

    volumes = group_volumes(cases)
    if not volumes:
        raise ConfigError("There are no cases to evaluate.", fix="Check the split and the site.")
    tables = []
    predictions = predict_volumes(
        model, volumes, patch_size=patch_size, batch_size=batch_size, precision=precision, select=select
    )
    for volume, prediction in zip(_with_bar(volumes, progress), predictions, strict=True):
        first = volume[0]
        reference = stack([case.label_array() for case in volume], volume)
        table = segmentation_metrics(prediction, reference, volume_spacing(volume), first.classes, metrics=metrics)
        identity = {"case": first.volume, "site": first.site, "subject": first.subject, "group": first.group}
        tables.append(table.assign(**identity))
    return pd.concat(tables, ignore_index=True)[list(COLUMNS)]


def validation_scores(table: pd.DataFrame) -> dict[str, float]:
    """`validation/dice` and one `validation/dice/<class>` each, from a table of `evaluate`.

    The mean over a volume's foreground classes, then over volumes; a class absent from the reference and the
    prediction of a volume is left out of it, a missed or spurious one counts as 0.
    """
    dice = table[(table["metric"] == "dice") & (table["status"] != "both_absent")]
    per_volume = dice.groupby(["site", "case"], sort=False)["value"].mean()
    per_class = dice.groupby("class", sort=False)["value"].mean()
    mean = float(per_volume.mean()) if len(per_volume) else math.nan
    return {"validation/dice": mean} | {f"validation/dice/{name}": float(v) for name, v in per_class.items()}


def group_volumes(cases: Iterable[Case]) -> list[list[Case]]:
    """Cases of one volume together, slices in their order; volumes in the order of their first case."""
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.site, case.volume), []).append(case)
    return [sorted(group, key=lambda case: case.position or 0) for group in groups.values()]


def predict_volumes(
    model: nn.Module,
    volumes: Sequence[Sequence[Case]],
    *,
    patch_size: Sequence[int] | None = None,
    batch_size: int = 16,
    precision: str = "32",
    select: Select = logits_of,
) -> Iterator[np.ndarray]:
    """Label map (uint8) of each volume in turn; consecutive slices of one size share a pass, across volumes too."""
    network = unwrap(model)
    cases = [case for volume in volumes for case in volume]
    maps: list[np.ndarray] = []
    waiting = iter(volumes)
    due = next(waiting, None)
    for batch in _batches(cases, batch_size):
        with untouched(network, mode="eval"):
            maps += _predict_batch(network, batch, patch_size, precision, select)
        while due is not None and len(maps) >= len(due):
            yield stack(maps[: len(due)], due)
            maps = maps[len(due) :]
            due = next(waiting, None)


def _predict_batch(
    network: nn.Module, batch: Sequence[Case], patch_size: Sequence[int] | None, precision: str, select: Select
) -> list[np.ndarray]:
    device = device_of(network)
    image = torch.from_numpy(np.stack([case.image_array() for case in batch])).to(device)
    with torch.inference_mode(), autocast(device, precision):
        logits = window_logits(network, image, patch_size, select=select, windows_at_once=len(batch))
    return list(labels_of(logits).cpu().numpy())


def stack(maps: Sequence[np.ndarray], volume: Sequence[Case]) -> np.ndarray:
    """One array of a volume: the slices along a new first axis, or the single map itself.

    Raises:
        ConfigError: slices of one volume that differ in size.
    """
    if volume[0].position is None and len(maps) == 1:
        return maps[0]
    if len({each.shape for each in maps}) > 1:
        raise ConfigError("The slices of this volume differ in size.", where=volume[0].volume)
    return np.stack(maps)


def volume_spacing(volume: Sequence[Case]) -> tuple[float, ...] | None:
    """Spacing in mm along the axes of `stack`; None if any of it is unknown."""
    first = volume[0]
    if first.spacing is None:
        return None
    if first.position is None:
        return first.spacing
    return None if first.slice_spacing is None else (first.slice_spacing, *first.spacing)


def _batches(cases: Sequence[Case], batch_size: int) -> Iterator[list[Case]]:
    for _, same in itertools.groupby(cases, key=lambda case: case.image_array().shape):
        run = list(same)
        for start in range(0, len(run), batch_size):
            yield run[start : start + batch_size]


def _with_bar(volumes: Sequence[Any], progress: bool) -> Iterable[Any]:
    from tqdm.auto import tqdm

    return tqdm(volumes, desc="evaluating", unit="volume", disable=not progress)
