"""Whoever watches a run is told every row and shown its predictions, changes nothing and cannot stop it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_networks import weights_of

from toolkit.data.task import Task
from toolkit.errors import ConfigError, ToolkitWarning
from toolkit.models.unet import UNet, unet
from toolkit.training.config import TrainConfig
from toolkit.training.run import Run
from toolkit.training.train import resume, train

Trainer = Callable[..., Run]
SETTINGS: dict[str, Any] = {"steps": 6, "batch_size": 4, "checkpoint_every": 3, "validate_every": 3, "log_every": 2}


class Watcher:
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.images: dict[int, Mapping[str, np.ndarray]] = {}

    def __call__(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def pictures(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        self.images[step] = images


def started(model: UNet, task: Task, out: Path, **options: Any) -> Run:
    return train(model, task, config=TrainConfig(**SETTINGS), out=out, progress=False, **options)


def test_every_row_of_the_history_is_told_and_nothing_changes(discs: Task, network: UNet, tmp_path: Path) -> None:
    start = {name: value.clone() for name, value in network.state_dict().items()}
    plain = weights_of(started(network, discs, tmp_path / "plain").model)
    network.load_state_dict(start)
    watcher, simple = Watcher(), []
    run = started(network, discs, tmp_path / "watched", on_log=[watcher, simple.append])
    stored = [json.loads(line) for line in (run.path / "history.jsonl").read_text().splitlines()]
    assert json.loads(json.dumps(watcher.rows)) == stored
    assert simple == watcher.rows
    assert all(np.array_equal(a, b) for a, b in zip(plain, weights_of(run.model), strict=True))


def test_pictures_hold_image_reference_and_prediction(discs: Task, network: UNet, tmp_path: Path) -> None:
    watcher = Watcher()
    run = started(network, discs, tmp_path / "run", on_log=watcher)
    assert sorted(watcher.images) == [3, 6]
    cases = {case.id: case for case in discs.cases("val")}
    assert watcher.images[6]
    for name, picture in watcher.images[6].items():
        assert picture.shape == (32, 96, 3)
        assert picture.dtype == np.uint8
        coloured = (picture != picture[..., :1]).any(-1)
        assert not coloured[:, :32].any()
        assert np.array_equal(coloured[:, 32:64], cases[name].label_array() > 0)
        with np.errstate(all="ignore"):
            predicted = run.model.eval()(cases[name].image[None]).argmax(1)[0].numpy() > 0
        if run.selected_step == 6:
            assert np.array_equal(coloured[:, 64:], predicted)


def test_a_volume_is_shown_by_its_fullest_slice(balls: Task, tmp_path: Path) -> None:
    watcher = Watcher()
    started(unet(1, 2, channels=(4, 8), dims=3), balls, tmp_path / "run", on_log=watcher)
    cases = {case.id: case for case in balls.cases("val")}
    for name, picture in watcher.images[6].items():
        label = cases[name].label_array() > 0
        coloured = (picture != picture[..., :1]).any(-1)
        side = picture.shape[1] // 3
        assert coloured[:, side : 2 * side].sum() == label.sum((1, 2)).max()


def test_a_watcher_that_fails_is_named_and_left_alone(discs: Task, network: UNet, tmp_path: Path) -> None:
    calls: list[int] = []

    def broken(row: dict[str, Any]) -> None:
        calls.append(row["step"])
        raise ConnectionError("the server is gone")

    with pytest.warns(ToolkitWarning, match=r"broken.* is not called again.*the server is gone"):
        run = started(network, discs, tmp_path / "run", on_log=broken)
    assert calls == [1]
    assert run.finished


def test_what_cannot_be_called_is_refused_before_anything_is_written(
    discs: Task, network: UNet, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="on_log takes"):
        started(network, discs, tmp_path / "run", on_log=["tensorboard"])
    with pytest.raises(ConfigError, match="cannot call on_log"):
        started(network, discs, tmp_path / "run", on_log=print, background=True)
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_tells_the_rest_and_says_where_it_lies(
    discs: Task, network: UNet, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = started(network, discs, tmp_path / "run")
    assert capfd.readouterr() == ("", "")
    rows: list[dict[str, Any]] = []
    resume(run.path, task=discs, steps=8, on_log=rows.append)
    assert [row["step"] for row in rows if row["event"] == "train"] == [8]
    out, error = capfd.readouterr()
    assert out == ""
    assert f"The run lies in {run.path}" in error
