"""Optimizers and schedules of a user's own: used, recorded by their module, found again or asked for, resumed exactly."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from small_networks import weights_of

import toolkit as tk
from toolkit.training.optimizer import learning_rate
from toolkit.training.serialization import Missing

Trainer = Callable[..., tk.Run]
OWN = """
import torch

def optimizer(groups):
    return torch.optim.RMSprop(groups, momentum=0.5)

def schedule(step, steps):
    return 1 / (1 + step)

def count(step, steps):
    return 1.0
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "own_factories.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("own_factories")
    sys.modules.pop("own_factories", None)


def test_a_run_with_an_optimizer_and_a_schedule_of_ones_own_resumes_exactly(
    own: ModuleType, trained: Trainer, tmp_path: Path
) -> None:
    settings = {"optimizer": own.optimizer, "schedule": own.schedule, "learning_rate": 0.01, "validate_every": 0}
    whole = trained("whole", tk.unet(1, 2, channels=(4, 8)), **settings)
    rates = whole.history["learning_rate"].tolist()
    assert rates == pytest.approx(
        [0.01 / step for step in whole.history["step"]]
    )  # the factor is 1 / (1 + steps before)
    half = trained("half", tk.unet(1, 2, channels=(4, 8)), **settings)
    shutil.rmtree(half.path / "checkpoints" / "00000006")
    sys.modules.pop("own_factories")  # as in a new process
    first = weights_of(half.model)
    again = tk.resume(half.path, task=half.task, progress=False)
    assert again.config.optimizer.__module__ == "own_factories"  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(first, weights_of(again.model), strict=True))


def test_what_cannot_be_found_is_asked_for_and_only_by_a_resume(trained: Trainer) -> None:
    def local(groups: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=1.0)

    def other(groups: Any) -> torch.optim.Optimizer:
        raise AssertionError(groups)

    run = trained(optimizer=local, validate_every=0)
    assert json.loads((run.path / "run.json").read_text())["config"]["optimizer"] == {
        "foreign": f"{__name__}.{local.__qualname__}"
    }
    assert isinstance(tk.load_run(run.path, task=run.task).config.optimizer, Missing)
    with pytest.raises(tk.CheckpointError, match=r"passed again: optimizer=.*local") as caught:
        tk.resume(run.path, task=run.task, steps=8, progress=False)
    assert "factories={'optimizer': ...}" in str(caught.value)
    with pytest.raises(tk.CheckpointError, match="it was local and is other"):
        tk.resume(run.path, task=run.task, steps=8, factories={"optimizer": other}, progress=False)
    assert tk.resume(run.path, task=run.task, steps=8, factories={"optimizer": local}, progress=False).step == 8


@pytest.mark.parametrize("place", ["os:kill", "shutil:rmtree", "torch.hub:load", "builtins:eval"])
def test_a_record_names_no_function_of_a_library(place: str) -> None:
    file = getattr(importlib.import_module(place.partition(":")[0]), "__file__", None)
    content = b"" if file is None else Path(file).read_bytes()
    entry = {"class": place, "sha256": hashlib.sha256(content).hexdigest()}
    for fields in ({**entry, "file": str(file)}, {**entry, "file": "/home/somebody/own.py"}, entry):
        config = tk.TrainConfig.from_dict({"schedule": fields})
        assert isinstance(config.schedule, Missing)
        with pytest.raises(tk.CheckpointError, match="was not found here"):
            learning_rate(config, 0)


def test_torchs_optimizers_need_no_function(trained: Trainer) -> None:
    run = trained(optimizer=torch.optim.NAdam, validate_every=0)
    assert tk.TrainConfig.from_dict(run.config.to_dict()) == run.config
    state = torch.load(run.path / "checkpoints" / "00000006" / "state.pt", weights_only=True)["optimizer"]
    assert "momentum_decay" in state["param_groups"][0]  # NAdam's alone


@pytest.mark.parametrize("factor", [None, float("nan"), -1.0, "fast"])
def test_a_schedule_gives_a_factor(factor: Any) -> None:
    config = tk.TrainConfig(schedule=lambda step, steps: factor)
    with pytest.raises(tk.ConfigError, match="The schedule gave"):
        learning_rate(config, 3)


def test_an_optimizer_holds_every_parameter(trained: Trainer) -> None:
    with pytest.raises(tk.ConfigError, match="returned NoneType"):
        trained(optimizer=lambda groups: None)
    with pytest.raises(tk.ConfigError, match="returned SGD, not an optimizer of the given parameters"):
        trained(optimizer=lambda groups: torch.optim.SGD(groups[0]["params"][:1], lr=1.0))
