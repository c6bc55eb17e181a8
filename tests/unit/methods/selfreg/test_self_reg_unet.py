"""SelfReg's U-Net: size, cost, the shapes its paper lists, and its blocks as SelfReg finds them."""

import json

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from toolkit import registry
from toolkit.errors import ConfigError
from toolkit.features.capture import capture
from toolkit.methods.selfreg.regularizer import SelfReg
from toolkit.methods.selfreg.unet import self_reg_unet
from toolkit.training.segmentation import SegmentationObjective
from toolkit.training.step import TrainingStep


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def double(inputs: int, middle: int, outputs: int) -> int:
    return 9 * inputs * middle + 2 * middle + 9 * middle * outputs + 2 * outputs


def test_parameters_and_cost_are_the_published_ones() -> None:
    encoder = double(1, 64, 64) + double(64, 128, 128) + double(128, 256, 256) + double(256, 512, 512)
    bottleneck = double(512, 512, 512)
    decoder = double(1024, 512, 256) + double(512, 256, 128) + double(256, 128, 64) + double(128, 64, 64)
    expected = encoder + bottleneck + decoder + 64 * 9 + 9
    with torch.device("meta"):
        network = self_reg_unet()
    assert sum(p.numel() for p in network.parameters()) == expected
    assert expected / 1e6 == pytest.approx(17.26, abs=0.005)
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 1, 224, 224, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(30.6, abs=0.05)


def test_students_and_teacher_have_the_stated_shapes() -> None:
    with torch.device("meta"):
        network = self_reg_unet().eval()
    with capture(network, ["encoder.*", "bottleneck", "decoder.*", "head_input"]) as tape:
        logits = network(torch.empty(1, 1, 224, 224, device="meta"))
    shapes = {name: (tensor.shape[1], tensor.shape[2]) for name, tensor in tape.items()}
    assert [shapes[f"encoder.{k}"] for k in (2, 3, 4)] == [(128, 112), (256, 56), (512, 28)]
    assert shapes["bottleneck"] == (512, 14)
    assert [shapes[f"decoder.{k}"] for k in (4, 3, 2)] == [(256, 28), (128, 56), (64, 112)]
    assert shapes["decoder.1"] == shapes["head_input"] == (64, 224)
    assert shapes["encoder.1"] == (64, 224)
    assert logits.shape == (1, 9, 224, 224)


def test_the_skip_comes_first_in_the_concatenation() -> None:
    network = self_reg_unet(width=4).eval()
    with capture(network, ["encoder.4", "decoder.4.conv:input"]) as tape, torch.no_grad():
        network(random(1, 1, 32, 32))
    assert torch.equal(tape["decoder.4.conv:input"][:, :32], tape["encoder.4"])


def test_selfreg_finds_its_seven_students() -> None:
    network = self_reg_unet(1, 3, width=4)
    regularizer = SelfReg()
    wanted = regularizer.taps_on(network)
    assert set(wanted) - {"head_input"} == {
        "encoder.2",
        "encoder.3",
        "encoder.4",
        "bottleneck",
        "decoder.4",
        "decoder.3",
        "decoder.2",
    }
    batch = {"image": random(2, 1, 32, 32), "label": torch.randint(0, 3, (2, 1, 32, 32))}
    result = TrainingStep(network, SegmentationObjective(), [regularizer])(batch)
    assert result.terms["selfreg/scr"] > 0
    assert result.terms["selfreg/ifd"] > 0


@pytest.mark.parametrize("size", [(16, 16), (33, 47), (100, 77)])
def test_odd_sizes_are_padded_inside(size: tuple[int, int]) -> None:
    network = self_reg_unet(2, 3, width=4).eval()
    with torch.no_grad():
        assert network(random(1, 2, *size)).shape == (1, 3, *size)


def test_volumes() -> None:
    network = self_reg_unet(1, 2, width=4, dims=3).eval()
    with torch.no_grad():
        assert network(random(1, 1, 16, 32, 17)).shape == (1, 2, 16, 32, 17)


def test_it_is_rebuilt_from_its_description() -> None:
    network = self_reg_unet(3, 2, width=4)
    twin = registry.build("model", json.loads(json.dumps(registry.describe(network))))
    twin.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(twin.eval()(random(1, 3, 32, 32)), network.eval()(random(1, 3, 32, 32)))


def test_figure_layers_are_nine_blocks_that_run() -> None:
    network = self_reg_unet(width=4).eval()
    with capture(network, [*network.attention_layers, *network.toolkit_taps]) as tape, torch.no_grad():
        network(random(1, 1, 32, 32))
    assert len(network.attention_layers) == 9
    assert [tape[name].shape[-1] for name in network.attention_layers] == [32, 16, 8, 4, 2, 4, 8, 16, 32]


@pytest.mark.parametrize("settings", [{"dims": 1}, {"out_channels": 1}, {"in_channels": 0}])
def test_settings_that_cannot_work(settings: dict) -> None:
    with pytest.raises(ConfigError):
        self_reg_unet(**settings)


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 32, 32), (1, 1, 8, 32)])
def test_images_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="This network takes"):
        self_reg_unet(width=4)(torch.zeros(shape))
