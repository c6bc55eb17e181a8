"""Training in a child process."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from toolkit.data.folder import task_from_folder
from toolkit.data.task import Task
from toolkit.errors import ConfigError, ToolkitError
from toolkit.models.unet import UNet, unet
from toolkit.training.config import TrainConfig
from toolkit.training.run import Run
from toolkit.training.train import resume, train

pytestmark = pytest.mark.slow
CONFIG = {"steps": 30, "batch_size": 2, "checkpoint_every": 10, "validate_every": 15, "log_every": 1, "threads": 1}


@pytest.fixture
def pictures(tmp_path: Path) -> Task:
    """A task that a child process can build again."""
    drawn = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for index in range(8):
        label = np.zeros((32, 32), np.uint8)
        row, column = drawn.integers(2, 20, 2)
        label[row : row + 10, column : column + 10] = 1
        image = (label * 120 + drawn.integers(0, 100, label.shape)).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"p{index}.png")
        Image.fromarray(label).save(tmp_path / "labels" / f"p{index}.png")
    return task_from_folder(tmp_path / "images", tmp_path / "labels", classes={0: "background", 1: "box"})


@pytest.fixture
def start(pictures: Task, network: UNet, tmp_path: Path) -> Callable[..., Run]:
    def begin(name: str = "run", model: torch.nn.Module | None = None, **options: Any) -> Run:
        config = TrainConfig(**{**CONFIG, **options.pop("config", {})})
        model = network if model is None else model
        return train(model, pictures, config=config, out=tmp_path / name, progress=False, **options)

    return begin


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_child_gives_the_bits_of_the_foreground_and_a_stopped_one_can_go_on(
    start: Callable[..., Run], network: UNet
) -> None:
    initial = {name: value.clone() for name, value in network.state_dict().items()}
    run = start("child", background=True)
    assert run.running
    with pytest.raises(ConfigError, match="is training this run now"):
        resume(run.path, progress=False)
    until(lambda: len(run.history) > 3)
    run.stop()
    assert not run.running
    assert run.state == "interrupted"
    assert 0 < run.step < 30
    ended = resume(run.path, progress=False)
    assert ended.finished
    model = unet(1, 2, channels=(4, 8, 8))
    model.load_state_dict(initial)
    reference = start("foreground", model=model)
    for ours, theirs in zip(ended.model.state_dict().values(), reference.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_wait_brings_the_selected_weights(start: Callable[..., Run]) -> None:
    run = start(background=True, config={"steps": 4, "validate_every": 2})
    run.wait(timeout=120)
    assert run.finished
    from toolkit.training.load import load_model

    for ours, theirs in zip(run.model.state_dict().values(), load_model(run.path).state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_childs_error_is_reported(start: Callable[..., Run], pictures: Task, tmp_path: Path) -> None:
    run = start(background=True, config={"learning_rate": 1e11, "schedule": "constant"})
    with pytest.raises(ToolkitError, match=r"failed: ToolkitError: The (loss|weights)"):
        run.wait(timeout=120)
    assert "Traceback" in (run.path / "background.log").read_text()


def test_a_child_that_was_killed_is_reported_and_can_go_on(start: Callable[..., Run]) -> None:
    run = start(background=True)
    until(lambda: len(run.history) > 3)
    os.kill(json.loads((run.path / "state.json").read_text())["process"], signal.SIGKILL)
    with pytest.raises(ToolkitError, match=r"without a message \(exit status -9\)"):
        run.wait(timeout=60)
    assert resume(run.path, progress=False).finished
