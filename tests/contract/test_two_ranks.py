"""Two processes with half the batch each have, in float64, the gradients of one process with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).parent / "two_ranks_program.py"


@pytest.mark.slow
def test_gradients_of_two_ranks_are_those_of_one(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def started(out: str, rank: int, size: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, PROGRAM, tmp_path / out, str(rank), str(size), tmp_path / "rendezvous"]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)

    processes = [started("one", 0, 1), started("two", 0, 2), started("two", 1, 2)]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], b"\n".join(errors).decode()
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one", "two"))
    assert set(one) == set(two)
    plain = torch.cat([g.flatten() for g in one["plain"].values()])
    for name in one:
        whole, halves = (torch.cat([g.flatten() for g in found[name].values()]) for found in (one, two))
        assert float((whole - halves).norm() / whole.norm()) < 1e-12, name
        if name != "plain":
            assert float((whole - plain).norm()) > 0.01 * float(plain.norm()), f"{name} is too weak to be tested"
