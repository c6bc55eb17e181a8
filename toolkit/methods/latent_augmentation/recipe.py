"""The recipe of cooperative training with latent-space augmentation."""

from __future__ import annotations

from typing import Any

from toolkit import registry
from toolkit.errors import choose
from toolkit.methods.recipe import Recipe, Setting, Stage, fitting, left_out, replaced, several

PAPER = "Chen et al., Cooperative Training and Latent Space Data Augmentation, MICCAI 2021, as last released"
RULE = "range:2,98"
BASELINES = ("random_windows", "random_convolution", "adversarial_noise", "adversarial_bias")


def latent_augmentation(
    task: Any,
    *,
    cooperative: bool = True,
    preset: str = "final",
    baseline: str | None = None,
    model: dict[str, Any] | None = None,
    **config: Any,
) -> Recipe:
    """The fast and slow network with hard examples from masked codes.

    The method needs images in [0, 1]. A task of the catalogue is loaded again with the published normalisation; for
    any other one whose rule does not give that range, the clipping and the sigmoid of the decoder are switched off,
    and the recipe's table says so.

    Args:
        task: data, 2D as published, or 3D.
        cooperative: False is the standard training of the paper's comparison: the same networks and losses without
            the hard examples.
        preset: of `LatentAugmentation`.
        baseline: instead of masked codes one of the paper's image-space baselines: "random_windows",
            "random_convolution", "adversarial_noise" or "adversarial_bias", under the same training settings.
        model: arguments of `toolkit.fast_slow_network` to change.
        config: fields of `TrainConfig` to change, for example `steps=500`.

    Raises:
        ConfigError: no such baseline.
    """
    if baseline is not None:
        choose("baseline", baseline, BASELINES, where="recipes.latent_augmentation")
    regularizer = baseline or ("latent_augmentation" if cooperative else None)
    task, unit_range = in_unit_range(task)
    source = "latent_augmentation 4.4" if unit_range else "ours"
    why = "" if unit_range else f"images are normalised by {task.normalisation!r}, not to [0, 1]"
    settings = [
        *fitting(task, "dims"),
        Setting("model", "width", 16, "latent_augmentation 1.3"),
        Setting("model", "temperature", 2.0, "latent_augmentation 2.2"),
        Setting("model", "image_activation", "sigmoid" if unit_range else "none", source, why),
        *several("model", _TRAINING, "the slow network's result is scored and selected", refined=True),
        Setting("objective", "noise", 0.05, "latent_augmentation 4.1"),
        Setting("objective", "clip", unit_range, source, why),
        Setting("objective", "reconstruction_factor", 0.5, "latent_augmentation 2.1"),
        *_regularizer(regularizer, preset),
        Setting("epochs", "epochs", 600, _TRAINING),
        *_CONFIG,
    ]
    if task.dims == 2:
        settings.append(Setting("config", "patch_size", (192, 192), "latent_augmentation 4.4"))
    settings = replaced(settings, model=model, config=config)
    name = regularizer or "standard"
    stage = Stage(name, task, settings, "fast_slow_network", "fast_slow", regularizer=regularizer)
    return Recipe("latent_augmentation", PAPER, (stage,))


def _regularizer(name: str | None, preset: str) -> list[Setting]:
    """The settings of the method, of a baseline (its defaults), or none."""
    if name is None:
        return []
    if name == "latent_augmentation":
        return [*_MASKS, Setting("regularizer", "preset", preset, "latent_augmentation 7")]
    record = registry.describe(registry.build("regularizer", {"name": name})) or {}
    return [Setting("regularizer", key, value, "latent_augmentation 5.6") for key, value in record["arguments"].items()]


def in_unit_range(task: Any) -> tuple[Any, bool]:
    """The task with images in [0, 1], loaded again if it comes from the catalogue; and whether that is so."""
    if task.normalisation.startswith(("range", "window:")):
        return task, True
    recipe = task.toolkit_config
    if recipe is None or recipe["name"] != "load_task":
        return task, False
    return registry.build("task", {**recipe, "arguments": {**recipe["arguments"], "normalisation": RULE}}), True


_TRAINING = "latent_augmentation 4.2"
_SCHEMES = ["dropout", "channel", "spatial"]
_MASKS = [
    *several("regularizer", _TRAINING, max_fraction=0.5, random_fraction=True, soft=True),
    Setting("regularizer", "dropout_rate", 0.5, "latent_augmentation 3.2"),
    *several("regularizer", "latent_augmentation 3.1", image_schemes=_SCHEMES, shape_schemes=_SCHEMES),
]
_CONFIG = [
    Setting("config", "optimizer", "adam", _TRAINING, "one for all modules, with equal settings"),
    *several("config", _TRAINING, learning_rate=1e-4, schedule="constant", weight_decay=0.0, batch_size=20),
    Setting("config", "augmentation", "standard", "ours"),
    Setting("config", "select", "best", _TRAINING, "by mean Dice; the source takes mean IoU"),
    *left_out("latent_augmentation 4.1", "all 20 are augmented", batch="10 slices augmented, and unaugmented"),
    *left_out(
        "latent_augmentation 4.4", "the toolkit's", augmentation="eight turns of 45 degrees, elastic deformation"
    ),
    Setting("not taken over", "resampling", "1.36719 mm in the plane", "latent_augmentation 4.4", "images as they are"),
]
