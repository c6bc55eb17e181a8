"""SegReg's recipe. Its loss, weight and schedule are our inference from the paper's public parts."""

from __future__ import annotations

from typing import Any

from toolkit import registry
from toolkit.methods.recipe import Recipe, Setting, Stage, fitting, left_out, replaced, several
from toolkit.methods.segreg.regularizer import SegReg

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
    batch_size = 12 if task.dims == 2 else 2
    settings = [
        *fitting(task, "dims"),
        Setting("model", "channels", [32, 64, 128, 256], "segreg 2.1", "32 channels at the head; depth is ours"),
        Setting("model", "norm", "instance", "segreg 3.1"),
        *several("objective", "segreg 3.1", cross_entropy=1.0, dice=1.0, include_background=False, smooth=1e-5),
        *(Setting("regularizer", key, value, "segreg 2.10", _NOTES.get(key, "")) for key, value in arguments.items()),
        Setting("config", "steps", EPOCHS * STEPS_PER_EPOCH, "segreg 3.1", "1000 epochs of 250 iterations"),
        Setting("config", "batch_size", batch_size, "segreg 2.3", "nnU-Net's plans choose it; 2 in 3D"),
        Setting("config", "optimizer", "sgd", "segreg 3.1", "Nesterov"),
        *several("config", "segreg 3.1", momentum=0.99, learning_rate=1e-2, weight_decay=3e-5, clip_norm=12.0),
        Setting("config", "schedule", "polynomial", "segreg 3.1"),
        Setting("config", "select", "last", "continual_learning 1", "nothing is chosen on data of a later task"),
        Setting("config", "checkpoint_every", 250, "ours"),
        Setting("config", "validate_every", 2500, "ours", "for the history only"),
        *left_out("segreg 3.1", "the U-Net has one output", network="nnU-Net's planned network with deep supervision"),
        Setting("not taken over", "augmentation", "nnU-Net's", "segreg 3.4", "the toolkit's standard augmentation"),
    ]
    settings = replaced(settings, model=model, config=config)
    stage = Stage("segreg", task, settings, "unet", "segmentation", regularizer="segreg")
    return Recipe("segreg", PAPER, (stage,))


_NOTES = {
    "warm_up": "2.6: linear over the first 5 % of the (first) training",
    "weight": "2.6: N-free grid 0.01 to 1; toolkit.calibrate chooses it by the gradient ratio",
    "tap": "2.2: the tensor that the segmentation head reads, or the one before the activation",
    "divergence": "2.5: our inference, the paper does not publish its loss",
}
