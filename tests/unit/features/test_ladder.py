"""Stages of networks that are not ours, against what their code says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toolkit.errors import ConfigError, ProtocolError
from toolkit.features.ladder import Span, find_ladder
from toolkit.features.names import resolve, stages
from toolkit.inference.layers import layers
from toolkit.methods.selfreg.regularizer import SelfReg
from toolkit.training.protocol import StepContext
from toolkit.training.segmentation import SegmentationObjective
from toolkit.training.step import TrainingStep


def monai_nets() -> Any:
    from monai.networks import nets

    return nets


Stages = tuple[list[str], str, list[str]]
MONAI: dict[str, tuple[Callable[[], nn.Module], Stages]] = {
    "BasicUNet": (
        lambda: monai_nets().BasicUNet(2, 1, 3, features=(4, 4, 8, 8, 8, 4)),
        (["conv_0", "down_1", "down_2", "down_3"], "down_4", ["upcat_4", "upcat_3", "upcat_2", "upcat_1"]),
    ),
    "SegResNetDS": (
        lambda: monai_nets().SegResNetDS(2, 8, 1, 3, blocks_down=(1, 1, 1), dsdepth=2),
        (
            ["encoder.layers.0.blocks", "encoder.layers.1.blocks"],
            "encoder.layers.2.blocks",
            ["up_layers.0.blocks", "up_layers.1.blocks"],
        ),
    ),
    "UNet++": (
        lambda: monai_nets().BasicUNetPlusPlus(2, 1, 3, features=(4, 4, 8, 8, 8, 4)),
        (
            ["conv_0_0", "conv_1_0", "conv_2_0", "conv_3_0"],
            "conv_4_0",
            ["upcat_3_1", "upcat_2_2", "upcat_1_3", "upcat_0_4"],
        ),
    ),
    "VNet": (
        lambda: monai_nets().VNet(2, 1, 3),
        (
            ["in_tr", "down_tr32", "down_tr64", "down_tr128"],
            "down_tr256",
            ["up_tr256", "up_tr128", "up_tr64", "out_tr.act_function1"],
        ),
    ),
}


@pytest.mark.parametrize("name", MONAI)
def test_the_stages_of_published_networks(name: str) -> None:
    build, (encoder, bottleneck, decoder) = MONAI[name]
    ladder = stages(build(), torch.zeros(1, 1, 32, 32))
    assert (list(ladder.encoder), ladder.bottleneck, list(ladder.decoder)) == (encoder, bottleneck, decoder)


class Traps(nn.Module):
    """An encoder with a pooled branch, an identity nobody uses, a position embedding and a 1x1 before it goes up."""

    class SinePositionEmbedding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones_like(x)

    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.squeeze, self.conv = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(nn.functional.interpolate(self.squeeze(x), scale_factor=2.0))

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1)
        self.branch = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Conv2d(8, 8, 1))
        self.project, self.dead, self.position = nn.Conv2d(16, 8, 1), nn.Identity(), self.SinePositionEmbedding()
        self.up1, self.auxiliary = self.Up(), nn.Conv2d(8, 3, 1)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down2(self.down1(x))
        pooled = nn.functional.interpolate(self.branch(x), size=x.shape[2:])
        x = self.project(torch.cat((x, pooled), 1))
        self.dead(x)
        logits = self.head(self.up1(x + self.position(x)))
        self.auxiliary(x)
        return nn.functional.interpolate(logits, scale_factor=2.0)


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (1, 4, 2)])
def test_thick_slices_that_are_halved_less_often_along_one_axis_have_the_same_stages(stride: tuple[int, ...]) -> None:
    strides = [(1, 1, 1), stride, (2, 2, 2)]
    net = monai_nets().DynUNet(3, 1, 2, [3] * 3, strides, upsample_kernel_size=strides[1:], filters=[4, 4, 4])
    ladder = stages(net, torch.zeros(1, 1, 16, 32, 32))
    assert ladder.encoder == ("input_block", "downsamples.0")
    assert ladder.bottleneck == "bottleneck"
    assert ladder.decoder == ("skip_layers.next_layer", "skip_layers")  # each upsamples a skip and what lies below it


def test_what_is_no_stage_is_left_out() -> None:
    net, image = Traps(), torch.zeros(1, 1, 32, 32)
    ladder = stages(net, image)
    assert (ladder.encoder, ladder.bottleneck, ladder.decoder) == (("down1",), "project", ("up1",))
    assert resolve(net, ["bottleneck", "head_input", "decoder_1"], image) == ["project", "head:input", "up1"]


def test_tokens_count_by_their_grid_and_what_happens_inside_them_does_not() -> None:
    shapes = [
        ("embed", (1, 8, 16, 16), (1, 1, 64, 64)),
        ("block", (1, 256, 8), (1, 256, 8)),
        ("deep", (1, 16, 8), None),
    ]
    spans = [
        Span(name, "Linear", 10 * i, 10 * i + 5, entered, shape) for i, (name, shape, entered) in enumerate(shapes)
    ]
    spans.insert(1, Span("block.reduced", "Conv2d", 12, 13, (1, 8, 16, 16), (1, 8, 4, 4)))
    spans.append(Span("up", "Conv2d", 40, 41, (1, 8, 4, 4), (1, 8, 16, 16)))
    ladder = find_ladder(spans, (64, 64))
    assert (ladder.encoder, ladder.bottleneck, ladder.decoder) == (("block",), "deep", ("up",))


def test_selfreg_teaches_the_stages_it_finds_and_says_which() -> None:
    torch.manual_seed(0)
    net = MONAI["BasicUNet"][0]()
    batch = {"image": torch.randn(2, 1, 32, 32), "label": torch.randint(0, 3, (2, 1, 32, 32))}
    regularizer = SelfReg(scr=1.0, ifd=0.0, mode="expected")
    step = TrainingStep(net, SegmentationObjective(), [regularizer])
    terms = step(batch).terms
    taps = ("down_1", "down_2", "down_3", "down_4", "upcat_4", "upcat_3", "upcat_2", "head_input")
    assert step.wanted(regularizer) == taps
    table = regularizer.describe(net)
    assert table["layer"].tolist() == list(taps)
    assert table["part"].tolist() == ["encoder"] * 4 + ["decoder"] * 3 + ["teacher"]
    by_hand = SelfReg(1.0, 0.0, "expected", groups={"encoder": list(taps[:4]), "decoder": list(taps[4:7])})
    other = TrainingStep(net, SegmentationObjective(), [by_hand])
    assert float(other(batch).terms["selfreg/scr"]) == pytest.approx(float(terms["selfreg/scr"]), rel=1e-5)


def test_selfreg_without_stages_names_groups_and_teacher() -> None:
    flat = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    for message in ("groups=", "teacher="):
        with pytest.raises(ProtocolError, match=message):
            SelfReg().taps_on(flat)
        with pytest.raises(ConfigError, match=message):
            SelfReg(groups={"encoders": ["a"]})
        with pytest.raises(ProtocolError, match=message):
            SelfReg()(StepContext(batch={}, model=flat, features={"head_input": torch.zeros(1, 2, 4, 4)}))


def test_the_table_of_layers_shows_the_stages() -> None:
    table = layers(MONAI["BasicUNet"][0](), torch.zeros(1, 1, 32, 32)).set_index("name")
    assert table.loc["down_4", "aliases"] == "bottleneck"
    assert table.loc["upcat_1", "aliases"] == "decoder_1"
    assert table.loc["upcat_4", "aliases"] == "decoder_4"
