"""Networks of MONAI bundles: built as MONAI builds them, and nothing of a bundle is executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, init_bundle
from monai.bundle.scripts import DEFAULT_INFERENCE
from monai.networks.nets import SegResNet

import toolkit as tk

UNET = {
    "_target_": "UNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2],
    "norm": ["INSTANCE", {"affine": True}],
}  # fmt: skip


def bundle(folder: Path, network: Any, **others: Any) -> Path:
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps({"network_def": network, **others}))
    return folder


@pytest.mark.parametrize("target", ["UNet", "monai.networks.nets.UNet", "monai.networks.nets.unet.UNet"])
def test_a_bundles_network_is_the_one_that_monai_builds(tmp_path: Path, target: str) -> None:
    entry = {**UNET, "_target_": target}
    folder = bundle(tmp_path / "b", entry, device="$torch.device('cuda')")
    theirs = ConfigParser({"network_def": entry}).get_parsed_content("network_def").eval()
    torch.save(theirs.state_dict(), folder / "models" / "model.pt")
    image = torch.randn(1, 1, 16, 16)
    model = tk.load_bundle(folder)
    assert not model.training
    with torch.no_grad():
        assert torch.equal(model(image), theirs(image))
    assert tk.predict(model, image).shape[-2:] == (16, 16)


def test_a_bundle_that_monai_itself_wrote(tmp_path: Path) -> None:
    """`init_bundle` fills its template: expressions stand beside `network_def`, which is all that is read."""
    theirs = SegResNet(spatial_dims=2, init_filters=8, in_channels=1, out_channels=3).eval()
    entry = {"_target_": "SegResNet", "spatial_dims": 2, "init_filters": 8, "in_channels": 1, "out_channels": 3}
    folder = tmp_path / "organs"
    init_bundle(folder, network=theirs, inference_str={**DEFAULT_INFERENCE, "network_def": entry})
    assert "$" in (folder / "configs" / "inference.json").read_text()
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(tk.load_bundle(folder)(image), theirs(image))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"act": "$open('executed', 'w')"}, "could run code"),
        ({"act": ["PRELU", {"init": "$1/0"}]}, "could run code"),
        ({"channels": "@channels"}, "could run code"),
        ({"_target_": "os.system"}, "no network or layer"),
        ({"_target_": "torch.hub.load"}, "no network or layer"),
        ({"_target_": "monai.networks.nets.nonsense"}, "no network or layer"),
        ({"act": {"_target_": "builtins.open", "file": "executed"}}, "no network or layer"),
        ({"strides": [2, 2, 2, 2]}, "cannot be built|do not fit"),
    ],
)
def test_what_is_no_plain_network_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = bundle(tmp_path / "b", {**UNET, **change})
    torch.save({"a": torch.zeros(1)}, folder / "models" / "model.pt")
    with pytest.raises(tk.CheckpointError, match=said):
        tk.load_bundle(folder)
    assert not (tmp_path / "executed").exists()


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(tk.CheckpointError, match=r"no inference\.json"):
        tk.load_bundle(tmp_path)
    with pytest.raises(tk.CheckpointError, match="describes no network_def"):
        tk.load_bundle(bundle(tmp_path / "b", 3))
