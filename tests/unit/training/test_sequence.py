"""One site after another."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from toolkit.data.task import Task
from toolkit.errors import CheckpointError, ConfigError
from toolkit.features.provenance import score_of
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.models.unet import UNet
from toolkit.show.compose_drift import forward_transfer
from toolkit.training.checkpoint import read
from toolkit.training.config import TrainConfig
from toolkit.training.sequence import Stages, resume_sequence, train_sequence


@pytest.fixture
def stages(two_sites: Task, network: UNet, short: TrainConfig, tmp_path: Path) -> Stages:
    return train_sequence(network, two_sites, ["left", "right"], config=short, out=tmp_path / "s", progress=False)


def test_each_stage_trains_on_its_site_and_starts_where_the_last_one_ended(stages: Stages, network: UNet) -> None:
    first, second = stages.stages
    assert (first.site, second.site) == ("left", "right")
    assert first.path.name == "stage-0-left"
    start = read(second.directory.checkpoints, 6)
    assert start.step == 6
    assert stages.model is network
    assert first.model is not network
    kept = read(first.directory.checkpoints, first.selected_step)
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, kept.weights[name])
    assert set(stages.history()["stage"]) == {0, 1}
    assert set(stages.history()["site"]) == {"left", "right"}


def test_scores_of_every_stage_on_every_site(stages: Stages) -> None:
    table = stages.evaluate("test")
    assert set(map(tuple, table[["stage", "trained_on", "site"]].drop_duplicates().to_numpy())) == {
        (stage, trained_on, site)
        for stage, trained_on in ((-1, ""), (0, "left"), (1, "right"))
        for site in ("left", "right")
    }
    matrix = stages.dice("test")
    assert matrix.shape == (3, 2)
    one = stages.stages[0].evaluate("test", sites="right", metrics=("dice",))
    assert matrix.loc[0, "right"] == pytest.approx(one["value"].mean())


def test_transfer_from_the_matrix_by_hand(stages: Stages) -> None:
    matrix, transfer = stages.dice("test"), stages.transfer()
    assert transfer.value("bwt") == pytest.approx(matrix.loc[1, "left"] - matrix.loc[0, "left"])
    assert transfer.value("mean_dice") == pytest.approx(matrix.loc[1].mean())
    assert transfer.value("fwt_untrained") == pytest.approx(matrix.loc[0, "right"] - matrix.loc[-1, "right"])


def test_a_transfer_says_what_its_networks_had_learnt(stages: Stages) -> None:
    transfer = stages.transfer()
    told = [one["network"] for one in transfer.provenance["stages"]]
    matrix = stages.dice("test")
    assert [one["name"] for one in told] == ["stage-0-left", "stage-1-right"]
    assert [one["dice"] for one in told] == pytest.approx([matrix.loc[0, "left"], matrix.loc[1, "right"]], abs=0.05)
    before = score_of(stages.initial)
    assert (before["name"], before["steps"]) == ("initial", 0)
    assert before["dice"] == pytest.approx(matrix.loc[-1, "left"], abs=0.05)
    figure = forward_transfer({"sequential": ([transfer], [transfer])}, metric="fwt_untrained")
    low = [one["name"] for one in told if one["dice"] <= one["floor"]]
    assert bool(figure.stamp) == bool(low)
    assert "stage-0-left test Dice" in figure.caption


def test_a_stopped_sequence_ends_with_the_same_bits(stages: Stages, two_sites: Task, tmp_path: Path) -> None:
    folder = shutil.copytree(stages.path, tmp_path / "stopped")
    shutil.rmtree(folder / "stage-1-right")
    with pytest.raises(CheckpointError, match="task="):
        resume_sequence(folder, progress=False)
    again = resume_sequence(folder, task=two_sites, progress=False)
    for ours, theirs in zip(again.model.state_dict().values(), stages.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert np.array_equal(again.dice().to_numpy(), stages.dice().to_numpy())
    for ours, theirs in zip(again.initial.state_dict().values(), stages.initial.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_what_cannot_work(two_sites: Task, network: UNet, short: TrainConfig, tmp_path: Path, stages: Stages) -> None:
    def start(sites: Any, out: Path) -> None:
        train_sequence(network, two_sites, sites, config=short, out=out, progress=False)

    with pytest.raises(ConfigError, match="already"):
        start(["left"], stages.path)
    with pytest.raises(ConfigError, match="no site 'up'"):
        start(["left", "up"], tmp_path / "new")
    with pytest.raises(ConfigError, match="at least one"):
        start([], tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(CheckpointError, match="no readable"):
        resume_sequence(tmp_path)


def test_a_warm_up_belongs_to_the_first_stage(
    two_sites: Task, network: UNet, short: TrainConfig, tmp_path: Path
) -> None:
    segreg = SegReg(weight=0.03, warm_up=3, samples=32, directions=4)
    config = short.replace(log_every=1)
    stages = train_sequence(network, two_sites, ["left", "right"], segreg, config, out=tmp_path / "s", progress=False)
    weights = [run.history["segreg/epps_pulley/weight"].dropna().tolist() for run in stages.stages]
    assert weights[0][:4] == pytest.approx([0.01, 0.02, 0.03, 0.03])
    assert weights[1] == pytest.approx([0.03] * len(weights[1]))
    alone = train_sequence(
        network,
        two_sites,
        ["left", "right"],
        segreg,
        config,
        out=tmp_path / "a",
        progress=False,
        strategy="single_task",
    )
    assert alone.stages[1].history["segreg/epps_pulley/weight"].dropna().iloc[0] == pytest.approx(0.01)
