"""What every registered regularizer must do: a new one is tested by being registered.

Half precision, 2D and 3D, resuming to the same bits with its generators, a gradient ratio in the history, and being
reported when it does nothing. Weight zero has a file of its own.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from pathlib import Path
from typing import Any

import every_regularizer as every
import pytest
import torch

from toolkit.data.loader import Loader
from toolkit.errors import RegularizerWarning
from toolkit.measure.regularizer_health import regularizer_health
from toolkit.methods.med_disseg.regularizer import Dispersive
from toolkit.training.checkpoint import read
from toolkit.training.history import read_rows
from toolkit.training.regularizer import Regularizer
from toolkit.training.run import Run
from toolkit.training.step import TrainingStep
from toolkit.training.train import resume, train

CONFIG: dict[str, Any] = {
    "steps": 5,
    "batch_size": 4,
    "validate_every": 5,
    "checkpoint_every": 2,
    "log_every": 1,
    "select": "last",
}


def one_step(
    regularizer: Regularizer, dims: int, dtype: torch.dtype | None = None
) -> tuple[dict[str, float], list[bool]]:
    """Values of its terms in one logged step, and whether each parameter's gradient is finite."""
    network = every.network_for(regularizer, dims)
    step = TrainingStep(network, every.objective_for(regularizer), [regularizer])
    terms: dict[str, float] = {}
    for part in range(step.parts(3)):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            result = step(every.batch(dims), part=part, step=3, logging=True)
        result.total.backward()
        terms |= {name: float(value) for name, value in result.terms.items()}
    own = {name: value for name, value in terms.items() if name.startswith(f"{regularizer.name}/")}
    return own, [bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", every.NAMES)
def test_a_step_in_2d_and_3d(name: str, dims: int) -> None:
    regularizer = every.made(name, dims=dims)
    terms, finite = one_step(regularizer, dims)
    assert set(terms) == {f"{regularizer.name}/{term}" for term in regularizer.weights(3)}
    assert all(math.isfinite(value) for value in terms.values())
    assert finite
    assert all(finite)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", every.NAMES)
def test_a_step_under_autocast(name: str, dtype: torch.dtype) -> None:
    full, _ = one_step(every.made(name), 2)
    half, finite = one_step(every.made(name), 2, dtype)
    assert set(half) == set(full)
    assert finite
    assert all(finite)
    scale = sum(abs(value) for value in full.values())
    for term, value in half.items():
        # A masked code may lose another entry in half precision, so passes of a network's own get more room.
        room = 0.5 if every.made(name).deferred else 0.05
        assert abs(value - full[term]) <= room * scale, term


class Crash(BaseException):
    """Stands for a process that vanishes."""


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


def timeless(folder: Path) -> list[dict[str, Any]]:
    rows = read_rows(folder / "history.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


@pytest.mark.parametrize("name", every.NAMES)
def test_resuming_is_exact_and_the_gradient_ratio_is_reported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(every.made(name), tmp_path / "whole")
    fetch = Loader.batch

    def crash(self: Loader, index: int) -> dict[str, Any]:
        if index == 3:
            raise Crash
        return fetch(self, index)

    with monkeypatch.context() as patched, contextlib.suppress(Crash):
        patched.setattr(Loader, "batch", crash)
        trained(every.made(name), tmp_path / "broken")
        pytest.fail("the run was not interrupted")
    again = every.made(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RegularizerWarning)
        resume(
            tmp_path / "broken",
            model=every.network_for(again),
            task=every.task(),
            regularizer=again,
            objective=every.objective_for(again),
            progress=False,
        )
    ends = [read(tmp_path / label / "checkpoints", CONFIG["steps"]).sha256 for label in ("whole", "broken")]
    assert ends[0] == ends[1]
    assert timeless(tmp_path / "whole") == timeless(tmp_path / "broken")
    ratios = whole.history[f"{every.made(name).name}/gradient_ratio"].dropna()
    assert len(ratios) == CONFIG["steps"]
    assert (ratios > 0).all()
    assert (ratios < math.inf).all()


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
