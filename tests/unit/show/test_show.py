"""`toolkit.show`: one figure of results of one kind, of data and of runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

import toolkit as tk
from toolkit.errors import ResultError
from toolkit.explain.cam_result import GradCamResult
from toolkit.features.provenance import mark_trained_with
from toolkit.show.panels import Image


@pytest.fixture(scope="module")
def cams() -> list[GradCamResult]:
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = tk.unet(1, 3, channels=(4, 8))
        results.append(tk.grad_cam(model, torch.ones(1, 1, 16, 16), ["bottleneck", "decoder.1"], tk.ClassSum(1)))
    return results


def test_two_networks_stand_side_by_side(cams: list[GradCamResult]) -> None:
    figure = tk.show(*cams, names=["plain", "other"])
    assert isinstance(figure, go.Figure)
    text = json.dumps(figure.to_plotly_json()["layout"]["annotations"], default=str)
    assert "plain" in text
    assert "other" in text
    composed = tk.figures.grad_cams(cams, ["plain", "other"])
    assert [len(row) for row in composed.rows] == [3, 3]  # the image and two layers, a row a network


def test_one_result_is_its_own_figure(cams: list[GradCamResult]) -> None:
    assert tk.show(cams[0]).to_json() == cams[0].plot().to_json()


def test_a_title_of_one_s_own(cams: list[GradCamResult]) -> None:
    composed = tk.figures.grad_cams(cams, ["plain", "other"])
    before = composed.title
    assert tk.show(composed, title="Fig. 1b", static=True).figure.title == "Fig. 1b"
    assert composed.title == before, "the caller's figure stays as it was"
    assert "Fig. 1b" in json.dumps(tk.show(cams[0], title="Fig. 1b").to_plotly_json()["layout"], default=str)


def test_static_pictures_are_shown_and_written(cams: list[GradCamResult], tmp_path: Path) -> None:
    picture = tk.show(cams[0], static=True)
    png, size = picture._repr_png_()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert size["width"] <= 1000
    assert picture.save(tmp_path / "cam.pdf").read_bytes()[:5] == b"%PDF-"


def test_names_come_from_what_the_networks_were_trained_with(cams: list[GradCamResult]) -> None:
    assert tk.show.draw.default_names(cams) == ["plain 1", "plain 2"]
    images = torch.rand(4, 1, 16, 16)
    models = [tk.unet(1, 3, channels=(4, 8)) for _ in range(2)]
    mark_trained_with(models[1], ["segreg"])
    stores = [[tk.extract(one, images, ["bottleneck"], pool="voxels", samples=8)] * 2 for one in models]
    clouds = [tk.project(one, "bottleneck") for one in stores]
    assert tk.show.draw.default_names(clouds) == ["plain", "segreg"], "what the stages were trained with"
    titles = [panel.title for panel in tk.show(*clouds, static=True).figure.panels()]
    assert "segreg: stage 1" in titles


def test_runs_and_cases_have_names_of_their_own(tmp_path: Path) -> None:
    images = list(np.random.default_rng(0).random((4, 16, 16), dtype=np.float32))
    labels = [(image > 0.5).astype(np.uint8) for image in images]
    task = tk.task_from_arrays(images, labels, classes={0: "no", 1: "yes"}, splits=["train", "train", "val", "val"])
    runs = []
    for name, regularizer in (("one", None), ("two", tk.SegReg(samples=32, directions=4))):
        config = tk.TrainConfig(steps=1, batch_size=2, log_every=1)
        model, out = tk.unet(1, 2, channels=(4, 8)), tmp_path / name / "run"
        runs.append(tk.train(model, task, regularizer=regularizer, config=config, out=out, progress=False))
    assert {trace.name for trace in tk.show(*runs).data} == {"plain", "segreg"}
    assert tk.show.draw.default_names(task.cases()[:2]) == [case.id for case in task.cases()[:2]]
    with pytest.raises(ResultError, match="all different"):
        tk.show(*runs, names=["mine", "mine"])


def test_tasks_and_cases_are_shown() -> None:
    task = tk.load_task("phantom-cardiac")
    case = task.cases("test", site="A")[3]
    (row,) = tk.figures.compose(case).rows
    assert [isinstance(panel, Image) for panel in row] == [True, True]
    assert row[1].labels.shape == case.label.shape[1:] or row[1].labels.shape == case.label.shape
    rows = tk.figures.compose(task, columns=2).rows
    assert [len(row) for row in rows] == [2] * len(task.sites)
    assert isinstance(tk.show(task, columns=1), go.Figure)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda cams: tk.show(), "nothing to show"),
        (lambda cams: tk.show(cams[0], 3), "several kinds"),
        (lambda cams: tk.show(*cams, names=["one"]), "as many names"),
        (lambda cams: tk.show(3), "no figure for a int"),
    ],
)
def test_what_cannot_be_shown_is_said(cams: list[GradCamResult], call, words: str) -> None:
    with pytest.raises(tk.ResultError, match=words):
        call(cams)


def test_the_name_is_the_call_and_the_folder_in_any_order_of_imports() -> None:
    code = "import toolkit as tk; import toolkit.show.panels; assert callable(tk.show) and tk.show.panels; tk.figures"
    for program in (code, f"import toolkit; callable(toolkit.show); {code}"):
        subprocess.run([sys.executable, "-c", program], check=True)
