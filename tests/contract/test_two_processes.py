"""Two processes that share each batch take the steps of one process with the whole batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from toolkit.errors import ConfigError
from toolkit.training.checkpoint import read
from toolkit.training.config import TrainConfig
from toolkit.training.engine import build_fabric
from toolkit.training.history import read_rows

PROGRAM = Path(__file__).parent / "two_processes_program.py"


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    """Started by Fabric and by torchrun; the Dice of the default objective is that of the whole batch."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    for name, devices, launcher in (("one", "1", []), ("two", "2", []), ("torchrun", "2", torchrun)):
        command = [sys.executable, *launcher, str(PROGRAM), str(tmp_path / name), devices]
        subprocess.run(command, check=True, timeout=300, env=environment, capture_output=True)
    one, reference = read(tmp_path / "one" / "checkpoints", 4).weights, read_rows(tmp_path / "one" / "history.jsonl")
    for name in ("two", "torchrun"):
        for key, value in read(tmp_path / name / "checkpoints", 4).weights.items():
            torch.testing.assert_close(value, one[key], rtol=1e-4, atol=1e-6)
        rows = read_rows(tmp_path / name / "history.jsonl")
        assert [(row["step"], row["event"]) for row in rows] == [(row["step"], row["event"]) for row in reference]
        dice = [[row["segmentation/dice"] for row in some if row["event"] == "train"] for some in (rows, reference)]
        assert dice[0] == pytest.approx(dice[1], rel=1e-5)


def test_one_device_under_torchrun_is_refused_with_the_right_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match=r"torchrun started 2 processes .*devices=1") as caught:
        build_fabric(TrainConfig(device="cpu"))
    assert "TrainConfig(devices=2)" in str(caught.value)
    with pytest.raises(ConfigError, match="shared evenly by 4 processes"):
        build_fabric(TrainConfig(device="cpu", devices=2, batch_size=6))
