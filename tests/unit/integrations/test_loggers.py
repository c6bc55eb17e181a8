"""Ready loggers: what TensorBoard, Weights & Biases and MLflow read back, and what is handed to the latter two."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from toolkit.errors import ConfigError
from toolkit.integrations import loggers

ROW = {"step": 7, "stage": 0, "event": "train", "total": 0.5, "segmentation/dice": float("nan"), "weights": None}
PICTURE = np.zeros((4, 12, 3), np.uint8)


def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = loggers.tensorboard(tmp_path)
    logger(ROW)
    logger({"step": 9, "event": "validation", "validation/dice": 0.25, "validation/best": True})
    logger.pictures(9, {"case": PICTURE})
    logger.writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {"total", "validation/dice", "validation/best"}
    assert [(event.step, event.value) for event in events.Scalars("validation/dice")] == [(9, 0.25)]
    assert [(event.step, event.width, event.height) for event in events.Images("prediction/case")] == [(9, 12, 4)]


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ConfigError, match=f"pip install {name}"):
            getattr(loggers, name)()


def test_the_others_get_numbers_by_step_and_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def record(kind: str) -> Any:
        return lambda *values, **named: calls.append((kind, values, named))

    run = types.SimpleNamespace(log=record("log"), info=types.SimpleNamespace(run_id="r1"))
    fake_wandb = types.SimpleNamespace(init=lambda **_: run, Image=lambda image: ("image", image.shape))
    fake_mlflow = types.SimpleNamespace(
        set_tracking_uri=record("uri"),
        start_run=lambda **_: run,
        log_metrics=record("metrics"),
        MlflowClient=lambda: types.SimpleNamespace(log_image=lambda run, *rest: calls.append(("image", run, *rest))),
    )
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb)
    monkeypatch.setitem(sys.modules, "mlflow", fake_mlflow)
    for logger in (loggers.wandb(mode="offline"), loggers.mlflow("sqlite:///x.db")):
        logger(ROW)
        logger.pictures(7, {"a/b": PICTURE})
    assert calls == [  # both loggers were made before the first one logged
        ("uri", ("sqlite:///x.db",), {}),
        ("log", ({"total": 0.5},), {"step": 7}),
        ("log", ({"prediction/a/b": ("image", (4, 12, 3))},), {"step": 7}),
        ("metrics", ({"total": 0.5},), {"step": 7, "run_id": "r1"}),
        ("image", "r1", PICTURE, "predictions/a-b-00000007.png"),
    ]


@pytest.mark.filterwarnings("ignore")  # theirs, of what they import
def test_wandb_reads_back_what_was_logged_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = loggers.wandb(mode="offline", dir=str(tmp_path), project="hearts")
    logger(ROW)
    logger.pictures(9, {"case": PICTURE})
    summary = dict(logger.run.summary)
    logger.run.finish()
    assert (summary["total"], summary["_step"]) == (0.5, 7)  # step 9 is written when the run ends
    assert "segmentation/dice" not in summary  # it was NaN
    (run,) = tmp_path.glob("wandb/offline-run-*")
    assert list(run.glob("*.wandb"))  # what `wandb sync` uploads
    (picture,) = run.glob("files/media/images/prediction/case_*.png")
    assert Image.open(picture).size == (12, 4)


@pytest.mark.filterwarnings("ignore")  # theirs, of what they import
@pytest.mark.parametrize("store", ["file", "sqlite"])
def test_mlflow_reads_back_what_was_logged(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    uri = f"file://{tmp_path}/runs" if store == "file" else f"sqlite:///{tmp_path}/runs.db"
    logger = loggers.mlflow(uri, experiment="hearts")
    mlflow.end_run()
    mlflow.start_run()  # of something else, which gets nothing
    logger(ROW)
    logger.pictures(9, {"case": PICTURE})
    mlflow.end_run()
    client, run = mlflow.MlflowClient(uri), logger.run.info.run_id
    assert [(point.step, point.value) for point in client.get_metric_history(run, "total")] == [(7, 0.5)]
    assert set(client.get_run(run).data.metrics) == {"total"}
    (picture,) = client.list_artifacts(run, "predictions")
    assert Image.open(client.download_artifacts(run, picture.path)).size == (12, 4)
