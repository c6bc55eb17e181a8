"""Weights from files, and networks from run directories."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import save_weights
from torch import nn

from toolkit.errors import CheckpointError, ConfigError
from toolkit.models.load import load_weights, read_weights
from toolkit.models.unet import UNet, unet
from toolkit.training.load import load_model, load_run


def other() -> UNet:
    return unet(1, 2, channels=(4, 8, 8))


def equal(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"network_weights": s, "optimizer": {"a": 1}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"model": {f"_orig_mod.module.{k}": v for k, v in s.items()}},
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
def test_pytorch_files_with_wrappers_and_prefixes(network: UNet, tmp_path: Path, wrap: Any, suffix: str) -> None:
    torch.save(wrap(network.state_dict()), tmp_path / f"w{suffix}")
    model = other()
    report = load_weights(model, tmp_path / f"w{suffix}")
    assert report.complete
    assert equal(model, network)


def test_safetensors_round_trip_with_tied_weights(tmp_path: Path) -> None:
    shared = nn.Conv2d(2, 2, 1)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    path = save_weights(model, tmp_path / "w.safetensors")
    copy = nn.Sequential(twin := nn.Conv2d(2, 2, 1), nn.ReLU(), twin)
    assert load_weights(copy, path).complete
    assert equal(copy, model)
    assert set(read_weights(path)) == set(model.state_dict())


def test_what_does_not_match_is_listed_and_nothing_is_changed(network: UNet, tmp_path: Path) -> None:
    state = network.state_dict()
    state["stranger"] = torch.zeros(3)
    del state["head.bias"]
    state["head.weight"] = torch.zeros(5, 4, 1, 1)
    torch.save(state, tmp_path / "w.pth")
    model = other()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="do not fit") as caught:
        load_weights(model, tmp_path / "w.pth")
    for words in (
        "missing in the file: head.bias",
        "unknown to the model: stranger",
        "head.weight: model (2, 4, 1, 1), file (5, 4, 1, 1)",
    ):
        assert words in str(caught.value)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    report = load_weights(model, tmp_path / "w.pth", strict=False)
    assert report.missing == ("head.bias",)
    assert torch.equal(model.head.weight, before["head.weight"])
    assert torch.equal(model.bottleneck.conv1.weight, network.bottleneck.conv1.weight)


def test_a_checkpoint_with_numpy_numbers_as_nnunet_writes_it(network: UNet, tmp_path: Path) -> None:
    numbers = {"_best_ema": np.float64(0.7), "logging": {"dice": [np.float32(0.5), np.int64(3), np.bool_(True)]}}
    torch.save({"network_weights": network.state_dict(), **numbers}, tmp_path / "checkpoint_final.pth")
    model = other()
    assert load_weights(model, tmp_path / "checkpoint_final.pth").complete
    assert equal(model, network)


def test_numpy_objects_are_refused_all_the_same(network: UNet, tmp_path: Path) -> None:
    torch.save({"state_dict": network.state_dict(), "x": np.array([1, 2])}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="numpy"):
        load_weights(network, tmp_path / "w.pth")


def test_a_module_that_holds_the_network_twice_says_under_which_prefixes(network: UNet, tmp_path: Path) -> None:
    student, teacher = network.state_dict(), other().state_dict()
    state = {f"student.{k}": v for k, v in student.items()} | {f"ema.teacher.{k}": v for k, v in teacher.items()}
    torch.save({"state_dict": {**state, "loss.weight": torch.ones(3)}}, tmp_path / "both.ckpt")
    model = other()
    with pytest.raises(CheckpointError, match=r"prefix='ema.teacher.' or prefix='student.'") as caught:
        load_weights(model, tmp_path / "both.ckpt")
    assert f"'student.' ({len(student)} names)" in str(caught.value)
    report = load_weights(model, tmp_path / "both.ckpt", prefix="student.")
    assert report.complete
    assert report.prefix == "student."
    assert equal(model, network)


def test_a_module_that_holds_the_network_beside_others_says_which_prefix(network: UNet, tmp_path: Path) -> None:
    state = {f"net.{k}": v for k, v in network.state_dict().items()}
    torch.save({"state_dict": {**state, "loss.weight": torch.ones(3)}}, tmp_path / "module.ckpt")
    with pytest.raises(CheckpointError, match=r"loss\.weight[\s\S]*prefix='net\.'"):
        load_weights(other(), tmp_path / "module.ckpt")
    assert load_weights(model := other(), tmp_path / "module.ckpt", strict=False).unexpected == ("loss.weight",)
    assert equal(model, network)


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("kind", ["zip", "plain", "safetensors", "module"])
def test_files_that_want_to_run_code_are_refused(network: UNet, tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "zip":
        torch.save({"state_dict": Payload(tmp_path / "executed")}, path)
    elif kind == "module":
        torch.save(network, path)
    else:
        path.write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    with pytest.raises(CheckpointError, match=r"run code|safetensors") as caught:
        load_weights(network, path)
    assert "weights_only" not in str(caught.value), "torch's advice to switch its protection off is not passed on"
    assert ("asks for toolkit.models.unet.UNet" in str(caught.value)) == (kind == "module")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04 torn"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".h5"])
def test_damaged_and_foreign_files(network: UNet, tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(path)):
        load_weights(network, path)
    with pytest.raises(CheckpointError, match="no such"):
        load_weights(network, tmp_path / "absent.pth")


def test_a_truncated_file(network: UNet, tmp_path: Path) -> None:
    for path in (save_weights(network, tmp_path / "w.safetensors"), tmp_path / "w.pth"):
        if path.suffix == ".pth":
            torch.save(network.state_dict(), path)
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(CheckpointError):
            load_weights(network, path)


def test_a_runs_network_in_all_its_versions(trained: Any) -> None:
    run = trained(steps=12, validate_every=1, checkpoint_every=6, learning_rate=0.3, schedule="constant")
    assert equal(load_model(run.path), run.model)
    assert not load_model(run.path).training
    assert not equal(load_model(run.path, "last"), run.model) or run.selected_step == 12
    assert equal(load_model(run.path, "best"), run.model)
    assert equal(load_model(run.path, 12), load_model(run.path, "last"))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model(run.path, 5000)
    with pytest.raises(ConfigError, match="no set of weights 'first'"):
        load_model(run.path, "first")


def test_loading_does_not_draw_from_the_global_generator(trained: Any) -> None:
    run = trained()
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    load_model(run.path)
    assert torch.equal(torch.rand(2), expected)


def test_load_run_gives_a_run_to_look_at(trained: Any) -> None:
    run = trained()
    again = load_run(run.path, task=run.task)
    assert again.history.equals(run.history)
    assert again.evaluate("val").equals(run.evaluate("val"))
    with pytest.raises(CheckpointError, match="task="):
        load_run(run.path)
