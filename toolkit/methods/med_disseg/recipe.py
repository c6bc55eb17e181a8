"""Med-DisSeg's recipe: an encoder trained on two views, then the whole network, with the dispersive loss in both."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from toolkit import registry
from toolkit.errors import ConfigError
from toolkit.methods.med_disseg import load_backbone
from toolkit.methods.med_disseg.backbone import ENCODER
from toolkit.methods.med_disseg.regularizer import Dispersive
from toolkit.methods.recipe import Recipe, Setting, Stage, fitting, replaced, several

PAPER = "Med-DisSeg, arXiv 2605.14579, after ConDSeg, arXiv 2412.08345"


def med_disseg(
    task: Any,
    preset: str = "default",
    *,
    backbone: str | os.PathLike[str] | None = None,
    backbone_sha256: str | None = None,
    legacy: bool = False,
    model: dict[str, Any] | None = None,
    **config: Any,
) -> Recipe:
    """Both stages; the second one takes over the encoder of the first.

    Args:
        task: 2D images, binary as published, or with several classes.
        preset: of `Dispersive.from_preset`: "default", "default-cosine", "original", or "released" (whose loss
            has no gradient: it is there to show that).
        backbone: file with ResNet-50 weights, never downloaded; None = from scratch. A task of the catalogue with
            colours is then loaded with the normalisation that such weights expect.
        backbone_sha256: what the file's SHA-256 begins with, or all of it; None = not checked.
        legacy: data and rates as the released code has them: blue, green, red over 255; in stage 2 a background
            target that the augmentation does not move, and one learning rate for encoder and decoder.
        model: arguments of both networks to change, for example `encoder_width=8`; `width` serves the second.
        config: fields of `TrainConfig` to change in both stages, for example `steps=500`.

    Raises:
        ConfigError: volumes, or `legacy` for a task that cannot be loaded in the released colours.
    """
    if task.dims != 2:
        raise ConfigError("Med-DisSeg takes images, not volumes.", fix="Give a 2D task.")
    task, colours = _colours(task, legacy, backbone is not None)
    shared = [*fitting(task), Setting("model", "encoder_width", 64, "med_disseg 4.1", "ResNet-50"), colours]
    own = ("in_channels", "out_channels", "encoder_width")
    encoder = {name: value for name, value in (model or {}).items() if name in own}
    first = [*shared, *_STAGE_ONE, *_dispersive(preset, 1), *_CONFIG]
    second = [*shared, *_STAGE_TWO, *_dispersive(preset, 2), *_CONFIG, *_data_and_rates(legacy)]
    first, second = replaced(first, model=encoder, config=config), replaced(second, model=model, config=config)
    prepare = None if backbone is None else partial(load_backbone, weights=backbone, sha256=backbone_sha256)
    one, two = "med_disseg_stage_one", "med_disseg"  # each name is that of a network and of its objective
    stages = (
        Stage("encoder", task, first, one, one, regularizer="dispersive", prepare=prepare),
        Stage("network", task, second, two, two, regularizer="dispersive", index=1, transfer="encoder"),
    )
    return Recipe("med_disseg", PAPER, stages)


_STAGE_ONE = [
    Setting("objective", "consistency", 1.0, "med_disseg 5.1"),
    Setting("objective", "strong_view", {}, "med_disseg 5.2", "jitter (.3, .3, .3, .1), grey .5, blur .1 to 3"),
    Setting("epochs", "epochs", 600, "med_disseg 5.2", "at most; the source stops after 200 without gain"),
    Setting("config", "augmentation", "geometry", "ours", "the source rotates, flips and cuts holes"),
]
_STAGE_TWO = [
    Setting("model", "width", 128, "med_disseg 4.4"),
    Setting("epochs", "epochs", 300, "med_disseg 5.2", "at most; the source stops after 100 without gain"),
]


def _colours(task: Any, legacy: bool, pretrained: bool) -> tuple[Any, Setting]:
    """The task in the colours that are asked for, and the row of the table that says so."""
    rule = "bgr" if legacy else "imagenet" if pretrained and task.channels == 3 else task.normalisation
    recipe = task.toolkit_config
    if rule != task.normalisation and recipe is not None and recipe["name"] == "load_task":
        task = registry.build("task", {**recipe, "arguments": {**recipe["arguments"], "normalisation": rule}})
    elif legacy and rule != task.normalisation:
        what = f"Images of {task.name!r} are normalised by {task.normalisation!r}, not as the released code has them."
        raise ConfigError(what, where="recipes.med_disseg(legacy=True)", fix='Make the task with normalisation="bgr".')
    note = "the released code: BGR over 255, although its weights were trained on ImageNet's RGB"
    return task, Setting("task", "normalisation", task.normalisation, "med_disseg 8.1" if legacy else "ours", note)


def _data_and_rates(legacy: bool) -> list[Setting]:
    """What stage 2 corrects, or repeats: the background target and the encoder's learning rate."""
    target = "the released code builds the background target before the augmentation and does not move it"
    moved = "geometry-label-before" if legacy else "geometry"
    factors = {} if legacy else {f"{layer}.*": 0.1 for layer in ENCODER}
    return [
        Setting("objective", "aligned_background", not legacy, "med_disseg 8.1", target),
        Setting("config", "augmentation", moved, "ours", "the source rotates, flips and cuts holes"),
        Setting("config", "rate_factors", factors, "med_disseg 8.1", "1e-5 for the encoder; released: 1e-4 for all"),
    ]


def _dispersive(preset: str, stage: int) -> list[Setting]:
    two_views: dict[str, Any] = {"tap": ("layer3", "layer3#2"), "reduction": "sum"}
    places = two_views if stage == 1 else {"tap": "layer3"}
    record = registry.describe(Dispersive.from_preset(preset, stage, **places)) or {}
    notes = {
        "tap": "2.4: Block 4; in stage 1 once a view, added" if stage == 1 else "2.4: Block 4",
        "weight": "2.4: 0.2 and 0.6 as stated; the released loop uses 0.2 in both (preset 'released')",
        "preset": "2.5: the released distance has no gradient at this size",
    }
    given = record["arguments"].items()
    return [Setting("regularizer", name, value, "med_disseg 2.5", notes.get(name, "")) for name, value in given]


_CONFIG = [
    *several("config", "med_disseg 5.2", optimizer="adam", learning_rate=1e-4, weight_decay=0.0),
    Setting("config", "schedule", "constant", "med_disseg 5.2", "the source divides by 10 on a plateau of 30 epochs"),
    Setting("config", "seed", 0, "med_disseg 5.2", "random in the source's stage 1"),
    *several("config", "med_disseg 5.2", batch_size=8, patch_size=(256, 256)),
    Setting("config", "select", "best", "med_disseg 5.2", "by mean Dice on the validation split; the source: mean IoU"),
    Setting("not taken over", "coarse dropout", "10 holes of 32 x 32, p 0.3", "med_disseg 5.2"),
]
