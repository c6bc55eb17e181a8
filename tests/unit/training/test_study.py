"""Studies: paired arms, resumption, executors, and the comparison they end in."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from toolkit.data.task import Task
from toolkit.errors import ConfigError
from toolkit.explain.gradcam import grad_cam
from toolkit.explain.targets import ClassSum
from toolkit.features.provenance import provenance
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.methods.selfreg.regularizer import SelfReg
from toolkit.models.unet import unet
from toolkit.results import load_result
from toolkit.show.figures import compose
from toolkit.training.checkpoint import read
from toolkit.training.config import TrainConfig
from toolkit.training.directory import RunDirectory
from toolkit.training.load import load_model, load_run
from toolkit.training.segmentation import SegmentationObjective
from toolkit.training.study import Arm, Study, compare

CONFIG = TrainConfig(steps=2, batch_size=4, checkpoint_every=0, validate_every=0, select="last", log_every=1)
ARMS: dict[str, Any] = {"plain": None, "segreg": SegReg(samples=128, directions=8), "zero": SelfReg(scr=0, ifd=0)}


class Elsewhere(Executor):
    """Runs what it is given as another process would: after pickling it, there and back."""

    def __init__(self) -> None:
        self.submitted = 0

    def submit(self, function: Any, /, *arguments: Any, **keywords: Any) -> Future[Any]:
        self.submitted += 1
        future: Future[Any] = Future()
        result = pickle.loads(pickle.dumps(function))(*arguments, **keywords)
        future.set_result(pickle.loads(pickle.dumps(result)))
        return future


def factory() -> nn.Module:
    return unet(1, 2, channels=(4, 8, 8))


@pytest.fixture
def study(two_sites: Task, tmp_path: Path) -> Callable[..., Study]:
    def start(name: str = "a", arms: Any = None, **options: Any) -> Study:
        keywords = {"model": factory, "config": CONFIG, "seeds": (0, 3), "progress": False, **options}
        return compare(arms or ARMS, task=two_sites, out=tmp_path / name, **keywords)

    return start


def test_arms_are_paired_and_the_comparison_is_that_of_their_scores(study: Callable[..., Study]) -> None:
    before = torch.get_rng_state()
    result = study()
    assert torch.equal(torch.get_rng_state(), before)
    table = result.table().set_index("method")
    assert list(table.index) == ["plain", "segreg", "zero"]
    assert (result.baseline, table.loc["plain", "verdict"]) == ("plain", "baseline")
    assert table.loc["zero", "difference"] == 0.0, "no weight: bit for bit the plain training, so all is paired"
    assert table.loc["segreg", "difference"] != 0.0
    start = {
        seed: [read(RunDirectory(runs[seed]).checkpoints, 0).weights for runs in result.runs.values()]
        for seed in ("0", "3")
    }
    for first, *others in start.values():
        assert all(torch.equal(first[k], other[k]) for other in others for k in first)
    assert not torch.equal(start["0"][0]["head.weight"], start["3"][0]["head.weight"])
    mine = result.scores[(result.scores["method"] == "segreg") & (result.scores["status"] != "both_absent")]
    per_patient = mine.groupby(["seed", "subject"])["value"].mean()
    assert table.loc["segreg", "mean"] == pytest.approx(per_patient.mean())


def test_networks_of_a_study_carry_their_score_and_their_figures_say_untrained(
    study: Callable[..., Study], two_sites: Task
) -> None:
    """Two steps teach nothing: the study's figure and every figure of a network loaded from it say so across."""
    result = study("short", seeds=(0,))
    drawn = compose(result)
    assert drawn.stamp == "untrained"
    table = result.table().set_index("method")
    assert f"2 steps, seed 0: plain test Dice {table.loc['plain', 'mean']:.2f} (n = " in drawn.caption
    run = load_run(result.runs["segreg"]["0"], task=two_sites)
    mine = result.scores[(result.scores["method"] == "segreg") & (result.scores["status"] != "both_absent")]
    dice = mine.groupby(["site", "subject"])["value"].mean().groupby(level="site").mean().mean()
    for network in (run.model, load_model(run.path)):
        told = provenance(network)["network"]
        assert (told["name"], told["steps"], told["dice"]) == ("segreg", 2, pytest.approx(dice))
    case = run.task.cases("test")[0]
    assert compose(grad_cam(run.model, case, ["bottleneck"], ClassSum(1))).stamp == "untrained"
    with torch.no_grad():
        run.model.head.bias.add_(1.0)
    assert "network" not in provenance(run.model), "other weights have no score"


def test_a_study_on_the_validation_split_says_so(study: Callable[..., Study], two_sites: Task) -> None:
    result = study("val", {"plain": None}, seeds=(0,), split="val")
    assert "plain val Dice" in compose(result).caption
    run = load_run(result.runs["plain"]["0"], task=two_sites)
    assert provenance(run.model)["network"]["split"] == "val"
    run.evaluate("test")
    run.evaluate("val")
    assert provenance(load_run(run.path, task=two_sites).model)["network"]["split"] == "test", (
        "of both the test's is told"
    )
    assert provenance(run.model)["network"]["split"] == "test"


def test_a_finished_study_is_read_and_a_stopped_one_goes_on(study: Callable[..., Study], tmp_path: Path) -> None:
    first = study()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    removed = tmp_path / "b" / "seed-3" / "segreg"
    shutil.rmtree(removed)
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "b").rglob("weights.safetensors")}
    again = study("b")
    np.testing.assert_array_equal(again.scores["value"], first.scores["value"])
    assert removed.is_dir()
    assert all(p.stat().st_mtime_ns == time for p, time in times.items()), "nothing was trained twice"
    more = study("b", {**ARMS, "strong": SegReg(weight=1.0, samples=128, directions=8)})
    assert len(more.table()) == 4
    assert set(json.loads((tmp_path / "b" / "study.json").read_text())["arms"]) == {*ARMS, "strong"}


def test_an_executor_gives_the_same_numbers(study: Callable[..., Study]) -> None:
    arms = {"plain": None, "segreg": ARMS["segreg"]}
    executor = Elsewhere()
    spread = study("c", arms, seeds=(0, 1), executor=executor)
    assert executor.submitted == 4
    np.testing.assert_array_equal(spread.scores["value"], study("d", arms, seeds=(0, 1)).scores["value"])


def wider() -> nn.Module:
    return unet(1, 2, channels=(4, 8, 16))


def test_arms_bring_their_own_network_objective_and_settings(study: Callable[..., Study]) -> None:
    dice = SegmentationObjective(cross_entropy=0.0)
    arms = {
        "wide": Arm(model=wider, config={"learning_rate": 1e-3}),
        "dice": Arm(objective=dice, regularizer=ARMS["segreg"]),
        "plain": None,
    }
    result = study(arms=arms, seeds=(0,))
    assert result.baseline == "plain"
    records = {name: RunDirectory(runs["0"]).record() for name, runs in result.runs.items()}
    assert records["wide"]["config"]["learning_rate"] == 1e-3
    assert records["plain"]["config"]["learning_rate"] == CONFIG.learning_rate
    assert records["dice"]["objects"]["objective"]["arguments"]["cross_entropy"] == 0.0
    assert set(result.settings["weights"]) == {"0", "wide/0"}
    shapes = {name: tuple(value.shape) for name, value in wider().state_dict().items()}
    trained = read(RunDirectory(result.runs["wide"]["0"]).checkpoints, 2).weights
    assert {name: tuple(value.shape) for name, value in trained.items()} == shapes
    with pytest.raises(ConfigError, match="has no network"):
        study("y", {"plain": None, "wide": Arm(model=wider)}, model=None)
    with pytest.raises(ConfigError, match="unexpected keyword argument 'stepz'"):
        study("y", {"plain": Arm(config={"stepz": 3})})


def test_cross_validation_tests_every_patient_once_a_seed_with_a_network_that_never_saw_it(
    study: Callable[..., Study], two_sites: Task
) -> None:
    arms = {"plain": None, "zero": ARMS["zero"]}
    result = study(arms=arms, seeds=(0,), folds=3)
    plain = result.scores[result.scores["method"] == "plain"]
    assert sorted(plain["subject"]) == sorted(case.subject for case in two_sites.cases())
    folds = two_sites.folds(3)
    for index, part in enumerate(folds):
        tested = set(plain.loc[plain["fold"] == index, "subject"])
        assert tested == {case.subject for case in part.cases("test")}
        assert RunDirectory(result.runs["plain"][f"0/fold-{index}"]).record()["data"] == part.content_hash()
    assert result.table().set_index("method").loc["zero", "difference"] == 0.0
    assert (result.table()["patients"] == 24).all()
    mean = plain["value"].mean()
    assert result.table()["mean"].iloc[0] == pytest.approx(mean)
    again = study(arms=arms, seeds=(0,), folds=folds)
    pd.testing.assert_frame_equal(again.scores, result.scores)
    with pytest.raises(ConfigError, match="other settings: folds"):
        study(arms=arms, seeds=(0,), folds=two_sites.folds(3, seed=1))
    with pytest.raises(ConfigError, match="not trained on"):
        study("z", arms=arms, folds=3, split="train")


def test_a_study_is_a_result(study: Callable[..., Study], tmp_path: Path) -> None:
    result = study(seeds=(0,), arms={"plain": None, "segreg": ARMS["segreg"]})
    assert result.table()["verdict"].iloc[1].startswith("inconclusive")
    again = load_result(result.save(tmp_path / "study.zip"))
    assert isinstance(again, Study)
    assert again.runs == result.runs
    np.testing.assert_allclose(again.scores["value"], result.scores["value"], rtol=1e-13)
    assert again.settings["arms"]["segreg"]["regularizers"][0]["name"] == "segreg"
    assert again.provenance["parameters"]["seeds"] == [0]
    assert len(result.plot().data) > 0
    assert result.figure(tmp_path / "study.pdf").stat().st_size > 1000


def test_what_cannot_be_compared(study: Callable[..., Study]) -> None:
    kept = factory()
    for message, options in {
        "another network each time": {"model": lambda: kept},
        "different seeds": {"seeds": (1, 1)},
        "no arm 'none'": {"baseline": "none"},
        "different names": {"arms": {"a b": None, "a_b": None}},
    }.items():
        with pytest.raises(ConfigError, match=message):
            study("x", **options)
    one = {"plain": None}
    study("e", one, seeds=(0,))
    with pytest.raises(ConfigError, match="other settings: config"):
        study("e", one, seeds=(0,), config=CONFIG.replace(steps=3))
    with pytest.raises(ConfigError, match="arms plain"):
        study("e", {"plain": SegReg()}, seeds=(0,))
    with pytest.raises(ConfigError, match="weights 0"):
        study("e", one, seeds=(0,), model=lambda: unet(1, 2, channels=(4, 8, 16)))
