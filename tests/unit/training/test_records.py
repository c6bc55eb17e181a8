"""Checkpoints, histories and the health of regularizers, each on its own."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from toolkit.errors import CheckpointError, ConfigError, RegularizerWarning, ToolkitWarning
from toolkit.files import read_sealed, write_sealed
from toolkit.training import checkpoint as checkpoints
from toolkit.training.checkpoint import Checkpoint
from toolkit.training.health import GradientMonitor, gradient_ratio, status_of
from toolkit.training.history import HistoryWriter, read_history, read_rows, truncate


def some(step: int, **changes: Any) -> Checkpoint:
    values: dict[str, Any] = {
        "step": step,
        "run": "r",
        "weights": {"w": torch.arange(6.0).reshape(2, 3)},
        "state": {"optimizer": {"lr": 0.1}},
    }
    return Checkpoint(**(values | changes))


def test_round_trip_of_every_kind_of_tensor(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    weights = {
        "plain": base,
        "tied": base,
        "view": base[1:3],
        "transposed": base.T,
        "bf16": base.bfloat16(),
        "whole": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "bool": torch.tensor([True, False]),
    }
    checkpoints.write(tmp_path, some(3, weights=weights, best={"step": 1, "value": 0.5}))
    read = checkpoints.read(tmp_path, 3, "r")
    assert list(read.weights) and set(read.weights) == set(weights)  # noqa: PT018
    for name, value in weights.items():
        assert torch.equal(read.weights[name], value)
        assert read.weights[name].dtype == value.dtype
    assert read.best == {"step": 1, "value": 0.5}
    size = (tmp_path / "00000003" / "weights.safetensors").stat().st_size
    without = checkpoints.write(tmp_path, some(4, weights={k: v for k, v in weights.items() if k != "tied"}))
    assert size - (without / "weights.safetensors").stat().st_size < base.numel() * 4  # stored once


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    shared = torch.ones(3)
    weights = {"a": shared, "b": shared, "c": torch.ones(3)}
    paths = [checkpoints.write(tmp_path, some(k, weights=dict(weights))) for k in (1, 2)]
    first, second = ((p / "weights.safetensors").read_bytes() for p in paths)
    assert first == second


def test_state_that_only_pickle_could_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read back"):
        checkpoints.write(tmp_path, some(0, state={"regularizers": {"x": Path("/")}}))
    assert not list(tmp_path.iterdir())


def test_prune_keeps_the_newest_and_the_named(tmp_path: Path) -> None:
    for step in (0, 5, 10, 15):
        checkpoints.write(tmp_path, some(step))
    checkpoints.prune(tmp_path, 2, always=[5])
    assert checkpoints.steps_on_disk(tmp_path) == [5, 10, 15]


def test_a_pickled_dictionary_with_a_payload_does_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "executed"),))

    path = checkpoints.write(tmp_path, some(1))
    buffer = io.BytesIO()
    torch.save({"optimizer": Payload()}, buffer)
    content = buffer.getvalue()
    (path / "state.pt").write_bytes(content)
    record = read_sealed(path / "checkpoint.json")
    record["sha256"]["state.pt"] = __import__("hashlib").sha256(content).hexdigest()
    write_sealed(path / "checkpoint.json", record)
    with pytest.raises(CheckpointError, match="could run code"):
        checkpoints.read(tmp_path, 1)
    assert not (tmp_path / "executed").exists()


def test_history_is_readable_while_it_is_written_and_has_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    with HistoryWriter(path) as history:
        history.write({"step": 1, "event": "train", "a/b": 0.1, "bad": math.nan})
        assert read_rows(path) == [{"step": 1, "event": "train", "a/b": 0.1, "bad": None}]
        history.write({"step": 2, "event": "train", "a/b": 1 / 3})
    table = read_history(path)
    assert list(table["step"]) == [1, 2]
    assert table["a/b"].iloc[1] == 1 / 3


def test_a_damaged_line_costs_that_line_and_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    with HistoryWriter(path) as history:
        for step in (1, 2, 3, 4):
            history.write({"step": step, "event": "train"})
    mark = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"step": \xff\xfe' + b"\x00\n" + b"[1]\n" + lines[3])
    with pytest.warns(ToolkitWarning, match=r"2 damaged lines .* \(line 2\)"):
        assert list(read_history(path)["step"]) == [1, 4]
    with pytest.warns(ToolkitWarning, match=r"is not what was written|damaged lines"):
        truncate(path, 4, mark)
    assert path.read_bytes() == lines[0] + lines[3]


def test_a_mark_cuts_the_file_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    with HistoryWriter(path) as history:
        history.write({"step": 1})
        mark = history.mark()
        history.write({"step": 2})
    whole = path.read_bytes()
    truncate(path, 1, mark)
    assert path.read_bytes() == whole[: len(whole) // 2]
    with HistoryWriter(path) as history:  # goes on from what is there
        history.write({"step": 2})
        assert history.mark()["sha256"] == hashlib.sha256(whole).hexdigest()


def test_a_long_history_is_the_same_table_as_a_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "history.jsonl"
    with HistoryWriter(path) as history:
        for step in range(1, 12):
            history.write({"step": step, "event": "train", "x": math.nan if step < 5 else step / 7})
            history.write({"step": step, "event": "validation", "best": step == 3} | ({"late": 1} if step > 9 else {}))
    whole = read_history(path)
    monkeypatch.setattr("toolkit.training.history._AT_ONCE", 3)
    pd.testing.assert_frame_equal(read_history(path), whole)
    assert whole["x"].dtype == float


def test_truncation_drops_later_rows_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    rows = [{"step": s, "event": "train", "x": s / 7} for s in (1, 2, 3)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"step": 4, "ev')
    assert [r["step"] for r in read_rows(path)] == [1, 2, 3]
    truncate(path, 2)
    assert path.read_text() == "".join(json.dumps(r) + "\n" for r in rows[:2])
    truncate(path, 0)
    assert path.read_text() == ""


@pytest.mark.parametrize(
    ("regularizer", "objective", "ratio", "status"),
    [
        (4.0, 16.0, 0.5, "ok"),
        (9.0, 1.0, 3.0, "dominant"),
        (1e-18, 1.0, 1e-9, "dead"),
        (0.0, 1.0, 0.0, "dead"),
        (1.0, 0.0, math.inf, "dominant"),
    ],
)
def test_ratios_by_hand(regularizer: float, objective: float, ratio: float, status: str) -> None:
    assert gradient_ratio(regularizer, objective) == pytest.approx(ratio)
    assert status_of(gradient_ratio(regularizer, objective)) == status
    assert status_of(gradient_ratio(0.0, 0.0)) == "undefined"


def test_the_monitor_warns_once_and_only_after_three_rows_in_a_row() -> None:
    monitor = GradientMonitor()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step, ratio in enumerate((5.0, 5.0, 0.5, 5.0, 5.0)):
            monitor.observe({"r": ratio}, step)
    with pytest.warns(RegularizerWarning, match="'r' is dominant at step 5.* 5 times"):
        assert monitor.observe({"r": 5.0}, 5) == {"r": "dominant"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(6, 12):
            monitor.observe({"r": 5.0}, step)
        for step in range(2):
            monitor.observe({"r": 0.0}, step)
    with pytest.warns(RegularizerWarning, match="dead"):
        monitor.observe({"r": 0.0}, 14)


class WithExtra(nn.Module):
    """A module whose state dictionary holds more than tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 3, padding=1)
        self.count = 0

    def get_extra_state(self) -> dict[str, int]:
        return {"count": self.count}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.count = state["count"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += self.training
        return self.layer(x)


def test_a_network_with_other_state_than_tensors_is_restored(trained: Any) -> None:
    from toolkit.training.load import load_model

    run = trained(model=WithExtra(), select="last")
    assert run.model.count == 6
    assert load_model(run.path, model=WithExtra()).count == 6
