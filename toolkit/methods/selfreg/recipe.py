"""SelfReg-UNet's recipes: the authors' settings for three kinds of data, on its U-Net or on Swin-Unet."""

from __future__ import annotations

from typing import Any

from toolkit.errors import ConfigError, choose
from toolkit.methods.recipe import Recipe, Setting, Stage, fitting, left_out, replaced, several
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
    choose("data set with settings", data, DATA, where="recipes.self_reg_unet(data=...)")
    if swin and task.dims != 2:
        raise ConfigError("Swin-Unet takes images, not volumes.", fix="Leave swin out, or give a 2D task.")
    settings = [
        *fitting(task, *(() if swin else ("dims",))),
        *(_SWIN if swin else [Setting("model", "width", 64, "selfreg 5.1")]),
        *_SETTINGS[data],
        Setting("objective", "include_background", True, "selfreg 4", "all classes, background included"),
        Setting("objective", "squared", True, "selfreg 4", "squares in Dice's denominator"),
        *several("objective", "selfreg 4", batch_dice=True, smooth=1e-5),
        Setting("regularizer", "mode", "code", "selfreg 7", "the text differs in six points: mode='paper_literal'"),
        *_SHARED,
    ]
    if swin and data == "synapse":
        command = several("regularizer", "selfreg 4", "the documented Swin-Unet command", scr=0.010, ifd=0.010)
        settings = [s for s in settings if s.name not in ("scr", "ifd")] + command
    if task.dims == 2:
        settings.append(Setting("config", "patch_size", (224, 224), "selfreg 5.3"))
    settings = replaced(settings, model=model)
    if swin:
        groups = swin_unet(**{s.name: s.value for s in settings if s.part == "model"}).selfreg_groups
        settings.append(Setting("regularizer", "groups", groups, "selfreg 2.3", "last and first block of every stage"))
    settings, network = replaced(settings, config=config), "swin_unet" if swin else "self_reg_unet"
    stage = Stage("self_reg_unet", task, settings, network, "segmentation", regularizer="selfreg")
    return Recipe("self_reg_unet", PAPER, (stage,))


def _losses(cross_entropy: float, dice: float, weight: float, note: str = "") -> list[Setting]:
    return [
        *several("objective", "selfreg 4", note, cross_entropy=cross_entropy, dice=dice),
        *several("regularizer", "selfreg 4", "one lambda for both terms in the code", scr=weight, ifd=weight),
    ]


_SWIN = [
    *several("model", "selfreg 5.2", width=96, heads=[3, 6, 12, 24], window=7, drop_path=0.2),
    Setting("model", "depths", [2, 2, 2, 2], "selfreg 5.2", "the configured decoder depths are ignored by the code"),
    Setting("not taken over", "weights", "ImageNet Swin-T", "selfreg 5.2", "toolkit.load_swin(model, file) loads them"),
]
_UNVERIFIED = "unverified for this paper"
_SETTINGS: dict[str, list[Setting]] = {
    "acdc": [
        *_losses(0.3, 0.7, 0.1),
        Setting("epochs", "epochs", 400, "selfreg 5.3"),
        *several("config", "selfreg 5.3", optimizer="adamw", learning_rate=1e-4, weight_decay=1e-4),
        *several("config", "selfreg 5.3", schedule="constant", batch_size=12, seed=2222),
    ],
    "synapse": [
        *_losses(0.4, 0.6, 0.015),
        Setting("epochs", "epochs", 150, "selfreg 5.3"),
        *several("config", "selfreg 5.3", optimizer="sgd", learning_rate=0.05, weight_decay=1e-4, momentum=0.9),
        *several("config", "selfreg 5.3", batch_size=24, seed=1234),
        Setting("config", "schedule", "polynomial_delayed", "selfreg 5.3", "steps 0 and 1 share the base rate"),
        *left_out("selfreg 5.3", "the toolkit's SGD is Nesterov's", optimizer="SGD without Nesterov"),
    ],
    "histology": [
        *_losses(0.5, 0.5, 0.015, "0.5 Dice + 0.5 balanced cross-entropy of a sigmoid, unverified"),
        Setting("epochs", "epochs", 2000, "selfreg 5.3", "at most; the source stops early"),
        *several("config", "selfreg 5.3", _UNVERIFIED, optimizer="adam", learning_rate=1e-3, weight_decay=0.0),
        *several("config", "selfreg 5.3", _UNVERIFIED, batch_size=4, seed=666),
        Setting("config", "schedule", "cosine", "selfreg 5.3", "one half period; the source restarts every 10 epochs"),
    ],
}
_SHARED = [
    Setting("config", "augmentation", "geometry", "selfreg 5.3", "the toolkit's rotations, flips, shifts and zooms"),
    *left_out("selfreg 5.3", "and no shift or zoom", augmentation="quarter turns with a flip, else up to 20 degrees"),
    Setting("config", "select", "best", "ours", "on the validation split; the source also kept the best test score"),
]
