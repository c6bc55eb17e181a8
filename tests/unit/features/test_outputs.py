"""Finding the logits among whatever a network returns, and saying which input a network failed on."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from networks import Awkward
from torch import Tensor, nn

from toolkit.errors import DataError, LayerError
from toolkit.explain.sanity import shuffled
from toolkit.features.names import layers
from toolkit.features.outputs import forward, logits_of, main_output
from toolkit.features.untouched import untouched


def test_the_highest_resolution_counts_and_the_first_of_equals() -> None:
    low, high, second = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)

    @dataclasses.dataclass
    class Found:
        masks: list[Tensor]
        count: int = 2

    for output in ([low, high, second], (low, (high, second)), {"a": low, "b": [high]}, Found([low, high])):
        assert main_output(output) is high
    with pytest.raises(LayerError, match="without a floating-point tensor"):
        main_output([torch.zeros(2, dtype=torch.long), "text"])


def test_a_stack_of_deep_supervision_gives_its_first() -> None:
    image, stack = (torch.zeros(2, 1, 8, 8), torch.arange(2 * 4 * 3.0).view(2, 4, 3, 1, 1).expand(-1, -1, -1, 8, 8))
    assert torch.equal(main_output(stack, image), stack[:, 0])
    assert torch.equal(main_output([stack], image), stack[:, 0])
    assert torch.equal(main_output(stack.transpose(0, 1), image), stack[:, 0])
    volume = torch.zeros(2, 1, 4, 8, 8)
    assert main_output(stack, volume) is stack  # five axes are what a volume's logits have


def test_a_network_that_keeps_outputs_is_given_back_without_them() -> None:
    net, image = Awkward().train(), torch.randn(2, 1, 16, 16)
    net.attention.kept.append(mine := torch.zeros(1))
    with untouched(net, "train"):
        assert logits_of(net, image).shape == (2, 3, 16, 16)
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
        forward(net.train(), torch.zeros(1, 1, 32, 32))
    with pytest.raises(DataError, match=r"shape \(1, 1, 8, 8\).*[Ss]ize"):
        layers(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Upsample(size=(4, 4)), nn.Conv2d(2, 1, 5)), torch.zeros(1, 1, 8, 8))
