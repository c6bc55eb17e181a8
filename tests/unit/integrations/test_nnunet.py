"""What can be held without nnU-Net; with it, `benchmarks/nnunet_joint.py` runs the real commands and compares."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import toolkit as tk
from toolkit.integrations.nnunet import EXTERNAL
from toolkit.integrations.nnunet.results import NnUNetFiles


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


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of trainers, on a stand-in of nnU-Net's class."""
    name = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"
    nothing: Any = lambda self, *_: {}  # noqa: E731
    stand_in = ModuleType(name)
    methods = ("on_train_epoch_start", "train_step", "on_train_epoch_end", "print_to_log_file")
    stand_in.nnUNetTrainer = type("nnUNetTrainer", (), dict.fromkeys(methods, nothing))
    monkeypatch.setitem(sys.modules, name, stand_in)
    monkeypatch.delitem(sys.modules, "toolkit.integrations.nnunet.trainers", raising=False)
    module = importlib.import_module("toolkit.integrations.nnunet.trainers")
    monkeypatch.delitem(sys.modules, "toolkit.integrations.nnunet.trainers")
    return module


def test_a_convex_combination_takes_its_share_of_the_stock_loss(trainers: ModuleType) -> None:
    """(1 - 1/4) * stock + 1/4 * value."""
    trainer = object.__new__(trainers.nnUNetTrainerSegReg)
    model, image, label = tk.unet(1, 2, channels=(4, 8)), torch.rand(2, 1, 16, 16), torch.ones(2, 1, 16, 16)
    trainer._attached = tk.attach(tk.SegReg(weight=0.25, samples=64, directions=4, convex=True), model)
    trainer._images, trainer._step = image, 3
    loss = trainers._RegularizedLoss(torch.nn.MSELoss(), trainer)(model(image)[:, :1], label)
    stock = torch.nn.functional.mse_loss(model(image)[:, :1], label)
    (value,) = trainer._attached.terms.values()
    assert float(loss.detach()) == pytest.approx(0.75 * float(stock.detach()) + 0.25 * float(value), rel=1e-6)


def test_the_history_of_a_run_that_was_killed_holds_every_epoch_once(trainers: ModuleType, tmp_path: Path) -> None:
    """nnU-Net writes a checkpoint every 50 epochs: `--c` takes the epochs after it again, and they stood there twice."""
    trainer = object.__new__(trainers.nnUNetTrainerSegReg)
    trainer.output_folder, trainer.local_rank, trainer.device = tmp_path, 0, torch.device("cpu")
    trainer.num_iterations_per_epoch = 2
    for epoch, value in [(0, 0.0), (1, 1.0), (2, 2.0), (1, 10.0)]:  # the checkpoint is the first epoch's
        trainer.current_epoch = epoch
        trainer._attached = SimpleNamespace(terms={"segreg/loss": torch.tensor(value)})
        trainer.on_train_epoch_start()
        for _ in range(2):
            trainer.train_step({"data": torch.zeros(1)})
        trainer.on_train_epoch_end([])
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [(row["step"], row["segreg/loss"]) for row in rows] == [(2, 0.0), (4, 10.0)]


def test_a_volume_is_called_by_its_whole_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the raw folders of nnU-Net: CASE_0000 and the ending that dataset.json tells; a case may hold dots."""
    files = object.__new__(NnUNetFiles)
    files.dataset, files.dims = {"file_ending": ".nii.gz"}, 3
    files.configuration = SimpleNamespace(spacing=(1.0, 1.0, 1.0))
    monkeypatch.setattr(files, "_prepared", lambda *_: (torch.zeros(1, 2, 2, 2).numpy(), None, {}))
    names = [next(files.items([f"images/{one}_0000.nii.gz"]))["id"] for one in ("1.2.840.1", "1.2.840.2")]
    assert names == ["1.2.840.1", "1.2.840.2"]


def test_what_nnunet_marks_as_outside_is_background(tmp_path: Path) -> None:
    """`crop_to_nonzero` writes -1 into the background where the image is 0; its trainers read it as 0 (RemoveLabel)."""

    class Preprocessor:
        def __init__(self, verbose: bool) -> None:
            pass

        def run_case(self, images: object, label: object, *_: object) -> tuple[Any, Any, dict[str, Any]]:
            return np.zeros((1, 1, 1, 3)), np.array([[[[-1, 0, 2]]]], np.int8), {}

    for name in ("a_0000.nii.gz", "label.nii.gz"):
        (tmp_path / name).touch()
    files = object.__new__(NnUNetFiles)
    files.dataset, files.dims, files.channels, files.plans = {"file_ending": ".nii.gz"}, 3, 1, None
    files.configuration = SimpleNamespace(spacing=(1.0, 1.0, 1.0), preprocessor_class=Preprocessor)
    (item,) = files.items([str(tmp_path / "a_0000.nii.gz")], str(tmp_path / "label.nii.gz"))
    assert item["label"].tolist() == [[[0, 0, 2]]]
    assert next(files.items([str(tmp_path / "a_0000.nii.gz")]))["label"] is None
