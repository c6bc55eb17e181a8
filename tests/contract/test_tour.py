"""The public calls as the README and the notebooks write them, end to end, on a small slice of the embedded task."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import toolkit as tk

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def task() -> Any:
    return tk.load_task("phantom-cardiac")


@pytest.fixture(scope="module")
def run(task: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    torch.manual_seed(0)
    model = tk.unet(in_channels=1, out_channels=4, channels=(8, 16, 32), dims=2)
    config = tk.TrainConfig(steps=6, batch_size=4, checkpoint_every=3, validate_every=3, validation_cases=2)
    path = tmp_path_factory.mktemp("runs") / "segreg"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        return tk.train(
            model,
            task,
            regularizer=tk.SegReg(weight=0.1, samples=256, directions=16),
            config=config,
            out=path,
            site=task.sites[0],
            progress=False,
        )


def test_tasks_are_listed_with_what_a_user_needs() -> None:
    table = tk.list_tasks()
    assert {"name", "anatomy", "modality", "dims", "classes", "sites", "licence", "access", "ready"} <= set(table)
    assert bool(table.set_index("name").loc["phantom-cardiac", "ready"])


def test_a_case_is_what_the_network_takes(task: Any) -> None:
    case = task.cases("test", site=task.sites[0])[0]
    assert case.image.dtype == torch.float32
    assert case.label.dtype == torch.uint8
    assert case.image.shape[1:] == case.label.shape
    assert task.classes[0] == "background"
    batch = task.loader("train", site=None, batch_size=4, patch_size=(96, 96), seed=0).batch(0)
    assert batch["image"].shape == (4, 1, 96, 96)
    assert batch["label"].shape == (4, 1, 96, 96)


def test_a_run_explains_itself(run: Any, task: Any, tmp_path: Path) -> None:
    assert {"step", "objective/cross_entropy"} <= set(run.history) or "step" in run.history
    assert any(column.endswith("gradient_ratio") for column in run.history)
    table = run.evaluate("test")
    assert {"case", "site", "class", "metric", "value", "status"} <= set(table)
    run.predict(task.cases("test", site=task.sites[0])[:2], out=tmp_path / "predictions")
    assert list((tmp_path / "predictions").glob("*.nii.gz"))
    again = tk.resume(run.path)
    assert again.finished
    image = task.cases("test")[0].image
    loaded = tk.load_model(run.path)
    assert torch.equal(torch.as_tensor(tk.predict(loaded, image)), torch.as_tensor(tk.predict(run.model, image)))


def test_features_similarity_projection_and_drift(run: Any, task: Any, tmp_path: Path) -> None:
    cases = task.cases("test", site=task.sites[0])[:6]
    listed = tk.layers(run.model, cases[0].image)
    assert {"name", "aliases", "kind", "shape"} <= set(listed)
    features = tk.extract(run.model, cases, layers=["encoder.*", "bottleneck", "head_input"], pool="per-class")
    features.save(tmp_path / "feats.zarr")
    stored = tk.open_features(tmp_path / "feats.zarr")
    assert torch.equal(torch.as_tensor(stored.rows("bottleneck")), torch.as_tensor(features.rows("bottleneck")))
    other = tk.extract(tk.unet(1, 4, channels=(8, 16, 32)), cases, layers=["bottleneck", "head_input"])
    third = tk.extract(run.model, cases, layers=["bottleneck", "head_input"])
    results = [
        tk.channel_similarity(stored, "bottleneck"),
        tk.project([stored, other, third], layer="head_input", method="pca", basis="shared"),
        tk.drift([stored, other, third], layer="head_input"),
        tk.collapse(features, "bottleneck"),
        tk.layer_similarity(other, third),
    ]
    for number, result in enumerate(results):
        check_result(result, tmp_path / str(number))


def check_result(result: Any, folder: Path) -> None:
    """Every analysis result has a table, both figures, a file and its provenance."""
    assert isinstance(result.table(), pd.DataFrame)
    assert len(result.table())
    assert type(result.plot()).__module__.startswith("plotly")
    for suffix in ("pdf", "png", "svg"):
        assert result.figure(folder / f"figure.{suffix}").stat().st_size > 1000
    again = tk.load_result(result.save(folder / "result.zip"))
    pd.testing.assert_frame_equal(again.table(), result.table())
    assert result.provenance


def test_grad_cam_and_masks(run: Any, task: Any, tmp_path: Path) -> None:
    case = max(task.cases("test", site=task.sites[0]), key=lambda c: int((c.label == 3).sum()))
    cam = tk.grad_cam(run.model, case, layers="decoder.*", target=tk.Region("LV", inside="reference"))
    assert cam["decoder.1"].shape == (1, 1, *case.image.shape[1:])
    check_result(cam, tmp_path / "cam")
    summed = tk.grad_cam(run.model, case.image[None], layers=["bottleneck"], target=tk.ClassSum(2))
    assert summed["bottleneck"].ndim == 4
    network = tk.fast_slow_network(1, 4, width=2)
    for net, image in ((run.model, case), (network, case.image)):
        mask = tk.mask_latent(net, image, scheme="channel", fraction=0.3, soft=True, seed=0, skips="keep")
        assert mask.segmentation is not None
        check_result(mask, tmp_path / f"mask_{type(net).__name__}")


def test_capture_gives_live_tensors(run: Any) -> None:
    x = torch.randn(1, 1, 32, 32)
    with tk.capture(run.model, ["bottleneck"]) as tape:
        run.model(x)
    assert tape["bottleneck"].requires_grad


def test_metrics_have_a_status() -> None:
    reference = np.zeros((8, 8), dtype=np.uint8)
    reference[2:5, 2:5] = 1
    table = tk.segmentation_metrics(np.zeros_like(reference), reference, None, {0: "background", 1: "LV"})
    assert set(table["status"]) == {"missed"}
    assert float(table[table["metric"] == "dice"]["value"].iloc[0]) == 0.0


def test_sequence_and_report(task: Any, tmp_path: Path) -> None:
    config = tk.TrainConfig(steps=2, batch_size=4, validate_every=0, checkpoint_every=0, select="last")
    model = tk.unet(1, 4, channels=(4, 8))
    stages = tk.train_sequence(
        model,
        task,
        sites=list(task.sites[:2]),
        regularizer=tk.SegReg(samples=128, directions=8),
        config=config,
        out=tmp_path / "sequence",
        progress=False,
    )
    assert len(stages.stages) == 2
    check_result(stages.transfer(), tmp_path / "transfer")
    page = Path(tk.report(stages.stages[-1], tmp_path / "report.html"))
    text = page.read_text(encoding="utf-8")
    assert "<html" in text
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=[\"']?https?:", text)  # nothing is fetched


def test_one_s_own_arrays_need_no_manifest(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = [generator.normal(size=(32, 32)).astype(np.float32) for _ in range(6)]
    labels = [(image > 0.5).astype(np.uint8) for image in images]
    task = tk.task_from_arrays(images, labels, classes={0: "background", 1: "bright"}, spacing=None, sites=None)
    config = tk.TrainConfig(steps=2, batch_size=2, validate_every=0, checkpoint_every=0, select="last")
    run = tk.train(tk.unet(1, 2, channels=(4, 8)), task, config=config, out=tmp_path / "own", progress=False)
    assert run.finished
