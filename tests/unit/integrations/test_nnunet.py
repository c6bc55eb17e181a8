"""What can be held without nnU-Net; with it, `benchmarks/nnunet_joint.py` runs the real commands and compares."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import toolkit as tk
from toolkit.integrations.nnunet import EXTERNAL


def test_the_external_folder_holds_the_trainers_alone() -> None:
    """nnU-Net imports every module of the folder that the variable names."""
    (file,) = EXTERNAL.glob("*.py")
    for name in ("nnUNetTrainerSegReg", "nnUNetTrainerSelfReg", "nnUNetTrainerDispersive"):
        assert name in file.read_text(encoding="utf-8")


def test_a_folder_without_plans_is_refused(tmp_path: Path) -> None:
    with pytest.raises(tk.CheckpointError, match=r"plans\.json cannot be read"):
        tk.load_nnunet(tmp_path)


def test_an_unknown_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(tk.ConfigError, match="no checkpoint 'finl'"):
        tk.load_nnunet(tmp_path, checkpoint="finl")


@pytest.mark.parametrize("broken", ["{", "[1"])
def test_damaged_plans_are_refused(tmp_path: Path, broken: str) -> None:
    (tmp_path / "plans.json").write_text(broken)
    with pytest.raises(tk.CheckpointError, match=r"plans\.json"):
        tk.load_nnunet(tmp_path)


def test_without_nnunet_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("plans", "dataset"):
        (tmp_path / f"{name}.json").write_text(json.dumps({}))
    monkeypatch.setitem(__import__("sys").modules, "nnunetv2", None)
    with pytest.raises(tk.ConfigError, match="nnU-Net cannot be imported"):
        tk.load_nnunet(tmp_path)
