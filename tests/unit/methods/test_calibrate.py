"""Calibration of a weight by the gradient ratio, and the presets it starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import toolkit as tk
from toolkit.data.task import Task
from toolkit.errors import ConfigError
from toolkit.methods.segreg.regularizer import PRESETS, SegReg
from toolkit.methods.selfreg.regularizer import SelfReg
from toolkit.models.unet import unet
from toolkit.training.calibrate import calibrate
from toolkit.training.config import TrainConfig
from toolkit.training.protocol import Objective
from toolkit.training.train import train

CONFIG = TrainConfig(steps=8, batch_size=4, schedule="constant", validate_every=0, log_every=1)


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return unet(1, 2, channels=(4, 8, 8))


def test_the_calibrated_weight_gives_the_ratio(grey: Task, network: torch.nn.Module, tmp_path: Path) -> None:
    before = {k: v.clone() for k, v in network.state_dict().items()}
    given = SegReg(weight=3.0, samples=256, directions=16)
    found = calibrate(network, grey, given, CONFIG, ratio=0.2, steps=4)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert given.weight == 3.0
    assert found.samples == 256
    twice = calibrate(network, grey, found, CONFIG, ratio=0.2, steps=4)
    assert twice.weight == pytest.approx(found.weight, rel=0.1), "the gradient is nearly linear in the weight"
    run = train(network, grey, None, found, CONFIG, out=tmp_path / "run", progress=False)
    ratios = run.history["segreg/gradient_ratio"].to_numpy()[:4]
    assert ratios.mean() == pytest.approx(0.2, rel=0.1)


def test_a_convex_combination_gets_the_weight_at_which_what_is_left_of_the_objective_gives_the_ratio(
    grey: Task, network: torch.nn.Module, tmp_path: Path
) -> None:
    still = CONFIG.replace(learning_rate=1e-9)  # the first step's ratio, again and again
    given = SegReg(weight=0.5, samples=256, directions=16, convex=True)
    found = calibrate(network, grey, given, still, ratio=0.5, steps=2)
    run = train(network, grey, None, found, still, out=tmp_path / "run", progress=False)
    assert run.history["segreg/gradient_ratio"].to_numpy()[:2].mean() == pytest.approx(0.5, rel=1e-3)


def test_an_objective_that_learns_is_not_taught_by_the_calibration(grey: Task, network: torch.nn.Module) -> None:
    class Learning(torch.nn.Module, Objective):
        name = "learning"

        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def __call__(self, outputs: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"nll": torch.nn.functional.cross_entropy(self.scale * outputs, batch["label"][:, 0].long())}

    objective = Learning()
    calibrate(network, grey, SegReg(samples=256, directions=16), CONFIG, steps=2, objective=objective)
    assert float(objective.scale.detach()) == 1.0


def test_measured_inside_a_warm_up_it_is_the_same_weight(grey: Task, network: torch.nn.Module) -> None:
    plain = SegReg(weight=1e-6, samples=256, directions=16)  # so small that it does not change the training
    ramped = SegReg(weight=1e-6, samples=256, directions=16, warm_up=50)
    weights = [calibrate(network, grey, r, CONFIG, steps=3, skip=2).weight for r in (plain, ramped)]
    assert weights[0] == pytest.approx(weights[1], rel=1e-3)


def test_what_cannot_be_calibrated(grey: Task, network: torch.nn.Module) -> None:
    for regularizer in (SelfReg(), SegReg(weight=0.0)):
        with pytest.raises(ConfigError, match="no weight above 0"):
            calibrate(network, grey, regularizer, CONFIG)
    with pytest.raises(ConfigError, match="ratio is at least 1e-12, not 0"):
        tk.calibrate(network, grey, SegReg(), CONFIG, ratio=0)
    dead = SegReg(samples=2, directions=4)  # fewer rows than twice the channels: left out at every step
    with pytest.raises(ConfigError, match="no weight gives"):
        calibrate(network, grey, dead, CONFIG, steps=2)


# the specification's table: tap, divergence, directions, points of the folded grid, scaled and convex, weight
TABLE = {
    "segreg_default": ("head_input", "epps_pulley", 256, 17, False, 0.1),
    "segreg_preact": ("pre_activation", "epps_pulley", 256, 17, False, 0.1),
    "segreg_litessl": ("head_input", "epps_pulley", 4096, 3, True, 0.05),
    "segreg_litessl_control": ("head_input", "epps_pulley", 4096, 3, True, 0.05 / 4096),
    "segreg_sw": ("pre_activation", "sliced_wasserstein", 256, 17, False, 0.1),
    "segreg_kl": ("pre_activation", "gaussian_kl", 256, 17, False, 0.05),
    "segreg_classcond": ("head_input", "class_conditional", 256, 17, False, 0.1),
    "baseline": ("head_input", "epps_pulley", 256, 17, False, 0.0),
}


def test_presets() -> None:
    assert set(PRESETS) == set(TABLE)
    for name, expected in TABLE.items():
        made = SegReg.from_preset(name, classes=3)
        assert (made.tap, made.divergence, made.directions, made.points, made.scaled, made.weight) == expected
        assert made.convex == made.scaled
        assert made.samples == 4096
    assert not SegReg.from_preset("baseline").active(0)
    assert SegReg.from_preset("segreg_kl", weight=1.0).weight == 1.0
    with pytest.raises(ConfigError, match="segreg_preact"):
        SegReg.from_preset("kl")
    with pytest.raises(ConfigError, match="number of classes"):
        SegReg.from_preset("segreg_classcond")
