"""ResNet-50 weights that the user brings as a file, in the encoder of Med-DisSeg."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from networks import save_weights
from torch import Tensor, nn

from toolkit.errors import CheckpointError
from toolkit.methods.med_disseg import load_backbone, med_disseg, med_disseg_stage_one

ENCODER = ("layer0.", "layer1.", "layer2.", "layer3.")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def resnet50(width: int = 64) -> dict[str, Tensor]:
    """A state dictionary with the names and shapes of the usual ResNet-50 release."""
    state = {
        "conv1.weight": (width, 3, 7, 7),
        **norm("bn1", width),
        "fc.weight": (1000, 32 * width),
        "fc.bias": (1000,),
    }
    inputs = width
    for stage, units in enumerate((3, 4, 6, 3)):
        planes = width * 2**stage
        for unit in range(units):
            prefix = f"layer{stage + 1}.{unit}"
            state |= {
                f"{prefix}.conv1.weight": (planes, inputs, 1, 1),
                **norm(f"{prefix}.bn1", planes),
                f"{prefix}.conv2.weight": (planes, planes, 3, 3),
                **norm(f"{prefix}.bn2", planes),
                f"{prefix}.conv3.weight": (4 * planes, planes, 1, 1),
                **norm(f"{prefix}.bn3", 4 * planes),
            }
            if unit == 0:
                state |= {
                    f"{prefix}.downsample.0.weight": (4 * planes, inputs, 1, 1),
                    **norm(f"{prefix}.downsample.1", 4 * planes),
                }
            inputs = 4 * planes
    return {name: random(*shape, seed=k) for k, (name, shape) in enumerate(state.items())}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}


def test_a_resnet50_file_fills_the_encoder(tmp_path: Path) -> None:
    state = resnet50()
    assert sum(v.numel() for k, v in state.items() if "running" not in k) == 25_557_032  # the size of ResNet-50
    torch.save(state, tmp_path / "resnet50.pth")
    network = med_disseg_stage_one()
    filled = load_backbone(network, tmp_path / "resnet50.pth")
    own = network.state_dict()
    assert torch.equal(own["layer0.0.weight"], state["conv1.weight"])
    assert torch.equal(own["layer0.1.running_var"], state["bn1.running_var"])
    assert torch.equal(own["layer1.1.2.conv3.weight"], state["layer1.2.conv3.weight"])
    assert torch.equal(own["layer3.0.downsample.1.bias"], state["layer3.0.downsample.1.bias"])
    assert set(filled) == {k for k in own if k.startswith(ENCODER) and not k.endswith("num_batches_tracked")}


def test_the_hash_of_a_weights_file_is_checked_before_it_is_read(tmp_path: Path) -> None:
    state = resnet50()
    path = save_weights(StateHolder(state), tmp_path / "resnet50.safetensors")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    network = med_disseg_stage_one()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    other = ("0" if digest[0] != "0" else "1") + digest[1:]
    for wrong, message in (
        (other, f"is {digest}"),
        (other[:8], f"is {digest}"),
        ("abc", "8 to 64"),
        ("z" * 64, "8 to 64"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_backbone(network, path, wrong)
    with pytest.raises(CheckpointError, match="no such"):
        load_backbone(network, tmp_path / "absent.pth", digest)
    with pytest.raises(CheckpointError, match="needs a file"):
        load_backbone(network, state, digest)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    for right in (digest, digest[:8].upper()):
        assert "layer0.0.weight" in load_backbone(network, path, right)
    assert torch.equal(network.state_dict()["layer0.0.weight"], state["conv1.weight"])


class StateHolder(nn.Module):
    """A module whose state dictionary is the given one."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.held = state

    def state_dict(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        return self.held


@pytest.mark.parametrize("damage", ["missing", "shape", "other"])
def test_wrong_backbones_change_nothing(damage: str) -> None:
    torch.manual_seed(0)
    small = med_disseg(width=16, encoder_width=4)
    state = resnet50(4)
    if damage == "missing":
        del state["layer2.1.bn2.bias"]
    elif damage == "shape":
        state["conv1.weight"] = random(4, 1, 7, 7)
    else:
        state = {"backbone.weight": random(3, 3)}
    before = {k: v.clone() for k, v in small.state_dict().items()}
    with pytest.raises(CheckpointError, match="do not fill the encoder"):
        load_backbone(small, state)
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())
