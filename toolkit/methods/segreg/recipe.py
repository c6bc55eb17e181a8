"""SegReg's recipe. Its loss, weight and schedule are our inference from the paper's public parts."""

from __future__ import annotations

from typing import Any

from toolkit import registry
from toolkit.methods.recipe import Recipe, Setting, Stage, replaced
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.training.config import TrainConfig

PAPER = "Vaish et al., SegReg, arXiv 2602.23509; training settings of nnU-Net, its host"
EPOCHS, STEPS_PER_EPOCH = 1000, 250


def segreg(task: Any, preset: str = "segreg_default", *, model: dict[str, Any] | None = None, **config: Any) -> Recipe:
    """SegReg on the toolkit's U-Net under the training settings of nnU-Net.

    Args:
        task: data, 2D or 3D.
        preset: of `SegReg.from_preset`; "baseline" trains without.
        model: arguments of `toolkit.unet` to change.
        config: fields of `TrainConfig` to change, for example `steps=500`; the warm-up follows the steps.
    """
    steps = int(config.get("steps", EPOCHS * STEPS_PER_EPOCH))
    classes = len(task.classes) if preset == "segreg_classcond" else None
    regularizer = SegReg.from_preset(preset, warm_up=max(1, steps // 20), classes=classes)
    arguments: dict[str, Any] = (registry.describe(regularizer) or {})["arguments"]
    settings = [
        Setting("model", "in_channels", task.channels, "the task"),
        Setting("model", "out_channels", len(task.classes), "the task"),
        Setting("model", "dims", task.dims, "the task"),
        Setting("model", "channels", [32, 64, 128, 256], "segreg 2.1", "32 channels at the head; depth is ours"),
        Setting("model", "norm", "instance", "segreg 3.1"),
        Setting("objective", "cross_entropy", 1.0, "segreg 3.1"),
        Setting("objective", "dice", 1.0, "segreg 3.1"),
        Setting("objective", "include_background", False, "segreg 3.1"),
        Setting("objective", "smooth", 1e-5, "segreg 3.1"),
        *(
            Setting("regularizer", name, value, "segreg 2.10", _NOTES.get(name, ""))
            for name, value in arguments.items()
        ),
        Setting("config", "steps", EPOCHS * STEPS_PER_EPOCH, "segreg 3.1", "1000 epochs of 250 iterations"),
        Setting(
            "config", "batch_size", 12 if task.dims == 2 else 2, "segreg 2.3", "nnU-Net's plans choose it; 2 in 3D"
        ),
        Setting("config", "optimizer", "sgd", "segreg 3.1", "Nesterov"),
        Setting("config", "momentum", 0.99, "segreg 3.1"),
        Setting("config", "learning_rate", 1e-2, "segreg 3.1"),
        Setting("config", "weight_decay", 3e-5, "segreg 3.1"),
        Setting("config", "schedule", "polynomial", "segreg 3.1"),
        Setting("config", "clip_norm", 12.0, "segreg 3.1"),
        Setting("config", "select", "last", "continual_learning 1", "nothing is chosen on data of a later task"),
        Setting("config", "checkpoint_every", 250, "ours"),
        Setting("config", "validate_every", 2500, "ours", "for the history only"),
        Setting(
            "not taken over",
            "network",
            "nnU-Net's planned network with deep supervision",
            "segreg 3.1",
            "the toolkit's U-Net has one output",
        ),
        Setting("not taken over", "augmentation", "nnU-Net's", "segreg 3.4", "the toolkit's standard augmentation"),
    ]
    settings = replaced(replaced(settings, "model", model or {}), "config", config)
    stage = Stage("segreg", task, settings, model="unet", objective="segmentation", regularizer="segreg")
    assert isinstance(stage.config, TrainConfig)
    return Recipe("segreg", PAPER, (stage,))


_NOTES = {
    "warm_up": "2.6: linear over the first 5 % of the (first) training",
    "weight": "2.6: N-free grid 0.01 to 1; toolkit.calibrate chooses it by the gradient ratio",
    "tap": "2.2: the tensor that the segmentation head reads, or the one before the activation",
    "divergence": "2.5: our inference, the paper does not publish its loss",
}
