"""The check of a GPU, tried on the CPU: the CPU agrees with itself, and what does not agree fails."""

from __future__ import annotations

import pytest
import torch

from toolkit.apps import gpu_check as module
from toolkit.apps.gpu_check import Sizes, gpu_check

TINY = Sizes(steps=12, side=32, side_3d=32, channels=(4, 8, 8))


@pytest.mark.slow
def test_the_cpu_agrees_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check("cpu", TINY) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith("ok")]
    assert len(table) == 5 * 2 * 2 * 2 - 2 + 2 * 3 + 2 + 2 * 3 + 1
    assert not [line for line in lines if line.startswith("FAIL")]
    exact = [line for line in table if "32:" in line and "of a step" in line]
    assert all(float(line.split()[-2]) == 0.0 for line in exact)
    assert any(line.startswith("not run:") for line in lines)


def test_a_difference_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    checks = [("close", 0.1, 0.2), ("beyond", 0.3, 0.2), ("nothing", float("nan"), 1.0)]
    for name in ("_analyses", "_training", "_kill_and_resume"):
        monkeypatch.setattr(module, name, lambda *_: [])
    monkeypatch.setattr(module, "_single_steps", lambda *_: checks)
    assert gpu_check("cpu", TINY) == 1
    assert [line[:4] for line in capsys.readouterr().out.splitlines() if line[:2] in ("ok", "FA")] == [
        "ok  ",
        "FAIL",
        "FAIL",
    ]


def test_without_a_device_there_is_nothing_to_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check() == 0
    assert "no CUDA device" in capsys.readouterr().out
