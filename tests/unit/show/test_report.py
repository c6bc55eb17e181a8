"""Reports and the demo on a small task: content, reuse, errors, and the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from toolkit.__main__ import main
from toolkit.apps.demo import explained_case
from toolkit.apps.gpu_check import relative_difference
from toolkit.data.table import task_from_arrays
from toolkit.errors import ToolkitError
from toolkit.methods.segreg.regularizer import SegReg
from toolkit.models.unet import unet
from toolkit.show.panels import Figure, Heatmap
from toolkit.show.report import report, run_record, runs_table
from toolkit.training.config import TrainConfig
from toolkit.training.run import Run
from toolkit.training.train import train


def small_task() -> Any:
    """Bright squares (class 1) holding brighter squares (class 2) in noise, four patients a site and split."""
    rng = np.random.default_rng(0)
    images, labels = [], []
    for _ in range(24):
        row, column = rng.integers(4, 12, size=2)
        label = np.zeros((32, 32), dtype=np.uint8)
        label[row : row + 14, column : column + 14] = 1
        label[row + 4 : row + 10, column + 4 : column + 10] = 2
        images.append((label + 0.3 * rng.normal(size=label.shape)).astype(np.float32)[None])
        labels.append(label)
    return task_from_arrays(
        images,
        labels,
        classes={0: "background", 1: "wall", 2: "core"},
        sites=["A", "B"] * 12,
        subjects=[f"p{i}" for i in range(24)],
        splits=["train", "train", "val", "val", "test", "test"] * 4,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.set_num_threads(1)
    model = unet(1, 3, channels=(4, 8))
    config = TrainConfig(steps=4, batch_size=4, validate_every=2, checkpoint_every=4, log_every=1, augmentation="none")
    folder = tmp_path_factory.mktemp("runs") / "small"
    return train(model, small_task(), None, SegReg(samples=256, directions=8), config, out=folder, progress=False)


def test_a_report_on_a_run_shows_curves_scores_and_settings(run: Run, tmp_path: Path) -> None:
    text = report(run, tmp_path / "report.html", interactive=False).read_text(encoding="utf-8")
    for part in ("Training of small", "Scores of small", "segreg/epps_pulley", "learning_rate", "val", SegReg.caveat):
        assert part in text
    assert run_record(run)["weights"][:12] in text
    assert str(run.path.parent) not in text


def test_a_report_does_not_look_at_the_test_split(run: Run, tmp_path: Path) -> None:
    report(run, tmp_path / "report.html", interactive=False)
    assert not list((run.path / "evaluation").glob("test-*"))


def test_a_report_takes_several_things(run: Run, tmp_path: Path) -> None:
    figure = Figure("A matrix", [[Heatmap(values=np.eye(3), note="0 to 1")]], caption="weights 0")
    text = report([run, figure], tmp_path / "report.html", title="Mine", interactive=False).read_text(encoding="utf-8")
    assert re.search("<title>Mine</title>", text)
    assert "A matrix" in text
    assert "Runs side by side" not in text


def test_several_runs_share_one_table_of_scores_and_settings(run: Run, tmp_path: Path) -> None:
    config = TrainConfig(
        steps=2, batch_size=4, validate_every=0, select="last", patch_size=(16, 16), learning_rate=1e-3
    )
    other = train(
        unet(1, 3, channels=(4, 8)),
        small_task(),
        torch.nn.CrossEntropyLoss(),
        None,
        config,
        out=tmp_path / "b",
        progress=False,
    )
    table = runs_table([run, other]).set_index("run")
    scored = run.evaluate("val", metrics=("dice",)).groupby("case")["value"].mean()
    assert table.loc["small", "dice (val)"] == pytest.approx(scored.mean(), abs=1e-4)
    assert table["volumes"].tolist() == [8, 8]
    assert table["patch"].tolist() == ["32 x 32", "16 x 16"]
    assert table["augmentation"].tolist() == ["none", "standard"]
    assert table["regularizer"].tolist() == ["segreg", "none"]
    assert table["steps"].tolist() == [4, 2]
    assert "CrossEntropyLoss" in table.loc["b", "loss"]
    text = report([run, other], tmp_path / "both.html", interactive=False).read_text(encoding="utf-8")
    assert text.index("Runs side by side") < text.index("Training of small") < text.index("Training of b")


@pytest.mark.parametrize(
    ("content", "path", "message"), [({}, "r.html", "dict"), ([], "r.html", "nothing"), ([], "r.pdf", "HTML")]
)
def test_what_cannot_be_reported_is_refused(content: Any, path: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match=message):
        report(content, tmp_path / path)
    assert not list(tmp_path.iterdir())


def test_the_explained_case_has_every_class() -> None:
    task = small_task()
    case = explained_case(task, "A")
    assert case.split == "test"
    assert len(case.label.unique()) == 3


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    task = small_task()
    monkeypatch.setattr("toolkit.apps.demo.load_task", lambda name: task)
    return ["demo", "--out", str(tmp_path / "demo"), "--steps", "2", "--batch-size", "4"]


@pytest.mark.slow
def test_the_demo_writes_its_page_and_uses_it_again(
    demo: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "demo" / "report.html"
    assert main(demo) == 0
    first = capsys.readouterr()
    assert first.out.splitlines()[-1] == str(page)
    assert "100%" in first.err
    text = page.read_text(encoding="utf-8")
    for part in (
        "Dice per site and class",
        "Channel similarity",
        "PCA of the features",
        "Drift of head_input",
        "Grad-CAM of core",
        "Masked latent",
        "decoder.3",
        "bottleneck",
        SegReg.caveat,
    ):
        assert part in text
    assert text.count("<figcaption>") == text.count("<img alt=") == 8
    assert "<figcaption></figcaption>" not in text
    written = page.stat().st_mtime_ns

    assert main(demo) == 0
    again = capsys.readouterr()
    assert "Nothing to do" in again.out
    assert again.out.splitlines()[-1] == str(page)
    assert page.stat().st_mtime_ns == written

    page.unlink()
    assert main(demo) == 0
    assert capsys.readouterr().out.count("Reusing the training") == 2
    assert page.is_file()

    for other in (["--seed", "5"], ["--weight", "0.3"]):
        assert main([*demo, *other]) == 1
        assert "other settings" in capsys.readouterr().err


def test_errors_of_commands_have_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 1
    assert "CheckpointError" in capsys.readouterr().err


def test_the_gpu_check_says_so_and_stops_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu-check"]) == 0
    assert "no CUDA device" in capsys.readouterr().out


def test_relative_difference_of_the_gpu_check() -> None:
    assert relative_difference(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0])) == pytest.approx(1 / 18**0.5)


def test_every_result_of_a_network_says_what_it_was_trained_with(run: Run, tmp_path: Path) -> None:
    from toolkit.explain.gradcam import grad_cam
    from toolkit.explain.targets import ClassSum
    from toolkit.show.figures import compose
    from toolkit.training.load import load_model

    case = small_task().cases("test")[0]
    for network in (run.model, load_model(run.path)):
        result = grad_cam(network, case, ["bottleneck"], ClassSum(1))
        assert result.provenance["trained_with"] == ["segreg"]
        assert SegReg.caveat in compose(result).caption
    untrained = grad_cam(unet(1, 3, channels=(4, 8)), case, ["bottleneck"], ClassSum(1))
    assert SegReg.caveat not in compose(untrained).caption


def test_an_interrupt_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for told, said in ((KeyboardInterrupt(), "Interrupted."), (KeyboardInterrupt("after step 9"), "after step 9")):

        def stopped(told: KeyboardInterrupt = told) -> int:
            raise told

        monkeypatch.setattr("toolkit.apps.gpu_check.gpu_check", stopped)
        assert main(["gpu-check"]) == 130
        assert said in capsys.readouterr().err
