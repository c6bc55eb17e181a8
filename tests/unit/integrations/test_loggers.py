"""Ready loggers: what TensorBoard reads back, and what the other two hand to their libraries."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
        log_image=lambda image, name, **named: calls.append(("image", image.shape, name, named)),
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
        ("image", (4, 12, 3), "predictions/a-b-00000007.png", {}),
    ]
