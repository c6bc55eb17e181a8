"""Strategies of a sequence: what each stage sees, where it starts, what it keeps; and resumption of each."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from toolkit import registry
from toolkit.data.task import Task
from toolkit.errors import ConfigError, ResultError
from toolkit.features.provenance import score_of
from toolkit.measure.evaluate import evaluate
from toolkit.methods.continual.strategies import (
    Distillation,
    ElasticWeightConsolidation,
    ElasticWeights,
    fisher_information,
)
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.models.unet import UNet
from toolkit.training.checkpoint import read
from toolkit.training.config import TrainConfig
from toolkit.training.protocol import Objective
from toolkit.training.segmentation import SegmentationObjective
from toolkit.training.sequence import Stages, resume_sequence, train_sequence
from toolkit.training.strategies import Rehearsal
from toolkit.training.train import resume

CONFIG = TrainConfig(steps=2, batch_size=4, checkpoint_every=0, validate_every=0, select="last", log_every=1)


@pytest.fixture
def sequence(two_sites: Task, network: UNet, tmp_path: Path) -> Callable[..., Stages]:
    def start(strategy: Any, name: str = "s", **options: Any) -> Stages:
        return train_sequence(
            network,
            two_sites,
            ["left", "right"],
            config=CONFIG,
            out=tmp_path / name,
            strategy=strategy,
            progress=False,
            **options,
        )

    return start


def first_weights(stages: Stages, stage: int) -> dict[str, torch.Tensor]:
    return read(stages.stages[stage].directory.checkpoints, 0).weights


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("strategy", ["ewc", "lwf"])
def test_the_second_stage_is_held_by_the_first_and_resumes_to_the_same_bits(
    sequence: Callable[..., Stages], strategy: str, two_sites: Task, tmp_path: Path
) -> None:
    stages = sequence(strategy, regularizer=SegReg(samples=64, directions=4))
    name = {"ewc": "elastic_weights/penalty", "lwf": "learning_without_forgetting/distillation"}[strategy]
    first, second = (run.history for run in stages.stages)
    assert name not in first.columns
    assert first["segreg/epps_pulley"].notna().all()
    assert second[name].iloc[0] == pytest.approx(0.0, abs=1e-5), "it starts where the first stage ended"
    assert second[name].iloc[1] > 0
    assert equal(first_weights(stages, 1), stages.stages[0].model.state_dict())
    folder = shutil.copytree(stages.path, tmp_path / "stopped")
    shutil.rmtree(folder / "stage-1-right")
    again = resume_sequence(folder, task=two_sites, progress=False)
    assert again.strategy == stages.strategy
    assert equal(again.model.state_dict(), stages.model.state_dict())


def test_joint_and_single_task(sequence: Callable[..., Stages]) -> None:
    joint, alone, plain = sequence("joint", "j"), sequence("single_task", "o"), sequence("sequential", "p")
    assert len(joint.stages) == 1
    assert joint.stages[0].config.steps == 4
    assert joint.stages[0].site == ["left", "right"]
    assert joint.dice().shape == (2, 2)
    assert joint.site_scores() == pytest.approx(joint.dice().loc[0].tolist())
    start = joint.initial.state_dict()
    # every strategy was handed the same network object, trained by the one before: each keeps its own first weights
    assert equal(first_weights(joint, 0), start)
    assert equal(first_weights(alone, 0), first_weights(alone, 1))
    assert not equal(alone.stages[0].model.state_dict(), alone.stages[1].model.state_dict())
    diagonal = np.diag(alone.dice().drop(index=-1).to_numpy())
    assert alone.site_scores() == pytest.approx(diagonal.tolist())
    transfer = plain.transfer(single_task=alone, sequential=plain)
    expected = plain.dice().loc[0, "right"] - diagonal[1]
    assert transfer.value("fwt_single_task") == pytest.approx(expected)
    assert transfer.value("fwt_plasticity") == 0.0
    turned = dataclasses.replace(alone, stages=alone.stages[::-1], sites=alone.sites[::-1])  # trained right, left
    assert plain.transfer(single_task=turned).value("fwt_single_task") == pytest.approx(expected)
    with pytest.raises(ResultError, match="one of right, left"):
        plain.transfer(sequential=turned)
    for stages in (joint, alone):
        with pytest.raises(ResultError, match="no sequence"):
            stages.transfer()


def test_rehearsal_trains_on_a_share_of_what_was(two_sites: Task, sequence: Callable[..., Stages]) -> None:
    strategy = Rehearsal(share=0.5)
    view, site = strategy.data(two_sites, ("left", "right"), 1)
    assert site == ["left", "right"]
    old, new = two_sites.cases("train", site="left"), two_sites.cases("train", site="right")
    kept = [case.id for case in view.cases("train", site="left")]
    assert len(kept) == round(0.5 * len({case.volume for case in old}))
    assert set(kept) < {case.id for case in old}
    assert {case.id for case in view.cases("train", site="right")} == {case.id for case in new}
    assert {case.site for case in view.cases("val")} == {"right"}, "nothing is selected on an earlier site"
    assert len(view.cases("test")) == len(two_sites.cases("test"))
    again, _ = Rehearsal(share=0.5).data(two_sites, ("left", "right"), 1)
    assert again.content_hash() == view.content_hash()
    assert [case.id for case in Rehearsal(share=0.01).stored(two_sites, "left")]
    stages = sequence(strategy)
    assert stages.dice().notna().all(axis=None)
    assert [score_of(run.model)["sites"] for run in stages.stages] == ["left", "left, right"], "what each trained on"
    assert stages.transfer().value("bwt") == pytest.approx(stages.dice().loc[1, "left"] - stages.dice().loc[0, "left"])
    for stage, run in enumerate(stages.stages):  # the last one's own task validates on "right" alone
        for place in ("left", "right"):
            own = evaluate(run.model, two_sites.cases("val", site=place), metrics=("dice",))
            scores = own[own["status"] != "both_absent"].groupby("case")["value"].mean()
            assert stages.dice("val").loc[stage, place] == pytest.approx(scores.mean())


def test_fisher_information_by_hand(two_sites: Task, network: UNet) -> None:
    loader = two_sites.loader("train", site="left", batch_size=1)
    expected = torch.zeros_like(network.head.weight)
    for step in range(3):
        batch = loader.batch(step)
        loss = functional.cross_entropy(network.eval()(batch["image"]), batch["label"][:, 0])
        expected += torch.autograd.grad(loss, network.head.weight)[0].square() / 3
    network.train()
    found = fisher_information(network, two_sites, SegmentationObjective(), site="left", images=3)
    torch.testing.assert_close(found["head.weight"], expected, rtol=1e-4, atol=1e-9)
    assert set(found) == {name for name, _ in network.named_parameters()}
    assert network.training
    assert all(p.grad is None for p in network.parameters())


def test_strategies_by_name_and_settings(sequence: Callable[..., Stages], tmp_path: Path) -> None:
    assert set(registry.names("strategy")) == {"sequential", "joint", "single_task", "rehearsal", "ewc", "lwf"}
    with pytest.raises(ConfigError, match="no strategy called 'replay'"):
        sequence("replay")
    with pytest.raises(ConfigError, match="share a name"):
        sequence(ElasticWeightConsolidation(weight=1.0), regularizer=ElasticWeights())
    with pytest.raises(ConfigError, match="share must be"):
        Rehearsal(share=0)
    assert not (tmp_path / "s").exists()
    assert Distillation(temperature=1.0).regularizers()[0].temperature == 1.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("strategy", ["rehearsal", "ewc", "lwf"])
def test_a_third_stage_resumes_with_what_two_have_left(
    two_sites: Task, network: UNet, tmp_path: Path, strategy: str
) -> None:
    stages = train_sequence(
        network,
        two_sites,
        ["left", "right", "left"],
        config=CONFIG,
        out=tmp_path / "t",
        strategy=strategy,
        progress=False,
    )
    folder = shutil.copytree(stages.path, tmp_path / "stopped")
    shutil.rmtree(folder / "stage-2-left")
    again = resume_sequence(folder, task=two_sites, progress=False)
    assert equal(again.model.state_dict(), stages.model.state_dict())
    finished = resume_sequence(folder, task=two_sites, progress=False)
    assert equal(finished.model.state_dict(), stages.model.state_dict())
    if strategy == "lwf":
        state = read(stages.stages[2].directory.checkpoints, 2).state["regularizers"]
        kept = state["learning_without_forgetting"]
        assert {name.split("/")[0] for name in kept} == {"0", "1"}
        assert equal({k[2:]: v for k, v in kept.items() if k.startswith("1/")}, stages.stages[1].model.state_dict())


class Learning(Objective, torch.nn.Module):
    """Cross-entropy with a scale that learns."""

    name = "learning"

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def __call__(self, outputs: Any, batch: Any) -> dict[str, torch.Tensor]:
        return {"loss": self.scale * functional.cross_entropy(outputs, batch["label"][:, 0].long())}


def test_what_an_objective_learns_goes_on_with_the_weights_and_not_alone(sequence: Callable[..., Stages]) -> None:
    for strategy, goes_on in (("sequential", True), ("single_task", False)):
        stages = sequence(strategy, strategy, objective=Learning())
        first = read(stages.stages[0].directory.checkpoints, 2).state["objective"]["scale"]
        second = read(stages.stages[1].directory.checkpoints, 0).state["objective"]["scale"]
        assert float(first) != 1.0
        assert (float(second) == float(first)) is goes_on
        assert goes_on or float(second) == 1.0


def test_further_processes_carry_on_what_the_first_one_made(
    sequence: Callable[..., Stages], two_sites: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchrun starts them: they come to a folder, and to runs, that the first process is at work on."""
    stages = sequence("sequential", regularizer=SegReg(samples=64, directions=4))
    run = stages.stages[1]
    run.directory.set_state("running", os.getppid())
    with pytest.raises(ConfigError, match="is training this run now"):
        resume(run.path, task=two_sites, progress=False)
    with pytest.raises(ConfigError, match="a sequence in this folder already"):
        sequence("sequential")
    monkeypatch.setenv("RANK", "1")
    again = sequence("sequential", regularizer=SegReg(samples=64, directions=4))
    assert equal(again.model.state_dict(), stages.model.state_dict())
    with pytest.raises(ConfigError, match="need one `out`"):
        train_sequence(stages.model, two_sites, ["left"], config={"devices": 2}, progress=False)
