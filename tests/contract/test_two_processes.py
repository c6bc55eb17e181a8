"""Two processes that share each batch take the steps of one process with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from toolkit.training.checkpoint import read
from toolkit.training.history import read_rows

PROGRAM = Path(__file__).parent / "two_processes_program.py"


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for devices in (1, 2):
        command = [sys.executable, PROGRAM, tmp_path / str(devices), str(devices)]
        subprocess.run(command, check=True, timeout=300, env=environment, capture_output=True)
    one, two = (read(tmp_path / name / "checkpoints", 4).weights for name in ("1", "2"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
    rows = [read_rows(tmp_path / name / "history.jsonl") for name in ("1", "2")]
    assert [(r["step"], r["event"]) for r in rows[0]] == [(r["step"], r["event"]) for r in rows[1]]
