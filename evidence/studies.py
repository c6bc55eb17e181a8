"""The studies as data: which networks each trains, on what, and what is measured on them.

Arms are named as in `claims.toml`. The settings of plain training on phantom-cardiac were chosen on validation
(`results/tuning.csv`), the others set without a search; every arm of a study gets the same budget.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import toolkit as tk
from evidence import measures
from evidence.training import Stages, Study, one_left_out, one_network, one_sequence, two_stages

CARDIAC = {"steps": 600, "batch_size": 8, "learning_rate": 5e-3, "validate_every": 100}
REAL = {"steps": 600, "batch_size": 12, "patch_size": (160, 160), "learning_rate": 2e-3, "validate_every": 200}
# Half precision where the card or the processor computes in it: without, bfloat16 is five times slower than single precision.
NATIVE = "bf16" if torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported() else "32"
HALF = {**REAL, "precision": NATIVE}
FAST_SLOW = {"steps": 800, "learning_rate": 5e-3, "optimizer": "adam", "weight_decay": 0.0}
DISSEG = {
    "network": {"encoder_width": 8, "width": 16},
    "steps": 200,
    "batch_size": 8,
    "patch_size": (64, 64),
    "learning_rate": 2e-3,
    "schedule": "one_cycle",
    "validate_every": 100,
}
RACE = Path(__file__).with_name("results") / "race.csv"
IN_TURN = {"select": "last", "validate_every": 0}
TEN_SUBJECTS = 10
DIVERGENCES = ("epps_pulley", "sliced_wasserstein", "gaussian_kl", "covariance")
TAPS, WEIGHTS = ("head_input", "pre_activation"), (0.01, 0.1, 1.0)


def _unet(
    *channels: int, inputs: int = 1, classes: int = 4, dims: int = 2, norm: str = "instance"
) -> Callable[[], Any]:
    return lambda: tk.unet(inputs, classes, channels=channels, dims=dims, norm=norm)


def _paper_unet(width: int = 8, inputs: int = 1, classes: int = 4) -> Any:
    return tk.self_reg_unet(inputs, classes, width=width)


def _swin() -> Any:
    return tk.swin_unet(1, 4, width=12, window=4, drop_path=0.0)


def _fast_slow() -> Any:
    return tk.fast_slow_network(1, 4, width=8, refined=True)


def _arms(model: Callable[[], Any], objective: Any = None, **regularizers: Any) -> dict[str, Any]:
    return {name.replace("_", "-"): tk.Arm(model, objective, term) for name, term in regularizers.items()}


def _self_reg(weight: float, **options: Any) -> Any:
    return tk.SelfReg(scr=weight, ifd=weight, **options)


def _dispersive() -> Any:
    return tk.Dispersive(tap="bottleneck", weight=0.2)


def _masks(*schemes: str, shape: bool = True) -> Any:
    return tk.LatentAugmentation(image_schemes=schemes, shape_schemes=schemes if shape else ())


def _cardiac() -> Any:
    return tk.load_task("phantom-cardiac")


def _acdc(subjects: int | None = None) -> Any:
    """ACDC in [0, 1]; with a number of subjects only so many of the training split, in the order of the manifest."""
    task = tk.load_task("cardiac_acdc", normalisation="range:2,98")
    own = list(dict.fromkeys(case.subject for case in task.cases("train")))
    if subjects is None:
        return task
    if len(own) < subjects:
        raise tk.DataError(
            f"This copy of ACDC has {len(own)} training subjects, not {subjects}.", fix="Use the full release."
        )
    kept = set(own[:subjects])
    cases = [case for split in ("train", "val", "test") for case in task.cases(split)]
    return task.restricted([case for case in cases if case.split != "train" or case.subject in kept])


def _left_ventricles() -> Any:
    """ACDC and Sunnybrook with the one class that both label."""
    tasks = [tk.load_task("cardiac_acdc"), tk.load_task("cardiac_sunnybrook")]
    return tk.join_tasks(tasks, classes={"LV": {"cardiac_acdc": 3, "cardiac_sunnybrook": 1}})


def _nuclei() -> Any:
    return tk.load_task("nuclei_dsb2018")


def reading(name: str) -> Any:
    """SegReg as an arm of the race names it: divergence, tap, weight."""
    divergence, tap, weight = name.rsplit("-", 2)
    return tk.SegReg(weight=float(weight), tap=tap, divergence=divergence)


def best_readings(race: Path = RACE) -> list[str]:
    """Highest Dice on validation patients of sites never seen first, home within 0.01 of plain training; before the race none."""
    if not race.exists():
        return []
    home: dict[str, list[float]] = {}
    away: dict[str, list[float]] = {}
    with race.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            (home if row["site"] == "A" else away).setdefault(row["arm"], []).append(float(row["value"]))
    allowed = [arm for arm in away if arm != "plain" and np.mean(home[arm]) >= np.mean(home["plain"]) - 0.01]
    return sorted(allowed, key=lambda arm: -float(np.mean(away[arm])))


def best_reading(race: Path = RACE) -> str:
    """What the race chose.

    Raises:
        ResultError: the race has not been run.
    """
    if not (best := best_readings(race)):
        raise tk.ResultError("The race of readings has not been run.", fix="make evidence STUDY=race")
    return best[0]


def _against_best(model: Callable[[], Any]) -> dict[str, Any]:
    return {"plain": tk.Arm(model), "segreg-best": lambda: tk.Arm(model, None, reading(best_reading()))}


def _latent_arms() -> dict[str, Any]:
    return _arms(
        _fast_slow,
        tk.FastSlowObjective(),
        standard=None,
        cooperative=tk.LatentAugmentation(),
        targeted=_masks("channel", "spatial"),
        dropout=_masks("dropout"),
        windows=tk.RandomWindows(),
    )


def _ten_subject_arms() -> dict[str, Any]:
    image_code = _masks("dropout", "channel", "spatial", shape=False)
    others = {"convolution": tk.RandomConvolution(), "noise": tk.AdversarialNoise(), "bias": tk.AdversarialBias()}
    return _latent_arms() | _arms(_fast_slow, tk.FastSlowObjective(), image_code=image_code, **others)


_SMALL = _unet(8, 16, 32, 64)
_PROSTATES = _unet(8, 16, 32, classes=3, dims=3)
_METHODS = {"plain": None, "segreg": tk.SegReg(weight=0.1), "selfreg": _self_reg(0.1), "dispersive": _dispersive()}
_PAIR = {"plain": None, "segreg": tk.SegReg(weight=0.1)}
_PARTS = {"scr": tk.SelfReg(scr=0.1, ifd=0.0), "ifd": tk.SelfReg(scr=0.0, ifd=0.1)}


def _swin_arms() -> dict[str, Any]:
    taught = _self_reg(0.1, groups=_swin().selfreg_groups)
    return _arms(_swin, swin_plain=None, swin_selfreg=taught)


STUDIES: dict[str, Study] = {
    "cardiac": Study(
        task=_cardiac,
        arms=_arms(_SMALL, **_METHODS)
        | _arms(_unet(8, 16, 32, 64, norm="batch"), batch_plain=None, batch_selfreg=_self_reg(0.1)),
        config=CARDIAC,
        measures=(measures.dice, measures.reference_distance, measures.head_disagreement),
        train=one_network,
    ),
    "selfreg": Study(
        task=_cardiac,
        arms={
            **_arms(_paper_unet, plain=None, selfreg=_self_reg(0.1), **_PARTS),
            **{f"selfreg-{w:g}": tk.Arm(_paper_unet, None, _self_reg(w)) for w in (0.001, 0.015, 0.15)},
        },
        config={**CARDIAC, "steps": 400},
        measures=(measures.dice, measures.redundancy, measures.cam_inside),
        train=one_network,
    ),
    "selfreg-glands": Study(
        task=lambda: tk.load_task("phantom-glands"),
        arms=_arms(partial(_paper_unet, 6, 3, 2), plain=None, selfreg=_self_reg(0.015)),
        config={**CARDIAC, "steps": 400},
        measures=(measures.dice,),
        train=one_network,
    ),
    "swin": Study(
        task=_cardiac,
        arms=_swin_arms(),
        config={**CARDIAC, "steps": 400, "learning_rate": 2e-3},
        measures=(measures.dice,),
        train=one_network,
    ),
    "swin-longer": Study(
        task=_cardiac,
        arms=_swin_arms(),
        config={**CARDIAC, "steps": 3200, "learning_rate": 2e-3},
        measures=(measures.dice, measures.swin_redundancy),
        train=one_network,
    ),
    "latent": Study(
        task=lambda: tk.load_task("phantom-cardiac", normalisation="range:2,98"),
        arms=_latent_arms(),
        config={**CARDIAC, **FAST_SLOW, "patch_size": (64, 64)},
        measures=(measures.dice, measures.fast_dice, measures.corrupted_foreground),
        train=one_network,
    ),
    "med-disseg": Study(
        task=lambda: tk.load_task("phantom-glands"),
        arms={"without": Stages(), "with": Stages("default", "default"), "released": Stages("released", "released")},
        config=DISSEG,
        measures=(measures.dice, measures.dispersion, measures.gradient_norm),
        train=two_stages,
    ),
    "sequence": Study(
        task=_cardiac,
        arms=_arms(_SMALL, **_PAIR),
        config={**CARDIAC, **IN_TURN, "steps": 200},
        measures=(measures.transfer, measures.drift),
        train=one_sequence,
        site=None,
    ),
    "race": Study(
        task=_cardiac,
        arms={
            "plain": tk.Arm(_SMALL),
            **{
                name: tk.Arm(_SMALL, None, reading(name))
                for name in (f"{d}-{tap}-{w:g}" for d in DIVERGENCES for tap in TAPS for w in WEIGHTS)
            },
        },
        config={**CARDIAC, "steps": 200},
        measures=(measures.validation_dice,),
        train=one_network,
        seeds=(10, 11),
    ),
    "race-prostate": Study(
        task=lambda: tk.load_task("phantom-prostate"),
        arms={
            "plain": tk.Arm(_PROSTATES),
            **{name: tk.Arm(_PROSTATES, None, reading(name)) for name in best_readings()[:4]},
        },
        config={"steps": 200, "batch_size": 2, "learning_rate": 5e-3, "validate_every": 100},
        measures=(measures.validation_dice,),
        train=one_network,
        seeds=(10,),
    ),
    "race-final": Study(
        task=_cardiac, arms=_against_best(_SMALL), config=CARDIAC, measures=(measures.dice,), train=one_network
    ),
    "race-final-prostate": Study(
        task=lambda: tk.load_task("phantom-prostate"),
        arms=_against_best(_PROSTATES),
        config={"steps": 200, "batch_size": 2, "learning_rate": 5e-3, "validate_every": 100},
        measures=(measures.dice,),
        train=one_network,
    ),
    "prostate-sequence": Study(
        task=lambda: tk.load_task("phantom-prostate"),
        arms=_arms(_PROSTATES, **_PAIR),
        config={"steps": 200, "batch_size": 2, "learning_rate": 5e-3, **IN_TURN},
        measures=(measures.transfer,),
        train=one_sequence,
        site=None,
    ),
    "hippocampus-sequence": Study(
        task=lambda: tk.load_task("phantom-hippocampus"),
        arms=_arms(_unet(8, 16, 32, classes=3, dims=3), **_PAIR),
        config={"steps": 300, "batch_size": 2, "learning_rate": 5e-3, **IN_TURN},
        measures=(measures.transfer, measures.drift),
        train=one_sequence,
        site=None,
    ),
    "acdc": Study(
        task=lambda: tk.load_task("cardiac_acdc"),
        arms=_arms(_unet(16, 32, 64, 128), **_METHODS, **_PARTS)
        | _arms(partial(_paper_unet, 12), paper_plain=None, paper_selfreg=_self_reg(0.1)),
        config=REAL,
        measures=(measures.dice, measures.sunnybrook),
        train=one_network,
        site=None,
        seeds=(0,),
        folds=5,
        places={"dijon": "cardiac_acdc"},
    ),
    "ten-subjects": Study(
        task=lambda: _acdc(TEN_SUBJECTS),
        arms=_ten_subject_arms(),
        config={**REAL, **FAST_SLOW, "steps": 600, "batch_size": 6},
        measures=(measures.artefacts, measures.sunnybrook),
        train=one_network,
        site=None,
    ),
    "seventy-subjects": Study(
        task=lambda: _acdc(70),
        arms=_latent_arms(),
        config={**REAL, **FAST_SLOW, "steps": 2000},
        measures=(measures.dice,),
        train=one_network,
        site=None,
        places={"dijon": "cardiac_acdc"},
    ),
    "nuclei": Study(
        task=_nuclei,
        arms=_arms(_unet(16, 32, 64, 128, inputs=3, classes=2), **_METHODS),
        config={**HALF, "batch_size": 8},
        measures=(measures.seen_and_unseen,),
        train=one_left_out,
        seeds=(0,),
        folds=6,
    ),
    "nuclei-sequence": Study(
        task=_nuclei,
        arms=_arms(_unet(16, 32, 64, 128, inputs=3, classes=2), **_PAIR),
        config={**HALF, **IN_TURN, "batch_size": 8, "steps": 200},
        measures=(measures.transfer,),
        train=one_sequence,
        seeds=(0,),
        folds=3,
    ),
    "mr-sequence": Study(
        task=_left_ventricles,
        arms=_arms(_unet(16, 32, 64, 128, classes=2), **_PAIR),
        config={**HALF, **IN_TURN, "steps": 300},
        measures=(measures.transfer,),
        train=one_sequence,
        site=None,
        places={"dijon": "cardiac_acdc"},
    ),
    "med-disseg-components": Study(
        task=lambda: tk.load_task("phantom-glands"),
        arms={
            "bare": Stages(elat=False, cbat=False),
            "elat": Stages(cbat=False),
            "cbat": Stages(elat=False),
            "without": Stages(),
            "with-one": Stages("default", None),
            "with-two": Stages(None, "default"),
        },
        config=DISSEG,
        measures=(measures.dice,),
        train=two_stages,
    ),
    "med-disseg-nuclei": Study(
        task=_nuclei,
        arms={"without": Stages(), "with": Stages("default", "default")},
        config={**DISSEG, "steps": 500, "patch_size": (128, 128), "precision": NATIVE},
        measures=(measures.dice, measures.dispersion),
        train=two_stages,
        site=None,
        seeds=(0, 1),
    ),
}
