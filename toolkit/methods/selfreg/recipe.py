"""SelfReg-UNet's recipes: the authors' settings for three kinds of data, on its U-Net or on Swin-Unet."""

from __future__ import annotations

from typing import Any

from toolkit.errors import ConfigError
from toolkit.methods.recipe import Recipe, Setting, Stage, replaced
from toolkit.methods.selfreg.swin_unet import swin_unet

PAPER = "Zhu et al., SelfReg-UNet, MICCAI 2024"
DATA = ("acdc", "synapse", "histology")


def self_reg_unet(
    task: Any, data: str = "acdc", *, swin: bool = False, model: dict[str, Any] | None = None, **config: Any
) -> Recipe:
    """SelfReg on the paper's U-Net or on Swin-Unet.

    Args:
        task: data; 2D as published, or 3D (the U-Net only).
        data: whose settings: "acdc", "synapse", or "histology" (GlaS and MoNuSeg, which the code does not hold).
        swin: Swin-Unet instead of the U-Net.
        model: arguments of the network to change.
        config: fields of `TrainConfig` to change, for example `steps=500`.

    Raises:
        ConfigError: unknown settings, or Swin-Unet on volumes.
    """
    if data not in DATA:
        raise ConfigError(f"There are no settings for {data!r}.", fix=f"data is one of {', '.join(DATA)}.")
    if swin and task.dims != 2:
        raise ConfigError("Swin-Unet takes images, not volumes.", fix="Leave swin out, or give a 2D task.")
    settings = [
        Setting("model", "in_channels", task.channels, "the task"),
        Setting("model", "out_channels", len(task.classes), "the task"),
        *(_SWIN if swin else [*_UNET, Setting("model", "dims", task.dims, "the task")]),
        *_SETTINGS[data],
        Setting("objective", "include_background", True, "selfreg 4", "all classes, background included"),
        Setting("objective", "squared", True, "selfreg 4", "squares in Dice's denominator"),
        Setting("objective", "batch_dice", True, "selfreg 4"),
        Setting("objective", "smooth", 1e-5, "selfreg 4"),
        Setting("regularizer", "mode", "code", "selfreg 7", "the text differs in six points: mode='paper_literal'"),
        *_SHARED,
    ]
    if swin and data == "synapse":
        settings = [*settings]
        for name in ("scr", "ifd"):
            place = next(i for i, s in enumerate(settings) if (s.part, s.name) == ("regularizer", name))
            settings[place] = Setting("regularizer", name, 0.010, "selfreg 4", "the documented Swin-Unet command")
    if task.dims == 2:
        settings.append(Setting("config", "patch_size", (224, 224), "selfreg 5.3"))
    settings = replaced(settings, "model", model or {})
    if swin:
        arguments = {s.name: s.value for s in settings if s.part == "model"}
        groups = swin_unet(**arguments).selfreg_groups
        settings.append(Setting("regularizer", "groups", groups, "selfreg 2.3", "last and first block of every stage"))
    stage = Stage(
        "self_reg_unet",
        task,
        replaced(settings, "config", config),
        model="swin_unet" if swin else "self_reg_unet",
        objective="segmentation",
        regularizer="selfreg",
    )
    return Recipe("self_reg_unet", PAPER, (stage,))


def _losses(cross_entropy: float, dice: float, weight: float, note: str = "") -> list[Setting]:
    return [
        Setting("objective", "cross_entropy", cross_entropy, "selfreg 4", note),
        Setting("objective", "dice", dice, "selfreg 4", note),
        Setting("regularizer", "scr", weight, "selfreg 4", "one lambda for both terms in the code"),
        Setting("regularizer", "ifd", weight, "selfreg 4", "one lambda for both terms in the code"),
    ]


def _optimizer(source: str, note: str = "", **values: Any) -> list[Setting]:
    return [Setting("config", name, value, source, note) for name, value in values.items()]


_UNET = [Setting("model", "width", 64, "selfreg 5.1")]
_SWIN = [
    Setting("model", "width", 96, "selfreg 5.2"),
    Setting("model", "depths", [2, 2, 2, 2], "selfreg 5.2", "the configured decoder depths are ignored by the code"),
    Setting("model", "heads", [3, 6, 12, 24], "selfreg 5.2"),
    Setting("model", "window", 7, "selfreg 5.2"),
    Setting("model", "drop_path", 0.2, "selfreg 5.2"),
    Setting("not taken over", "weights", "ImageNet Swin-T", "selfreg 5.2", "toolkit.load_swin(model, file) loads them"),
]
_SETTINGS: dict[str, list[Setting]] = {
    "acdc": [
        *_losses(0.3, 0.7, 0.1),
        Setting("epochs", "epochs", 400, "selfreg 5.3"),
        *_optimizer(
            "selfreg 5.3",
            optimizer="adamw",
            learning_rate=1e-4,
            weight_decay=1e-4,
            schedule="constant",
            batch_size=12,
            seed=2222,
        ),
    ],
    "synapse": [
        *_losses(0.4, 0.6, 0.015),
        Setting("epochs", "epochs", 150, "selfreg 5.3"),
        *_optimizer(
            "selfreg 5.3",
            optimizer="sgd",
            learning_rate=0.05,
            weight_decay=1e-4,
            momentum=0.9,
            batch_size=24,
            seed=1234,
        ),
        Setting("config", "schedule", "polynomial_delayed", "selfreg 5.3", "steps 0 and 1 share the base rate"),
        Setting(
            "not taken over", "optimizer", "SGD without Nesterov", "selfreg 5.3", "the toolkit's SGD is Nesterov's"
        ),
    ],
    "histology": [
        *_losses(0.5, 0.5, 0.015, "0.5 Dice + 0.5 balanced cross-entropy of a sigmoid, unverified"),
        Setting("epochs", "epochs", 2000, "selfreg 5.3", "at most; the source stops early"),
        *_optimizer(
            "selfreg 5.3",
            "unverified for this paper",
            optimizer="adam",
            learning_rate=1e-3,
            weight_decay=0.0,
            batch_size=4,
            seed=666,
        ),
        Setting("config", "schedule", "cosine", "selfreg 5.3", "one half period; the source restarts every 10 epochs"),
    ],
}
_SHARED = [
    Setting("config", "augmentation", "geometry", "selfreg 5.3", "the toolkit's rotations, flips, shifts and zooms"),
    Setting(
        "not taken over",
        "augmentation",
        "quarter turns with a flip, else rotation up to 20 degrees",
        "selfreg 5.3",
        "and no shift or zoom",
    ),
    Setting("config", "select", "best", "ours", "on the validation split; the source also kept the best test score"),
]
