"""Finding the logits among whatever a network returns, and saying which input a network failed on."""

from __future__ import annotations

import copy
import dataclasses
from typing import NamedTuple

import pytest
import torch
from networks import Awkward
from torch import Tensor, nn

from toolkit.errors import DataError, LayerError
from toolkit.features.changed_weights import shuffled
from toolkit.features.logits import find_logits, full_size, logits_by_scale
from toolkit.features.untouched import untouched
from toolkit.inference.layers import layers
from toolkit.inference.network import Predictor

IMAGE = torch.zeros(2, 1, 8, 8)
LOGITS, COARSE, FEATURES = torch.ones(2, 3, 8, 8), torch.zeros(2, 3, 4, 4), torch.zeros(2, 16, 8, 8)


@dataclasses.dataclass
class Found:
    masks: list[Tensor]
    count: int = 2


class Pair(NamedTuple):
    recon: Tensor
    logits: Tensor


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        [LOGITS],
        {"features": FEATURES, "logits": LOGITS},
        {"logits": LOGITS, "out": FEATURES},
        {"out": {"aux": COARSE, "segmentation": LOGITS}},
        Pair(FEATURES, LOGITS),
        [COARSE, LOGITS],
        (LOGITS, COARSE, torch.zeros(2, 5)),
        {"a": COARSE, "b": [LOGITS]},
        Found([COARSE, LOGITS]),
        [COARSE, LOGITS, torch.zeros(2, 8, 8, dtype=torch.long)],
    ],
)
def test_the_logits_are_named_or_the_only_tensor_of_the_images_size(output: object) -> None:
    assert find_logits(output, IMAGE) is LOGITS
    assert find_logits(output) is LOGITS


def test_deep_supervision_is_the_finest_and_of_equals_the_last() -> None:
    first, last = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    for output in ([first, last], {"output_1": first, "output_2": last}, Found([first, last])):
        assert find_logits(output, IMAGE) is last  # MONAI's UNet++: the deepest head comes last
    assert [t.shape[2] for t in logits_by_scale([COARSE, LOGITS, COARSE[..., ::2, ::2]], IMAGE)] == [8, 4, 2]
    stack = torch.arange(2 * 4 * 3.0).view(2, 4, 3, 1, 1).expand(-1, -1, -1, 8, 8)
    assert torch.equal(find_logits(stack, IMAGE), stack[:, 0])  # MONAI's DynUNet: the finest head comes first
    assert torch.equal(find_logits([stack], IMAGE), stack[:, 0])
    assert torch.equal(find_logits(stack.transpose(0, 1), IMAGE), stack[:, 0])
    volume = torch.zeros(2, 1, 4, 8, 8)
    assert find_logits(stack, volume) is stack  # five axes are what a volume's logits have


@pytest.mark.parametrize(
    ("output", "names"),
    [
        ({"recon": LOGITS[:, :1], "seg": LOGITS}, "recon .2, 1, 8, 8., seg .2, 3, 8, 8."),
        ({"recon": LOGITS[:, :1], "seg": LOGITS[:, :1]}, "recon .*, seg"),
        ((FEATURES, LOGITS), "0 .2, 16, 8, 8., 1 .2, 3, 8, 8."),
        ({"features": [FEATURES, LOGITS]}, "features.0 .*, features.1"),
    ],
)
def test_what_could_be_several_things_is_refused_with_the_names(output: object, names: str) -> None:
    with pytest.raises(LayerError, match=f"Several tensors could be the logits: {names}"):
        find_logits(output, IMAGE)


def test_select_overrides_the_rule_by_name_index_or_function() -> None:
    output = {"recon": FEATURES, "seg": LOGITS, "logits": COARSE}
    for select in ("seg", 1, -2, lambda found: found["seg"]):
        assert find_logits(output, IMAGE, select) is LOGITS
    assert find_logits([FEATURES, LOGITS], IMAGE, 1) is LOGITS
    with pytest.raises(LayerError, match=r"(?s)no entry 'mask'.*There are recon"):
        find_logits(output, IMAGE, "mask")
    with pytest.raises(LayerError, match="without a floating-point tensor"):
        find_logits([torch.zeros(2, dtype=torch.long), "text"])


def test_coarser_logits_are_enlarged_linearly_and_other_sizes_refused() -> None:
    ramp = torch.arange(4.0).view(1, 1, 4)
    expected = [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]  # half-pixel centres, by hand
    assert full_size(ramp, (8,)).flatten().tolist() == expected
    for size in ((7,), (4, 4), (6,)):
        with pytest.raises(LayerError):
            full_size(ramp, size)


def test_a_network_that_keeps_outputs_is_given_back_without_them() -> None:
    net, image = Awkward().train(), torch.randn(2, 1, 16, 16)
    net.attention.kept.append(mine := torch.zeros(1))
    with untouched(net, "train"):
        assert Predictor(net).logits(image).shape == (2, 3, 16, 16)
        assert len(net.attention.kept) == 2
    assert len(net.attention.kept) == 1
    assert net.attention.kept[0] is mine
    assert not hasattr(net.attention, "last")
    copy.deepcopy(net)


def test_a_network_that_holds_a_graph_can_be_shuffled() -> None:
    net = Awkward().train()
    net(torch.randn(2, 1, 16, 16))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(net)
    other = shuffled(net)
    assert torch.equal(other.attention.last, net.attention.last)
    assert other.attention.last is not net.attention.last


def test_a_network_that_fails_says_on_what() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3, stride=32), nn.InstanceNorm2d(2))
    with pytest.raises(DataError, match=r"shape \(1, 1, 32, 32\): ValueError: Expected more than 1 spatial"):
        Predictor(net.train()).run(torch.zeros(1, 1, 32, 32))
    with pytest.raises(DataError, match=r"shape \(1, 1, 8, 8\).*[Ss]ize"):
        layers(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Upsample(size=(4, 4)), nn.Conv2d(2, 1, 5)), torch.zeros(1, 1, 8, 8))
