"""The studies as data: which networks each trains, on what, and what is measured on them.

Arms are named as in `claims.toml`. A study's settings are those of its plain training, chosen on validation (see
`results/tuning.csv`); every arm gets the same budget.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import toolkit as tk
from evidence import measures
from toolkit.training.seeding import seeded

CARDIAC = {"steps": 600, "batch_size": 8, "learning_rate": 5e-3, "validate_every": 100}
DIVERGENCES = ("epps_pulley", "sliced_wasserstein", "gaussian_kl", "covariance")


@dataclasses.dataclass(frozen=True)
class Study:
    """One protocol.

    Attributes:
        task: loads the data.
        arms: by name, what is trained.
        config: settings of every training.
        measures: functions of (runs, arm) that give rows of results.
        train: how one arm is trained: (study, arm, seed, folder) to runs.
        site: what it is trained on; None = all sites.
        seeds: of every arm that a claim does not give others.
        folds: of a cross-validation; 0 = the task's own splits.
    """

    task: Callable[[], Any]
    arms: Mapping[str, Any]
    config: Mapping[str, Any]
    measures: tuple[Callable[..., Iterator[measures.Row]], ...]
    train: Callable[[Study, str, int, Path, int | None], list[Any]]
    site: str | None = "A"
    seeds: tuple[int, ...] = (0, 1, 2)
    folds: int = 0


def one_network(study: Study, arm: str, seed: int, folder: Path, fold: int | None = None) -> list[Any]:
    """An arm of a comparison; all arms share first weights, data order and augmentation."""
    task = study.task()
    part = task if fold is None else task.folds(study.folds)[fold]
    result = tk.compare(
        {arm: study.arms[arm]},
        task=part,
        config=study.config,
        seeds=[seed],
        site=study.site,
        out=folder,
        progress=False,
        metric="dice",
    )
    return [tk.load_run(path) for runs in result.runs.values() for path in runs.values()]


def one_sequence(study: Study, arm: str, seed: int, folder: Path, fold: int | None = None) -> list[Any]:
    """An arm trained on one site after another."""
    if (folder / "sequence.json").exists():
        return tk.resume_sequence(folder, progress=False).stages
    given, task = study.arms[arm], study.task()
    with seeded(seed):
        model = given.model()
    config = tk.TrainConfig(**{**study.config, "seed": seed})
    return tk.train_sequence(model, task, task.sites, given.regularizer, config, folder, progress=False).stages


def two_stages(study: Study, arm: str, seed: int, folder: Path, fold: int | None = None) -> list[Any]:
    """Both stages of Med-DisSeg; the arm says which preset of the loss each stage has, None = without."""
    runs: list[Any] = []
    for index, preset in enumerate(study.arms[arm]):
        settings = {**study.config, "seed": seed}
        network = settings.pop("network")
        recipe = tk.recipes.med_disseg(study.task(), preset or "default", network=network, **settings)
        stage, place = recipe.stages[index], folder / f"stage-{index + 1}"
        model, term = stage.build(), stage.regularizer if preset else None
        if (place / "run.json").exists():
            runs.append(tk.resume(place, model, stage.task, term, stage.objective, progress=False))
            continue
        if runs:
            tk.transfer_encoder(runs[-1].model, model)
        parts = {**stage, "model": model, "regularizer": term}
        runs.append(tk.train(**parts, site=study.site, out=place, progress=False))
    return runs


def _unet(*channels: int, classes: int = 4, dims: int = 2) -> Callable[[], Any]:
    return lambda: tk.unet(1, classes, channels=channels, dims=dims)


def _paper_unet() -> Any:
    return tk.self_reg_unet(1, 4, width=8)


def _swin() -> Any:
    return tk.swin_unet(1, 4, width=12, window=4, drop_path=0.0)


def _fast_slow() -> Any:
    return tk.fast_slow_network(1, 4, width=8, refined=True)


def _arms(model: Callable[[], Any], objective: Any = None, **regularizers: Any) -> dict[str, Any]:
    return {
        name.replace("_", "-"): tk.Arm(model=model, objective=objective, regularizer=regularizer)
        for name, regularizer in regularizers.items()
    }


def _self_reg(weight: float, **options: Any) -> Any:
    return tk.SelfReg(scr=weight, ifd=weight, **options)


def _cardiac(normalisation: str | None = None) -> Any:
    return tk.load_task("phantom-cardiac", **({"normalisation": normalisation} if normalisation else {}))


_MASKED = {"image_schemes": ("channel", "spatial"), "shape_schemes": ("channel", "spatial")}
_BLOCKS = [
    {
        "encoder": ["image_encoder.down2", "image_encoder.down3", "image_encoder"],
        "decoder": ["segmentation_decoder.up1", "segmentation_decoder.up2", "segmentation_decoder.up3"],
    }
]

STUDIES: dict[str, Study] = {
    "cardiac": Study(
        task=_cardiac,
        arms=_arms(
            _unet(8, 16, 32, 64),
            plain=None,
            segreg=tk.SegReg(weight=0.1),
            selfreg=_self_reg(0.1),
            dispersive=tk.Dispersive(tap="bottleneck", weight=0.2),
        ),
        config=CARDIAC,
        measures=(measures.dice, measures.reference_distance, measures.head_disagreement),
        train=one_network,
        seeds=(0, 1, 2, 3, 4, 5, 6, 7),
    ),
    "selfreg": Study(
        task=_cardiac,
        arms={
            **_arms(
                _paper_unet,
                plain=None,
                selfreg=_self_reg(0.1),
                scr=tk.SelfReg(scr=0.1, ifd=0.0),
                ifd=tk.SelfReg(scr=0.0, ifd=0.1),
            ),
            **{f"selfreg-{weight:g}": tk.Arm(_paper_unet, None, _self_reg(weight)) for weight in (0.001, 0.015, 0.15)},
        },
        config={**CARDIAC, "steps": 400},
        measures=(measures.dice, measures.redundancy, measures.cam_inside),
        train=one_network,
    ),
    "swin": Study(
        task=_cardiac,
        arms={
            "swin-plain": tk.Arm(_swin),
            "swin-selfreg": tk.Arm(_swin, None, _self_reg(0.1, groups=_swin().selfreg_groups)),
        },
        config={**CARDIAC, "steps": 400, "learning_rate": 2e-3},
        measures=(measures.dice,),
        train=one_network,
    ),
    "latent": Study(
        task=lambda: _cardiac("range:2,98"),
        arms=_arms(
            _fast_slow,
            tk.FastSlowObjective(),
            standard=None,
            cooperative=tk.LatentAugmentation(),
            targeted=tk.LatentAugmentation(**_MASKED),
            dropout=tk.LatentAugmentation(image_schemes=("dropout",), shape_schemes=("dropout",)),
            windows=tk.RandomWindows(),
            segreg=tk.SegReg(weight=0.1),
            selfreg=tk.SelfReg(groups=_BLOCKS),
            dispersive=tk.Dispersive(tap="image_code"),
        ),
        config={**CARDIAC, "steps": 250, "learning_rate": 2e-3, "optimizer": "adam", "weight_decay": 0.0},
        measures=(measures.dice, measures.fast_dice, measures.corrupted_foreground),
        train=one_network,
    ),
    "med-disseg": Study(
        task=lambda: tk.load_task("phantom-glands"),
        arms={"without": (None, None), "with": ("default", "default"), "released": ("released", "released")},
        config={
            "network": {"encoder_width": 8, "width": 16},
            "steps": 200,
            "batch_size": 8,
            "patch_size": (64, 64),
            "learning_rate": 2e-3,
            "schedule": "one_cycle",
            "validate_every": 100,
        },
        measures=(measures.dice, measures.dispersion, measures.gradient_norm),
        train=two_stages,
    ),
    "sequence": Study(
        task=_cardiac,
        arms=_arms(_unet(8, 16, 32, 64), plain=None, segreg=tk.SegReg(weight=0.1)),
        config={**CARDIAC, "steps": 200, "select": "last", "validate_every": 0},
        measures=(measures.transfer, measures.drift),
        train=one_sequence,
        site=None,
    ),
    "prostate-sequence": Study(
        task=lambda: tk.load_task("phantom-prostate"),
        arms=_arms(_unet(8, 16, 32, classes=3, dims=3), plain=None, segreg=tk.SegReg(weight=0.1)),
        config={"steps": 200, "batch_size": 2, "learning_rate": 5e-3, "select": "last", "validate_every": 0},
        measures=(measures.transfer,),
        train=one_sequence,
        site=None,
    ),
    "race": Study(
        task=_cardiac,
        arms={
            "plain": tk.Arm(_unet(8, 16, 32, 64)),
            **{
                f"{divergence}-{tap}-{weight:g}": tk.Arm(
                    _unet(8, 16, 32, 64), None, tk.SegReg(weight=weight, tap=tap, divergence=divergence)
                )
                for divergence in DIVERGENCES
                for tap in ("head_input", "pre_activation")
                for weight in (0.01, 0.1, 1.0)
            },
        },
        config={**CARDIAC, "steps": 200},
        measures=(measures.validation_dice,),
        train=one_network,
        seeds=(10, 11),
    ),
    "acdc": Study(
        task=lambda: tk.load_task("cardiac_acdc"),
        arms=_arms(
            _unet(16, 32, 64, 128),
            plain=None,
            segreg=tk.SegReg(weight=0.1),
            selfreg=_self_reg(0.1),
            scr=tk.SelfReg(scr=0.1, ifd=0.0),
            ifd=tk.SelfReg(scr=0.0, ifd=0.1),
            dispersive=tk.Dispersive(tap="bottleneck", weight=0.2),
        ),
        config={"steps": 600, "batch_size": 12, "patch_size": (160, 160), "learning_rate": 2e-3, "validate_every": 200},
        measures=(measures.dice, measures.sunnybrook),
        train=one_network,
        site=None,
        seeds=(0,),
        folds=5,
    ),
}
