"""Predictions and scores per volume: slices are predicted in batches and put together before they are scored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Unpack

import numpy as np
from torch import nn

from toolkit.data.case import Case
from toolkit.errors import ConfigError
from toolkit.features.provenance import score_of
from toolkit.inference.memory import Passes, Regions
from toolkit.inference.network import Predictor
from toolkit.inference.predict import predict_volumes
from toolkit.inference.volumes import group_volumes, stack, volume_spacing
from toolkit.measure.segmentation import METRICS, segmentation_metrics
from toolkit.results import DataFrame

COLUMNS = ("case", "site", "class", "metric", "value", "status", "subject", "group", "unit", "diagonal", "rule")


def evaluate(
    model: nn.Module,
    cases: Iterable[Case],
    *,
    batch_size: int = 16,
    metrics: Sequence[str] = METRICS,
    regions: Regions | None = None,
    progress: bool = False,
    **passes: Unpack[Passes],
) -> DataFrame:
    """Score a network on labelled cases, one set of rows a volume.

    The slices of one stack are predicted one by one and scored together; `case` is the name of the volume. The
    network is given back as it was.

    Args:
        model: any network that gives logits (B, K, *S).
        cases: labelled cases of a task, in any order.
        batch_size: slices or volumes in one pass.
        metrics: any of dice, iou, hd95, assd.
        regions: name -> classes of every output of a sigmoid network, scored one by one; None = those of the task that
            it was trained on here, if it has any.
        progress: show a bar over volumes.
        **passes: select, patch_size, overlap, divisor, precision and activation, see `toolkit.predict`.

    Returns:
        case, site, class, metric, value, status, subject, group, unit, diagonal, rule. Distances are in mm where
        the spacing along every axis is known, else in voxels (`unit` says which).

    Raises:
        DataError: a case without label, or a network whose logits hold NaN.
        ConfigError: no cases, or a network whose outputs are not the classes or regions of the cases.

    Example:
        >>> scores = tk.evaluate(model, task.cases("test"), metrics=["dice", "hd95"])
    """
    import pandas as pd
    from tqdm.auto import tqdm

    volumes = group_volumes(cases)
    if not volumes:
        raise ConfigError("There are no cases to evaluate.", fix="Check the split and the site.")
    predictor = Predictor(model, regions=regions, **passes)
    tables = []
    predictions = predict_volumes(predictor, volumes, batch_size=batch_size)
    bar = tqdm(volumes, desc="evaluating", unit="volume", disable=not progress)
    for volume, prediction in zip(bar, predictions, strict=True):
        first = volume[0]
        reference = stack([case.label_array() for case in volume], volume)
        maps = [(prediction, reference, first.classes)]
        if outputs := predictor.activation.regions:  # every region is a mask, scored by itself
            masks = [np.isin(reference, list(classes)).astype(np.uint8) for classes in outputs.values()]
            maps = list(zip(prediction, masks, ({0: "background", 1: name} for name in outputs), strict=True))
        identity = {"case": first.volume, "site": first.site, "subject": first.subject, "group": first.group}
        for predicted, truth, classes in maps:
            table = segmentation_metrics(predicted, truth, volume_spacing(volume), classes, metrics=metrics)
            tables.append(table.assign(**identity))
    scores = pd.concat(tables, ignore_index=True)[list(COLUMNS)]
    scores.attrs["network"] = score_of(model)  # for the caption of a figure of them
    return scores


def validation_scores(table: DataFrame) -> dict[str, float]:
    """`validation/dice` and one `validation/dice/<class>` each, from a table of `evaluate`.

    The mean over a volume's foreground classes, then over volumes; a class absent from the reference and the
    prediction of a volume is left out of it, a missed or spurious one counts as 0.
    """
    dice = table[(table["metric"] == "dice") & (table["status"] != "both_absent")]
    per_volume = dice.groupby(["site", "case"], sort=False)["value"].mean()
    per_class = dice.groupby("class", sort=False)["value"].mean()
    mean = float(per_volume.mean()) if len(per_volume) else math.nan
    return {"validation/dice": mean} | {f"validation/dice/{name}": float(v) for name, v in per_class.items()}
