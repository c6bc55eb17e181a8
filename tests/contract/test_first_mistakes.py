"""The mistakes of the first hour: each is answered by what is wrong and what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

import toolkit as tk


@pytest.fixture(scope="module")
def task() -> tk.Task:
    return tk.load_task("phantom-cardiac")


def test_a_regularizer_that_was_not_called(task: tk.Task, tmp_path: Path) -> None:
    with pytest.raises(tk.ConfigError, match=r"Call the class first: toolkit\.SegReg\(\)"):
        tk.train(tk.unet(1, 4, channels=(4, 8)), task, regularizer=tk.SegReg, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_something_else_in_place_of_a_regularizer(task: tk.Task, tmp_path: Path) -> None:
    with pytest.raises(tk.ConfigError, match=r"regularizer takes Regularizer .* not 3"):
        tk.train(tk.unet(1, 4, channels=(4, 8)), task, regularizer=3, out=tmp_path / "run")


def test_a_misspelled_task_is_recognised() -> None:
    with pytest.raises(tk.ConfigError, match="Did you mean 'phantom-cardiac'"):
        tk.load_task("phantom-cardiak")


def test_a_network_in_place_of_a_factory(task: tk.Task, tmp_path: Path) -> None:
    with pytest.raises(tk.ConfigError, match="model=lambda"):
        tk.compare({"plain": None}, model=tk.unet(1, 4, channels=(4, 8)), task=task, out=tmp_path / "study")


def test_a_task_in_place_of_its_cases(task: tk.Task) -> None:
    with pytest.raises(tk.DataError, match=r"task\.cases\('test'\)"):
        tk.grad_cam(tk.unet(1, 4, channels=(4, 8)), task, "bottleneck", tk.ClassSum(1))


def test_a_layer_is_suggested_once(task: tk.Task) -> None:
    with pytest.raises(tk.LayerError) as caught:
        tk.extract(tk.unet(1, 4, channels=(4, 8)), task.cases("test")[:1], "botleneck")
    suggested = str(caught.value).split("Closest names: ")[1].rstrip(".").split(", ")
    assert suggested[0] == "bottleneck"
    assert len(set(suggested)) == len(suggested)
