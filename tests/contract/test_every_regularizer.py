"""What every registered regularizer must do: a new one is tested by being registered (`toolkit.testing`)."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import every_regularizer as every
import pytest
import torch

from toolkit.errors import RegularizerWarning
from toolkit.measure.regularizer_health import regularizer_health
from toolkit.methods.med_disseg.regularizer import Dispersive
from toolkit.testing import check_regularizer
from toolkit.testing.short_runs import batch_of, one_step
from toolkit.training.protocol import Regularizer
from toolkit.training.run import Run
from toolkit.training.step import TrainingStep
from toolkit.training.train import train

CONFIG: dict[str, Any] = {
    "steps": 5,
    "batch_size": 4,
    "validate_every": 5,
    "checkpoint_every": 2,
    "log_every": 1,
    "select": "last",
}


@pytest.mark.parametrize("name", every.NAMES)
def test_the_contract_holds(name: str) -> None:
    dims = (2,) if name in every.MEMORIES else (2, 3)
    table = check_regularizer(every.made(name), dims=dims, processes=1)  # two processes: test_two_ranks
    assert table["check"].nunique() == len(dims) + 7
    assert not every.made(name, 0.0).active(10**6)


@pytest.mark.parametrize("name", every.MEMORIES)
def test_what_remembers_a_volume_network_works_on_volumes(name: str) -> None:
    regularizer = every.made(name, dims=3)
    terms = one_step(
        TrainingStep(every.network_for(None, 3), every.objective_for(regularizer), [regularizer]), batch_of(3)
    )
    assert any(term.startswith(f"{regularizer.name}/") for term in terms)
    assert not every.made(name, remembering=False).active(0)


def trained(regularizer: Regularizer, folder: Path) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RegularizerWarning)  # that it is dead, or dominant, in these few steps
        return train(
            every.network_for(regularizer),
            every.task(),
            every.objective_for(regularizer),
            regularizer=regularizer,
            config=CONFIG,
            out=folder,
            progress=False,
        )


@pytest.mark.parametrize("name", every.NAMES)
def test_a_setting_that_does_nothing_is_reported(name: str, tmp_path: Path) -> None:
    run = trained(every.made(name, 1e-14), tmp_path / "run")
    table = regularizer_health(run.history).table()
    assert table["verdict"].tolist() == ["dead"]
    assert 0 < table["largest"].item() < 1e-8


def test_the_released_dispersive_loss_is_reported_dead_with_its_number(tmp_path: Path) -> None:
    """Raw distances between whole maps underflow: the loss is log(1e-8) and its gradient 0."""
    regularizer = Dispersive.from_preset("released", tap="encoder.1", weight=1e6)
    network = every.network_for(None)
    with torch.no_grad():
        for module in network.get_submodule("encoder.1").modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.mul_(20)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", RegularizerWarning)
        run = train(network, every.task(), regularizer=regularizer, config=CONFIG, out=tmp_path / "run", progress=False)
    assert any("is dead: value -18.4207, gradient norm 0." in str(one.message) for one in said)
    assert run.history["dispersive/loss"].dropna().tolist() == pytest.approx([math.log(1e-8)] * 5, abs=1e-4)
    assert run.history["dispersive/gradient_ratio"].dropna().tolist() == [0.0] * 5
    assert regularizer_health(run.history).table()["verdict"].tolist() == ["dead"]
